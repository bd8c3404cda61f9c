"""What was found in a video file once all of it is decoded, as it goes on record."""

from dataclasses import asdict
from typing import Any, TypedDict

import av

from medgen.video.container import OpenVideo
from medgen.video.pictures import Source, VideoReader

MOST_ON_RECORD = 100


class StoredAs(TypedDict):
    """How pictures are stored from a frame on, and their size as shown; see `medgen.video.pictures.Source`."""

    from_frame: int
    stored_width: int
    stored_height: int
    width: int
    height: int
    pixel_format: str
    pixel_aspect: str
    rotation: int
    mirrored: bool
    interlaced: bool
    colour: dict[str, Any]


class VideoReport(TypedDict):
    """A decoded video.

    Frames decoded; of these, repaired: those whose time is not the file's own; dropped: broken packets that gave none.
    `clock`: pairs of a time from the first picture and the file's own time, seconds, wherever the two came to differ
    by another amount. `file_start_s`: where the file's own clock begins, over all its streams.
    """

    stream: int
    chosen_for: str
    decoded: int
    repaired: int
    dropped: int
    fps: float
    duration_s: float
    clock: list[list[float]]
    file_start_s: float
    stored_as: list[StoredAs]


def report(video: OpenVideo, reader: VideoReader, frames: int) -> VideoReport:
    """The report on a video of so many pictures, once the reader has given all."""
    timeline = reader.timeline
    duration_s = float(timeline.end * timeline.time_base)
    return {
        "stream": video.stream.index,
        "chosen_for": video.chosen_for,
        "decoded": reader.decoder.decoded,
        "repaired": timeline.repaired,
        "dropped": reader.decoder.dropped,
        "fps": round(frames / duration_s, 4),
        "duration_s": round(duration_s, 4),
        "clock": [[round(here, 6), round(own, 6)] for here, own in timeline.anchors[:MOST_ON_RECORD]],
        "file_start_s": round((video.container.start_time or 0) / av.time_base, 6),
        "stored_as": [stored_as(frame, source) for frame, source in reader.sources[:MOST_ON_RECORD]],
    }


def clock_shift(report: VideoReport, time_s: float) -> float:
    """What must be added to a time from the first picture to have the file's own, seconds."""
    here, own = max((pair for pair in report["clock"] if pair[0] <= time_s + 1e-6), default=report["clock"][0])
    return own - here


def shown_size(report: VideoReport, frame: int) -> tuple[int, int]:
    """Width and height of a picture, by its number."""
    stored = [stored for stored in report["stored_as"] if stored["from_frame"] <= frame][-1]
    return stored["width"], stored["height"]


def stored_as(from_frame: int, source: Source) -> StoredAs:
    """How pictures are stored from a frame on."""
    geometry = source.geometry
    width, height = source.shown_size
    return {
        "from_frame": from_frame,
        "stored_width": source.width,
        "stored_height": source.height,
        "width": width,
        "height": height,
        "pixel_format": source.pixel_format,
        "pixel_aspect": f"{geometry.aspect.numerator}:{geometry.aspect.denominator}",
        "rotation": geometry.rotation,
        "mirrored": geometry.mirrored,
        "interlaced": source.interlaced,
        "colour": asdict(source.colour) | {"assumed": list(source.colour.assumed)},
    }
