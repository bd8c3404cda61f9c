"""What an index of vectors answers, wherever it keeps them; and how vectors travel.

Vectors lie in spaces: those of one encoder are alike or not, those of two can't be compared. A space is called
``frames/DIGEST`` (a frame encoder's) or ``text/DIGEST`` (a text encoder's). All vectors have length 1, so that their
product is the cosine, -1 to 1. They are kept in half precision: a cosine is wrong by less than 0.001 by that.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

Kind = Literal["frames", "text"]
SPACE = re.compile(r"(frames|text)/[0-9a-f]{64}")


@dataclass(frozen=True)
class Space:
    """A space of vectors.

    Args:
        kind: what the vectors are of.
        digest: of the encoder, 64 hexadecimal digits.
        encoder: its name as on record.
        dimension: numbers of a vector.
    """

    kind: Kind
    digest: str
    encoder: str
    dimension: int

    @property
    def name(self) -> str:
        """As it is called."""
        return f"{self.kind}/{self.digest}"


@dataclass(frozen=True)
class Entry:
    """A clip's vector in one space.

    Args:
        clip: its id, at most 32 characters.
        run: id of the step run that the vector is of; 0: of none, but of the video's title.
        vector: float (D,), of length 1.
    """

    clip: str
    run: int
    vector: np.ndarray


@dataclass(frozen=True)
class Neighbour:
    """A clip that was found, and its cosine with what was looked for, -1 to 1."""

    clip: str
    similarity: float


class VectorIndex(Protocol):
    """Vectors of clips by space."""

    def spaces(self) -> list[Space]:
        """The spaces that hold or held a clip, the newest first."""
        ...

    def size(self, space: Space) -> int:
        """How many clips a space holds."""
        ...

    def held(self, space: Space, clips: Sequence[str]) -> dict[str, int]:
        """Clip → run of its vector, of those of the clips that the space holds."""
        ...

    def put(self, space: Space, entries: Sequence[Entry]) -> None:
        """Adds vectors. A clip's later vector takes the place of its earlier one."""
        ...

    def vectors(self, space: Space, clips: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """(clip, float32 (D,) of length 1) of those of the clips that the space holds, in any order."""
        ...

    def nearest(self, space: Space, vector: np.ndarray, count: int) -> list[Neighbour]:
        """The clips most like a vector (D,), the most alike first; equally alike ones by id."""
        ...

    def remove(self, clips: Sequence[str]) -> None:
        """Takes clips out of all spaces; their vectors are overwritten or deleted."""
        ...


def unit(vectors: np.ndarray) -> np.ndarray:
    """float32, the last axis scaled to length 1; vectors of length 0 stay."""
    wide = np.asarray(vectors, np.float32)
    scaled: np.ndarray = wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), 1e-12)
    return scaled


def pack(vectors: np.ndarray) -> bytes:
    """Vectors (N, D) of length 1 as safetensors: ``vectors``, float16."""
    return save({"vectors": unit(vectors).astype(np.float16)})


def unpack(data: bytes) -> np.ndarray:
    """float32 (N, D) of `pack`, of length 1. Raises ValueError for other data."""
    try:
        vectors = load(data)["vectors"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"these are no vectors: {error}") from error
    if vectors.ndim != 2 or vectors.dtype != np.float16 or not np.isfinite(vectors).all():
        raise ValueError(f"these are no vectors, but {vectors.dtype} {vectors.shape}")
    return unit(vectors)
