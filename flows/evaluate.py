"""Evaluation: prompts become videos of each model, videos become scores, scores a leaderboard and a report."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from pydantic import BaseModel, ConfigDict, Field, create_model

from flows.parameters import part, takes
from flows.run_name import run_name
from flows.runner import task_runner
from medgen.canonical import digest_of
from medgen.errors import RunStopped
from medgen.ledger import Ledger, open_ledger
from medgen.settings import current
from medgen.shard import ShardResult
from models.generation.prompt_set import MEDICAL, PROMPT_SET_VERSION, Prompt, load_prompts, prompts_digest, spread
from models.metrics.suite import TRACE_SIDE
from tasks.evaluation import evaluate as evaluation
from tasks.evaluation import generate, judge_video, measure_video, trace_clip
from tasks.evaluation.evaluation_report import shown_p, shown_range, shown_value, write_report
from tasks.evaluation.measure_video import Video
from tasks.evaluation.video_folders import folder_videos, named_folder
from tasks.training.released import ReleasedClip, released_clips

T = TypeVar("T")

# The settings of generation; which models is asked by `models`.
Generation: type[BaseModel] = create_model(
    "Generation",
    __config__=ConfigDict(frozen=True),
    **{
        name: (field.annotation, field)
        for name, field in generate.GenerateParams.model_fields.items()
        if name != "model"
    },  # type: ignore[call-overload]
)


class EvaluateParameters(measure_video.MeasureParams, judge_video.JudgeParams, Generation):  # type: ignore[valid-type,misc]
    """Everything that an evaluation can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str, ...] = Field((), description="Models: medgen:NAME, a diffusers folder or a hub name of each.")
    videos: tuple[str, ...] = Field((), description="Folders of other systems' videos, NAME=FOLDER.")
    baseline: str = Field("", description="What the others are tested against: a model as above, or NAME of a folder.")
    prompts: str = Field(MEDICAL, description="medical (the packaged set), or a .txt, .csv or .jsonl file.")
    limit: int = Field(0, ge=0, description="Only so many prompts, spread over categories; 0: all.")
    against: str = Field("", description="Training release that near copies are looked for in; empty: none.")
    against_labels: str = Field(
        "", description="CSV with clip_id and label: classes of those clips, for retrieval; empty: their categories."
    )
    report: str = Field("", exclude=True, description="Where the page goes; empty: the installation's folder.")
    bootstrap_seed: int = Field(0, ge=0, lt=2**32, description="Seed of intervals and tests.")
    evaluate_shard_size: int = Field(64, ge=1, le=10_000, exclude=True, description="Videos per task run.")
    retry_quarantined: bool = Field(False, exclude=True, description="Try items again that failed for good.")


def _evaluate(**arguments: Any) -> dict[str, Any]:
    """Generate, measure, judge, compare, report. What is on record already is not made again."""
    log = get_run_logger()
    parameters = EvaluateParameters(**arguments)
    ledger = open_ledger()
    check(ledger, parameters)
    prompts = load_prompts(parameters.prompts)
    chosen = spread(prompts, parameters.limit)
    clips = released_clips(ledger, parameters.against)[0] if parameters.against else []
    results: list[ShardResult] = []
    systems, videos, baseline, unmade = _videos(ledger, parameters, prompts, chosen, results)
    measured = _measured(ledger, parameters, videos, results)
    if not any(one.scores for one in measured):
        first = next((one.trouble for one in measured if one.trouble), "no video was made")
        raise RunStopped(f"none of {len(measured)} videos could be measured; the first: {first}")
    traced = _traced(ledger, parameters, clips, measured, results)
    copies = None
    if traced:
        measured, copies = evaluation.near_copies(measured, [(name, source, t) for name, source, _, t in traced])
    content = evaluation.report(
        systems,
        measured,
        prompts=_prompt_set(parameters, chosen, videos),
        baseline=baseline,
        seed=parameters.bootstrap_seed,
        against=parameters.against,
        copies=copies,
        clips=traced,
    )
    records = evaluation.put_on_record(ledger, systems, measured, content)
    path = Path(parameters.report).expanduser() if parameters.report else _default_path(content)
    if path.suffix.lower() not in (".html", ".htm"):
        path = path / "report.html"
    files = write_report(path, content, measured, {clip.clip_id: clip.sha256 for clip in clips}, ledger.store)
    summary = {
        "executed": sum(r.executed for r in results) + sum(not known for _, known in records.values()),
        "reused": sum(r.reused for r in results) + sum(known for _, known in records.values()),
        "decodes": sum(r.decodes for r in results),
        "not_generated": unmade,
        "report": {kind: str(file) for kind, file in files.items()},
        "evaluations": {name: record.id for name, (record, _) in records.items()},
        "report_sha256": next(iter(records.values()))[0].outputs["report"],
        **{k: content[k] for k in ("prompts", "baseline", "leaderboard", "paired", "against", "near_copies")},
        "retrieval": {
            name: {k: v for k, v in found.items() if k != "pairs"} for name, found in content["retrieval"].items()
        },
        "failures": [
            {"system": row["system"], "file": row["file"], "why": row["trouble"]}
            for row in content["videos"]
            if row["trouble"]
        ],
    }
    _show(summary)
    log.info("executed %d, reused %d; report %s", summary["executed"], summary["reused"], files["html"])
    return summary


def check(ledger: Ledger, parameters: EvaluateParameters) -> None:
    """What can't work must be an error before any video is made.

    Raises:
        RunStopped, ItemFailed, ModelUnavailable.
    """
    if not parameters.models and not parameters.videos:
        raise RunStopped("nothing to evaluate: name models, or folders of videos as NAME=FOLDER")
    try:
        measure_video.step(part(parameters, measure_video.MeasureParams))
        judging = part(parameters, judge_video.JudgeParams)
        if judging.judge_model:
            judge_video.judge_step(judging)
        if judging.video_score_model:
            judge_video.score_step(judging)
    except ValueError as error:
        raise RunStopped(f"bad model or parameter: {error}") from error
    prompts = load_prompts(parameters.prompts)
    for folder in parameters.videos:
        folder_videos(*named_folder(folder), prompts)
    for model in _models(parameters):
        generate.plan(ledger, _generation(parameters, model))
    if parameters.against:
        released_clips(ledger, parameters.against)
        _labels(parameters.against_labels)


def _models(parameters: EvaluateParameters) -> list[str]:
    """The models, the baseline last unless it is one of them or a folder's name."""
    folders = {named_folder(folder)[0] for folder in parameters.videos}
    extra = [parameters.baseline] if parameters.baseline and parameters.baseline not in folders else []
    return list(dict.fromkeys([*parameters.models, *extra]))


def _generation(parameters: EvaluateParameters, model: str) -> generate.GenerateParams:
    settings = {name: getattr(parameters, name) for name in Generation.model_fields}
    return generate.GenerateParams(model=model, **settings)


def _videos(
    ledger: Ledger,
    parameters: EvaluateParameters,
    prompts: Sequence[Prompt],
    chosen: Sequence[Prompt],
    results: list[ShardResult],
) -> tuple[list[evaluation.System], list[Video], str, list[dict[str, str]]]:
    """Systems, their videos, the baseline's name, and what could not be generated."""
    systems: list[evaluation.System] = []
    videos: list[Video] = []
    unmade: list[dict[str, str]] = []
    baseline = parameters.baseline
    for text in parameters.videos:
        name, folder = named_folder(text)
        _new_name(name, systems)
        systems.append(evaluation.System(name))
        videos += folder_videos(name, folder, prompts)
    for model in _models(parameters):
        params = _generation(parameters, model)
        plan = generate.plan(ledger, params)
        if any(system.digest == plan.digest for system in systems):
            continue  # named twice in two ways
        name = plan.shown if all(system.name != plan.shown for system in systems) else f"{plan.shown}@{plan.digest[:8]}"
        _new_name(name, systems)
        systems.append(evaluation.System(name, plan.digest, plan.version is not None))
        baseline = name if model == parameters.baseline else baseline
        shards = [
            generate.generate_shard.submit(f"{name}-{at}", shard, params, parameters.retry_quarantined)
            for at, shard in enumerate(_shards(chosen, parameters.evaluate_shard_size), 1)
        ]
        for shard in shards:
            result = shard.result()
            results.append(result)
            records = ledger.load(result.records)
            for run_id in result.records:
                record = records[run_id]
                if record.status != "kept":
                    message = str(record.detail.get("message") or record.reason)
                    unmade.append({"system": name, "subject": record.subject, "why": message})
                    continue
                told = record.detail
                videos.append(
                    Video(
                        name, record.subject, f"{told['prompt_id']}-seed{told['seed']}.mp4", record.outputs["video"],
                        told["prompt_id"], told["prompt"], told["category"], told["procedure"], run_id=run_id,
                    )
                )  # fmt: skip
    if not videos:
        raise RunStopped(f"no video was made: {unmade[0]['why']}" if unmade else "there is no video")
    return systems, videos, baseline, unmade


def _new_name(name: str, systems: Sequence[evaluation.System]) -> None:
    if any(system.name == name for system in systems):
        raise RunStopped(f"two systems are called {name!r}: give one of them another name, as NAME=FOLDER")


def _measured(
    ledger: Ledger, parameters: EvaluateParameters, videos: Sequence[Video], results: list[ShardResult]
) -> list[evaluation.Measured]:
    """All videos with what is on record of them, measured, judged and scored as asked."""
    again = parameters.retry_quarantined
    measuring = part(parameters, measure_video.MeasureParams)
    judging = part(parameters, judge_video.JudgeParams)
    shards = list(_shards(videos, parameters.evaluate_shard_size))
    futures = [measure_video.measure_shard.submit(str(at), s, measuring, again) for at, s in enumerate(shards, 1)]
    found = [future.result() for future in futures]
    results += found
    ids = [run_id for result in found for run_id in result.records]
    runs: dict[str, Sequence[int | None]] = {"measure_video": ids}
    records = ledger.load(ids)
    frames = {place: records[ids[place]].detail["frames"] for place in range(len(videos)) if _kept(records[ids[place]])}
    asked = [(judging.judge_model, judge_video.judge_shard), (judging.video_score_model, judge_video.score_shard)]
    for model, task in asked:
        if not model:
            continue
        places = list(_shards(list(frames), parameters.evaluate_shard_size))
        futures = [
            task.submit(str(at), [(videos[place], frames[place]) for place in shard], judging, again)
            for at, shard in enumerate(places, 1)
        ]
        row: list[int | None] = [None] * len(videos)
        for shard, future in zip(places, futures, strict=True):
            result = future.result()
            results.append(result)
            for place, run_id in zip(shard, result.records, strict=True):
                row[place] = run_id
        runs[task.name] = row
    return evaluation.gathered(ledger, videos, runs)


def _prompt_set(parameters: EvaluateParameters, chosen: Sequence[Prompt], videos: Sequence[Video]) -> dict[str, Any]:
    """Name, version and digest of the prompts that the videos were made from, as the report tells them."""
    if not {prompt.id for prompt in chosen} & {video.prompt_id for video in videos}:
        own = {video.prompt_id: Prompt(video.prompt_id, video.prompt, video.category) for video in videos}
        return {
            "name": "the folders' own",
            "version": "",
            "digest": prompts_digest([own[name] for name in sorted(own)]),
        }
    packaged = parameters.prompts == MEDICAL
    return {
        "name": MEDICAL if packaged else Path(parameters.prompts).name,
        "version": PROMPT_SET_VERSION if packaged else "",
        "digest": prompts_digest(chosen),
    }


def _kept(record: Any) -> bool:
    return record.status == "kept"


def _traced(
    ledger: Ledger,
    parameters: EvaluateParameters,
    clips: Sequence[ReleasedClip],
    measured: Sequence[evaluation.Measured],
    results: list[ShardResult],
) -> list[tuple[str, str, str, Any]]:
    """(clip id, source video, category, trace) of the training clips, shrunk to the size of the smallest system."""
    if not clips:
        return []
    sides = [max(one.detail["width"], one.detail["height"]) for one in measured if one.detail]
    params = trace_clip.TraceParams(trace_side=max(32, min(TRACE_SIDE, *sides)))
    shards = list(_shards(list(clips), parameters.evaluate_shard_size))
    futures = [
        trace_clip.trace_shard.submit(f"{parameters.against}-{at}", shard, params, parameters.retry_quarantined)
        for at, shard in enumerate(shards, 1)
    ]
    found = [future.result() for future in futures]
    results += found
    traces = trace_clip.read_traces(ledger, [run_id for result in found for run_id in result.records])
    labels = _labels(parameters.against_labels)
    return [
        (c.clip_id, c.video_id, labels.get(c.clip_id, c.category), traces[c.clip_id])
        for c in clips
        if c.clip_id in traces
    ]


def _labels(path: str) -> dict[str, str]:
    """clip id → label of a CSV file. Raises RunStopped when it can't be read or lacks a column."""
    if not path:
        return {}
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            return {row["clip_id"]: row["label"] for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise RunStopped(
            f"against_labels: {path} is no CSV file with clip_id and label ({type(error).__name__}: {error})"
        ) from error


def _shards(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _default_path(content: dict[str, Any]) -> Path:
    return current().home / "evaluations" / digest_of(content)[:16] / "report.html"


def leaderboard_rows(leaderboard: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The leaderboard as a table of texts: one row for each system."""
    metrics = sorted({metric for row in leaderboard for metric in row["values"]}, key=lambda m: (m[:4] != "mean", m))
    return [
        {"system": row["system"], "videos": str(row["videos"]), "failed": str(row["failed"])}
        | {
            metric: f"{shown_value(metric, value['mean'])} ({shown_range(metric, value)})"
            if (value := row["values"].get(metric))
            else "–"
            for metric in metrics
        }
        for row in leaderboard
    ]


def paired_rows(tests: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Paired tests as a table of texts."""
    return [
        {
            "system": test["system"],
            "baseline": test["baseline"],
            "metric": test["metric"],
            "difference": shown_value(test["metric"], test["difference"]["mean"]),
            "interval": shown_range(test["metric"], test["difference"]),
            "prompts": str(test["difference"]["n"]),
            "p": shown_p(test["p"]),
            "adjusted p": shown_p(test["adjusted_p"]),
        }
        for test in tests
    ]


def _show(summary: dict[str, Any]) -> None:
    create_table_artifact(leaderboard_rows(summary["leaderboard"]), key="leaderboard", description="Systems compared.")
    if summary["paired"]:
        create_table_artifact(paired_rows(summary["paired"]), key="paired", description="Against the baseline.")
    lines = [
        "# Evaluation",
        f"report: `{summary['report']['html']}`",
        f"executed {summary['executed']}, reused {summary['reused']}, videos decoded {summary['decodes']}; "
        f"{len(summary['failures'])} videos not measured, {len(summary['not_generated'])} not generated",
    ]
    for name, found in summary["retrieval"].items():
        lines.append(
            f"retrieval of the own category, `{name}`: {found['accuracy']:.3f} ({found['low']:.3f} to "
            f"{found['high']:.3f}), chance {found['chance']:.3f}"
        )
    create_markdown_artifact("\n\n".join(lines) + "\n", key="evaluation", description="What this evaluation found.")


evaluate = flow(
    takes(_evaluate, "evaluate", EvaluateParameters, first=("models", "videos")),
    name="evaluate",
    flow_run_name=run_name("evaluate", "models", "videos"),
    task_runner=task_runner(),
    persist_result=False,
    validate_parameters=True,
)
PARAMETERS = EvaluateParameters
