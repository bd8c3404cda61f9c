"""Verdicts on all files of a labelled folder, in worker processes; none by a head that was trained on the file."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pebble import ProcessExpired

from apps.judge.labels import Label
from apps.judge.measure import JudgeParameters, Verdict, measure_file
from medgen.canonical import rounded
from medgen.errors import ItemFailed
from medgen.settings import current
from medgen.store import file_digest
from medgen.worker_processes import failure_of, worker_pool
from models.segmentation.frames import DEFAULT_HEAD
from models.segmentation.train_head import judge_videos_leave_one_source_out

LIMIT_S = 600.0  # for a file


def measure_all(
    folder: Path, labels: Sequence[Label], parameters: JudgeParameters, done: Callable[[], None]
) -> tuple[dict[str, Verdict], list[str]]:
    """file → verdict, and what a reader must know about how they were reached.

    Files that the packaged head was trained on are judged by a head that saw none of their sources instead, where the
    folder's labels suffice to train it; else their verdicts on "medical" are left out of account by the note.
    """
    verdicts: dict[str, Verdict] = {}
    with worker_pool(current().workers) as pool:
        jobs = {
            label.file: pool.schedule(_measured, args=(folder, label.file, parameters), timeout=LIMIT_S)
            for label in labels
        }
        for file, job in jobs.items():
            try:
                verdicts[file] = job.result()
            except (TimeoutError, ProcessExpired) as end:
                failure = failure_of(end, LIMIT_S)
                verdicts[file] = Verdict(file, failure.reason, failure.message)
            done()
    return _unseen(folder, verdicts, labels, parameters)


def _unseen(
    folder: Path, verdicts: dict[str, Verdict], labels: Sequence[Label], parameters: JudgeParameters
) -> tuple[dict[str, Verdict], list[str]]:
    if parameters.frame_head or parameters.frame_encoder != "mobilenet_v2" or parameters.frame_judge != "head":
        return verdicts, []
    known = _trained_on()
    trained = {
        label.file
        for label in labels
        if (folder / label.file).is_file() and file_digest(folder / label.file)[0] in known
    }
    if not trained:
        return verdicts, []
    try:
        judged = {j.file: j.probability for j in judge_videos_leave_one_source_out(folder)}
    except (ValueError, OSError) as error:
        return verdicts, [
            f"{len(trained)} files trained the packaged frame head: what it says of them proves nothing ({error})"
        ]
    for file in trained & judged.keys():
        probability = rounded(judged[file])
        verdicts[file] = Verdict(
            **{
                **vars(verdicts[file]),
                "medical": probability,
                "is_medical": probability >= parameters.medical_threshold,
            }
        )
    return verdicts, [
        f"{len(trained)} files trained the packaged frame head; on “medical” they are judged by heads that were "
        "trained without any video of their source (leave one source out)"
    ]


@cache
def _trained_on() -> frozenset[str]:
    """Digests of the videos that trained the packaged head."""
    card = json.loads(DEFAULT_HEAD.with_suffix(".json").read_text())

    def digests(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [value["sha256"]] if isinstance(value.get("sha256"), str) and "file" in value else []
            return own + [d for inner in value.values() for d in digests(inner)]
        return [d for inner in value for d in digests(inner)] if isinstance(value, list) else []

    return frozenset(digests(card))


def _measured(folder: Path, file: str, parameters: JudgeParameters) -> Verdict:
    path = folder / file
    try:
        return measure_file(path, parameters)
    except ItemFailed as failure:
        return Verdict(file, failure.reason, failure.message)
    except FileNotFoundError:
        return Verdict(file, "missing", "there is no such file")
