"""Descriptor of a clip: what a training clip looks like over time, so that generated videos can be compared with it."""

from collections.abc import Iterable, Sequence
from functools import cache, partial

import numpy as np
from pydantic import Field

from medgen.canonical import digest_of
from medgen.devices import place_of_models, this_device
from medgen.errors import ItemFailed
from medgen.ledger import Ledger, Outcome, StepIdentity, Work
from medgen.parameters import Parameters
from medgen.shard import ShardResult, Step
from medgen.store import Store
from medgen.video.limits import Limits
from medgen.video.pictures import Picture, evenly_spaced, pictures
from models.encoders import MOBILENET, Encoder, encoder_digest, load_encoder
from models.metrics.descriptor import (
    DESCRIPTOR,
    DESCRIPTOR_FRAMES,
    GREY_EVERY_S,
    Descriptor,
    compute_descriptor,
    grey_of,
    shrunk,
)
from models.metrics.suite import DESCRIPTOR_SIDE
from tasks.evaluation.measure_video import MeasureDetail, packed, rate, unpacked
from tasks.prefect_step import run_in_prefect, step_task
from tasks.training.released import ReleasedClip

LIMIT_S = 600.0


class ClipDescriptorParams(Parameters):
    """Parameters of the descriptor of a clip; the field's name is part of step keys."""

    trace_side: int = Field(
        224,
        ge=32,
        le=1024,
        description="Long side that clips are shrunk to, as large as the videos compared with them.",
    )


def clip_descriptor_params(measured: Iterable[MeasureDetail]) -> ClipDescriptorParams:
    """The parameters by which clips become as large as the smallest of the measured videos."""
    sides = [max(detail["width"], detail["height"]) for detail in measured]
    return ClipDescriptorParams(trace_side=max(32, min([DESCRIPTOR_SIDE, *sides])))


def describe_clip(work: Work, store: Store, params: ClipDescriptorParams) -> Outcome:
    """Computes the descriptor of one clip. Output `trace`, as of measure video.

    Raises:
        ItemFailed: as `medgen.video.pictures.pictures`; undecodable.
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
    chosen = [shrunk(small[place], params.trace_side) for place in evenly_spaced(len(small), DESCRIPTOR_FRAMES)]
    descriptor = compute_descriptor(chosen, [grey_of(frame) for frame in small[::every]], every / fps, encoder)
    return Outcome(
        "kept", outputs={"trace": store.put_bytes(packed(descriptor), "application/vnd.safetensors")}, decodes=1
    )


@cache
def _encoder() -> Encoder:
    return load_encoder(MOBILENET, this_device())


def step(params: ClipDescriptorParams) -> Step:
    """The step `trace_clip`, as records name it, ready to run. Raises ModelUnavailable."""
    models = {"trace": digest_of([DESCRIPTOR, encoder_digest(MOBILENET)])}
    identity = StepIdentity("trace_clip", 1, params.model_dump(mode="json"), models)
    where = place_of_models(packaged=True)
    return Step(identity, partial(describe_clip, params=params), runs_in=where, time_limit_s=LIMIT_S)


@step_task("trace_clip", "cpu")
def descriptor_shard(
    label: str, clips: Sequence[ReleasedClip], params: ClipDescriptorParams, retry_quarantined: bool = False
) -> ShardResult:
    """Computes the descriptors of a release's clips."""
    works = [Work(c.clip_id, inputs={"clip": c.sha256}, parents={"release": c.step_run_id}) for c in clips]
    return run_in_prefect(step(params), works, retry_quarantined=retry_quarantined)


def read_descriptors(ledger: Ledger, records: Sequence[int]) -> dict[str, Descriptor]:
    """subject → descriptor of the records that have one. Raises as `Store.path`; ItemFailed: bad_trace."""
    loaded = ledger.load(records).values()
    return {r.subject: unpacked(ledger.store.path(r.outputs["trace"])) for r in loaded if "trace" in r.outputs}
