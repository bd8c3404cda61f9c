"""Which pairs of videos a study shows: pairs to rate and attention checks, out of anonymous copies."""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from medgen.catalog import StudyPair
from medgen.errors import RunStopped
from medgen.ledger import Ledger, Record
from tasks.evaluation.anonymise import ANONYMISED, AnonymiseParams, Form, anonymise_videos
from tasks.evaluation.system_videos import SystemVideo, SystemVideos

MAX_PAIRS = 2000
Place = Literal["first", "second"]
PLACES: tuple[Place, Place] = ("first", "second")


@dataclass(frozen=True)
class Design:
    """What raters are shown.

    Args:
        rows: in order of their numbers.
        used: (number of the row and place, record of the copy that stands there).
        rated, checks: how many rows of each kind.
        shown: (system, text of the prompt) of the rated videos.
    """

    rows: Sequence[StudyPair]
    used: Sequence[tuple[str, Record]]
    rated: int
    checks: int
    shown: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Pair:
    """Two systems' videos of one prompt, whose text is `text`."""

    first: str
    second: str
    text: str


class AnonymousCopies:
    """Anonymous copies, made when they are asked for."""

    def __init__(
        self, ledger: Ledger, systems: Mapping[str, SystemVideos], params: AnonymiseParams,
        progress: Callable[[int, int], None] | None,
    ) -> None:  # fmt: skip
        self.ledger, self.systems, self.progress = ledger, systems, progress
        # Nothing else of the study may enter the copies' key: other studies use them too.
        self.params = AnonymiseParams(**{name: getattr(params, name) for name in AnonymiseParams.model_fields})
        self.records: dict[tuple[str, Form], Record] = {}  # (sha256 of the original, form) → record

    def make(self, wanted: Sequence[tuple[str, str, Form]]) -> None:
        """(system, prompt text, form) of the copies to make."""
        videos = {(self.original(s, t).sha256, form): self.original(s, t) for s, t, form in wanted}
        todo = {key: video for key, video in videos.items() if key not in self.records}
        if not todo:
            return
        parents = {video.sha256: video.step_run_id for video in todo.values() if video.step_run_id is not None}
        result = anonymise_videos(
            self.ledger, [(video.path, sha, form) for (sha, form), video in todo.items()],
            self.params, parents=parents, progress=self.progress,
        )  # fmt: skip
        records = self.ledger.load(result.records)
        self.records |= {key: records[run_id] for key, run_id in zip(todo, result.records, strict=True)}

    def original(self, system: str, text: str) -> SystemVideo:
        """The video of a system for a prompt."""
        return self.systems[system].videos[text]

    def record(self, system: str, text: str, form: Form = "whole") -> Record:
        """The record of a copy that was made."""
        return self.records[self.original(system, text).sha256, form]


def design_pairs(
    name: str,
    systems: Mapping[str, SystemVideos],
    number: int,
    checks: int,
    seed: int,
    copies: AnonymousCopies,
    left_out: dict[str, str],
) -> Design:
    """Pairs to rate, then attention checks. Arguments and errors as of `choose_pairs` and `choose_checks`."""
    chosen = choose_pairs(systems, number, seed, copies, left_out)
    chosen_checks = choose_checks(chosen, checks, seed, copies)
    rows = [rated_row(name, at, pair, copies) for at, pair in enumerate(chosen, 1)]
    rows += [
        check_row(name, at, pair, system, good, copies)
        for at, (pair, system, good) in enumerate(chosen_checks, len(rows) + 1)
    ]
    bases = [*chosen, *(pair for pair, _, _ in chosen_checks)]
    used = [
        (f"{row.number:04}/{place}", record)
        for row, pair in zip(rows, bases, strict=True)
        for place, record in copies_of(row, pair, copies)
    ]
    shown = [(system, pair.text) for pair in chosen for system in (pair.first, pair.second)]
    return Design(rows, used, len(chosen), len(chosen_checks), shown)


def choose_pairs(
    systems: Mapping[str, SystemVideos], number: int, seed: int, copies: AnonymousCopies, left_out: dict[str, str]
) -> list[Pair]:
    """Pairs in random order, the systems' pairings in turn; of those whose videos can't be read others take the place.

    A prompt is used in as many pairings as the number asks for, each pairing with prompts in an order of its own.

    Args:
        number: of pairs; 0: all there are.
        left_out: name of a video → why it is in no pair; filled here.

    Raises:
        RunStopped: no prompt that two systems share; no pair whose videos can be read; fewer pairs than asked for.
    """
    draw = random.Random(f"{seed}/pairs")
    queues: list[list[Pair]] = []
    for first, second in itertools.combinations(systems, 2):
        shared = sorted(systems[first].videos.keys() & systems[second].videos.keys())
        draw.shuffle(shared)
        queues.append([Pair(first, second, text) for text in shared])
    candidates = [pair for row in itertools.zip_longest(*queues) for pair in row if pair is not None]
    if not candidates:
        texts = {label: next(iter(system.videos), "") for label, system in systems.items()}
        shown = "; ".join(f"{label} has for example {text[:60]!r}" for label, text in texts.items())
        raise RunStopped(f"no two systems have a video of the same prompt: {shown}")
    wanted = number or min(len(candidates), MAX_PAIRS)
    chosen: list[Pair] = []
    while candidates and len(chosen) < wanted:
        batch, candidates = candidates[: wanted - len(chosen)], candidates[wanted - len(chosen) :]
        copies.make([(system, pair.text, "whole") for pair in batch for system in (pair.first, pair.second)])
        for pair in batch:
            bad = {s: copies.record(s, pair.text) for s in (pair.first, pair.second)}
            bad = {s: record for s, record in bad.items() if record.status != "kept"}
            for system, record in bad.items():
                file = systems[system].videos[pair.text].path.name
                left_out[f"{system}: {file}"] = f"{record.reason}: {record.detail.get('message', '')}".strip(": ")
            if not bad:
                chosen.append(pair)
    if not chosen:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:5])
        raise RunStopped(f"no pair has two videos that can be read: {reasons}")
    if number and len(chosen) < number:
        raise RunStopped(f"{number} pairs were asked for, but there are {len(chosen)}; leave --pairs out for all")
    return chosen


def choose_checks(
    chosen: Sequence[Pair], number: int, seed: int, copies: AnonymousCopies
) -> list[tuple[Pair, str, Place]]:
    """(pair that the prompt is taken from, system whose video is broken, place of the good video) of the checks.

    Args:
        number: of checks; -1: one for every ten pairs, two at least.
    """
    number = number if number >= 0 else max(2, round(len(chosen) / 10))
    draw = random.Random(f"{seed}/checks")
    bases = [(pair, system) for pair in chosen for system in (pair.first, pair.second)]
    draw.shuffle(bases)
    bases = [bases[index % len(bases)] for index in range(number)]
    copies.make([(system, pair.text, "broken") for pair, system in bases])
    usable = [(pair, system) for pair, system in bases if copies.record(system, pair.text, "broken").status == "kept"]
    return [(pair, system, PLACES[index % 2]) for index, (pair, system) in enumerate(usable)]


def rated_row(name: str, number: int, pair: Pair, copies: AnonymousCopies) -> StudyPair:
    """The row of a pair that people rate."""
    prompt = copies.original(pair.first, pair.text).prompt
    return StudyPair(
        study_name=name, number=number, kind="rated", prompt_id=prompt.id, prompt=prompt.text,
        category=prompt.category, first_system=pair.first, second_system=pair.second,
        first_sha256=ANONYMISED.outputs(copies.record(pair.first, pair.text))["video"],
        second_sha256=ANONYMISED.outputs(copies.record(pair.second, pair.text))["video"],
    )  # fmt: skip


def check_row(name: str, number: int, pair: Pair, system: str, good: Place, copies: AnonymousCopies) -> StudyPair:
    """The row of an attention check: the video of a system beside itself, broken; the good one stands at `good`."""
    prompt = copies.original(system, pair.text).prompt
    videos = {
        place: ANONYMISED.outputs(copies.record(system, pair.text, "whole" if place == good else "broken"))["video"]
        for place in PLACES
    }
    return StudyPair(
        study_name=name, number=number, kind="check", prompt_id=prompt.id, prompt=prompt.text,
        category=prompt.category, first_system=system, second_system=system,
        first_sha256=videos["first"], second_sha256=videos["second"], expected=good,
    )  # fmt: skip


def copies_of(row: StudyPair, pair: Pair, copies: AnonymousCopies) -> list[tuple[str, Record]]:
    """(place, record of the copy) of a row's two videos."""
    if row.kind == "rated":
        return [
            ("first", copies.record(row.first_system, pair.text)),
            ("second", copies.record(row.second_system, pair.text)),
        ]
    return [
        (place, copies.record(row.first_system, pair.text, "whole" if place == row.expected else "broken"))
        for place in PLACES
    ]
