"""Trace clip: what a training clip looks like over time, so that generated videos can be compared with it."""

from collections.abc import Iterable, Sequence
from functools import cache, partial

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from medgen.canonical import digest_of
from medgen.errors import ItemFailed
from medgen.ledger import Ledger, Outcome, StepIdentity, Work
from medgen.media import Limits, Picture, evenly_spaced, pictures
from medgen.shard import Item, ShardResult, Step
from medgen.store import Store
from models.encoders import MOBILENET, Encoder, encoder_digest, load_encoder
from models.metrics.suite import TRACE_SIDE
from models.metrics.trace import GREY_EVERY_S, TRACE, TRACE_FRAMES, Trace, grey_of, shrunk, trace
from tasks.evaluation.measure_video import MeasureDetail, packed, rate, unpacked
from tasks.prefect_step import run_in_prefect, step_task
from tasks.training.released import ReleasedClip

LIMIT_S = 600.0


class TraceParams(BaseModel):
    """Parameters of trace clip."""

    model_config = ConfigDict(frozen=True)

    trace_side: int = Field(
        224,
        ge=32,
        le=1024,
        description="Long side that clips are shrunk to, as large as the videos compared with them.",
    )


def trace_params(measured: Iterable[MeasureDetail]) -> TraceParams:
    """The parameters by which clips become as large as the smallest of the measured videos."""
    sides = [max(detail["width"], detail["height"]) for detail in measured]
    return TraceParams(trace_side=max(32, min([TRACE_SIDE, *sides])))


def trace_clip(work: Work, store: Store, params: TraceParams) -> Outcome:
    """Traces one clip. Output `trace`, as of measure video.

    Raises:
        ItemFailed: as `medgen.media.pictures`; undecodable.
    """
    small: list[np.ndarray] = []
    times: list[Picture] = []
    for picture in pictures(store.path(work.inputs["clip"]), Limits()):
        small.append(shrunk(picture.rgb(), max(params.trace_side, 160)))
        if len(times) < 16:
            times.append(picture)
    if not small:
        raise ItemFailed("undecodable", "not one frame of the clip could be decoded")
    fps = rate(times)
    every = max(1, round(fps * GREY_EVERY_S))
    encoder = _encoder()
    chosen = [shrunk(small[place], params.trace_side) for place in evenly_spaced(len(small), TRACE_FRAMES)]
    found = trace(chosen, [grey_of(frame) for frame in small[::every]], every / fps, encoder)
    return Outcome("kept", outputs={"trace": store.put_bytes(packed(found), "application/vnd.safetensors")}, decodes=1)


@cache
def _encoder() -> Encoder:
    return load_encoder(MOBILENET)


def step(params: TraceParams) -> Step:
    """Trace clip, ready to run. Raises ModelUnavailable."""
    models = {"trace": digest_of([TRACE, encoder_digest(MOBILENET)])}
    identity = StepIdentity("trace_clip", 1, params.model_dump(mode="json"), models)
    return Step(identity, partial(trace_clip, params=params), "processes", LIMIT_S)


@step_task("trace_clip", "cpu")
def trace_shard(
    label: str, clips: Sequence[ReleasedClip], params: TraceParams, retry_quarantined: bool = False
) -> ShardResult:
    """Traces clips of a release."""
    works = iter([Work(c.clip_id, inputs={"clip": c.sha256}, parents={"release": c.step_run_id}) for c in clips])
    items = [Item(clip.clip_id) for clip in clips]
    return run_in_prefect(step(params), items, lambda item, past: next(works), retry_quarantined=retry_quarantined)


def read_traces(ledger: Ledger, records: Sequence[int]) -> dict[str, Trace]:
    """subject → trace of the records that have one. Raises as `Store.path`; ItemFailed: bad_trace."""
    loaded = ledger.load(records).values()
    return {r.subject: unpacked(ledger.store.path(r.outputs["trace"])) for r in loaded if "trace" in r.outputs}
