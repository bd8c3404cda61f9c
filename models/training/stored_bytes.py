"""Where the bytes of an encoded clip lie: in a file of their own, or in a stretch of a larger one."""

import hashlib
import json
import struct
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

MOST_HEADER = 100 << 20  # bytes; the safetensors library takes no longer one either


class StoredBytes(BaseModel):
    """Bytes of a safetensors file.

    Args:
        sha256: of the bytes; empty when unknown. Others are corrupt.
        offset, size: the stretch of the file at `path` that they are; no size: all that follows.
    """

    model_config = ConfigDict(frozen=True)

    path: Path
    sha256: str = ""
    offset: int = Field(0, ge=0)
    size: int | None = Field(None, ge=0)

    def read(self) -> bytes:
        """The bytes. Raises OSError; ValueError when they are not those of the digest."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(-1 if self.size is None else self.size)
        if self.sha256 and hashlib.sha256(data).hexdigest() != self.sha256:
            raise ValueError(f"its bytes are not those of the digest {self.sha256[:12]}…")
        return data

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of the tensors, by the header alone. Raises OSError; ValueError when it is none."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            first = file.read(8)
            if len(first) < 8:
                raise ValueError("it is cut off")
            (length,) = struct.unpack("<Q", first)
            if length > min(MOST_HEADER, self.size or MOST_HEADER):
                raise ValueError("it has no header of safetensors")
            head = file.read(length)
        if len(head) < length:
            raise ValueError("it is cut off")
        try:
            facts = json.loads(head)
            return {
                name: tuple(int(size) for size in entry["shape"])
                for name, entry in facts.items()
                if name != "__metadata__"
            }
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"it has no header of safetensors ({type(error).__name__})") from error
