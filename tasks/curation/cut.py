"""Cut: a medical stretch of a video becomes a clip, a file of its own.

Frame-accurate, and black borders go in the same encode, so that no picture is encoded twice. Clips that quality will
turn down are cut too: auditors can look at them, and other thresholds need no decoding.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal, NotRequired, TypedDict, cast

import numpy as np
import pyarrow.parquet as pq
from av.video.frame import VideoFrame
from pydantic import Field

from medgen.canonical import canonical_json, rounded
from medgen.catalog import Clip
from medgen.errors import ItemFailed
from medgen.handover import Handover
from medgen.ledger import Outcome, Record, StepIdentity, Work
from medgen.parameters import MOST_PIXELS, MOST_PIXELS_A_SIDE, MOST_SECONDS, Parameters
from medgen.shard import Item, Past, Step
from medgen.store import Artifact, Store
from medgen.video.cut import Fit
from medgen.video.cut import cut as cut_video
from medgen.video.limits import Limits
from medgen.video.pictures import decode_jpeg
from medgen.video.report import shown_size
from models.segmentation.borders import Borders, detect_borders
from tasks.curation.classify import classified_clip
from tasks.curation.curation_step import CurationStep
from tasks.curation.download import DOWNLOAD
from tasks.curation.segment import SEGMENT

X264Preset = Literal[
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo"
]


SOURCE = "source"
LEAST_SIDE = 64  # pixels


class CutParams(Parameters):
    """Parameters of cut."""

    former_names = MappingProxyType({"preset": "x264_preset"})

    crop_borders: bool = Field(True, description="Crop black borders away where a large enough picture remains.")
    min_inner_short_side: int = Field(
        480, ge=16, le=MOST_PIXELS_A_SIDE, description="Short side that must remain after a crop, pixels."
    )
    # Left out of records where they are not set, so that clips at the source's size keep their keys.
    output_size: str = Field(
        SOURCE,
        pattern=r"^(source|[0-9]{2,5}x[0-9]{2,5})$",
        exclude_if=lambda size: size == SOURCE,
        description="WIDTHxHEIGHT of clips, even pixels (paper: 720x480); source: as they are.",
    )
    output_fit: Fit = Field(
        "crop",
        exclude_if=lambda fit: fit == "crop",
        description="How other shapes get that size: crop (their middle), pad (black around them) or fit (inside it).",
    )
    crf: int = Field(18, ge=0, le=51, description="H.264 quality of clips (lower is better).")
    x264_preset: X264Preset = Field("veryfast", description="x264 preset.")
    max_pixels: int = Field(
        4096 * 2304, gt=0, le=MOST_PIXELS, description="Videos with larger pictures are refused, pixels."
    )
    cut_limit_s: float = Field(
        600.0, gt=0, le=MOST_SECONDS, exclude=True, description="Slower cuts are stopped, seconds."
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Values that do not go together."""
        yield from super().conflicts()
        if (size := self.size) and (min(size) < LEAST_SIDE or size[0] % 2 or size[1] % 2):
            yield "output_size", f"H.264 clips have even sides of at least {LEAST_SIDE} pixels, not {self.output_size}"

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of clips; None: the source's."""
        if self.output_size == SOURCE:
            return None
        width, _, height = self.output_size.partition("x")
        return int(width), int(height)


class ClipFacts(TypedDict):
    """Columns of a clip's row in the catalog: frames [start_frame, end_frame) of its video, pixels, sha256."""

    id: str
    video_id: str
    start_frame: int
    end_frame: int
    start_s: float
    end_s: float
    width: int
    height: int
    fps: float
    digest: str


class EncodedClip(TypedDict):
    """A clip, its size in bytes and its bits per second."""

    clip: ClipFacts
    bytes: int
    bit_rate: int


class BorderFacts(TypedDict):
    """Borders of the source, and the inner picture (x, y, width, height) where they were cropped away."""

    kind: str
    content_mask: Literal["none", "circle", "corners", "page"]
    cropped: bool
    crop: tuple[int, int, int, int] | None


class EncodingFacts(TypedDict):
    """The fields of `Encoding`."""

    video_id: str
    start_frame: int
    end_frame: int
    start_s: float
    end_s: float
    crop: tuple[int, int, int, int] | None
    crf: int
    preset: str
    max_pixels: int
    size: NotRequired[tuple[int, int]]
    fit: NotRequired[Fit]


class CutDetail(EncodedClip):
    """What cut puts on record. `inner` is the size (width, height) of the picture before it was given another."""

    inner: NotRequired[tuple[int, int]]
    borders: BorderFacts
    encoding: EncodingFacts


class CutOutputs(TypedDict):
    """The clip, MP4."""

    clip: str


CUT: Handover[CutDetail, CutOutputs] = Handover("cut")


def cut(work: Work, store: Store, params: CutParams) -> Outcome:
    """Cuts one clip.

    Outputs:
        clip: H.264 MP4 without sound, square pixels, upright.

    Raises:
        ItemFailed: as `medgen.video.cut.cut`; size_changes.
    """
    start, end = work.context["start_frame"], work.context["end_frame"]
    # Of the table, only the groups of rows in which the stretch lies are read.
    stretch = [("frame", ">=", start), ("frame", "<", end)]
    inside = pq.read_table(store.path(work.inputs["samples"]), columns=["jpeg"], filters=stretch)
    pictures = [decode_jpeg(jpeg) for jpeg in inside["jpeg"].to_pylist()]
    if len({picture.shape for picture in pictures}) > 1:
        raise ItemFailed("size_changes", "the pictures of the stretch are of several sizes")
    borders = detect_borders(pictures)
    crop = crop_of(borders, pictures[0].shape, work.context["size"], params)
    video, _, _ = work.subject.partition("/")
    encoding = Encoding(
        video_id=video,
        **{name: work.context[name] for name in ("start_frame", "end_frame", "start_s", "end_s")},
        crop=crop,
        crf=params.crf,
        preset=params.x264_preset,
        max_pixels=params.max_pixels,
        size=params.size,
        fit=params.output_fit,
    )
    clip, made = encode_clip(store, work.inputs, encoding)
    detail: CutDetail = {
        "clip": made["clip"],
        "bytes": made["bytes"],
        "bit_rate": made["bit_rate"],
        "borders": {
            "kind": borders.kind,
            "content_mask": borders.content_mask,
            "cropped": crop is not None,
            "crop": crop,
        },
        "encoding": encoding.on_record(),
    }
    if encoding.size is not None:
        width, height = crop[2:] if crop else work.context["size"]
        detail |= {"inner": (width, height)}
    return Outcome(
        "kept",
        detail=detail,
        outputs={"clip": clip},
        rows=[Clip(**made["clip"])],
        decodes=1,
    )


@dataclass(frozen=True)
class Encoding:
    """Which frames [start_frame, end_frame) of which video become a clip, and how. `crop` in upright source pixels;
    `size` (width, height) of the clip, None: as it is after the crop."""

    video_id: str
    start_frame: int
    end_frame: int
    start_s: float
    end_s: float
    crop: tuple[int, int, int, int] | None
    crf: int
    preset: str
    max_pixels: int
    size: tuple[int, int] | None = None
    fit: Fit = "crop"

    def on_record(self) -> EncodingFacts:
        """Its fields; those of a size only where one is set."""
        facts = {
            name: value for name, value in vars(self).items() if self.size is not None or name not in ("size", "fit")
        }
        return cast(EncodingFacts, facts)


def encode_clip(
    store: Store,
    inputs: Mapping[str, str],
    encoding: Encoding,
    edit: Callable[[int, VideoFrame], VideoFrame] | None = None,
) -> tuple[Artifact, EncodedClip]:
    """Encodes one clip into the store.

    Args:
        inputs: digests of "video" and of segment's table "frames".
        edit: as `medgen.video.cut.cut`.

    Returns:
        The file, and the clip as it goes on record.

    Raises:
        ItemFailed: as `medgen.video.cut.cut`; size_changes.
    """
    start, end = encoding.start_frame, encoding.end_frame
    frames = pq.read_table(store.path(inputs["frames"]), columns=["pts"])
    clock_start = (frames.schema.metadata or {}).get(b"clock_start")
    scratch = store.scratch(".mp4")
    try:
        made = cut_video(
            store.path(inputs["video"]),
            scratch,
            times=frames["pts"][start:end].to_pylist(),
            clock_start=None if clock_start is None else int(clock_start),
            crop=encoding.crop,
            crf=encoding.crf,
            preset=encoding.preset,
            limits=Limits(max_pixels=encoding.max_pixels),
            edit=edit,
            size=encoding.size and (encoding.size[0], encoding.size[1]),
            fit=encoding.fit,
        )
        size = scratch.stat().st_size
        clip = store.put_file(scratch, "video/mp4")
    finally:
        scratch.unlink(missing_ok=True)
    identity = hashlib.sha256(canonical_json([encoding.video_id, start, end, clip.sha256])).hexdigest()[:16]
    facts: ClipFacts = {
        "id": f"c{identity}",
        "video_id": encoding.video_id,
        "start_frame": start,
        "end_frame": end,
        "start_s": encoding.start_s,
        "end_s": encoding.end_s,
        "width": made.width,
        "height": made.height,
        "fps": rounded(made.fps, 4),
        "digest": clip.sha256,
    }
    return clip, {"clip": facts, "bytes": size, "bit_rate": round(8 * size / (encoding.end_s - encoding.start_s))}


def crop_of(
    borders: Borders, sampled: tuple[int, ...], size: Sequence[int], params: CutParams
) -> tuple[int, int, int, int] | None:
    """The inner picture (x, y, width, height) in source pixels, even-sized; None when nothing is to be cropped.

    Borders are found on sampled frames, which may be smaller than the source: edges are rounded inwards.

    Args:
        sampled: height and width of the sampled frames.
        size: width and height of the source.
    """
    if borders.kind == "none" or not params.crop_borders:
        return None
    x, y, width, height = borders.inner
    across, down = size[0] / sampled[1], size[1] / sampled[0]
    left, top = int(np.ceil(x * across)), int(np.ceil(y * down))
    right, bottom = int((x + width) * across), int((y + height) * down)
    left, top = left + left % 2, top + top % 2
    wide, high = (right - left) // 2 * 2, (bottom - top) // 2 * 2
    return (left, top, wide, high) if min(wide, high) >= params.min_inner_short_side else None


def step(params: CutParams) -> Step:
    """Cut, ready to run."""
    return Step(
        StepIdentity("cut", 4, params.model_dump(mode="json"), {}),
        partial(cut, params=params),
        work_of=work_of,
        fan_out=clip_of,
        time_limit_s=params.cut_limit_s,
    )


def work_of(item: Item, past: Past) -> Work:
    """A stretch of a video: its frames, and what is needed to find borders and to cut."""
    start, end = (int(part) for part in item.subject.partition("/")[2].split("-"))
    clip, segmented = classified_clip(past, start, end), SEGMENT.outputs(past)
    return Work(
        item.subject,
        inputs={
            "video": DOWNLOAD.outputs(past)["video"],
            "frames": segmented["frames"],
            "samples": segmented["samples"],
        },
        context={
            "start_frame": clip["start_frame"],
            "end_frame": clip["end_frame"],
            "start_s": clip["start_s"],
            "end_s": clip["end_s"],
            "size": list(shown_size(SEGMENT.detail(past)["video"], start)),
        },
    )


def clip_of(item: Item, record: Record) -> Iterable[Item]:
    """The clip that a stretch became."""
    return [Item(CUT.detail(record)["clip"]["id"], item.lineage)]


STEP = CurationStep("cut", CutParams, step)
