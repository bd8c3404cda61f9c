"""Videos made of frames, as MP4 files that say what they are: H.264, with a record in the file's comment."""

import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from medgen.canonical import canonical_json
from medgen.errors import ItemFailed
from medgen.video.encoding import bt709_frames, h264_file
from medgen.video.limits import FORMATS, Limits
from medgen.worker_processes import decoded_apart

CRF = 16  # H.264's quality; close to what the eye can tell from the frames
PRESET = "medium"
MAX_RECORD_BYTES = 1 << 20
READ_LIMIT_S = 60.0  # for a foreign file's comment


def write_video(path: Path, frames: np.ndarray, fps: float, record: Mapping[str, Any]) -> None:
    """Writes frames as H.264 in MP4. The same frames, rate and record always give the same bytes.

    Args:
        frames: uint8 RGB (F, H, W, 3); an odd last row or column is left out, as H.264's colours need.
        record: JSON facts for the file's comment.

    Raises:
        ItemFailed: video_not_as_written when the file doesn't give back its number of frames and its record.
    """
    height, width = (side - side % 2 for side in frames.shape[1:3])
    rate = Fraction(fps).limit_denominator(1001)
    with h264_file(path, (width, height), 1 / rate, crf=CRF, preset=PRESET) as out:
        out.container.metadata["comment"] = canonical_json(dict(record)).decode()
        for index, frame in enumerate(bt709_frames(pixels[:height, :width] for pixels in frames)):
            out.add(frame, index)
        out.end(len(frames))
    with av.open(str(path)) as written:
        count = written.streams.video[0].frames
    if count != len(frames) or read_record(path) != json.loads(canonical_json(dict(record))):
        raise ItemFailed("video_not_as_written", f"{count} of {len(frames)} frames, or another record, came back")


def read_comment(path: Path) -> str:
    """A video's comment; "" when it has none, a longer one than `MAX_RECORD_BYTES`, or is no video."""
    try:
        options = {"format_whitelist": FORMATS, **Limits().decoder_options}
        with av.open(str(path), options=options, timeout=(20.0, 20.0)) as container:
            comment = container.metadata.get("comment", "")
    except (av.error.FFmpegError, ValueError, OSError):
        return ""
    return comment if len(comment) <= MAX_RECORD_BYTES else ""


def read_foreign_comment(path: Path) -> str:
    """As `read_comment`, of a file that others made, and so in a worker process; "" when it breaks that."""
    try:
        return decoded_apart(read_comment, path, time_limit_s=READ_LIMIT_S)
    except ItemFailed:
        return ""


def read_record(path: Path) -> dict[str, Any] | None:
    """The record in a video's comment; None when it has none that is JSON facts."""
    try:
        record = json.loads(read_comment(path))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
