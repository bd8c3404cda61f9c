"""Features of a video or clip for Fréchet distances, which tell how far a system's videos are from training clips."""

from collections.abc import Sequence
from functools import cache, partial
from typing import TypedDict

import numpy as np
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from medgen.devices import place_of_models, this_device
from medgen.errors import ItemFailed, RunStopped
from medgen.handover import Handover
from medgen.ledger import Ledger, Outcome, StepIdentity, Work
from medgen.parameters import Parameters
from medgen.shard import ShardResult, Step
from medgen.store import Store
from medgen.video.limits import Limits
from medgen.video.pictures import evenly_spaced, pictures
from models.encoders import MOBILENET
from models.metrics.frechet_backbones import (
    FrameFeatures,
    VideoFeatures,
    fid_name,
    frame_features_digest,
    fvd_name,
    load_frame_features,
    load_video_features,
    video_features_digest,
)
from tasks.evaluation.measure_video import MAX_FPS, Video, video_file
from tasks.prefect_step import run_in_prefect, step_task
from tasks.training.released import ReleasedClip

STEP = "frechet_features"
FVD_FPS = 8.0  # frames per second that FVD sees, of the middle of a video: the same span of time for all
FID_FRAMES = 8  # of a video
LIMIT_S = 1800.0
FRAMES, VIDEO = "frames", "video"  # tensors of a record


class FrechetParams(Parameters):
    """Parameters of FID and FVD, which compare systems with the clips of a release."""

    metric_fid: str = Field("", description="FID over frames: inception, or mobilenet_v2 (a stand-in); empty: none.")
    metric_fvd: str = Field(
        "",
        description="FVD: onnx:FILE, an export of I3D, or a VideoMAE-class model (MCG-NJU/videomae-base); empty: none.",
    )
    frechet_clips: int = Field(
        2048, ge=2, le=100_000, exclude=True, description="Most clips of the release that FID and FVD compare with."
    )

    @property
    def wanted(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.metric_fid or self.metric_fvd)

    def names(self) -> dict[str, str]:
        """Tensor of a record → name of the metric over it. Raises ModelUnavailable, ValueError."""
        names = {FRAMES: fid_name(self.metric_fid)} if self.metric_fid else {}
        return names | ({VIDEO: fvd_name(self.metric_fvd)} if self.metric_fvd else {})

    def digests(self) -> dict[str, str]:
        """Tensor of a record → digest of the model behind it. Raises ModelUnavailable, ValueError."""
        digests = {FRAMES: frame_features_digest(self.metric_fid)} if self.metric_fid else {}
        return digests | ({VIDEO: video_features_digest(self.metric_fvd)} if self.metric_fvd else {})


class FrechetOutputs(TypedDict):
    """Outputs of a kept record: safetensors with `frames` (n, D) and `video` (1, D), those that were asked for."""

    features: str


FEATURES: Handover[dict[str, object], FrechetOutputs] = Handover(STEP)


def check_frechet(params: FrechetParams, against: str) -> None:
    """Whether FID and FVD can be measured as asked for.

    Raises:
        RunStopped: no release to compare with, or a wrong name.
        ModelUnavailable: a model can't be had.
    """
    if not params.wanted:
        return
    if not against:
        raise RunStopped("FID and FVD compare with the clips of a release: name one with against, or leave them out")
    try:
        step(params)
    except ValueError as error:
        raise RunStopped(f"bad model or parameter: {error}") from error


def frechet_features(work: Work, store: Store, params: FrechetParams) -> Outcome:
    """Computes the features of one video.

    Raises:
        ItemFailed: as `medgen.video.pictures.pictures`; undecodable.
    """
    source = store.path(work.inputs["clip"]) if "clip" in work.inputs else video_file(work, store)
    # Which frames are wanted depends on how many there are; to hold all of them would take gigabytes.
    times = [picture.time_s for picture in pictures(source, Limits(max_fps=MAX_FPS))]
    if not times:
        raise ItemFailed("undecodable", "not one frame could be decoded")
    places: dict[str, list[int]] = {}
    if params.metric_fid:
        places[FRAMES] = evenly_spaced(len(times), FID_FRAMES)
    if params.metric_fvd:
        places[VIDEO] = middle_places(times, _video(params.metric_fvd).frames)
    wanted = {place for chosen in places.values() for place in chosen}
    again = enumerate(pictures(source, Limits(max_fps=MAX_FPS)))
    kept = {place: picture.rgb() for place, picture in again if place in wanted}
    tensors: dict[str, np.ndarray] = {}
    if FRAMES in places:
        tensors[FRAMES] = _frames(params.metric_fid).features([kept[at] for at in places[FRAMES]])
    if VIDEO in places:
        tensors[VIDEO] = _video(params.metric_fvd).features([kept[at] for at in places[VIDEO]])[None]
    if not all(np.isfinite(rows).all() for rows in tensors.values()):
        raise ItemFailed("not_finite", "the features of the video are not numbers")
    data = save({name: np.ascontiguousarray(rows, np.float32) for name, rows in tensors.items()})
    return Outcome("kept", outputs={"features": store.put_bytes(data, "application/vnd.safetensors")}, decodes=2)


def middle_places(times: Sequence[float], count: int) -> list[int]:
    """Places of `count` frames at FVD_FPS around the middle; of a shorter video, at equal steps over all of it.

    Args:
        times: of all frames, seconds, ascending.
    """
    span = min((count - 1) / FVD_FPS, times[-1] - times[0])
    start = (times[0] + times[-1] - span) / 2
    moments = np.linspace(start, start + span, count)
    return [int(np.abs(np.asarray(times) - moment).argmin()) for moment in moments]


@cache
def _frames(name: str) -> FrameFeatures:
    return load_frame_features(name, this_device())


@cache
def _video(name: str) -> VideoFeatures:
    return load_video_features(name, this_device())


def step(params: FrechetParams) -> Step:
    """Features for Fréchet distances, ready to run. Raises ModelUnavailable, ValueError."""
    settings = {"fid_frames": FID_FRAMES, "fvd_fps": FVD_FPS}
    identity = StepIdentity(STEP, 1, settings, params.digests())
    where = place_of_models(packaged=params.metric_fid in ("", MOBILENET) and not params.metric_fvd)
    return Step(identity, partial(frechet_features, params=params), runs_in=where, time_limit_s=LIMIT_S)


@step_task(STEP, "gpu")
def frechet_shard(
    label: str, items: Sequence[Video | ReleasedClip], params: FrechetParams, retry_quarantined: bool = False
) -> ShardResult:
    """Computes the features of videos or clips; the records' ids come in their order."""
    works = [
        item.work()
        if isinstance(item, Video)
        else Work(item.clip_id, inputs={"clip": item.sha256}, parents={"release": item.step_run_id})
        for item in items
    ]
    return run_in_prefect(step(params), works, retry_quarantined=retry_quarantined)


def read_features(ledger: Ledger, records: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """Tensors of each record in order; none of one that failed. Raises as `Store.path`; ItemFailed: bad_features."""
    loaded = ledger.load(records)
    found = []
    for run_id in records:
        record, tensors = loaded[run_id], dict[str, np.ndarray]()
        if record.status == "kept":
            path = ledger.store.path(FEATURES.outputs(record)["features"])
            try:
                with safe_open(path, "numpy") as file:
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
            except SafetensorError as error:
                raise ItemFailed("bad_features", f"{path.name} holds no features: {error}") from error
        found.append(tensors)
    return found
