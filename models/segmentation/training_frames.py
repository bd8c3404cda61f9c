"""What a frame head is trained on: embeddings of frames of labelled videos, and of varied copies of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from medgen.errors import ItemFailed
from medgen.video.limits import Limits
from medgen.video.pictures import pictures
from models.encoders import Encoder
from models.segmentation.manifest import LabelledFile

SAMPLE_FPS = 2.0
MAX_FRAMES = 20  # per video, evenly spread, so that long videos don't weigh more
LONG_SIDE = 854  # as `segment` keeps frames, pixels
# Copies of each frame with other framing, colour, sharpness and compression. With 4 of these instead of 2 with other
# framing and brightness alone, leave-one-source-out log loss by frame fell from 0.202 to 0.187.
VARIANTS = 4


@dataclass(frozen=True)
class LabelledVideo:
    """A training video: float32 embeddings of its frames (N, D), and of varied copies (VARIANTS * N, D)."""

    label: LabelledFile
    embeddings: np.ndarray
    varied: np.ndarray


def embed_videos(
    folder: Path,
    files: Sequence[LabelledFile],
    encoder: Encoder,
    progress: Callable[[int, int, str], None] = lambda done, total, file: None,
) -> tuple[list[LabelledVideo], dict[str, str]]:
    """Embeds the sampled frames of the videos, and varied copies; file → reason for those that cannot be decoded.

    Args:
        progress: called with (videos done, videos in all, file) before each video and at the end.
    """
    videos, left_out = [], {}
    for done, label in enumerate(files):
        progress(done, len(files), label.file)
        try:
            frames = sampled_frames(folder / label.file)
        except (ItemFailed, OSError) as error:
            left_out[label.file] = str(error)
            continue
        random = np.random.default_rng(int(label.sha256[:16], 16))
        varied = encoder.embed([_varied(frame, random) for _ in range(VARIANTS) for frame in frames])
        videos.append(LabelledVideo(label, encoder.embed(frames), varied))
    progress(len(files), len(files), "")
    return videos, left_out


def sampled_frames(path: Path) -> list[np.ndarray]:
    """At most `MAX_FRAMES` frames, uint8 RGB (H, W, 3), evenly spread over a video. Raises ItemFailed."""
    frames, next_s = [], None
    for picture in pictures(path, Limits()):
        if next_s is None or picture.time_s >= next_s:
            frames.append(picture.rgb(long_side=LONG_SIDE))
            next_s = (picture.time_s if next_s is None else next_s) + 1 / SAMPLE_FPS
    if not frames:
        raise ItemFailed("undecodable", "not one frame could be decoded")
    keep = np.linspace(0, len(frames) - 1, min(len(frames), MAX_FRAMES)).round().astype(int)
    return [frames[index] for index in keep]


def _varied(frame: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """As another camera, screen or upload would show it: framing, colour, brightness, sharpness, compression, bars.

    A fifth is grey, on both sides alike, so that the want of colour alone does not mean X-ray or ultrasound.
    """
    height, width = (max(1, int(side * random.uniform(0.6, 1))) for side in frame.shape[:2])
    top, left = random.integers(frame.shape[0] - height + 1), random.integers(frame.shape[1] - width + 1)
    view = frame[top : top + height, left : left + width]
    view = np.ascontiguousarray(view[:, ::-1] if random.random() < 0.5 else view)
    if random.random() < 0.8:
        hsv = cv2.cvtColor(view, cv2.COLOR_RGB2HSV).astype(np.int16)  # hue in half degrees
        hsv[..., 0] = (hsv[..., 0] + random.integers(-10, 11)) % 180
        hsv[..., 1] = np.clip(hsv[..., 1] * random.uniform(0.5, 1.4), 0, 255)
        view = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
    if random.random() < 0.2:
        view = cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    view = cv2.convertScaleAbs(view, alpha=random.uniform(0.6, 1.4))
    if random.random() < 0.3:
        scale = random.uniform(0.15, 0.6)
        small = (max(1, int(view.shape[1] * scale)), max(1, int(view.shape[0] * scale)))
        view = cv2.resize(cv2.resize(view, small, interpolation=cv2.INTER_AREA), (view.shape[1], view.shape[0]))
    if random.random() < 0.5:
        _, jpeg = cv2.imencode(".jpg", view, [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(20, 90))])
        decoded = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)  # both ways as if BGR: the order of channels comes back
        assert decoded is not None  # it was encoded just now
        view = decoded
    if random.random() < 0.2:
        bar = int(random.uniform(0.05, 0.2) * min(view.shape[:2]))
        sides = (bar, bar, 0, 0) if random.random() < 0.5 else (0, 0, bar, bar)
        view = cv2.copyMakeBorder(view, *sides, cv2.BORDER_CONSTANT, value=0)
    return view
