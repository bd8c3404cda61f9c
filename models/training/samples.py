"""Encoded clips as training reads them, and the order in which it does.

A sample is one safetensors file: `latents` (C, F, H, W) as Wan normalises them, `brief` and `detailed`, the embedded
captions (L, D) without padding, and the captions themselves as metadata. Files are untrusted: one that is broken is
quarantined by name and training goes on without it.
"""

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file
from torch import Tensor

from medgen.errors import RunStopped
from models.training.flow_matching import generator
from models.training.job import Sample

log = logging.getLogger(__name__)

CAPTIONS = ("brief", "detailed")


class NothingToTrainOn(RunStopped):
    """No usable sample is left."""


@dataclass(frozen=True)
class Encoded:
    """A sample in memory: latents float32 (C, F, H, W), captions float32 (L, D), which may be empty (0, D)."""

    latents: Tensor
    brief: Tensor
    detailed: Tensor


class BadSample(ValueError):
    """An encoded clip can't be used; the message says why."""


def shape_of(sample: Sample) -> tuple[int, ...]:
    """(C, F, H, W) of the latents, from the file's header alone. Raises `BadSample`."""
    try:
        with safe_open(str(sample.path), framework="pt") as file:
            names = set(file.keys())
            if missing := {"latents", *CAPTIONS} - names:
                raise BadSample(f"has no tensor {sorted(missing)[0]!r}")
            shape = tuple(file.get_slice("latents").get_shape())
            texts = [tuple(file.get_slice(name).get_shape()) for name in CAPTIONS]
    except (OSError, SafetensorError) as error:
        raise BadSample(f"can't be read: {error}") from error
    if len(shape) != 4 or 0 in shape:
        raise BadSample(f"latents have the shape {shape}, not (channels, frames, height, width)")
    if any(len(text) != 2 for text in texts):
        raise BadSample(f"captions have the shapes {texts}, not (tokens, width)")
    if not any(text[0] for text in texts):
        raise BadSample("has no caption: neither brief nor detailed")
    return shape


def read_sample(sample: Sample) -> Encoded:
    """The sample, checked: digest, shapes, finite numbers. Raises `BadSample`."""
    shape_of(sample)
    try:
        data = sample.path.read_bytes()
        if sample.sha256 and hashlib.sha256(data).hexdigest() != sample.sha256:
            raise BadSample(f"its bytes are not those of the digest {sample.sha256[:12]}…")
        tensors = load_tensors(data)
    except (OSError, SafetensorError) as error:
        raise BadSample(f"can't be read: {error}") from error
    encoded = Encoded(*(tensors[name].float() for name in ("latents", *CAPTIONS)))
    if not all(torch.isfinite(t).all() for t in (encoded.latents, encoded.brief, encoded.detailed)):
        raise BadSample("holds numbers that are not finite")
    return encoded


def read_empty(path: Path) -> Tensor:
    """The embedding of the empty caption, float32 (L, D)."""
    tensors = load_file(str(path))
    return tensors.get("empty", next(iter(tensors.values()))).float()


class SampleSet:
    """Samples of known shapes, read when needed and kept in memory up to a limit.

    Args:
        samples: in any order; those whose header is broken are quarantined at once.
        text_width: D of the captions' embeddings; another is another text encoder's.
        channels: C of the latents; another is another VAE's.
        cache_bytes: memory for samples that were read.
    """

    def __init__(self, samples: Sequence[Sample], channels: int, text_width: int, cache_bytes: int) -> None:
        self.samples: list[Sample] = []
        self.shapes: list[tuple[int, ...]] = []
        self.quarantined: dict[str, str] = {}  # clip id → why
        self.cache: OrderedDict[int, Encoded] = OrderedDict()
        self.cache_bytes, self.held = cache_bytes, 0
        self.channels, self.text_width = channels, text_width
        self.lock = threading.Lock()
        for sample in sorted(samples, key=lambda s: s.clip_id):
            try:
                shape = shape_of(sample)
                if shape[0] != channels:
                    raise BadSample(f"latents have {shape[0]} channels; the transformer takes {channels}")
            except BadSample as error:
                self._quarantine(sample, error)
                continue
            self.samples.append(sample)
            self.shapes.append(shape)

    def __len__(self) -> int:
        return len(self.samples)

    def buckets(self) -> dict[tuple[int, ...], list[int]]:
        """Shape → indices of the samples that have it; shapes in order."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, shape in enumerate(self.shapes):
            by_shape.setdefault(shape, []).append(index)
        return dict(sorted(by_shape.items()))

    def get(self, index: int) -> Encoded | None:
        """The sample, or None when it is (now) quarantined."""
        sample = self.samples[index]
        with self.lock:
            if sample.clip_id in self.quarantined:
                return None
            if index in self.cache:
                self.cache.move_to_end(index)
                return self.cache[index]
        try:
            encoded = read_sample(sample)
            for text in (encoded.brief, encoded.detailed):
                if text.shape[0] and text.shape[1] != self.text_width:
                    raise BadSample(f"captions are {text.shape[1]} wide; the transformer takes {self.text_width}")
        except BadSample as error:
            self._quarantine(sample, error)
            return None
        with self.lock:
            self.cache[index] = encoded
            self.held += _size(encoded)
            while self.held > self.cache_bytes and len(self.cache) > 1:
                self.held -= _size(self.cache.popitem(last=False)[1])
        return encoded

    def near(self, index: int) -> tuple[int, Encoded]:
        """The sample, or in a quarantined one's place the next good one of the same shape.

        Raises:
            NothingToTrainOn: no good one of that shape is left.
        """
        if (encoded := self.get(index)) is not None:
            return index, encoded
        peers = [i for i, shape in enumerate(self.shapes) if shape == self.shapes[index]]
        at = peers.index(index)
        for candidate in peers[at:] + peers[:at]:
            if (encoded := self.get(candidate)) is not None:
                return candidate, encoded
        raise NothingToTrainOn(
            f"all {len(peers)} samples of the shape {self.shapes[index]} are corrupt, the last because "
            f"{self.quarantined[self.samples[index].clip_id]}: encode the release again"
        )

    def _quarantine(self, sample: Sample, error: BadSample) -> None:
        log.warning("training goes on without clip %s: %s %s", sample.clip_id, sample.path.name, error)
        with self.lock:
            self.quarantined[sample.clip_id] = str(error)


def padded(texts: Sequence[Tensor], length: int) -> Tensor:
    """(B, length, D): zeros after each text's end, and texts cut at `length`, as WanPipeline does it."""
    out = torch.zeros(len(texts), length, texts[0].shape[1])
    for row, text in zip(out, texts, strict=True):
        row[: min(length, len(text))] = text[:length]
    return out


def _size(encoded: Encoded) -> int:
    return sum(t.numel() * t.element_size() for t in (encoded.latents, encoded.brief, encoded.detailed))


def batch_order(
    buckets: Mapping[tuple[int, ...], Sequence[int]], global_batch: int, seed: int, start: int = 0
) -> Iterator[list[int]]:
    """The samples of each optimiser step, from step `start` on, without end.

    All samples of a step have one shape. Buckets take turns in proportion to their sizes, and each is gone through in
    a new random order per epoch of its own. The order is a function of seed and step alone: to go on somewhere, no
    state is needed.

    Yields:
        `global_batch` indices. With fewer samples in the bucket, some come twice.
    """
    shapes = list(buckets)
    total = sum(len(indices) for indices in buckets.values())
    taken = [0] * len(shapes)
    orders: dict[tuple[int, int], list[int]] = {}

    def order(bucket: int, epoch: int) -> list[int]:
        if (bucket, epoch) not in orders:
            for old in [key for key in orders if key[0] == bucket and key[1] < epoch - 1]:
                del orders[old]
            randomness = generator(seed, "order", *shapes[bucket], epoch)
            members = buckets[shapes[bucket]]
            orders[bucket, epoch] = [members[i] for i in torch.randperm(len(members), generator=randomness).tolist()]
        return orders[bucket, epoch]

    step = 0
    while True:
        behind = [len(buckets[shape]) * (step + 1) / total - taken[b] for b, shape in enumerate(shapes)]
        bucket = max(range(len(shapes)), key=lambda b: (behind[b], -b))
        if step >= start:
            size, first = len(buckets[shapes[bucket]]), taken[bucket] * global_batch
            places = (divmod(n, size) for n in range(first, first + global_batch))
            yield [order(bucket, epoch)[place] for epoch, place in places]
        taken[bucket] += 1
        step += 1
