"""Encode: clips of a release become latents and text embeddings, once per clip, VAE, text encoder and geometry.

Training reads these files many times over and never sees a pixel or a word again.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
from pydantic import Field, field_validator

from medgen.handover import Handover
from medgen.inference import ask
from medgen.inference_process import Loaded, Served
from medgen.ledger import Ledger, Outcome, Record, StepIdentity, Work, open_ledger
from medgen.parameters import Parameters
from medgen.shard import ShardResult, Step, run_shard
from medgen.store import Store
from models.families.known import family_of
from models.generation.video_diffusion import open_pipeline, part_digests
from models.training.clip_frames import best_fit, read_frames, read_geometries
from models.training.config import TrainConfig
from tasks.prefect_step import run_in_prefect, step_task
from tasks.training.released import ReleasedClip, stream_clips

MEDIA_TYPE = "application/vnd.safetensors"
TIME_LIMIT_S = 1800.0
EMPTY = "empty_text"  # step and subject of the empty caption's embedding


class EncodeParams(Parameters):
    """Parameters of encode."""

    buckets: str = Field(
        "81x480x832", description="Allowed frames x height x width of clips, comma-separated; each takes the best fit."
    )
    fps: float = Field(16.0, gt=0, le=1000, description="Frames per second that clips are sampled at (Wan: 16).")
    max_sequence_length: int = Field(512, ge=1, le=4096, description="Tokens of a caption; shorter are zero-padded.")
    latents_dtype: Literal["float32", "bfloat16"] = Field("float32", description="How latents are kept on disk.")

    @field_validator("buckets")
    @classmethod
    def _buckets(cls, text: str) -> str:
        return ",".join(str(geometry) for geometry in read_geometries(text))

    @classmethod
    def of(cls, config: TrainConfig) -> "EncodeParams":
        """How clips are encoded for a training."""
        return cls(
            buckets=config.buckets,
            fps=config.fps,
            max_sequence_length=config.max_sequence_length,
            latents_dtype="bfloat16" if config.mixed_precision == "bf16" else "float32",
        )


class EncodeDetail(TypedDict):
    """Detail of a kept record: frames x height x width, shape of the latents, tokens by caption, device."""

    geometry: str
    latents: list[int]
    tokens: dict[str, int]
    device: str


class EncodeOutputs(TypedDict):
    """Outputs of a kept record, role → sha256."""

    latents: str


class EmptyTextOutputs(TypedDict):
    """Outputs of the record of the empty caption, role → sha256."""

    empty: str


ENCODE: Handover[EncodeDetail, EncodeOutputs] = Handover("encode")
EMPTY_TEXT: Handover[Mapping[str, object], EmptyTextOutputs] = Handover(EMPTY)


def encode(work: Work, store: Store, params: EncodeParams) -> Outcome:
    """Encodes one clip and its captions.

    Output `latents`: safetensors with `latents` (C, F, H, W) as the transformer sees them, `brief` and `detailed`
    (L, D) without padding, and as metadata clip_id, video_id, category, brief, detailed, frames, height, width, fps.
    Rejected: caption_missing; clip_too_short.

    Raises:
        ItemFailed: as `models.training.clip_frames.read_frames`.
    """
    facts = work.context
    if missing := [kind for kind in ("brief", "detailed") if not facts[kind].strip()]:
        return Outcome("rejected", "caption_missing", {"missing": missing})
    choices = read_geometries(params.buckets)
    size = {name: facts[name] for name in ("duration_s", "width", "height")}
    geometry = best_fit(choices, params.fps, **size)
    if geometry is None:
        shortest = min(choices, key=lambda g: g.frames)
        detail = {"metric": "duration_s", "score": size["duration_s"], "threshold": shortest.lasts(params.fps)}
        return Outcome("rejected", "clip_too_short", detail)
    frames = read_frames(store.path(work.inputs["clip"]), geometry, params.fps, size["duration_s"])
    texts = (facts["brief"], facts["detailed"])
    question = _Question(frames, texts, params.max_sequence_length)
    latents, (brief, detailed), device = ask(_encoder(str(work.access["base"])), [question])[0]
    if not np.isfinite(latents).all():
        return Outcome("rejected", "latents_not_finite", decodes=1)
    metadata = {
        "clip_id": work.subject,
        **{name: facts[name] for name in ("video_id", "category", "brief", "detailed")},
        "frames": str(geometry.frames),
        "height": str(geometry.height),
        "width": str(geometry.width),
        "fps": f"{params.fps:g}",
    }
    tensors = {"latents": latents, "brief": brief, "detailed": detailed}
    artifact = store.put_bytes(_safetensors(tensors, metadata, params.latents_dtype), MEDIA_TYPE)
    kept: EncodeDetail = {
        "geometry": str(geometry),
        "latents": list(latents.shape),
        "tokens": {"brief": len(brief), "detailed": len(detailed)},
        "device": device,
    }
    return Outcome("kept", detail=dict(kept), outputs={"latents": artifact}, decodes=1)


def encode_empty(work: Work, store: Store, params: EncodeParams) -> Outcome:
    """Output `empty`: safetensors with `empty` (L, D), what the text encoder makes of the empty caption."""
    question = _Question(None, ("",), params.max_sequence_length)
    _, (rows,), _ = ask(_encoder(str(work.access["base"])), [question])[0]
    artifact = store.put_bytes(_safetensors({"empty": rows}, {}, "float32"), MEDIA_TYPE)
    return Outcome("kept", detail={"tokens": len(rows)}, outputs={"empty": artifact})


def step(params: EncodeParams, base: Path) -> Step:
    """Encode, ready to run with the VAE and text encoder of a pipeline's folder."""
    models = part_digests(base, family_of(base).encoder_parts)
    identity = StepIdentity("encode", 1, params.model_dump(mode="json"), models)
    return Step(identity, partial(encode, params=params), time_limit_s=TIME_LIMIT_S)


def encode_release(
    ledger: Ledger,
    release: str,
    base: Path,
    params: EncodeParams,
    *,
    part: tuple[int, int] = (0, 1),
    retry_quarantined: bool = False,
) -> ShardResult:
    """Encodes the clips of a release for the models in a pipeline's folder.

    Args:
        part: (n, of): every `of`-th clip from the n-th on, so that several task runs can share a release.

    Raises:
        ItemFailed: as `stream_clips`.
        ModelUnavailable: the base has no VAE, text encoder or tokenizer.
    """
    clips, _ = stream_clips(ledger, release)
    return _encode_clips(islice(clips, part[0], None, part[1]), base, params, retry_quarantined)


def _encode_clips(
    clips: Iterable[ReleasedClip], base: Path, params: EncodeParams, retry_quarantined: bool
) -> ShardResult:
    works = [
        Work(
            clip.clip_id,
            inputs={"clip": clip.sha256},
            parents={"release": clip.step_run_id},
            context={
                "video_id": clip.video_id,
                "category": clip.category,
                "brief": clip.brief,
                "detailed": clip.detailed,
                "width": clip.width,
                "height": clip.height,
                "duration_s": clip.duration_s,
            },
            access={"base": str(base)},
        )
        for clip in {clip.clip_id: clip for clip in clips}.values()
    ]
    return run_in_prefect(step(params, base), works, retry_quarantined=retry_quarantined)


def empty_text(ledger: Ledger, base: Path, params: EncodeParams) -> Record:
    """The record whose output `empty` is the empty caption's embedding by the base's text encoder."""
    models = part_digests(base, [part for part in family_of(base).encoder_parts if part != "vae"])
    identity = StepIdentity(EMPTY, 1, {"max_sequence_length": params.max_sequence_length}, models)
    encoding = Step(identity, partial(encode_empty, params=params), runs_in="inline")
    result = run_shard(encoding, [Work(EMPTY, access={"base": str(base)})], ledger=ledger)
    return ledger.load(result.records)[result.records[0]]


@step_task("encode", "gpu")
def encode_shard(
    label: str,
    release: str,
    base: str,
    params: EncodeParams,
    retry_quarantined: bool = False,
    part: tuple[int, int] = (0, 1),
) -> ShardResult:
    """Encodes the clips of a release, or every n-th of them."""
    return encode_release(open_ledger(), release, Path(base), params, part=part, retry_quarantined=retry_quarantined)


@dataclass(frozen=True)
class _Question:
    """What is asked of a pipeline's VAE and text encoder.

    Args:
        frames: uint8 RGB (F, H, W, 3); None: texts alone.
    """

    frames: np.ndarray | None
    texts: tuple[str, ...]
    tokens: int


def _encoder(base: str) -> Served:
    """VAE and text encoder of a pipeline's folder; on a machine without GPUs each process has its own."""
    return Served(_served, (base,), packaged=True)


def _served(device: str, base: str) -> Loaded:
    """Answers a question with (latents or None, embeddings of the texts, kind of device)."""
    family = family_of(Path(base))
    pipeline: Any = open_pipeline(base, dtype="float32", device=device, parts=family.encoder_parts)

    def answer(questions: list[_Question]) -> list[tuple[np.ndarray | None, list[np.ndarray], str]]:
        with _one_thread():
            return [
                (
                    None if q.frames is None else family.encode_video(pipeline.vae, q.frames),
                    family.encode_texts(pipeline, q.texts, q.tokens),
                    device.partition(":")[0],
                )
                for q in questions
            ]

    return Loaded(answer)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The same sums in the same order, however many cores a machine has."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _safetensors(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], latents_dtype: str) -> bytes:
    """The same bytes for the same content: the library writes metadata in random order, so the head is written anew."""
    import torch
    from safetensors.torch import save

    converted = {name: torch.from_numpy(np.ascontiguousarray(rows)) for name, rows in tensors.items()}
    if "latents" in converted:
        converted["latents"] = converted["latents"].to(getattr(torch, latents_dtype))
    written = save(converted)
    (length,) = struct.unpack("<Q", written[:8])
    head = json.loads(written[8 : 8 + length])
    if metadata:
        head["__metadata__"] = dict(metadata)
    new = json.dumps(head, sort_keys=True, separators=(",", ":")).encode()
    new += b" " * (-len(new) % 8)
    return struct.pack("<Q", len(new)) + new + written[8 + length :]
