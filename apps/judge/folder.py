"""Verdicts on all files of a labelled folder, in worker processes; none by a head that was trained on the file."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from pebble import ProcessExpired

from apps.judge.labels import Label
from apps.judge.measure import JudgeParameters, Verdict, measure_file
from medgen.canonical import rounded
from medgen.errors import ItemFailed
from medgen.settings import current
from medgen.store import file_digest
from medgen.worker_processes import failure_of, worker_pool
from models.segmentation.frames import DEFAULT_HEAD

LIMIT_S = 600.0  # for a file


def measure_all(
    folder: Path, labels: Sequence[Label], parameters: JudgeParameters, done: Callable[[], None]
) -> tuple[dict[str, Verdict], list[str]]:
    """file → verdict, and what a reader must know about how they were reached.

    Of files that the packaged head was trained on stands what heads said of them that saw none of their sources.
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
    left_out = _judged_unseen()
    files = [label.file for label in labels if (folder / label.file).is_file()]
    digests = {file: file_digest(folder / file)[0] for file in files}
    trained = {file for file in files if digests[file] in left_out}
    if not trained:
        return verdicts, []
    for file in trained:
        probability = rounded(left_out[digests[file]])
        medical = probability >= parameters.medical_threshold
        verdicts[file] = replace(verdicts[file], medical=probability, is_medical=medical)
    return verdicts, [
        f"{len(trained)} files trained the packaged frame head; on “medical” they are judged by heads that were "
        "trained without any video of their source (leave one source out)"
    ]


@cache
def _judged_unseen() -> dict[str, float]:
    """sha256 → P(medical) of what trained the packaged head, by heads that saw none of its sources."""
    card = json.loads(DEFAULT_HEAD.with_suffix(".json").read_text(encoding="utf-8"))
    return {judged["sha256"]: judged["probability"] for judged in card["judged"]}


def _measured(folder: Path, file: str, parameters: JudgeParameters) -> Verdict:
    path = folder / file
    try:
        return measure_file(path, parameters)
    except ItemFailed as failure:
        return Verdict(file, failure.reason, failure.message)
    except FileNotFoundError:
        return Verdict(file, "missing", "there is no such file")
