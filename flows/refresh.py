"""The nightly refresh: from listings to a release."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.events import emit_event
from prefect.futures import PrefectFuture
from pydantic import ConfigDict, Field, create_model
from sqlalchemy.exc import SQLAlchemyError

from flows.discover import SourceParameters, check_sources, discover_sources, expand_channels
from flows.flow_signature import subset
from flows.make_flow import Summary, make_flow
from flows.release_choices import offer_releases
from flows.run_name import run_name
from flows.shards_in_flight import ShardsInFlight, bridging_outages, gather
from medgen.among import pages
from medgen.catalog import open_catalog
from medgen.counted import counted
from medgen.devices import devices
from medgen.errors import ItemFailed, RunStopped
from medgen.ledger import open_ledger
from medgen.lost_artifacts import note_lost_artifacts
from medgen.shard import Item
from medgen.shard_results import ShardReference, ShardResults, runs_of
from medgen.store import open_store
from models import ModelUnavailable
from tasks.curation import funnel_guard, list_sources, profile, release, since_last
from tasks.curation.caption import CaptionParams
from tasks.curation.clip_vectors import embed_apart, fill_frames, fill_texts, open_index
from tasks.curation.curation_step import SHARDS_AT_ONCE, CurationStep, steps
from tasks.curation.discover import DiscoverParams
from tasks.curation.download_policy import DownloadParams
from tasks.curation.funnel import markdown, stages, table_rows
from tasks.curation.privacy import PrivacyParams
from tasks.curation.quality import QualityParams
from tasks.operations.failures import failures
from tasks.operations.failures import table_rows as failure_rows

AFTER_DISCOVERY = steps()[1:]  # flows/discover.py runs the first


class ReleaseParameters(profile.ProfileParams, funnel_guard.FunnelGuardParams, release.ReleaseParams, SourceParameters):
    """What a refresh can be told beside the parameters of its steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    search_index: bool = Field(
        True, exclude=True, description="Bring the index for searches by meaning up to date after the release."
    )
    shard_size: int = Field(256, ge=1, le=10_000, exclude=True, description="Videos per task run.")


def refresh_parameters(steps: Sequence[CurationStep[Any]]) -> type[ReleaseParameters]:
    """Everything that a refresh of these steps can be told: its sources and the parameters of all steps."""
    bases = (ReleaseParameters, *(step.params for step in reversed(steps)))
    return create_model("RefreshParameters", __base__=bases, __module__=__name__)


RefreshParameters = refresh_parameters(AFTER_DISCOVERY)
PARAMETERS = RefreshParameters
# What most nights are about comes first in forms.
FIRST = ("sources", "profile", "release_prefix", "licence_policy", "licences", "approval", "funnel_guard")


class RefreshFailed(RunStopped):
    """Shards failed, so that no release was made. What was done stays done."""


def _refresh(parameters: ReleaseParameters) -> Summary:
    """Discover, download, segment, classify, cut, measure, decide, deduplicate, protect, caption, release.

    Shards go through the steps on their own: while one is measured another may still be downloading. They meet where
    copies are looked for, which can be anywhere, before any caption is paid for.
    """
    log = get_run_logger()
    if not parameters.sources:
        return _nothing_to_do()
    check_models(parameters)
    if lost := bridging_outages(note_lost_artifacts)(open_catalog(), open_store()):
        log.warning("the store lacks %d artifacts on record: what needs them is made anew", lost)
    results = _through_all_steps(parameters)
    departures = _guard(parameters, results)
    made, record, folder = release.make_release(
        parameters.release_prefix, results, policy(parameters), subset(parameters, release.ReleaseParams)
    )
    if parameters.search_index:
        _index_clips(parameters)
    funnel = release.read_funnel(record)
    summary = {
        "executed": sum(result.executed for result in results) + made.executed,
        "reused": sum(result.reused for result in results) + made.reused,
        "decodes": sum(result.decodes for result in results),
        "release": release.RELEASE.detail(record)["name"],
        "digest": release.RELEASE.detail(record)["digest"],
        "clips": release.RELEASE.detail(record)["clips"],
        "folder": str(folder) if folder else "",
        "awaits_approval": folder is None,
        "departures": [str(departure) for departure in departures],
        "funnel": funnel,
        "stages": stages(funnel),
        "since": since_last.since_last(open_ledger(), release.RELEASE.detail(record)["name"], funnel),
    }
    offer_releases()
    _show(summary, release.read_picture(record), failures(open_ledger(), runs_of(results)))
    log.info("executed %d, reused %d; release %s", summary["executed"], summary["reused"], summary["release"])
    return summary


def _nothing_to_do() -> Summary:
    """What a refresh without sources says, such as a night's before anybody gave it any: no failure, no release."""
    told = "No sources are set, so there was nothing to do. Set `sources` of the deployment, or run it with some."
    get_run_logger().warning(told)
    create_markdown_artifact(f"# Nothing to do\n\n{told}\n", key="release", description="Why there is no release.")
    return {
        "executed": 0, "reused": 0, "decodes": 0, "release": "", "digest": "", "clips": 0, "folder": "",
        "awaits_approval": False, "departures": [], "funnel": [], "stages": [], "since": None,
    }  # fmt: skip


def _through_all_steps(parameters: ReleaseParameters) -> list[ShardReference]:
    """Results of all steps on all shards.

    Raises:
        RefreshFailed: shards failed; says why.
        DiscoveryFailed: no source could be read.
    """
    meeting = next((n for n, step in enumerate(AFTER_DISCOVERY) if step.scope == "dataset"), len(AFTER_DISCOVERY))
    before, after = AFTER_DISCOVERY[:meeting], AFTER_DISCOVERY[meeting:]
    futures: list[PrefectFuture[Any]] = []  # of discovery: a listing and some shards of it each
    flight = ShardsInFlight(parameters, retry_quarantined=parameters.retry_quarantined)
    listed = _ListedOnce(parameters.shard_size)
    discovered = discover_sources(parameters, futures)
    for label, future in discovered:
        flight.send(listed.shards(label, future), before)
    for label, future in expand_channels(parameters, discovered, futures):
        flight.send(listed.shards(label, future), before)
    flight.finish()
    results, errors = gather(futures)
    if not errors and not flight.errors:
        check_sources(results)
        for scope, steps_of_scope in groupby(after, key=lambda step: step.scope):
            _send_on(flight, scope, list(steps_of_scope))
    if errors := [*errors, *flight.errors]:
        raise RefreshFailed("; ".join(errors) + ". What was done stays done: run again to go on.")
    return [*results, *flight.results]


def _send_on(flight: ShardsInFlight, scope: str, onward: Sequence[CurationStep[Any]]) -> None:
    """Sends what the step before has kept through steps of one scope."""
    names = [step.name for step in AFTER_DISCOVERY]
    earlier = names[names.index(onward[0].name) - 1]
    # In an order of their own: what is found of all together must not depend on which was ready first.
    shards = sorted((r for r in flight.results if r.step == earlier and r.kept), key=lambda result: result.key)
    if scope == "dataset":
        for step in onward:
            shards = [result for result in flight.send_together(shards, step) if result.kept]
        return
    results = ShardResults(open_ledger())
    for number, page in enumerate(pages(shards, SHARDS_AT_ONCE)):
        kept = bridging_outages(results.get)(shard.key for shard in page)
        labels = [f"unique-{number * SHARDS_AT_ONCE + place}" for place in range(1, len(page) + 1)]
        flight.send(zip(labels, (kept[shard.key].kept for shard in page), strict=True), onward)
    flight.finish()


def _index_clips(parameters: ReleaseParameters) -> None:
    """Brings the index for searches up to date. It is a cache: what can't be had of it stops no release."""
    log = get_run_logger()
    ledger = open_ledger()
    encoder = subset(parameters, DiscoverParams).text_encoder
    try:
        index = open_index(ledger.engine, writing=True)
        frames = fill_frames(ledger, index)
        texts = fill_texts(ledger, index, encoder, partial(embed_apart, encoder))
    except (ItemFailed, ModelUnavailable, OSError, SQLAlchemyError) as error:
        log.warning("the index for searches is not up to date: %s", error)
        return
    log.info("indexed for searches: %d clips by their frames, %d by their words", frames, texts)


class _ListedOnce:
    """Videos in shards. One that is listed twice goes with the first."""

    def __init__(self, shard_size: int) -> None:
        self.shard_size = shard_size
        self._known: set[str] = set()

    def shards(self, label: str, discovered: PrefectFuture[ShardReference]) -> Iterator[tuple[str, list[Item]]]:
        """(label, videos) of what was discovered."""
        reference = discovered.result(raise_on_failure=False)
        if not isinstance(reference, ShardReference):
            return  # `gather` names the cause
        items = bridging_outages(ShardResults(open_ledger()).items)(reference)
        fresh = [item for item in items if item.subject not in self._known]
        self._known.update(item.subject for item in fresh)
        for number, piece in enumerate(pages(fresh, self.shard_size), start=1):
            yield f"{label}-{number}", piece


def _guard(parameters: ReleaseParameters, results: Sequence[ShardReference]) -> list[funnel_guard.Departure]:
    """What departs from the history of the release's name. Automations hear of it before it stops the run."""
    params = subset(parameters, funnel_guard.FunnelGuardParams)
    departures = funnel_guard.funnel_departures(
        parameters.release_prefix, results, policy(parameters)["sources"], params
    )
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
    content["profile"] = profile.name_on_record(parameters.profile)
    return content | {"models": {step: models for step, models in _models(parameters).items() if models}}


def _models(parameters: ReleaseParameters) -> dict[str, dict[str, str]]:
    return {step.name: step.step(subset(parameters, step.params)).identity.models for step in steps()}


def check_models(parameters: ReleaseParameters) -> None:
    """A model or device that can't be had, or parameters that don't fit together, must be an error before any work."""
    devices()
    privacy, caption = subset(parameters, PrivacyParams), subset(parameters, CaptionParams)
    if subset(parameters, QualityParams).face_model == "none" and privacy.faces != "keep":
        raise RefreshFailed(f"faces={privacy.faces} needs a detector of faces: set face_model=centerface")
    if caption.speech_model and not subset(parameters, DownloadParams).with_audio:
        raise RefreshFailed(
            f"speech_model={caption.speech_model} needs audio, which downloads leave out: set with_audio=true"
        )
    try:
        _models(parameters)
        for step in steps():
            if step.load_models:
                step.load_models(subset(parameters, step.params))
    except ValueError as error:
        raise RefreshFailed(f"bad model or parameter: {error}") from error


def _show(summary: Mapping[str, Any], picture: bytes, failed: Sequence[Mapping[str, Any]]) -> None:
    create_table_artifact(table_rows(summary["funnel"]), key="funnel", description="What each step kept, and why not.")
    create_table_artifact(summary["stages"], key="stages", description="What was left after each stage of the paper.")
    create_table_artifact(failure_rows(failed), key="failures", description="What failed, and what is tried again.")
    encoded = base64.b64encode(picture).decode()
    notes = ""
    if summary["awaits_approval"]:
        notes = f"**Awaits approval**: run the deployment `approve` with release `{summary['release']}`.\n\n"
    notes += "".join(f"**Departs from its history**: {departure}\n\n" for departure in summary["departures"])
    create_markdown_artifact(
        f"# Release {summary['release']}\n\n{counted(summary['clips'], 'clip')}, digest `{summary['digest']}`\n\n"
        f"{notes}"
        f"executed {summary['executed']}, reused {summary['reused']}, videos decoded {summary['decodes']}\n\n"
        f"{since_last.markdown(summary['since'])}\n{markdown(summary['funnel'])}\n\n![funnel](data:image/png;base64,{encoded})\n",
        key="release",
        description="The release that this refresh made.",
    )


refresh = make_flow(
    _refresh, RefreshParameters, "refresh", run_name("refresh", "release_prefix", "sources"), first=FIRST
)
