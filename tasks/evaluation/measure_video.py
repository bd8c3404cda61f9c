"""Measure video: every metric of one video, generated or from anywhere, from one pass over its frames."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypedDict

import numpy as np
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from medgen.canonical import rounded
from medgen.devices import place_of_models, this_device
from medgen.errors import ItemFailed
from medgen.handover import Handover
from medgen.ledger import Outcome, StepIdentity, Work
from medgen.parameters import MOST_SECONDS, Parameters
from medgen.shard import ShardResult, Step
from medgen.store import Store
from medgen.video.limits import Limits
from medgen.video.pictures import Picture, pictures
from models.duplicates.fingerprint import Fingerprint
from models.encoders import shown_name
from models.metrics.descriptor import Descriptor
from models.metrics.flow import ONNX_PREFIX
from models.metrics.suite import Backbones, TooShort, jpeg, load_suite
from tasks.prefect_step import run_in_prefect, step_task

STEP = "measure_video"
MAX_FPS = 240.0
FRAMES_FOR_RATE = 16


class MeasureParams(Parameters):
    """Parameters of measure video: the model behind each metric, whose name the metric carries."""

    metric_subject: str = Field(
        "mobilenet_v2", description="Subject consistency: mobilenet_v2, or DINO (VBench: facebook/dino-vitb16)."
    )
    metric_background: str = Field(
        "mobilenet_v2",
        description="Background consistency: mobilenet_v2, or CLIP (VBench: openai/clip-vit-base-patch32).",
    )
    metric_imaging: str = Field(
        "defects", description="Imaging quality: defects (a stand-in), or one of pyiqa (VBench: musiq-spaq)."
    )
    metric_aesthetic: str = Field(
        "entropy", description="Aesthetic quality: entropy (a stand-in), or one of pyiqa (VBench: laion_aes)."
    )
    metric_flow: str = Field("dis", description="Dynamic degree: dis, raft_large (VBench) or raft_small.")
    metric_interpolator: str = Field(
        "dis", description="Motion smoothness: dis, or onnx:FILE, an export of AMT (VBench)."
    )
    metric_text: str = Field("", description="Text alignment: a CLIP-class model; empty: not measured.")
    measure_max_s: float = Field(120.0, gt=0, le=MOST_SECONDS, description="Longest video that is measured, seconds.")
    measure_limit_s: float = Field(
        1800.0, gt=0, le=MOST_SECONDS, exclude=True, description="Time limit for one video, seconds."
    )

    def backbones(self) -> Backbones:
        """As the metrics take them."""
        return Backbones(
            subject=self.metric_subject,
            background=self.metric_background,
            imaging=self.metric_imaging,
            aesthetic=self.metric_aesthetic,
            flow=self.metric_flow,
            interpolator=self.metric_interpolator,
            text=self.metric_text,
        )


class MeasureDetail(TypedDict):
    """Detail of a kept record: number of frames, frames per second, size in pixels."""

    frames: int
    fps: float
    width: int
    height: int


class MeasureOutputs(TypedDict):
    """Outputs of a kept record, role → sha256."""

    trace: str
    picture: str


MEASURE: Handover[MeasureDetail, MeasureOutputs] = Handover(STEP)


@dataclass(frozen=True)
class Video:
    """A video to evaluate.

    Args:
        system: what made it, as shown.
        subject: `gen-…` of a record of generate, or `video-` and the beginning of its file's sha256.
        name: of its file, as shown.
        sha256: of its file.
        path: where the file lies; None when it is in the store.
        run_id: its record of generate; None for others' videos.
    """

    system: str
    subject: str
    name: str
    sha256: str
    prompt_id: str
    prompt: str = ""
    category: str = ""
    procedure: str = ""
    path: str | None = None
    run_id: int | None = None

    def work(self, **context: Any) -> Work:
        """The video as a step's function sees it."""
        if self.path is None:
            parents = {} if self.run_id is None else {"generate": self.run_id}
            return Work(self.subject, inputs={"video": self.sha256}, context=context, parents=parents)
        return Work(self.subject, context={"video_sha256": self.sha256, **context}, access={"path": self.path})

    def file(self, store: Store) -> Path:
        """Where its bytes lie. Raises as `Store.path`."""
        return store.path(self.sha256) if self.path is None else Path(self.path)


def measure_video(work: Work, store: Store, params: MeasureParams) -> Outcome:
    """Measures one video.

    Scores go by the metrics' names, with their models' digests. Outputs: `trace` (safetensors, for what it resembles)
    and `picture` (JPEG, the middle frame). Rejected: too_few_frames.

    Raises:
        ItemFailed: as `medgen.video.pictures.pictures`; size_changes.
    """
    source = video_file(work, store)
    stream = pictures(source, Limits(max_duration_s=params.measure_max_s, max_fps=MAX_FPS))
    first = list(itertools.islice(stream, FRAMES_FOR_RATE))
    if not first:
        raise ItemFailed("undecodable", "not one frame could be decoded")
    fps = rate(first)

    def frames() -> Iterator[np.ndarray]:
        for picture in itertools.chain(first, stream):
            yield picture.rgb()

    try:
        measures = load_suite(params.backbones(), this_device()).measure(frames(), fps, work.context.get("prompt", ""))
    except TooShort as error:
        return Outcome("rejected", "too_few_frames", {"message": str(error)}, decodes=1)
    except ValueError as error:
        raise ItemFailed("size_changes", str(error)) from error
    detail: MeasureDetail = {
        "frames": measures.frames,
        "fps": rounded(fps, 3),
        "width": measures.width,
        "height": measures.height,
    }
    return Outcome(
        "kept",
        detail=dict(detail),
        scores=measures.scores,
        score_models=measures.models,
        outputs={
            "trace": store.put_bytes(packed(measures.descriptor), "application/vnd.safetensors"),
            "picture": store.put_bytes(jpeg(measures.picture), "image/jpeg"),
        },
        decodes=1,
    )


def video_file(work: Work, store: Store) -> Path:
    """Where the bytes of a video's work lie. Raises as `Store.path`; ItemFailed: video_vanished."""
    if "video" in work.inputs:
        return store.path(work.inputs["video"])
    path = Path(work.access["path"])
    if not path.is_file():
        raise ItemFailed("video_vanished", f"{path.name} is no longer there", transient=True)
    return path


def rate(shown: Sequence[Picture]) -> float:
    """Frames per second of the first pictures; 25 for a single one."""
    steps = [b.time_s - a.time_s for a, b in itertools.pairwise(shown)]
    step = median(steps) if steps else 0.0
    return min(MAX_FPS, 1 / step) if step > 0 else 25.0


def packed(descriptor: Descriptor) -> bytes:
    """A descriptor as safetensors: tensor `features`, the fingerprint in the metadata."""
    return save({"features": descriptor.features.astype(np.float32)}, {"fingerprint": descriptor.fingerprint.text()})


def unpacked(path: Path) -> Descriptor:
    """The descriptor that `packed` gave. Raises ItemFailed: bad_trace."""
    try:
        with safe_open(path, "numpy") as file:
            return Descriptor(file.get_tensor("features"), Fingerprint.parse((file.metadata() or {})["fingerprint"]))
    except (SafetensorError, KeyError, ValueError) as error:
        raise ItemFailed("bad_trace", f"{path.name} is no trace of a video: {error}") from error


def step(params: MeasureParams) -> Step:
    """Measure video, ready to run. Raises ModelUnavailable and ValueError when a model can't be had."""
    shown = {
        name: f"{ONNX_PREFIX}{Path(value).name}" if isinstance(value, str) and value.startswith(ONNX_PREFIX)
        else shown_name(value) if isinstance(value, str) and value else value
        for name, value in params.model_dump(mode="json").items()
    }  # fmt: skip
    identity = StepIdentity(STEP, 1, shown, params.backbones().digests())
    packaged = params.backbones() == Backbones()
    where = place_of_models(packaged=packaged)
    return Step(identity, partial(measure_video, params=params), runs_in=where, time_limit_s=params.measure_limit_s)


@step_task(STEP, "cpu")
def measure_shard(
    label: str, videos: Sequence[Video], params: MeasureParams, retry_quarantined: bool = False
) -> ShardResult:
    """Measures videos; the records' ids come in their order."""
    works = [video.work(**({"prompt": video.prompt} if params.metric_text else {})) for video in videos]
    return run_in_prefect(step(params), works, retry_quarantined=retry_quarantined)
