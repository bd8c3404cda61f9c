"""Encoded clips as training reads them, and the order in which it does.

A sample is `latents` (C, F, H, W) as the transformer sees them, and `brief` and `detailed`, the embedded captions
(L, D) without padding, in one or two safetensors files, or stretches of larger ones. Files are untrusted: one that is
broken is quarantined by name and training goes on without it.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
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


@dataclass(frozen=True)
class Part:
    """One release of a mixture.

    Args:
        share: of all samples that training draws, more than 0; shares of all parts add up to 1.
        members: indices of its samples. A sample may be of several parts.
    """

    share: float
    members: frozenset[int]


class BadSample(ValueError):
    """An encoded clip can't be used; the message says why."""


def shape_of(sample: Sample) -> tuple[int, ...]:
    """(C, F, H, W) of the latents, from the files' headers alone. Raises `BadSample`."""
    try:
        shapes = sample.shapes() | (sample.texts.shapes() if sample.texts else {})
    except (OSError, ValueError) as error:
        raise BadSample(f"can't be read: {error}") from error
    if missing := {"latents", *CAPTIONS} - shapes.keys():
        raise BadSample(f"has no tensor {sorted(missing)[0]!r}")
    shape, texts = shapes["latents"], [shapes[name] for name in CAPTIONS]
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
        tensors = load_tensors(sample.read())
        if sample.texts:
            tensors |= load_tensors(sample.texts.read())
    except (OSError, ValueError, SafetensorError) as error:
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
        self.quarantined: dict[str, str] = {}  # name of the sample → why
        self.cache: OrderedDict[int, Encoded] = OrderedDict()
        self.cache_bytes, self.held = cache_bytes, 0
        self.channels, self.text_width = channels, text_width
        self.lock = threading.Lock()
        for sample in sorted(samples, key=lambda s: (s.clip_id, s.window)):
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

    def parts(self, weights: Mapping[str, float]) -> dict[str, Part]:
        """The parts of a mixture; none where `weights`, release → weight, is empty.

        Raises:
            NothingToTrainOn: a part has no samples.
        """
        total = sum(weights.values())
        found: dict[str, Part] = {}
        for name, weight in weights.items():
            members = frozenset(index for index, sample in enumerate(self.samples) if name in sample.parts)
            if not members:
                raise NothingToTrainOn(
                    f"the release {name} of the mixture has no clip to train on: all of its clips are held out, were "
                    "not encoded or are corrupt; leave it out, or see `medgen status`"
                )
            found[name] = Part(weight / total, members)
        return found

    def get(self, index: int) -> Encoded | None:
        """The sample, or None when it is (now) quarantined."""
        sample = self.samples[index]
        with self.lock:
            if sample.name in self.quarantined:
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
            f"{self.quarantined[self.samples[index].name]}: encode the release again"
        )

    def _quarantine(self, sample: Sample, error: BadSample) -> None:
        log.warning("training goes on without clip %s: %s %s", sample.name, sample.path.name, error)
        with self.lock:
            self.quarantined[sample.name] = str(error)


def _size(encoded: Encoded) -> int:
    return sum(t.numel() * t.element_size() for t in (encoded.latents, encoded.brief, encoded.detailed))


def batch_order(
    buckets: Mapping[tuple[int, ...], Sequence[int]],
    global_batch: int,
    seed: int,
    start: int = 0,
    parts: Mapping[str, Part] | None = None,
) -> Iterator[list[int]]:
    """The samples of each optimiser step, from step `start` on, without end.

    All samples of a step have one shape. Buckets take turns in proportion to their sizes, and each is gone through in
    a new random order per epoch of its own. Of a mixture each part is drawn from as often as its share says, whatever
    its size: buckets take turns in proportion to what falls on them, and within a bucket each part is gone through on
    its own. The order is a function of seed and step alone: to go on somewhere, no state is needed.

    Args:
        parts: of a mixture, by name.

    Yields:
        `global_batch` indices. With fewer samples in the bucket, some come twice.
    """
    shapes = list(buckets)
    streams = [_streams(shape, buckets[shape], seed, parts or {}) for shape in shapes]
    masses = [sum(stream.mass for stream in of_shape) for of_shape in streams]
    total = sum(masses)
    taken = [0] * len(shapes)
    step = 0
    while True:
        behind = [masses[b] * (step + 1) / total - taken[b] for b in range(len(shapes))]
        bucket = max(range(len(shapes)), key=lambda b: (behind[b], -b))
        first = taken[bucket] * global_batch
        chosen = [_next_stream(streams[bucket], masses[bucket], first + n) for n in range(global_batch)]
        if step >= start:
            yield [stream.sample(place) for stream, place in chosen]
        taken[bucket] += 1
        step += 1


class _Stream:
    """Samples of one shape, and of one part of a mixture, which are gone through again and again in new orders."""

    def __init__(self, members: Sequence[int], mass: float, seed: int, name: tuple[str | int, ...]) -> None:
        self.members, self.mass, self.seed, self.name = members, mass, seed, name
        self.drawn = 0
        self._orders: dict[int, list[int]] = {}

    def sample(self, place: int) -> int:
        """The index that is drawn at a place of the stream."""
        epoch, at = divmod(place, len(self.members))
        if epoch not in self._orders:
            for old in [known for known in self._orders if known < epoch - 1]:
                del self._orders[old]
            order = torch.randperm(len(self.members), generator=generator(self.seed, "order", *self.name, epoch))
            self._orders[epoch] = [self.members[i] for i in order.tolist()]
        return self._orders[epoch][at]


def _streams(shape: tuple[int, ...], members: Sequence[int], seed: int, parts: Mapping[str, Part]) -> list[_Stream]:
    """The streams of a bucket: one, or of a mixture one a part that has samples in it."""
    if not parts:
        return [_Stream(members, len(members), seed, shape)]
    return [
        _Stream(own, part.share * len(own) / len(part.members), seed, (*shape, name))
        for name, part in sorted(parts.items())
        if (own := [index for index in members if index in part.members])
    ]


def _next_stream(streams: Sequence[_Stream], mass: float, drawn: int) -> tuple[_Stream, int]:
    """The stream of a bucket that is furthest behind its share after `drawn` draws, and the place in it."""
    stream = streams[0]
    if len(streams) > 1:
        stream = max(streams, key=lambda one: one.mass / mass * (drawn + 1) - one.drawn)
    stream.drawn += 1
    return stream, stream.drawn - 1
