"""What a clip looks like over time, in about five kilobytes: the basis for finding copies of it.

Two parts. Perceptual hashes (pHash of ImageHash; Zauner 2010) of the whole picture and of parts of it find candidates
in an index: a copy with cropped edges shows as a whole what is a part of the original, and a logo or a subtitle leaves
the inner part as it was. The course (mean brightness of 8 x 8 cells at every step) tells a copy from another recording
with the same camera in the same room: both have the same hashes, but only in a copy the same things move at the same
moments in the same places.
"""

import base64
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from medgen.canonical import digest_of

HASH_SIDE = 16  # frequencies across and down: 256 bits
HASH_EVERY_S = 0.5
PART_BITS = 128  # of a part only the bits of the lowest frequencies are kept, which are the steadiest
# left, top, right, bottom as shares of the picture: trimmed all round by 5 and 10 %, at two sides, below or above.
PARTS = (
    (0.05, 0.05, 0.95, 0.95), (0.1, 0.1, 0.9, 0.9), (0.0, 0.0, 0.9, 0.9), (0.1, 0.0, 1.0, 0.9), (0.0, 0.1, 0.9, 1.0),
    (0.1, 0.1, 1.0, 1.0), (0.0, 0.0, 1.0, 0.9), (0.0, 0.1, 1.0, 1.0), (0.2, 0.2, 0.8, 0.8),
)  # fmt: skip
INNER = len(PARTS) - 1
CELLS = 8
FLAT = 4.0  # standard deviation in grey levels: a picture with less has no structure to hash
FINGERPRINT = digest_of(
    {
        "name": "phash and course",
        "side": HASH_SIDE,
        "every_s": HASH_EVERY_S,
        "part_bits": PART_BITS,
        "parts": PARTS,
        "cells": CELLS,
        "flat": FLAT,
    }
)


@dataclass(frozen=True)
class Fingerprint:
    """A clip's fingerprint.

    Args:
        step_s: seconds between two frames of the course.
        hashes: uint8 (T, 32), bits of the hash of every frame hashed (one per HASH_EVERY_S), lowest frequencies first.
        parts: uint8 (ceil(T / 2), 9, 16), bits of the hashes of PARTS of every second frame hashed.
        flat: bool (T,), frames without structure: their hashes say nothing.
        course: uint8 (S, 64), mean grey level of the cells, row by row, at every step.
    """

    step_s: float
    hashes: np.ndarray
    parts: np.ndarray
    flat: np.ndarray
    course: np.ndarray

    @property
    def seconds(self) -> float:
        """Length of the clip as far as it was sampled."""
        return self.step_s * len(self.course)

    def data(self) -> bytes:
        """As bytes; `from_data` reads them."""
        blocks = (
            np.array([self.step_s], np.float32),
            np.array([len(self.hashes), len(self.course)], np.int32),
            self.hashes,
            self.parts,
            self.flat.astype(np.uint8),
            self.course,
        )
        return b"".join(block.tobytes() for block in blocks)

    def text(self) -> str:
        """As text for a record; `parse` reads it."""
        return base64.b85encode(zlib.compress(self.data(), 9)).decode()

    @classmethod
    def parse(cls, text: str) -> "Fingerprint":
        """The fingerprint that `text` gave. Raises ValueError for other texts."""
        try:
            data = zlib.decompress(_b85decode(text.encode("ascii")))
        except (ValueError, zlib.error) as error:
            raise ValueError(f"not a fingerprint: {error}") from error
        return cls.from_data(data)

    @classmethod
    def from_data(cls, data: bytes) -> "Fingerprint":
        """The fingerprint that `data` gave. Raises ValueError for other bytes."""
        if len(data) < 12:
            raise ValueError("not a fingerprint of this kind")
        frames, steps = (int(n) for n in np.frombuffer(data, np.int32, 2, 4))
        shapes: tuple[tuple[int, ...], ...] = (
            (frames, HASH_SIDE**2 // 8),
            ((frames + 1) // 2, len(PARTS), PART_BITS // 8),
            (frames,),
            (steps, CELLS * CELLS),
        )
        if min(frames, steps) < 1 or len(data) != 12 + sum(math.prod(shape) for shape in shapes):
            raise ValueError("not a fingerprint of this kind")
        blocks, at = [], 12
        for shape in shapes:
            blocks.append(np.frombuffer(data, np.uint8, math.prod(shape), at).reshape(shape))
            at += math.prod(shape)
        return cls(
            float(np.frombuffer(data, np.float32, 1)[0]), blocks[0], blocks[1], blocks[2].astype(bool), blocks[3]
        )


B85 = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
_VALUES = np.full(256, 255, np.uint8)
_VALUES[np.frombuffer(B85, np.uint8)] = np.arange(85)


def _b85decode(text: bytes) -> bytes:
    """As `base64.b85decode`, which goes character by character and would take most of the time of reading a million."""
    padding = -len(text) % 5
    values = _VALUES[np.frombuffer(text + b"~" * padding, np.uint8)]
    if (values == 255).any():
        raise ValueError("bad base85 character")
    numbers = values.reshape(-1, 5) @ np.array([85**4, 85**3, 85**2, 85, 1], np.int64)
    if (numbers > 0xFFFFFFFF).any():
        raise ValueError("base85 overflow")
    return numbers.astype(">u4").tobytes()[: len(text) // 5 * 4 + max(0, len(text) % 5 - 1)]


def fingerprint(grey: Sequence[np.ndarray] | np.ndarray, step_s: float) -> Fingerprint:
    """The fingerprint of a clip.

    Args:
        grey: uint8 (T, h, w), T >= 1, small frames (about 160 wide) at even distances in time.
        step_s: that distance, seconds; about 0.25, so that fast motion is followed.

    Raises:
        ValueError: another dtype or shape, or no positive distance.
    """
    frames = np.asarray(grey)
    if frames.dtype != np.uint8 or frames.ndim != 3 or not len(frames) or min(frames.shape[1:]) < 2 * HASH_SIDE:
        raise ValueError(f"need uint8 frames (T >= 1, h, w >= {2 * HASH_SIDE}), got {frames.dtype} {frames.shape}")
    if not step_s > 0:
        raise ValueError(f"need a positive distance in time, got {step_s}")
    chosen = frames[:: max(1, round(HASH_EVERY_S / step_s))]
    return Fingerprint(
        float(np.float32(step_s)),
        np.stack([np.packbits(_phash(frame)) for frame in chosen]),
        np.stack([[np.packbits(_phash(_part(frame, box))[:PART_BITS]) for box in PARTS] for frame in chosen[::2]]),
        np.array([float(frame.std()) < FLAT for frame in chosen]),
        np.stack([cv2.resize(frame, (CELLS, CELLS), interpolation=cv2.INTER_AREA).ravel() for frame in frames]),
    )


def _part(frame: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    height, width = frame.shape
    left, top, right, bottom = box
    return frame[round(top * height) : round(bottom * height), round(left * width) : round(right * width)]


def _phash(frame: np.ndarray) -> np.ndarray:
    """bool (256,), from the lowest frequency to the highest."""
    import imagehash
    from PIL import Image

    phash = imagehash.phash(Image.fromarray(np.ascontiguousarray(frame)), hash_size=HASH_SIDE)
    bits: np.ndarray = phash.hash.ravel()[_by_frequency()]
    return bits


@cache
def _by_frequency() -> np.ndarray:
    """Places of the hash's bits by frequency; the constant term, which is always set, comes last."""
    down, across = (axis.ravel() for axis in np.mgrid[:HASH_SIDE, :HASH_SIDE])
    order = np.lexsort((across, np.maximum(down, across), down + across))
    places: np.ndarray = np.roll(order, -1)
    return places
