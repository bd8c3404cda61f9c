"""Cuts a clip out of a video, to the frame."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Literal

import av
from av.video.frame import VideoFrame

from medgen.errors import ItemFailed
from medgen.video.colour import mark_bt709
from medgen.video.container import open_video
from medgen.video.encoding import h264_file
from medgen.video.filters import filter_graph
from medgen.video.limits import Limits
from medgen.video.pictures import Picture, VideoReader

ROUNDING = 2  # ticks: gaps of 33, 33 and 34 are even
Fit = Literal["fit", "crop", "pad"]
Edit = Callable[[int, VideoFrame], VideoFrame]


@dataclass(frozen=True)
class CutClip:
    """A clip as written: its frames, its size in pixels, its length in seconds (the last frame's own included)."""

    frames: int
    width: int
    height: int
    duration_s: Fraction

    @property
    def fps(self) -> float:
        """Frames per second."""
        return float(self.frames / self.duration_s)


def cut(
    path: Path,
    target: Path,
    *,
    times: Sequence[int],
    crop: tuple[int, int, int, int] | None,
    crf: int,
    preset: str,
    limits: Limits,
    clock_start: int | None = None,
    edit: Edit | None = None,
    size: tuple[int, int] | None = None,
    fit: Fit = "crop",
) -> CutClip:
    """Encodes some consecutive frames as H.264 in MP4, without sound.

    Frame times are kept, variable rates included. One thread, so that the same frames give the same bytes.

    Args:
        times: of the frames, see `Picture.pts`; at least one.
        crop: (x, y, width, height) in upright source pixels; odd sizes lose a row or column.
        clock_start: the file's own time of its first picture, where all times of the file are its own: then it is
            read from just before the clip. None: from its beginning.
        edit: (index from 0, yuv420p frame as the clip shows it) → the frame to encode, of the same size.
        size: (width, height) of the clip, even; None: as it is after the crop.
        fit: how a picture of another shape gets that size: see `shaped`.

    Raises:
        ItemFailed: as `medgen.video.pictures.pictures`; frames_missing when a promised frame is not there or one
            more than promised is; size_changes when a frame has another size than the first one.
    """
    start_pts = times[0]
    frames = _Frames(path, start_pts, limits, clock_start)
    pictures = iter(frames)
    first = next(pictures, None)
    if first is None or first.pts != start_pts:
        raise ItemFailed("frames_missing", f"no frame at time {start_pts} of {path.name}")
    full = (first.frame.width, first.frame.height)
    box = _even(crop or (0, 0, *full), full)
    chain, (width, height) = shaped(box, full, size, fit)
    base = first.frame.time_base
    assert base is not None  # every frame of a stream has it
    gaps = [after - before for before, after in pairwise(times)]
    even = not gaps or max(gaps) - min(gaps) <= ROUNDING
    count = 0
    with h264_file(target, (width, height), base, crf=crf, preset=preset, even_gaps=even) as out:
        # A filter takes each frame for as large as the first, and would read beyond the end of a smaller one.
        graph = filter_graph(first.frame, chain) if chain else None
        picture: Picture | None = first
        while picture is not None and picture.pts <= times[-1]:
            if count == len(times) or picture.pts != times[count]:
                raise ItemFailed("frames_missing", f"{path.name} has a frame at time {picture.pts} now")
            if (now := (picture.frame.width, picture.frame.height)) != full:
                raise ItemFailed("size_changes", f"from {full[0]}x{full[1]} to {now[0]}x{now[1]} at {picture.time_s} s")
            frame = picture.frame
            if graph is not None:
                graph.vpush(frame)
                frame = graph.vpull()
                mark_bt709(frame)
            if edit is not None:
                frame = edit(count, frame)
            out.add(frame, picture.pts - start_pts)
            count += 1
            picture = next(pictures, None)
        end = (picture.pts if picture is not None else frames.end) - start_pts
        out.end(end)
    if count != len(times):
        raise ItemFailed("frames_missing", f"{count} frames of {path.name} where {len(times)} were promised")
    return CutClip(count, width, height, end * base)


def shaped(
    box: tuple[int, int, int, int], full: tuple[int, int], size: tuple[int, int] | None, fit: Fit
) -> tuple[list[tuple[str, str]], tuple[int, int]]:
    """FFmpeg's filters that bring the part `box` (x, y, width, height) of a picture to a size, and the size it gets.

    - crop: its middle part of the wanted shape, scaled; nothing is added or distorted.
    - pad: scaled to fit inside, black around it.
    - fit: scaled to fit inside, as large as that is; its shape stays, but for the last pixel of each side.

    Args:
        full: (width, height) of the whole picture.
        size: wanted (width, height), even; None: no scaling.
    """
    x, y, width, height = box
    wide, high = size or (width, height)
    if fit == "crop" and size is not None:
        across, down = min(width, round(height * wide / high)), min(height, round(width * high / wide))
        across, down = max(2, across - across % 2), max(2, down - down % 2)
        x, y, width, height = x + (width - across) // 4 * 2, y + (height - down) // 4 * 2, across, down
    inside = (wide, high)
    if fit != "crop" and size is not None:
        scale = min(wide / width, high / height)
        inside = (min(wide, max(2, 2 * round(width * scale / 2))), min(high, max(2, 2 * round(height * scale / 2))))
    chain = [("crop", f"{width}:{height}:{x}:{y}:exact=1")] if (width, height) != full else []
    if inside != (width, height):
        chain += [("scale", f"{inside[0]}:{inside[1]}:flags=lanczos+accurate_rnd+bitexact"), ("setsar", "1")]
    if fit == "pad" and inside != (wide, high):
        chain.append(("pad", f"{wide}:{high}:{(wide - inside[0]) // 4 * 2}:{(high - inside[1]) // 4 * 2}"))
        return chain, (wide, high)
    return chain, inside


def _even(crop: tuple[int, int, int, int], full: tuple[int, int]) -> tuple[int, int, int, int]:
    x, y, width, height = crop
    width, height = width - width % 2, height - height % 2
    if x + width > full[0] or y + height > full[1]:
        raise ItemFailed("size_changes", f"a crop to {crop} of pictures that are {full[0]}x{full[1]} here")
    if not (width and height):
        raise ItemFailed("resolution_too_low", f"H.264 has no pictures of {full[0]}x{full[1]} pixels")
    return x, y, width, height


class _Frames:
    """Pictures of a file from a time on; `end` is where the last of them ends."""

    def __init__(self, path: Path, start_pts: int, limits: Limits, clock_start: int | None) -> None:
        self._path, self._start_pts, self._limits, self._clock_start = path, start_pts, limits, clock_start
        self.end = 0

    def __iter__(self) -> Iterator[Picture]:
        """Seeks; decodes from the beginning where a file's index misleads, or its own times are not to be had."""
        for seek in (True, False) if self._clock_start is not None else (False,):
            with open_video(self._path, self._limits) as video:
                reader = VideoReader(video, self._limits, self._clock_start)
                if seek and self._clock_start is not None:
                    with suppress(av.error.FFmpegError):
                        video.container.seek(self._start_pts + self._clock_start, stream=video.stream, backward=True)
                pictures = iter(reader)
                first = next(pictures, None)
                if seek and (first is None or first.pts > self._start_pts or reader.timeline.repaired):
                    continue
                while first is not None and first.pts < self._start_pts:
                    first = next(pictures, None)
                if first is not None:
                    yield first
                    yield from pictures
                self.end = reader.timeline.end
                return
