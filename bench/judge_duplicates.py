"""Ways to find copies, and to tell the best of them, on copies made of labelled videos.

A find between videos of different sources is wrong.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import imagehash
import numpy as np
from PIL import Image

from medgen.errors import ItemFailed
from medgen.video.limits import Limits
from medgen.video.pictures import pictures
from models.duplicates.fingerprint import fingerprint
from models.duplicates.near_duplicates import compare
from models.quality.defects import measure_defects
from models.quality.spatial_detail import measure_spatial_detail
from models.segmentation.manifest import read_manifest

STEP_S = 0.24  # as the pipeline samples a clip
LONGEST_S = 10.0
LEAST_S = 4.0
SIZE = (160, 90)
COLLAGE = 144  # pixels of a picture's side in a collage
BITS = 10  # of 64, by which hashes may differ: the default of the packages named

Grey = np.ndarray  # uint8 (T, 90, 160), a picture every STEP_S


@dataclass(frozen=True)
class Method:
    """A way to describe a clip and to say whether two descriptions are of the same."""

    name: str
    describe: Callable[[Grey], Any]
    same: Callable[[Any, Any], bool]


def table(folder: Path) -> Iterator[str]:
    """Markdown."""
    clips = _clips(folder)
    copies = {"smaller and compressed": _compressed, "cropped by 10 %": _cropped, "starts a second later": _later}
    made = {how: [make(grey) for _, grey in clips] for how, make in copies.items()}
    yield "| method | " + " | ".join(copies) + " | wrongly found | pairs of other sources | CPU ms a clip |"
    yield "|---" * (len(copies) + 4) + "|"
    for method in METHODS:
        started = time.process_time()
        known = [method.describe(grey) for _, grey in clips]
        cost = 1000 * (time.process_time() - started) / max(1, len(clips))
        cells = [
            f"{sum(method.same(method.describe(copy), one) for copy, one in zip(made[how], known, strict=True))}"
            f" of {len(clips)}"
            for how in copies
        ]
        others = [
            (one, two)
            for (one, two) in itertools.combinations(range(len(clips)), 2)
            if not clips[one][0] & clips[two][0]
        ]
        wrong = sum(method.same(known[one], known[two]) for one, two in others)
        yield f"| {method.name} | " + " | ".join(cells) + f" | {wrong} | {len(others)} | {cost:.1f} |"


def _clips(folder: Path) -> list[tuple[frozenset[str], Grey]]:
    """The sources and pictures of every labelled video that is long enough."""
    found = []
    for file in read_manifest(folder)[0]:
        grey: list[np.ndarray] = []
        try:
            for picture in pictures(folder / file.file, Limits()):
                if picture.time_s > LONGEST_S:
                    break
                if picture.time_s >= len(grey) * STEP_S:
                    grey.append(picture.frame.to_ndarray(format="gray", width=SIZE[0], height=SIZE[1]))
        except (ItemFailed, OSError):
            continue
        if len(grey) * STEP_S >= LEAST_S:
            found.append((file.sources, np.stack(grey)))
    return found


def _compressed(grey: Grey) -> Grey:
    """At 60 % of the size, brighter, JPEG of quality 40."""
    copies = []
    for frame in grey:
        small = cv2.convertScaleAbs(cv2.resize(frame, (96, 54), interpolation=cv2.INTER_AREA), alpha=1.1, beta=8)
        data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 40])[1]
        decoded = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
        assert decoded is not None
        copies.append(cv2.resize(decoded, SIZE))
    return np.stack(copies)


def _cropped(grey: Grey) -> Grey:
    top, left = round(0.05 * SIZE[1]), round(0.05 * SIZE[0])
    return np.stack([cv2.resize(frame[top:-top, left:-left], SIZE) for frame in grey])


def _later(grey: Grey) -> Grey:
    return grey[round(1 / STEP_S) :]


def _collage(grey: Grey) -> imagehash.ImageHash:
    """Wavelet hash of a square collage of a picture a second, the idea of the package videohash."""
    shown = [cv2.resize(frame, (COLLAGE, COLLAGE)) for frame in grey[:: round(1 / STEP_S)]]
    side = int(np.ceil(np.sqrt(len(shown))))
    shown += [np.zeros((COLLAGE, COLLAGE), np.uint8)] * (side * side - len(shown))
    rows = [np.hstack(shown[row * side : (row + 1) * side]) for row in range(side)]
    return imagehash.whash(Image.fromarray(np.vstack(rows)))


def _hashes(grey: Grey) -> list[imagehash.ImageHash]:
    return [imagehash.phash(Image.fromarray(frame)) for frame in grey[:: round(1 / STEP_S)]]


def _alike(one: list[imagehash.ImageHash], two: list[imagehash.ImageHash]) -> bool:
    return float(np.median([a - b for a, b in zip(one, two, strict=False)])) <= BITS


METHODS = (
    Method("wavelet hash of a collage (videohash)", _collage, lambda one, two: one - two <= BITS),
    Method("imagehash's pHash a second, median distance", _hashes, _alike),
    Method(
        "course of the cells, aligned in time (models/duplicates/near_duplicates.py)",
        lambda grey: fingerprint(grey, STEP_S),
        lambda one, two: compare(one, two) is not None,
    ),
)


FRAMES = 16  # of each video, from the tenth on
MEASURED = 5  # every so-manyth of them is measured
LEAST_SIDE = 240
CLIP_CRF = 18  # as cut encodes clips

Frames = list[np.ndarray]  # uint8 RGB (H, W, 3)


@dataclass(frozen=True)
class Version:
    """A clip as the pipeline would get it: some of its frames, and its size as a file."""

    frames: Frames
    bytes: int


@dataclass(frozen=True)
class Rank:
    """A way to tell the better of two copies: it has the greater value."""

    name: str
    value: Callable[[Version], Any]


def best_copies(folder: Path) -> Iterator[str]:
    """Markdown: how often the original beats each kind of copy of it."""
    kinds: dict[str, tuple[float, int, bool]] = {  # scale, quality of x264, with a logo
        "enlarged twice": (2.0, 18, False),
        "enlarged 1.5 times": (1.5, 20, False),
        "enlarged twice, crf 35": (2.0, 35, False),
        "reduced to 3/4": (0.75, 18, False),
        "reduced to 1/2": (0.5, 18, False),
        "crf 28": (1.0, 28, False),
        "crf 35": (1.0, 35, False),
        "with a logo, crf 28": (1.0, 28, True),
        "as good (crf 12)": (1.0, 12, False),
    }
    wins = {rank.name: dict.fromkeys(kinds, 0) for rank in RANKS}
    cost, versions, videos = dict.fromkeys(wins, 0.0), 0, 0
    with tempfile.TemporaryDirectory(prefix="medgen-copies-") as scratch:
        for file in read_manifest(folder)[0]:
            frames = _first(folder / file.file)
            if len(frames) < FRAMES:
                continue
            videos += 1
            made = {"": _clip(frames, Path(scratch))}
            for kind, (scale, crf, logo) in kinds.items():
                shown = [_with_logo(frame) for frame in frames] if logo else frames
                copy = Path(scratch) / "copy.mp4"
                _encode(shown, copy, crf, scale)
                made[kind] = _clip([picture.rgb() for picture in pictures(copy, Limits())], Path(scratch))
            versions += len(made)
            for rank in RANKS:
                started = time.process_time()
                values = {kind: rank.value(version) for kind, version in made.items()}
                cost[rank.name] += time.process_time() - started
                for kind in kinds:
                    wins[rank.name][kind] += values[""] > values[kind]
    yield "| the better copy has | " + " | ".join(kinds) + " | CPU ms a clip |"
    yield "|---" * (len(kinds) + 2) + "|"
    for name, won in wins.items():
        cells = [f"{count} of {videos}" for count in won.values()]
        yield f"| {name} | " + " | ".join(cells) + f" | {1000 * cost[name] / max(1, versions):.1f} |"


def _first(path: Path) -> Frames:
    """A few frames of even size; none of a video that is too small or that cannot be decoded."""
    frames: Frames = []
    try:
        for picture in pictures(path, Limits()):
            if picture.index >= 10:
                frame = picture.rgb()
                frames.append(frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2])
            if len(frames) == FRAMES:
                break
    except (ItemFailed, OSError):
        return []
    return frames if frames and min(frames[0].shape[:2]) >= LEAST_SIDE else []


def _clip(frames: Frames, scratch: Path) -> Version:
    """Encoded as cut does, and decoded."""
    path = scratch / "clip.mp4"
    _encode(frames, path, CLIP_CRF)
    return Version([p.rgb() for p in pictures(path, Limits()) if not p.index % MEASURED], path.stat().st_size)


def _encode(frames: Frames, path: Path, crf: int, scale: float = 1.0) -> None:
    height, width = (round(scale * side / 2) * 2 for side in frames[0].shape[:2])
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": str(crf), "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            shown = av.VideoFrame.from_ndarray(frame, format="rgb24")
            out.mux(stream.encode(shown.reformat(width, height, "yuv420p", interpolation="BICUBIC")))
        out.mux(stream.encode(None))


def _with_logo(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    place, white = (round(0.8 * width), round(0.1 * height)), (255, 255, 255)
    thick = max(1, height // 250)
    return cv2.putText(frame.copy(), "MedTV", place, cv2.FONT_HERSHEY_SIMPLEX, height / 600, white, thick, cv2.LINE_AA)


def _sharpness(version: Version) -> float:
    small = np.stack([cv2.resize(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), SIZE) for f in version.frames])
    return measure_defects(version.frames, small, 25.0).sharpness


RANKS = (
    Rank("more pixels, then more bytes", lambda v: (v.frames[0].shape[0] * v.frames[0].shape[1], v.bytes)),
    Rank("more bytes", lambda v: v.bytes),
    Rank("sharper edges at a common size (models/quality/defects.py)", _sharpness),
    Rank("more detail above noise (models/quality/spatial_detail.py)", lambda v: measure_spatial_detail(v.frames)),
)
