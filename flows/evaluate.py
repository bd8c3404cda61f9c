"""Evaluation: prompts become videos of each model, videos become scores, scores a leaderboard and a report."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from prefect import get_run_logger
from prefect.futures import PrefectFuture
from pydantic import ConfigDict, Field

from flows.flow_signature import subset
from flows.make_flow import Summary, make_flow
from flows.run_name import run_name
from medgen.errors import RunStopped
from medgen.ledger import Ledger, open_ledger
from medgen.parameters import MOST_ITEMS
from medgen.shard import ShardResult
from models.generation.prompt_set import MEDICAL
from tasks.evaluation import measure_video
from tasks.evaluation.artifacts import show_evaluation
from tasks.evaluation.clip_descriptor import clip_descriptor_params, descriptor_shard, read_descriptors
from tasks.evaluation.evaluate import put_on_record
from tasks.evaluation.evaluate import report as evaluation_report
from tasks.evaluation.evaluation_report import report_path, write_report
from tasks.evaluation.frechet import FrechetRow, frechet_rows, reference_clips
from tasks.evaluation.frechet_features import FrechetParams, check_frechet, frechet_shard, read_features
from tasks.evaluation.generate import GenerationParams, generate_shard
from tasks.evaluation.measure_video import MeasureParams, Video, measure_shard
from tasks.evaluation.measured import Measured, NotGenerated, frame_counts, generated_videos, measured_videos
from tasks.evaluation.mllm_judge import MllmJudgeParams, mllm_judge_shard, video_score_shard
from tasks.evaluation.plan import EvaluationPlan, check_metrics, plan_evaluation
from tasks.evaluation.resemblance import TrainingClip, near_copies
from tasks.evaluation.sampling import Rule, sampling_of
from tasks.training.released import ReleasedClip

T = TypeVar("T")


class EvaluateParameters(MeasureParams, MllmJudgeParams, FrechetParams, GenerationParams):
    """Everything that an evaluation can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str, ...] = Field((), description="Models: medgen:NAME, a diffusers folder or a hub name of each.")
    videos: tuple[str, ...] = Field((), description="Folders of other systems' videos, NAME=FOLDER.")
    baseline: str = Field("", description="What the others are tested against: a model as above, or NAME of a folder.")
    prompts: str = Field(
        MEDICAL,
        description="medical (the packaged set), paper (its authors' 200, whose file you bring), or a .txt, .csv or "
        ".jsonl file.",
    )
    sampling: Rule = Field(
        "same",
        description="same: one set of settings for all models, the first one's where nothing is asked for; own: each "
        "model at its own.",
    )
    limit: int = Field(0, ge=0, le=MOST_ITEMS, description="Only so many prompts, spread over categories; 0: all.")
    against: str = Field("", description="Training release that near copies are looked for in; empty: none.")
    against_labels: str = Field(
        "", description="CSV with clip_id and label: classes of those clips, for retrieval; empty: their categories."
    )
    report: str = Field("", exclude=True, description="Where the page goes; empty: the installation's folder.")
    bootstrap_seed: int = Field(0, ge=0, lt=2**32, description="Seed of intervals and tests.")
    evaluate_shard_size: int = Field(64, ge=1, le=10_000, exclude=True, description="Videos per task run.")
    retry_quarantined: bool = Field(False, exclude=True, description="Try items again that failed for good.")


def _evaluate(parameters: EvaluateParameters) -> Summary:
    """Generate, measure, judge, compare, report. What is on record already is not made again."""
    ledger = open_ledger()
    plan = plan_of(ledger, parameters)
    shards: list[ShardResult] = []
    videos, not_generated = _generate(ledger, parameters, plan, shards)
    measured = _measure(ledger, parameters, videos, shards)
    clips = _describe_clips(ledger, parameters, plan, measured, shards)
    copies = None
    if clips:
        measured, copies = near_copies(measured, clips)
    distances = _frechet(ledger, parameters, plan, measured, shards)
    content = evaluation_report(
        plan.systems,
        measured,
        prompts=plan.prompt_set(videos),
        sampling=sampling_of(plan.sampling, plan.systems, plan.settings, measured),
        baseline=plan.baseline,
        seed=parameters.bootstrap_seed,
        against=parameters.against,
        copies=copies,
        clips=clips,
        frechet=distances,
    )
    records = put_on_record(ledger, plan.systems, measured, content)
    path = report_path(parameters.report, content)
    files = write_report(path, content, measured, {clip.clip_id: clip.sha256 for clip in plan.clips}, ledger.store)
    summary = {
        "executed": sum(shard.executed for shard in shards) + sum(not stood for _, stood in records.values()),
        "reused": sum(shard.reused for shard in shards) + sum(stood for _, stood in records.values()),
        "decodes": sum(shard.decodes for shard in shards),
        "not_generated": not_generated,
        "report": {kind: str(file) for kind, file in files.items()},
        "evaluations": {name: record.id for name, (record, _) in records.items()},
        "report_sha256": next(iter(records.values()))[0].outputs["report"],
        "prompts": content["prompts"],
        "sampling": content["sampling"],
        "baseline": content["baseline"],
        "leaderboard": content["leaderboard"],
        "paired": content["paired"],
        "against": content["against"],
        "near_copies": content["near_copies"],
        "frechet": content["frechet"],
        "retrieval": {
            name: {key: value for key, value in probe.items() if key != "pairs"}
            for name, probe in content["retrieval"].items()
        },
        "failures": [
            {"system": row["system"], "file": row["file"], "why": row["trouble"]}
            for row in content["videos"]
            if row["trouble"]
        ],
    }
    show_evaluation(summary)
    log = get_run_logger()
    log.info("executed %d, reused %d; report %s", summary["executed"], summary["reused"], files["html"])
    return summary


def plan_of(ledger: Ledger, parameters: EvaluateParameters) -> EvaluationPlan:
    """What is compared. What can't work is an error here, before any video is made.

    Raises:
        RunStopped, ItemFailed, ModelUnavailable: as `check_metrics`, `check_frechet` and `plan_evaluation`.
    """
    check_metrics(subset(parameters, MeasureParams), subset(parameters, MllmJudgeParams))
    check_frechet(subset(parameters, FrechetParams), parameters.against)
    return plan_evaluation(
        ledger,
        models=parameters.models,
        folders=parameters.videos,
        baseline=parameters.baseline,
        prompt_file=parameters.prompts,
        limit=parameters.limit,
        against=parameters.against,
        labels_file=parameters.against_labels,
        generation=subset(parameters, GenerationParams),
        sampling=parameters.sampling,
    )


def _generate(
    ledger: Ledger, parameters: EvaluateParameters, plan: EvaluationPlan, shards: list[ShardResult]
) -> tuple[list[Video], list[NotGenerated]]:
    """All systems' videos, and those that could not be generated. What ran joins `shards`.

    Raises RunStopped: there is no video.
    """
    videos, not_generated = list(plan.folder_videos), list[NotGenerated]()
    for name, params in plan.models.items():
        futures = [
            generate_shard.submit(f"{name}-{number}", prompts, params, parameters.retry_quarantined)
            for number, prompts in _numbered(plan.prompts, parameters)
        ]
        for future in futures:
            shard = future.result()
            shards.append(shard)
            records = ledger.load(shard.records)
            made, failed = generated_videos(name, [records[run_id] for run_id in shard.records])
            videos += made
            not_generated += failed
    if not videos:
        raise RunStopped(f"no video was made: {not_generated[0]['why']}" if not_generated else "there is no video")
    return videos, not_generated


def _measure(
    ledger: Ledger, parameters: EvaluateParameters, videos: Sequence[Video], shards: list[ShardResult]
) -> list[Measured]:
    """All videos with what is on record of them, measured, judged and scored as asked. What ran joins `shards`.

    Raises RunStopped: none could be measured.
    """
    measuring, judging = subset(parameters, MeasureParams), subset(parameters, MllmJudgeParams)
    again = parameters.retry_quarantined
    futures = [
        measure_shard.submit(str(number), some, measuring, again) for number, some in _numbered(videos, parameters)
    ]
    ids = _results(futures, shards)
    runs: dict[str, Sequence[int | None]] = {measure_video.STEP: ids}
    frames = frame_counts(ledger, ids)
    judged = [(videos[place], count) for place, count in frames.items()]
    for model, task in ((judging.judge_model, mllm_judge_shard), (judging.video_score_model, video_score_shard)):
        if model:
            futures = [task.submit(str(number), some, judging, again) for number, some in _numbered(judged, parameters)]
            by_place = dict(zip(frames, _results(futures, shards), strict=True))
            runs[task.name] = [by_place.get(place) for place in range(len(videos))]
    measured = measured_videos(ledger, videos, runs)
    if not any(video.scores for video in measured):
        first = next((video.error for video in measured if video.error), "no video was made")
        raise RunStopped(f"none of {len(measured)} videos could be measured; the first: {first}")
    return measured


def _describe_clips(
    ledger: Ledger,
    parameters: EvaluateParameters,
    plan: EvaluationPlan,
    measured: Sequence[Measured],
    shards: list[ShardResult],
) -> list[TrainingClip]:
    """The training clips as they are compared with the videos. What ran joins `shards`."""
    if not plan.clips:
        return []
    params = clip_descriptor_params([video.detail for video in measured if video.detail])
    futures = [
        descriptor_shard.submit(f"{parameters.against}-{number}", some, params, parameters.retry_quarantined)
        for number, some in _numbered(plan.clips, parameters)
    ]
    descriptors = read_descriptors(ledger, _results(futures, shards))
    return [
        TrainingClip(
            clip.clip_id, clip.video_id, plan.labels.get(clip.clip_id, clip.category), descriptors[clip.clip_id]
        )
        for clip in plan.clips
        if clip.clip_id in descriptors
    ]


def _frechet(
    ledger: Ledger,
    parameters: EvaluateParameters,
    plan: EvaluationPlan,
    measured: Sequence[Measured],
    shards: list[ShardResult],
) -> list[FrechetRow]:
    """FID and FVD of each system, those that were asked for. What ran joins `shards`."""
    params = subset(parameters, FrechetParams)
    if not params.wanted:
        return []

    def features(label: str, items: Sequence[Video | ReleasedClip]) -> list[dict[str, np.ndarray]]:
        futures = [
            frechet_shard.submit(f"{label}-{number}", some, params, parameters.retry_quarantined)
            for number, some in _numbered(items, parameters)
        ]
        return read_features(ledger, _results(futures, shards))

    mine = {
        system.name: features(system.name, [v.video for v in measured if v.scores and v.video.system == system.name])
        for system in plan.systems
    }
    theirs = features(parameters.against, reference_clips(plan.clips, parameters.frechet_clips))
    return frechet_rows(mine, theirs, params.names(), params.digests())


def _numbered(items: Sequence[T], parameters: EvaluateParameters) -> Iterator[tuple[int, Sequence[T]]]:
    """The items in shards, counted from 1."""
    size = parameters.evaluate_shard_size
    for number, start in enumerate(range(0, len(items), size), 1):
        yield number, items[start : start + size]


def _results(futures: Iterable[PrefectFuture[ShardResult]], shards: list[ShardResult]) -> list[int]:
    """Ids of the records of all shards, in order. The shards join `shards`."""
    results = [future.result() for future in futures]
    shards += results
    return [run_id for result in results for run_id in result.records]


evaluate = make_flow(
    _evaluate,
    EvaluateParameters,
    "evaluate",
    run_name("evaluate", "models", "videos"),
    first=("models", "videos"),
)
PARAMETERS = EvaluateParameters
