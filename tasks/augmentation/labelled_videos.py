"""Labelled videos of the augmentation experiment, and which of them are fit for it.

They are read by `tasks.augmentation.read_labelled`, or generated. A bad video is left out with the reason; what is
wrong with all of them is an error.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medgen.errors import RunStopped, SourceUnreadable
from medgen.ledger import Record
from models.generation.prompt_set import Prompt, load_prompts
from models.hub_files import file_digest
from tasks.evaluation import generate

MOST_LABEL = 100  # characters


class CannotAugment(RunStopped):
    """The experiment can't be made with these data. The message says what to do."""


@dataclass(frozen=True)
class LabelledVideo:
    """A video with its label.

    Args:
        subject: what it is on record as: a clip, a generated video, or ``video-`` and the beginning of its sha256.
        source: what it was cut from; splits go by it. The source video's id for clips of a release.
        name: what messages call it.
        path: None when the store has it.
        trained_on: sources that its generator is known to have seen; synthetic videos only.
        model: digest of its generator, where that is known.
        parents: role → record that it comes from.
    """

    subject: str
    sha256: str
    label: str
    source: str
    synthetic: bool
    name: str
    path: str | None = None
    trained_on: frozenset[str] = frozenset()
    model: str = ""
    parents: dict[str, int] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """As it goes on record: no path, no name of a file."""
        content = {"subject": self.subject, "sha256": self.sha256, "label": self.label, "synthetic": self.synthetic}
        if self.synthetic:
            return content | {"trained_on": sorted(self.trained_on), "model": self.model}
        return content | {"source": self.source}


@dataclass(frozen=True)
class LeftOut:
    """A video that takes no part, and why."""

    name: str
    reason: str
    message: str


@dataclass(frozen=True)
class Labelled:
    """What was read: videos, those left out, and what people should know."""

    videos: tuple[LabelledVideo, ...]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()

    def __add__(self, other: "Labelled") -> "Labelled":
        return Labelled(self.videos + other.videos, self.left_out + other.left_out, self.notes + other.notes)


def take(
    path: Path, label: str, source: str, synthetic: bool, name: str, left_out: list[LeftOut]
) -> list[LabelledVideo]:
    """The video with its label; nothing, and a line in `left_out`, where it can't be used.

    Args:
        label: 1 to `MOST_LABEL` printable characters; runs of spaces count as one.
        source: what it was cut from; "" only for synthetic videos.
        name: what messages call it.
    """
    label = re.sub(r"\s+", " ", label).strip()
    if not label or len(label) > MOST_LABEL or not label.isprintable():
        left_out.append(LeftOut(name, "no_label", f"a label has 1 to {MOST_LABEL} printable characters"))
        return []
    try:
        if not path.is_file():
            left_out.append(LeftOut(name, "missing_file", "there is no such file"))
            return []
        digest = file_digest(path)
    except OSError as error:
        left_out.append(LeftOut(name, "unreadable_file", os.strerror(error.errno or 0)))
        return []
    subject = f"video-{digest[:32]}"
    return [LabelledVideo(subject, digest, label, source, synthetic, name, path=os.fspath(path.resolve()))]


def shown(text: str) -> str:
    """Text of others, fit for a message."""
    return "".join(c if c.isprintable() else "?" for c in text)[:300]


def generated(records: Iterable[Record]) -> Labelled:
    """Generated videos (records of `tasks.evaluation.generate`), labelled by the categories of their prompts."""
    videos: list[LabelledVideo] = []
    left_out: list[LeftOut] = []
    for record in records:
        if record.status != "kept":
            message = str(record.detail.get("message", ""))
            left_out.append(LeftOut(record.subject, record.reason or "not_generated", message))
            continue
        detail = generate.GENERATE.detail(record)
        videos.append(
            LabelledVideo(
                record.subject,
                generate.GENERATE.outputs(record)["video"],
                detail["category"],
                "",
                True,
                f"{detail['prompt_id']} seed {detail['seed']}",
                model=detail["model"],
                parents={"generate": record.id},
            )
        )
    return Labelled(tuple(videos), tuple(left_out))


def unreadable(videos: Iterable[LabelledVideo], records: Mapping[str, Record]) -> tuple[LeftOut, ...]:
    """Those of the videos that could not be embedded.

    Args:
        records: subject → record of the step embed_video.
    """
    return tuple(
        LeftOut(video.name, record.reason or "", str(record.detail.get("message", "")))
        for video in videos
        if (record := records[video.subject]).status != "kept"
    )


def prompts_of_labels(name: str, labelled: Labelled) -> list[Prompt]:
    """The prompts of a file or of the packaged set whose category is a label of the real videos.

    Raises:
        CannotAugment: there is none.
        ItemFailed: as `load_prompts`.
    """
    labels = {video.label for video in labelled.videos if not video.synthetic}
    prompts = load_prompts(name)
    wanted = [prompt for prompt in prompts if prompt.category in labels]
    if not wanted:
        raise CannotAugment(
            f"no prompt of {name} has a label of the real videos as its category: labels are "
            f"{', '.join(sorted(labels))}; categories {', '.join(sorted({p.category or 'none' for p in prompts}))}"
        )
    return wanted


def fit_for_experiment(labelled: Labelled, min_sources: int) -> Labelled:
    """Without videos that would spoil the experiment: copies, copies under two labels, classes with too few sources,
    and synthetic videos of classes that no real video has.

    Raises:
        SourceUnreadable: fewer than two classes are left, or no synthetic video.
    """
    notes = list(labelled.notes)
    videos, copies = _without_copies(labelled.videos)
    left_out = [*labelled.left_out, *copies]
    sources = defaultdict(set)
    for video in videos:
        if not video.synthetic:
            sources[video.label].add(video.source)
    few = {label for label, own in sources.items() if len(own) < min_sources}
    for label in sorted(few):
        notes.append(
            f"class {label!r} is left out: it has {len(sources[label])} source(s), and {min_sources} are needed so "
            "that no source is both trained on and tested"
        )
    kept = []
    for video in videos:
        if video.label in few:
            left_out.append(LeftOut(video.name, "too_few_sources", f"class {video.label!r} has too few sources"))
        elif video.label not in sources:
            left_out.append(LeftOut(video.name, "unknown_class", f"no real video is labelled {video.label!r}"))
        else:
            kept.append(video)
    classes = sorted({video.label for video in kept if not video.synthetic})
    if len(classes) < 2:
        raise SourceUnreadable(
            "too_few_classes",
            f"{len(classes)} class(es) with videos of at least {min_sources} sources: an experiment needs 2. Found: "
            + (", ".join(f"{label} ({len(own)} sources)" for label, own in sorted(sources.items())) or "none")
            + _reasons(left_out),
        )
    made = Counter(video.label for video in kept if video.synthetic)
    if not made:
        raise SourceUnreadable(
            "no_synthetic_videos",
            f"no synthetic video of any class ({', '.join(classes)}): name a folder or CSV with --synthetic, or a "
            f"model and prompts{_reasons(left_out)}",
        )
    for label in classes:
        if not made[label]:
            notes.append(f"class {label!r} has no synthetic video: nothing is added to it in any arm")
    kept.sort(key=lambda video: (video.synthetic, video.subject))  # the same videos are the same experiment
    return Labelled(tuple(kept), tuple(left_out), tuple(dict.fromkeys(notes)))


def _without_copies(labelled: Iterable[LabelledVideo]) -> tuple[list[LabelledVideo], list[LeftOut]]:
    """(each file once, the rest): none of a file under several labels, real before synthetic."""
    videos: list[LabelledVideo] = []
    left_out: list[LeftOut] = []
    by_digest: dict[str, list[LabelledVideo]] = defaultdict(list)
    for video in sorted(labelled, key=lambda video: video.synthetic):  # real ones first: their copies must go
        by_digest[video.sha256].append(video)
    for alike in by_digest.values():
        if len({video.label for video in alike if video.synthetic == alike[0].synthetic}) > 1:
            for video in alike:
                left_out.append(LeftOut(video.name, "two_labels", "the same file stands under several labels"))
            continue
        videos.append(alike[0])
        for video in alike[1:]:
            kind = (
                "a synthetic video that is a real one's copy" if video.synthetic and not alike[0].synthetic else "copy"
            )
            left_out.append(LeftOut(video.name, "copy", f"{kind}: the same file as {alike[0].name}"))
    return videos, left_out


def _reasons(left_out: Iterable[LeftOut]) -> str:
    counts = Counter(video.reason for video in left_out)
    return f". Left out: {', '.join(f'{n} {reason}' for reason, n in counts.most_common())}" if counts else ""
