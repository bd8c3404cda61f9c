"""What a frame head is trained on: features of frames of labelled videos, of pictures, and of varied copies of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from medgen.errors import ItemFailed
from medgen.video.limits import Limits
from medgen.video.pictures import pictures
from models.encoders import MOBILENET_DIMENSION, MOBILENET_PARTS, Encoder
from models.segmentation.manifest import LabelledFile

SAMPLE_FPS = 2.0
MAX_FRAMES = 20  # per video, evenly spread, so that long videos don't weigh more
LONG_SIDE = 854  # as `segment` keeps frames, pixels
# Copies of each frame, lightly changed. Of 3,385 labelled frames, leaving out repositories, a second view raised the
# balanced accuracy by frame by half a point; views with other colours and strong blur lowered it by as much.
VARIANTS = 1
PICTURES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class LabelledVideo:
    """A labelled video or picture: float32 features of its frames (N, F), and of varied copies (V * N, F).

    `dimension` is that of the embedding, which the features begin with; None: they are nothing else.
    """

    label: LabelledFile
    features: np.ndarray
    varied: np.ndarray
    dimension: int | None = None

    @property
    def embeddings(self) -> np.ndarray:
        """float32 (N, D), each row of length 1."""
        return self.features[:, : self.dimension]

    def thinned(self, most: int, *, varied: bool) -> "LabelledVideo":
        """With at most `most` frames, evenly spread, and with varied copies or without."""
        keep = np.linspace(0, len(self.features) - 1, min(len(self.features), most)).round().astype(int)
        return replace(self, features=self.features[keep], varied=self.varied if varied else self.varied[:0])


def embed_videos(
    files: Sequence[LabelledFile],
    encoder: Encoder,
    progress: Callable[[int, int, str], None] = lambda done, total, file: None,
) -> tuple[list[LabelledVideo], dict[str, str]]:
    """Embeds the sampled frames of videos and pictures, and varied copies; file → reason for what can't be decoded.

    Args:
        progress: called with (files done, files in all, file) before each file and at the end.
    """
    videos, left_out = [], {}
    for done, label in enumerate(files):
        progress(done, len(files), label.file)
        try:
            frames = sampled_frames(label.path)
        except (ItemFailed, OSError) as error:
            left_out[label.file] = str(error)
            continue
        random = np.random.default_rng(int(label.sha256[:16], 16))
        varied = encoder.features([_varied(frame, random) for _ in range(VARIANTS) for frame in frames])
        features = encoder.features(frames)
        dimension = None if features.shape[1] != sum(MOBILENET_PARTS) else MOBILENET_DIMENSION
        videos.append(LabelledVideo(label, features, varied, dimension))
    progress(len(files), len(files), "")
    return videos, left_out


def sampled_frames(path: Path) -> list[np.ndarray]:
    """At most `MAX_FRAMES` frames, uint8 RGB (H, W, 3), evenly spread over a video; of a picture the picture.

    Raises ItemFailed.
    """
    if path.suffix.lower() in PICTURES:
        return [_picture(path)]
    frames, next_s = [], None
    for picture in pictures(path, Limits()):
        if next_s is None or picture.time_s >= next_s:
            frames.append(picture.rgb(long_side=LONG_SIDE))
            next_s = (picture.time_s if next_s is None else next_s) + 1 / SAMPLE_FPS
    if not frames:
        raise ItemFailed("undecodable", "not one frame could be decoded")
    keep = np.linspace(0, len(frames) - 1, min(len(frames), MAX_FRAMES)).round().astype(int)
    return [frames[index] for index in keep]


def _picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.width * image.height > Limits().max_pixels:
                raise ItemFailed("too_large", f"{image.width}x{image.height} pixels, at most {Limits().max_pixels}")
            image.thumbnail((LONG_SIDE, LONG_SIDE))
            return np.array(image.convert("RGB"))
    except (UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise ItemFailed("undecodable", f"no picture: {error}") from error


def _varied(frame: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """As another upload would show it: cropped, and at times of other brightness, compressed, lettered, with bars."""
    height, width = (max(1, int(side * random.uniform(0.6, 1))) for side in frame.shape[:2])
    top, left = random.integers(frame.shape[0] - height + 1), random.integers(frame.shape[1] - width + 1)
    view = np.ascontiguousarray(frame[top : top + height, left : left + width])
    if random.random() < 0.3:
        view = cv2.convertScaleAbs(view, alpha=random.uniform(0.75, 1.25))
    if random.random() < 0.3:
        _, jpeg = cv2.imencode(".jpg", view, [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(20, 90))])
        decoded = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)  # both ways as if BGR: the order of channels comes back
        assert decoded is not None  # it was encoded just now
        view = decoded
    if random.random() < 0.2:
        view = _lettered(view, random)
    if random.random() < 0.2:
        bar = int(random.uniform(0.05, 0.2) * min(view.shape[:2]))
        sides = (bar, bar, 0, 0) if random.random() < 0.5 else (0, 0, bar, bar)
        grey = int(random.choice((0, 0, 128, 255)))
        view = cv2.copyMakeBorder(view, *sides, cv2.BORDER_CONSTANT, value=(grey, grey, grey))
    return view


def _lettered(view: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """With a line of meaningless letters, as captions, watermarks and clocks stand in pictures of both sides."""
    height, width = view.shape[:2]
    letters = "".join(chr(code) for code in random.integers(65, 91, random.integers(4, 24)))
    colour = tuple(int(value) for value in random.integers(0, 256, 3))
    scale = random.uniform(0.02, 0.06) * height / 10
    place = (int(random.uniform(0, 0.5) * width), int(random.uniform(0.1, 0.98) * height))
    return cv2.putText(view.copy(), letters, place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, max(1, round(2 * scale)))
