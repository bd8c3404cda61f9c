"""Evaluate: measured videos of several systems become one report, and each system's figures go on record."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, TypedDict

from medgen.canonical import canonical_json, digest_of
from medgen.catalog import Base, Evaluation
from medgen.ledger import Ledger, Outcome, Record, StepIdentity, Work
from medgen.store import Artifact
from models.metrics.suite import describe
from tasks.evaluation.frechet import FrechetRow
from tasks.evaluation.leaderboard import LeaderboardRow, PairedTest, compare
from tasks.evaluation.measured import Measured, System
from tasks.evaluation.mllm_judge import VoteRow
from tasks.evaluation.plan import PromptSet
from tasks.evaluation.resemblance import NearCopies, Retrieval, TrainingClip, retrieval_of
from tasks.evaluation.sampling import Sampling, SystemSampling

VERSION = 2


class Metric(TypedDict):
    """Digest of the model behind a metric, and what it means in a sentence."""

    model: str | None
    meaning: str


class VideoRow(TypedDict):
    """One video in the report; frames to height are None and scores empty when it could not be measured."""

    system: str
    subject: str
    file: str
    sha256: str
    prompt_id: str
    prompt: str
    category: str
    procedure: str
    frames: int | None
    fps: float | None
    width: int | None
    height: int | None
    scores: dict[str, float]
    trouble: str | None
    votes: list[VoteRow]
    nearest: dict[str, Any] | None


class Report(TypedDict):
    """All of an evaluation as JSON: the same videos give the same bytes."""

    format: int
    prompts: PromptSet
    baseline: str
    seed: int
    sampling: Sampling
    metrics: dict[str, Metric]
    leaderboard: list[LeaderboardRow]
    paired: list[PairedTest]
    against: str
    near_copies: NearCopies | None
    retrieval: dict[str, Retrieval]
    frechet: list[FrechetRow]
    videos: list[VideoRow]


class EvaluateDetail(TypedDict):
    """Detail of the record of one system's evaluation; see `Report`."""

    system: str
    model: str | None
    prompts: PromptSet
    sampling: SystemSampling
    videos: int
    failed: int
    paper_total: float | None
    near_copies: int
    against: str


def report(
    systems: Sequence[System],
    measured: Sequence[Measured],
    *,
    prompts: PromptSet,
    sampling: Sampling,
    baseline: str,
    seed: int,
    against: str,
    copies: NearCopies | None,
    clips: Sequence[TrainingClip],
    frechet: Sequence[FrechetRow] = (),
) -> Report:
    """What the evaluation found.

    Args:
        against: name of the training release, or "".
        copies: as `tasks.evaluation.resemblance.near_copies` tells.
        clips: of the training release.
        frechet: FID and FVD against the clips of the training release.
    """
    board, tests = compare(systems, measured, baseline, seed)
    probes = {
        system.name: retrieval_of([video for video in measured if video.video.system == system.name], clips, seed)
        for system in systems
    }
    metrics: dict[str, Metric] = {}
    for video in measured:
        for metric in video.scores:
            metrics.setdefault(metric, {"model": video.models.get(metric), "meaning": describe(metric)})
    return {
        "format": 2,
        "prompts": prompts,
        "sampling": sampling,
        "baseline": baseline,
        "seed": seed,
        "metrics": dict(sorted(metrics.items())),
        "leaderboard": board,
        "paired": tests,
        "against": against,
        "near_copies": copies,
        "retrieval": {name: probe for name, probe in probes.items() if probe} if against else {},
        "frechet": list(frechet),
        "videos": [_row(video) for video in measured],
    }


def _row(measured: Measured) -> VideoRow:
    video, detail = measured.video, measured.detail
    return {
        "system": video.system,
        "subject": video.subject,
        "file": video.name,
        "sha256": video.sha256,
        "prompt_id": video.prompt_id,
        "prompt": video.prompt,
        "category": video.category,
        "procedure": video.procedure,
        "frames": detail["frames"] if detail else None,
        "fps": detail["fps"] if detail else None,
        "width": detail["width"] if detail else None,
        "height": detail["height"] if detail else None,
        "scores": dict(sorted(measured.scores.items())),
        "trouble": measured.error,
        "votes": list(measured.votes),
        "nearest": asdict(measured.nearest) if measured.nearest else None,
    }


def put_on_record(
    ledger: Ledger, systems: Sequence[System], measured: Sequence[Measured], content: Report
) -> dict[str, tuple[Record, bool]]:
    """system → the record of its evaluation, and whether it stood already.

    Output `report`: the JSON. Evaluation rows: one for each metric, with interval and number of videos. Lineage: the
    records behind each video.
    """
    artifact = ledger.store.put_bytes(canonical_json(content), "application/json")
    records = {}
    for system in systems:
        row = next(row for row in content["leaderboard"] if row["system"] == system.name)
        runs = [run for video in measured if video.video.system == system.name for run in video.runs]
        identity = StepIdentity("evaluate", VERSION, {"seed": content["seed"]}, {})
        work = Work(
            f"evaluation-{digest_of([system.name, system.digest, artifact.sha256])[:32]}",
            context={"system": system.name, "report": artifact.sha256},
            parents={f"video-{place:05}": run for place, run in enumerate(runs)},
        )
        records[system.name] = ledger.once(identity, work, partial(_outcome, system, row, content, artifact))
    return records


def _outcome(system: System, row: LeaderboardRow, content: Report, artifact: Artifact) -> Outcome:
    rows: list[Base] = [
        Evaluation(
            model_digest=system.digest if system.on_record else None,
            metric=metric,
            value=value["mean"],
            detail={
                **value,
                "system": system.name,
                "prompts": content["prompts"],
                "sampling": content["sampling"]["rule"],
                "backbone": content["metrics"][metric]["model"] if metric in content["metrics"] else None,
            },
        )
        for metric, value in row["values"].items()
    ]
    distances = [one for one in content["frechet"] if one["system"] == system.name]
    rows += [
        Evaluation(
            model_digest=system.digest if system.on_record else None,
            metric=one["metric"],
            value=one["value"],
            detail={**one, "against": content["against"], "backbone": one["model"]},
        )
        for one in distances
    ]
    detail: EvaluateDetail = {
        "system": system.name,
        "model": system.digest,
        "prompts": content["prompts"],
        "sampling": next(row for row in content["sampling"]["systems"] if row["system"] == system.name),
        "videos": row["videos"],
        "failed": row["failed"],
        "paper_total": row["paper_total"],
        "near_copies": row["near_copies"],
        "against": content["against"],
    }
    return Outcome(
        "kept",
        detail=dict(detail),
        scores={metric: value["mean"] for metric, value in row["values"].items()}
        | {one["metric"]: one["value"] for one in distances},
        outputs={"report": artifact},
        rows=rows,
    )
