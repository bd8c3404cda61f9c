"""Evenly spaced frames of a clip, plain and as variants by standard augmentation.

A variant is what training pipelines for video classifiers do to a clip (PySlowFast's and torchvision's references):
another stretch of time, which is another speed, since the same number of frames covers it; a random resized crop, a
horizontal flip and colour jitter, each the same for all frames.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medgen.canonical import digest_of
from medgen.errors import ItemFailed
from medgen.video.limits import Limits
from medgen.video.pictures import pictures

LONG_SIDE = 384  # of kept frames, pixels
MOST_KEPT = 128  # frames of one clip in memory: about 30 MB
MAX_DURATION_S = 3600.0
SHORTEST_STRETCH = 0.6  # of a clip that a variant covers
CROP_AREA = (0.7, 1.0)
CROP_RATIO = (0.9, 1.11)  # of the crop's aspect ratio to the picture's
JITTER = 0.2  # of brightness, contrast and saturation
# All that a sample depends on beside the file.
RECIPE = {
    "version": 1, "long_side": LONG_SIDE, "most_kept": MOST_KEPT, "shortest_stretch": SHORTEST_STRETCH,
    "crop_area": CROP_AREA, "crop_ratio": CROP_RATIO, "jitter": JITTER,
}  # fmt: skip


def sample_clip(path: Path, frames: int, variants: int, name: str) -> list[np.ndarray]:
    """The clip's frames, then those of each variant: `variants` + 1 arrays uint8 RGB (`frames`, H, W, 3).

    A clip with fewer frames than wanted gives some of them more than once. The file is decoded once.

    Args:
        name: seeds the variants: the same name gives the same variants.

    Raises:
        ItemFailed: as `medgen.video.pictures.pictures`; too_short with fewer than 2 frames.
    """
    kept = _kept(path)
    if len(kept) < 2:
        raise ItemFailed("too_short", f"the video has {len(kept)} frame(s): at least 2 are needed")
    plain = _spaced(kept, 0.0, 1.0, frames)
    return [plain, *(_variant(kept, frames, f"{name}/{number}") for number in range(variants))]


def _kept(path: Path) -> list[np.ndarray]:
    """Up to `MOST_KEPT` frames at one distance; whenever there are more, every second one goes."""
    kept: list[np.ndarray] = []
    stride = 1
    for picture in pictures(path, Limits(max_duration_s=MAX_DURATION_S)):
        if picture.index % stride:
            continue
        kept.append(picture.rgb(LONG_SIDE))
        if len(kept) > MOST_KEPT:
            kept, stride = kept[::2], 2 * stride
    return kept


def _spaced(kept: Sequence[np.ndarray], start: float, length: float, frames: int) -> np.ndarray:
    """The middles of `frames` equal stretches of the part [start, start + length) of the clip."""
    where = start + length * (np.arange(frames) + 0.5) / frames
    return np.stack([kept[min(len(kept) - 1, int(place * len(kept)))] for place in where])


def _variant(kept: Sequence[np.ndarray], frames: int, name: str) -> np.ndarray:
    import torch
    from torchvision.transforms import v2

    rng = np.random.default_rng(int(digest_of(name)[:16], 16))
    length = rng.uniform(SHORTEST_STRETCH, 1.0)
    spaced = _spaced(kept, rng.uniform(0.0, 1.0 - length), length, frames)
    height, width = spaced.shape[1:3]
    steps = v2.Compose(
        [
            v2.RandomResizedCrop(
                (height, width),
                scale=CROP_AREA,
                ratio=(CROP_RATIO[0] * width / height, CROP_RATIO[1] * width / height),
                antialias=True,
            ),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=JITTER, contrast=JITTER, saturation=JITTER),
        ]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        out = steps(torch.from_numpy(spaced).permute(0, 3, 1, 2))
    return np.ascontiguousarray(out.permute(0, 2, 3, 1).numpy())
