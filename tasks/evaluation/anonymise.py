"""Anonymise: a copy of a video from which nothing tells who made it, in the one form that every browser plays.

What goes: metadata, sound, subtitles, chapters, names and times of the container, and of H.264 the supplemental
information, in which encoders write their names and settings. Pictures stay bit for bit where the video is upright
8-bit H.264 already; anything else is encoded anew at a quality that shows no loss, and the record says so. What can't
be hidden without changing what is rated stays: size of the picture, frame rate, length.

The same step makes the broken videos of attention checks.
"""

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypedDict

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.video.frame import VideoFrame
from pydantic import ConfigDict, Field

from medgen.errors import ItemFailed
from medgen.handover import Handover
from medgen.ledger import Ledger, Outcome, StepIdentity, Work
from medgen.parameters import MOST_PIXELS, MOST_SECONDS, Parameters
from medgen.shard import ShardResult, Step, run_shard
from medgen.store import Store, file_digest
from medgen.video.container import main_picture, open_video
from medgen.video.cut import cut
from medgen.video.encoding import bt709_frames
from medgen.video.limits import Limits
from medgen.video.pictures import pictures
from medgen.video.probe import Probe, probe

SUPPLEMENTAL = 6  # type of the H.264 unit (NAL) that holds free text of encoders
BROKEN_TILES = 6  # a broken picture is cut into so many squares by so many, which change places
BROKEN_NOISE = 110.0  # standard deviation of the noise over it, of 255
MIN_FRAMES = 2  # fewer are a picture, no video


Form = Literal["whole", "broken"]


class AnonymisedDetail(TypedDict):
    """Detail of a kept record; `encoded_anew` says that the pictures are not the original's bit for bit."""

    width: int
    height: int
    fps: float
    frames: int
    duration_s: float
    encoded_anew: bool
    form: Form


class AnonymisedOutputs(TypedDict):
    """Outputs of a kept record, role → sha256."""

    video: str


ANONYMISED: Handover[AnonymisedDetail, AnonymisedOutputs] = Handover("blind")


class AnonymiseParams(Parameters):
    """How videos are made anonymous."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blind_crf: int = Field(12, ge=0, le=30, description="x264's CRF for videos that must be encoded anew.")
    blind_max_seconds: float = Field(
        120.0, gt=0, le=MOST_SECONDS, description="Longer videos are refused: raters see them whole."
    )
    blind_max_pixels: int = Field(
        4096 * 2304, gt=0, le=MOST_PIXELS, description="Larger pictures (width × height) are refused."
    )
    blind_time_limit_s: float = Field(
        300.0, gt=0, le=MOST_SECONDS, description="A video that takes longer is given up."
    )


def anonymise_videos(
    ledger: Ledger,
    videos: Sequence[tuple[Path, str, Form]],
    params: AnonymiseParams,
    *,
    parents: dict[str, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ShardResult:
    """Runs the step on video files.

    Args:
        videos: (path, sha256 of the file, whether to break it).
        parents: sha256 of a file → step run that made it.
    """
    identity = StepIdentity("blind", 2, params.model_dump(exclude={"blind_time_limit_s"}), {})
    step = Step(identity, partial(anonymise, params=params), time_limit_s=params.blind_time_limit_s)
    works = [
        Work(
            f"blind-{sha256[:32]}-{form}",
            context={"sha256": sha256, "form": form},
            parents={"video": parents[sha256]} if parents and sha256 in parents else {},
            access={"path": str(path)},
        )
        for path, sha256, form in videos
    ]
    return run_shard(step, works, progress=progress, ledger=ledger)


def anonymise(work: Work, store: Store, *, params: AnonymiseParams) -> Outcome:
    """One anonymous copy.

    Outputs:
        video: MP4 with one H.264 stream.

    Raises:
        ItemFailed: as `medgen.video.probe.probe` and `pictures`; one_frame; file_changed.
    """
    path = Path(work.access["path"])
    if file_digest(path)[0] != work.context["sha256"]:
        raise ItemFailed("file_changed", f"{path.name} was changed while it was read", transient=True)
    limits = Limits(max_pixels=params.blind_max_pixels, max_duration_s=params.blind_max_seconds)
    probed = probe(path, limits)
    times = [picture.pts for picture in pictures(path, limits)]  # all are decoded: a broken file ends here
    if len(times) < MIN_FRAMES:
        raise ItemFailed("one_frame", f"{path.name} has one frame only")
    anew = work.context["form"] == "broken" or not _plays_as_it_is(probed, path, limits)
    plain = path
    if anew:
        plain = store.scratch(".mp4")
        edit = _breaker(work.context["sha256"]) if work.context["form"] == "broken" else None
        made = cut(path, plain, times=times, crop=None, crf=params.blind_crf, preset="medium", limits=limits, edit=edit)
        width, height = made.width, made.height
    else:
        width, height = probed.width, probed.height
    copy = store.scratch(".mp4")
    strip(plain, copy)
    if anew:
        plain.unlink()
    detail: AnonymisedDetail = {
        "width": width,
        "height": height,
        "fps": probed.fps,
        "frames": len(times),
        "duration_s": probed.duration_s,
        "encoded_anew": anew,
        "form": work.context["form"],
    }
    return Outcome("kept", detail=dict(detail), outputs={"video": store.put_file(copy, "video/mp4")}, decodes=1)


def strip(source: Path, target: Path) -> None:
    """Copies the H.264 stream of `source` and nothing else into a new MP4 at `target`; pictures are not touched."""
    # bitexact: the muxer names neither itself nor the time.
    options = {"movflags": "faststart", "fflags": "+bitexact"}
    with av.open(str(source)) as read, av.open(str(target), "w", format="mp4", container_options=options) as written:
        stream, _ = main_picture(source, read, Limits())
        copy = written.add_stream_from_template(stream)
        copy.metadata.clear()
        units = BitStreamFilterContext(f"filter_units=remove_types={SUPPLEMENTAL}", stream, copy)
        for packet in read.demux(stream):
            for clean in units.filter(packet if packet.dts is not None else None):
                clean.stream = copy
                written.mux(clean)


def _plays_as_it_is(probed: Probe, path: Path, limits: Limits) -> bool:
    """Whether the pictures need no new encoding: H.264 of 8 bits, 4:2:0, upright, square pixels, in BT.709, even
    timing."""
    upright = (probed.rotation, probed.mirrored, probed.pixel_aspect, probed.interlaced) == (0, False, "1:1", False)
    # MP4 and its kin carry whole H.264; others (AVI, raw) may lack times. Untagged colours look different from reader
    # to reader.
    said = probed.colour["conversion"] == "none" and "matrix" not in probed.colour["assumed"]
    if not (probed.codec == "h264" and upright and said and probed.container.startswith(("mov", "matroska"))):
        return False
    with open_video(path, limits) as video:
        return probed.clock_start_s == 0 and (video.stream.start_time or 0) == 0


def _breaker(seed: str) -> Callable[[int, VideoFrame], VideoFrame]:
    """An edit for `medgen.video.cut.cut` that shuffles squares of the picture and lays noise over it: nobody takes the
    result for the better video."""
    places = list(range(BROKEN_TILES**2))
    random.Random(seed).shuffle(places)
    generator = np.random.default_rng(int(seed[:16], 16))

    def edit(index: int, frame: VideoFrame) -> VideoFrame:
        picture = frame.to_ndarray(format="rgb24")
        height, width = (side // BROKEN_TILES for side in picture.shape[:2])
        broken = picture.copy()
        if height and width:
            for to, place in enumerate(places):
                (y, x), (v, u) = divmod(to, BROKEN_TILES), divmod(place, BROKEN_TILES)
                tile = picture[v * height : (v + 1) * height, u * width : (u + 1) * width]
                broken[y * height : (y + 1) * height, x * width : (x + 1) * width] = tile
        noise = generator.normal(0, BROKEN_NOISE, broken.shape)
        noisy = np.clip(broken + noise, 0, 255).astype(np.uint8)
        return next(bt709_frames([noisy]))

    return edit
