"""Which videos a study of errors shows, one at a time: the paper's human protocol.

Three people look at every video with its prompt and say on four levels how bad its worst medical or physical error is;
a video counts as wrong when two of three say so (arXiv 2507.05675, "warning error"). The wording of the levels is not
given there: it is that of the rubric by which a multimodal LLM judges (`models/prompts/medical_judge_v1.txt`).
"""

import random
from collections.abc import Mapping

from medgen.catalog import StudyPair
from medgen.errors import RunStopped
from tasks.evaluation.anonymise import ANONYMISED, Form
from tasks.evaluation.study_pairs import MAX_PAIRS, AnonymousCopies, Design
from tasks.evaluation.system_videos import SystemVideos

BROKEN = "broken"  # what a check of a single video expects


def design_errors(
    name: str,
    systems: Mapping[str, SystemVideos],
    number: int,
    checks: int,
    seed: int,
    copies: AnonymousCopies,
    left_out: dict[str, str],
) -> Design:
    """Videos to rate, every system's of the same prompts; then attention checks, which are plainly broken videos.

    Args:
        number: of videos at most; 0: of all prompts that every system has.
        checks: of broken videos; -1: one for every ten, two at least.
        left_out: name of a video → why its prompt is left out; filled here.

    Raises:
        RunStopped: no prompt of which every system has a video that can be read.
    """
    draw = random.Random(f"{seed}/errors")
    shared = sorted(set.intersection(*(set(system.videos) for system in systems.values())))
    draw.shuffle(shared)
    most = (number or MAX_PAIRS) // len(systems)
    texts: list[str] = []
    while shared and len(texts) < most:
        batch, shared = shared[: most - len(texts)], shared[most - len(texts) :]
        copies.make([(system, text, "whole") for text in batch for system in systems])
        texts += [text for text in batch if _readable(text, systems, copies, left_out)]
    if not texts:
        reasons = "; ".join(f"{video}: {why}" for video, why in list(left_out.items())[:5])
        raise RunStopped(
            f"there is no prompt of which every system has a video that can be read{': ' if reasons else ''}{reasons}"
            + (f"; {number} videos are less than one of each system" if 0 < number < len(systems) else "")
        )
    videos = [(system, text) for text in texts for system in systems]
    checks = checks if checks >= 0 else max(2, round(len(videos) / 10))
    bases = draw.sample(videos, len(videos))
    bases = [bases[at % len(bases)] for at in range(checks)]
    copies.make([(system, text, "broken") for system, text in bases])
    bases = [(s, t) for s, t in bases if copies.record(s, t, "broken").status == "kept"]
    wanted: list[tuple[str, str, Form]] = [(s, t, "whole") for s, t in videos] + [(s, t, "broken") for s, t in bases]
    rows = [_row(name, at, *which, copies) for at, which in enumerate(wanted, 1)]
    used = [(f"{at:04}/first", copies.record(*which)) for at, which in enumerate(wanted, 1)]
    return Design(rows, used, len(videos), len(bases), videos)


def _readable(
    text: str, systems: Mapping[str, SystemVideos], copies: AnonymousCopies, left_out: dict[str, str]
) -> bool:
    """Whether every system's video of a prompt could be copied."""
    bad = {label: copies.record(label, text) for label in systems}
    bad = {label: record for label, record in bad.items() if record.status != "kept"}
    for label, record in bad.items():
        file = copies.original(label, text).path.name
        left_out[f"{label}: {file}"] = f"{record.reason}: {record.detail.get('message', '')}".strip(": ")
    return not bad


def _row(name: str, number: int, system: str, text: str, form: Form, copies: AnonymousCopies) -> StudyPair:
    prompt = copies.original(system, text).prompt
    sha256 = ANONYMISED.outputs(copies.record(system, text, form))["video"]
    return StudyPair(
        study_name=name, number=number, kind="rated" if form == "whole" else "check", prompt_id=prompt.id,
        prompt=prompt.text, category=prompt.category, first_system=system, second_system=system, first_sha256=sha256,
        second_sha256=sha256, expected=None if form == "whole" else BROKEN,
    )  # fmt: skip
