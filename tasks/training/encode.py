"""Encode: clips of a release become latents, once per clip, VAE and geometry, and their captions become embeddings,
once per clip's captions and text encoder, whatever the geometry.

Training reads these files many times over and never sees a pixel or a word again.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
from pydantic import Field, field_validator

from medgen.among import PAGE
from medgen.handover import Handover
from medgen.inference import ask
from medgen.inference_process import Loaded, Served
from medgen.ledger import Ledger, Outcome, Record, StepIdentity, Work, open_ledger
from medgen.parameters import Parameters
from medgen.shard import ShardResult, Step, run_shard
from medgen.store import Artifact, Store
from models.families.known import family_of
from models.generation.video_diffusion import Dtype, open_pipeline, part_digests
from models.training.clip_frames import best_fit, read_frames, read_geometries, window_starts
from models.training.config import TrainConfig
from tasks.prefect_step import run_in_prefect, step_task
from tasks.training.released import ReleasedClip, stream_clips

MEDIA_TYPE = "application/vnd.safetensors"
TIME_LIMIT_S = 1800.0
TEXT = "encode_text"
EMPTY = "empty_text"  # step and subject of the empty caption's embedding


class EncodeParams(Parameters):
    """Parameters of encode."""

    buckets: str = Field(
        "81x480x832", description="Allowed frames x height x width of clips, comma-separated; each takes the best fit."
    )
    fps: float = Field(16.0, gt=0, le=1000, description="Frames per second that clips are sampled at (Wan: 16).")
    max_sequence_length: int = Field(512, ge=1, le=4096, description="Tokens of a caption; shorter are zero-padded.")
    latents_dtype: Literal["float32", "bfloat16"] = Field("float32", description="How latents are kept on disk.")
    texts_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="How texts are encoded and their embeddings kept on disk."
    )
    windows_per_clip: int = Field(1, ge=1, le=1000, description="Most stretches of a clip; one is its middle.")

    @field_validator("buckets")
    @classmethod
    def _buckets(cls, text: str) -> str:
        return ",".join(str(geometry) for geometry in read_geometries(text))

    @classmethod
    def of(cls, config: TrainConfig) -> "EncodeParams":
        """How clips are encoded for a training: in bfloat16 where the references keep them so."""
        dtype: Literal["float32", "bfloat16"] = "bfloat16" if config.mixed_precision == "bf16" else "float32"
        return cls(
            buckets=config.buckets,
            fps=config.fps,
            max_sequence_length=config.max_sequence_length,
            latents_dtype=dtype,
            texts_dtype=dtype,
            windows_per_clip=config.windows_per_clip,
        )

    def of_texts(self) -> dict[str, Any]:
        """What of them the embeddings of captions depend on, as JSON facts."""
        return self.model_dump(mode="json", include={"max_sequence_length", "texts_dtype"})

    def of_latents(self) -> dict[str, Any]:
        """What of them the latents depend on, as JSON facts."""
        return self.model_dump(mode="json", exclude={"max_sequence_length", "texts_dtype"})


class EncodeDetail(TypedDict):
    """Detail of a kept record: frames x height x width, shape of the latents, where windows begin (s), device."""

    geometry: str
    latents: list[int]
    starts_s: list[float]
    device: str


class EncodeOutputs(TypedDict):
    """Outputs of a kept record, role → sha256; further windows are `latents@1` and on."""

    latents: str


class TextsOutputs(TypedDict):
    """Outputs of the record of a clip's captions, role → sha256."""

    texts: str


class EmptyTextOutputs(TypedDict):
    """Outputs of the record of the empty caption, role → sha256."""

    empty: str


ENCODE: Handover[EncodeDetail, EncodeOutputs] = Handover("encode")
ENCODE_TEXT: Handover[Mapping[str, object], TextsOutputs] = Handover(TEXT)
EMPTY_TEXT: Handover[Mapping[str, object], EmptyTextOutputs] = Handover(EMPTY)


def encode(work: Work, store: Store, params: EncodeParams) -> Outcome:
    """Encodes one clip, or some windows of it.

    Output `latents`, and `latents@1` … of further windows: safetensors with `latents` (C, F, H, W) as the transformer
    sees them, and as metadata clip_id, video_id, category, frames, height, width, fps, start_s.
    Rejected: clip_too_short; latents_not_finite.

    Raises:
        ItemFailed: as `models.training.clip_frames.read_frames`.
    """
    facts = work.context
    choices = read_geometries(params.buckets)
    size = {name: facts[name] for name in ("duration_s", "width", "height")}
    geometry = best_fit(choices, params.fps, **size)
    if geometry is None:
        shortest = min(choices, key=lambda g: g.frames)
        detail = {"metric": "duration_s", "score": size["duration_s"], "threshold": shortest.lasts(params.fps)}
        return Outcome("rejected", "clip_too_short", detail)
    encoder = _encoder(str(work.access["base"]), ("vae",), "float32")
    starts = window_starts(size["duration_s"], geometry.lasts(params.fps), params.windows_per_clip)
    path = store.path(work.inputs["clip"])
    outputs: dict[str, Artifact] = {}
    for number, start in enumerate(starts):
        frames = read_frames(path, geometry, params.fps, size["duration_s"], start)
        latents, _, device = ask(encoder, [_Question(frames, (), params.max_sequence_length)])[0]
        if not np.isfinite(latents).all():
            return Outcome("rejected", "latents_not_finite", decodes=number + 1)
        metadata = {
            "clip_id": work.subject,
            **{name: facts[name] for name in ("video_id", "category")},
            "frames": str(geometry.frames),
            "height": str(geometry.height),
            "width": str(geometry.width),
            "fps": f"{params.fps:g}",
            "start_s": f"{start:.6f}",
        }
        role = window_role("latents", number)
        outputs[role] = store.put_bytes(_safetensors({"latents": latents}, metadata, params.latents_dtype), MEDIA_TYPE)
    kept: EncodeDetail = {
        "geometry": str(geometry),
        "latents": list(latents.shape),
        "starts_s": [round(start, 6) for start in starts],
        "device": device,
    }
    return Outcome("kept", detail=dict(kept), outputs=outputs, decodes=len(starts))


def window_role(role: str, number: int) -> str:
    """The role of a clip's window among outputs and inputs; the first has no number."""
    return f"{role}@{number}" if number else role


def encode_text(work: Work, store: Store, params: EncodeParams) -> Outcome:
    """Encodes the captions of one clip.

    Output `texts`: safetensors with `brief` and `detailed` (L, D) without padding, and as metadata the clip's id and
    the captions. Rejected: caption_missing.
    """
    captions = {kind: str(work.context[kind]) for kind in ("brief", "detailed")}
    if missing := [kind for kind, text in captions.items() if not text.strip()]:
        return Outcome("rejected", "caption_missing", {"missing": missing})
    question = _Question(None, tuple(captions.values()), params.max_sequence_length)
    _, rows, device = ask(_text_encoder(str(work.access["base"]), params), [question])[0]
    tensors = dict(zip(captions, rows, strict=True))
    metadata = {"clip_id": work.subject, **captions}
    artifact = store.put_bytes(_safetensors(tensors, metadata, params.texts_dtype), MEDIA_TYPE)
    detail = {"tokens": {kind: len(tensor) for kind, tensor in tensors.items()}, "device": device}
    return Outcome("kept", detail=detail, outputs={"texts": artifact})


def encode_empty(work: Work, store: Store, params: EncodeParams) -> Outcome:
    """Output `empty`: safetensors with `empty` (L, D), what the text encoder makes of the empty caption."""
    question = _Question(None, ("",), params.max_sequence_length)
    _, (rows,), _ = ask(_text_encoder(str(work.access["base"]), params), [question])[0]
    artifact = store.put_bytes(_safetensors({"empty": rows}, {}, "float32"), MEDIA_TYPE)
    return Outcome("kept", detail={"tokens": len(rows)}, outputs={"empty": artifact})


def step(params: EncodeParams, base: Path) -> Step:
    """Encode, ready to run with the VAE of a pipeline's folder."""
    facts, family = params.of_latents(), family_of(base)
    if family.channels != family.predicted_channels:  # a first frame is given beside, by the same VAE
        facts["channels"] = family.channels
    identity = StepIdentity("encode", 2, facts, part_digests(base, ["vae"]))
    return Step(identity, partial(encode, params=params), time_limit_s=TIME_LIMIT_S)


def text_step(params: EncodeParams, base: Path) -> Step:
    """Encode captions, ready to run with the text encoders of a pipeline's folder."""
    identity = StepIdentity(TEXT, 1, params.of_texts(), part_digests(base, text_parts(base)))
    return Step(identity, partial(encode_text, params=params), time_limit_s=TIME_LIMIT_S)


def text_parts(base: Path) -> list[str]:
    """The parts of a pipeline that encode texts."""
    return [part for part in family_of(base).encoder_parts if part != "vae"]


def encode_release(
    ledger: Ledger,
    release: str,
    base: Path,
    params: EncodeParams,
    *,
    part: tuple[int, int] = (0, 1),
    retry_quarantined: bool = False,
) -> ShardResult:
    """Encodes the clips of a release and their captions for the models in a pipeline's folder.

    Args:
        part: (n, of): every `of`-th clip from the n-th on, so that several task runs can share a release.

    Returns:
        Of each clip the record that decided: of the captions where these are missing, else of the frames. Kept items
        have both in their lineage.

    Raises:
        ItemFailed: as `stream_clips`.
        ModelUnavailable: the base has no VAE, text encoder or tokenizer.
    """
    clips, _ = stream_clips(ledger, release)
    chosen = {clip.clip_id: clip for clip in islice(clips, part[0], None, part[1])}
    works = [_text_work(clip, base) for clip in chosen.values()]
    texts = run_in_prefect(text_step(params, base), works, retry_quarantined=retry_quarantined)
    of_text = {item.subject: item.lineage[TEXT] for item in texts.kept}
    works = [_clip_work(chosen[clip_id], base) for clip_id in of_text]
    videos = run_in_prefect(step(params, base), works, retry_quarantined=retry_quarantined)
    return ShardResult(
        "encode",
        tuple(replace(item, lineage={**item.lineage, TEXT: of_text[item.subject]}) for item in videos.kept),
        (*texts.dropped, *videos.dropped),
        texts.executed + videos.executed,
        texts.reused + videos.reused,
        videos.decodes,
        (*(lineage[TEXT] for lineage in texts.dropped), *videos.records),
    )


def _text_work(clip: ReleasedClip, base: Path) -> Work:
    return Work(
        clip.clip_id,
        context={"brief": clip.brief, "detailed": clip.detailed},
        parents={"release": clip.step_run_id},
        access={"base": str(base)},
    )


def _clip_work(clip: ReleasedClip, base: Path) -> Work:
    return Work(
        clip.clip_id,
        inputs={"clip": clip.sha256},
        context={
            "video_id": clip.video_id,
            "category": clip.category,
            "width": clip.width,
            "height": clip.height,
            "duration_s": clip.duration_s,
        },
        parents={"release": clip.step_run_id},
        access={"base": str(base)},
    )


def bytes_to_encode(ledger: Ledger, release: str, base: Path, params: EncodeParams) -> tuple[int, int]:
    """(bytes that the clips of a release take encoded, how many of these are still to be written), an estimate.

    Latents are counted exactly; of texts, a token and a half a word (measured with UMT5 on English captions).

    Raises:
        ItemFailed: as `stream_clips`. ModelUnavailable: as `encode_release`.
    """
    clips, _ = stream_clips(ledger, release)
    family = family_of(base)
    identities = (text_step(params, base).identity, step(params, base).identity)
    widths = [4 if dtype == "float32" else 2 for dtype in (params.texts_dtype, params.latents_dtype)]
    per_pixel = family.channels * family.patch[1] * family.patch[2] / family.grid.pixels**2
    choices = read_geometries(params.buckets)
    total = missing = 0
    while page := list(islice(clips, PAGE)):
        sizes: dict[str, float] = {}
        for clip in page:
            if not (clip.brief.strip() and clip.detailed.strip()):
                continue
            words = sum(
                min(len(text.split()) * 1.5 + 2, params.max_sequence_length) for text in (clip.brief, clip.detailed)
            )
            sizes[identities[0].key(_text_work(clip, base))] = words * family.text_width * widths[0]
            if geometry := clip.best_fit(choices, params.fps):
                frames = (geometry.frames - 1) // (family.grid.frames // family.patch[0]) + 1
                windows = len(window_starts(clip.duration_s, geometry.lasts(params.fps), params.windows_per_clip))
                size = frames * geometry.height * geometry.width * per_pixel * widths[1] * windows
                sizes[identities[1].key(_clip_work(clip, base))] = size
        known = ledger.find(list(sizes))
        total += int(sum(sizes.values()))
        missing += int(sum(size for key, size in sizes.items() if key not in known))
    return total, missing


def empty_text(ledger: Ledger, base: Path, params: EncodeParams) -> Record:
    """The record whose output `empty` is the empty caption's embedding by the base's text encoder."""
    facts: dict[str, Any] = {"max_sequence_length": params.max_sequence_length}
    if params.texts_dtype != "float32":
        facts["texts_dtype"] = params.texts_dtype
    identity = StepIdentity(EMPTY, 1, facts, part_digests(base, text_parts(base)))
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


def _encoder(base: str, parts: tuple[str, ...], dtype: Dtype) -> Served:
    """VAE or text encoder of a pipeline's folder; on a machine without GPUs each process has its own."""
    return Served(_served, (base, parts, dtype), packaged=True)


def _text_encoder(base: str, params: EncodeParams) -> Served:
    return _encoder(base, tuple(text_parts(Path(base))), params.texts_dtype)


def _served(device: str, base: str, parts: tuple[str, ...], dtype: Dtype) -> Loaded:
    """Answers a question with (latents or None, embeddings of the texts, kind of device)."""
    family = family_of(Path(base))
    pipeline: Any = open_pipeline(base, dtype=dtype, device=device, parts=parts)

    def answer(questions: list[_Question]) -> list[tuple[np.ndarray | None, list[np.ndarray], str]]:
        with _one_thread():
            return [
                (
                    None if q.frames is None else family.encode_video(pipeline.vae, q.frames),
                    family.encode_texts(pipeline, q.texts, q.tokens) if q.texts else [],
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


def _safetensors(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], dtype: Dtype) -> bytes:
    """The same bytes for the same content."""
    import torch
    from safetensors.torch import save

    from models.training.safetensors_file import sorted_header

    kept = getattr(torch, dtype)
    tensors_kept = {name: torch.from_numpy(np.ascontiguousarray(rows)).to(kept) for name, rows in tensors.items()}
    return sorted_header(save(tensors_kept), metadata)
