"""Texts of a batch as one tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor


def padded(texts: Sequence[Tensor], length: int) -> Tensor:
    """(B, length, D): zeros after each text's end, and texts cut at `length`, as WanPipeline does it."""
    out = torch.zeros(len(texts), length, texts[0].shape[1])
    for row, text in zip(out, texts, strict=True):
        row[: min(length, len(text))] = text[:length]
    return out
