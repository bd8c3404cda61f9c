"""safetensors files written and read tensor by tensor, so that no more than one is in memory at a time.

The format (https://github.com/huggingface/safetensors, README): 8 bytes with the length of a JSON header, the header
with dtype, shape and place of each tensor, then the bytes. The library itself writes from memory only.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
    torch.int32: "I32", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3",
}  # fmt: skip


class SafetensorsWriter:
    """Writes tensors of known shapes one after another, in the order of `names`.

    Args:
        tensors: name → tensor of which only shape and dtype are read; it may be a sharded one.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        # Wide types first, so that all are aligned.
        self.names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        header: dict[str, Any] = {}
        at = 0
        for name in self.names:
            tensor = tensors[name]
            size = tensor.numel() * tensor.element_size()
            header[name] = {
                "dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size],
            }  # fmt: skip
            at += size
        self.header = json.dumps(header, separators=(",", ":")).encode()
        self.header += b" " * (-len(self.header) % 8)
        self.expected = {name: (tensors[name].dtype, tuple(tensors[name].shape)) for name in self.names}
        self.left = list(reversed(self.names))
        self.file = path.open("wb")

    def __enter__(self) -> "SafetensorsWriter":
        self.file.write(struct.pack("<Q", len(self.header)) + self.header)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.file.close()
        if error is None and self.left:
            raise ValueError(f"{len(self.left)} tensors were not written, the next is {self.left[-1]}")

    def write(self, name: str, tensor: Tensor) -> None:
        """Writes the next tensor. Raises ValueError: it is not the next, or not what was announced."""
        if not self.left or self.left[-1] != name or (tensor.dtype, tuple(tensor.shape)) != self.expected[name]:
            raise ValueError(f"{name} is not the tensor that comes next")
        self.file.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        self.left.pop()


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not read yet."""

    path: Path
    name: str
    shape: tuple[int, ...]

    def read(self, stretch: tuple[slice, ...] | None = None) -> Tensor:
        """The tensor, or a stretch of it, on the CPU."""
        with safe_open(str(self.path), framework="pt") as file:
            if stretch is None or not stretch:
                tensor: Tensor = file.get_tensor(self.name)
            else:
                tensor = file.get_slice(self.name)[stretch]
        return tensor


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Name → tensor of a safetensors file, of which the header alone is read. Raises SafetensorError, OSError."""
    with safe_open(str(path), framework="pt") as file:
        return {
            name: StoredTensor(path, name, tuple(file.get_slice(name).get_shape()))
            for name in file.keys()  # noqa: SIM118 no mapping
        }


def sorted_header(written: bytes, further: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file with its header, written in random order, in one; and further entries."""
    (length,) = struct.unpack("<Q", written[:8])
    facts = json.loads(written[8 : 8 + length])
    if further:
        facts["__metadata__"] = {**facts.get("__metadata__", {}), **further}
    head = json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + written[8 + length :]
