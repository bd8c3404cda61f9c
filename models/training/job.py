"""The job of a training process, and the checks that it reports. Without PyTorch, for the process that starts it."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from medgen.canonical import digest_of
from medgen.errors import RunStopped
from medgen.holdout import held_out_videos
from models.families.family import Family
from models.training.clip_frames import Geometry, read_geometries
from models.training.config import TrainConfig
from models.training.stored_bytes import StoredBytes

LORA_FILE = "pytorch_lora_weights.safetensors"  # as diffusers' load_lora_weights finds it by itself

# In a working folder: checkpoints, what each says of itself, and the weights with the best held-out loss.
CHECKPOINTS, CHECKPOINT, STATE, BEST = "checkpoints", "checkpoint-", "state.json", "best"

STOPPED = 3  # exit code of a run that said why it can't go on

Verdict = Literal["pass", "warn", "fail"]


class Sample(StoredBytes):
    """An encoded clip, and the clip and source video that it is of.

    Args:
        texts: its embedded captions; None: they lie beside the latents.
        window: which of several stretches of the clip this is.
        captioner_kind: what wrote its captions: `models.captioning.captioner.CaptionerKind`, or "unknown".
        split: that its publisher put it in, such as "train" or "test"; empty: none is known.
        parts: of a mixture, the releases that it is of.
    """

    clip_id: str
    video_id: str
    category: str = ""
    captioner_kind: str = "unknown"
    split: str = ""
    parts: tuple[str, ...] = ()
    texts: StoredBytes | None = None
    window: int = 0

    @property
    def name(self) -> str:
        """The clip's id, and which of its windows this is."""
        return f"{self.clip_id}@{self.window}" if self.window else self.clip_id


class TrainJob(BaseModel):
    """All that a training process needs; travels as JSON. No database.

    Args:
        base: diffusers pipeline folder, or hub name.
        base_digest: of the base; a checkpoint of another base is refused.
        empty: safetensors file with the embedding of the empty caption (L, D).
        folder: working folder: checkpoints, curves, TensorBoard, the model at the end.
        weights: of a mixture, release → share of the samples that it gives.
        probe_clip: video frames as .npy (F, H, W, 3) uint8 for pre-flight's round trip through the VAE.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: TrainConfig
    base: str
    base_digest: str
    samples: tuple[Sample, ...]
    empty: Path
    folder: Path
    weights: dict[str, float] = {}
    probe_clip: Path | None = None
    run_settings: dict[str, Any] = Field({}, description="Fields that the configuration leaves out of its JSON.")

    def write(self, path: Path) -> None:
        """Writes the job as JSON, with the fields that are no part of the run's identity."""
        excluded = [name for name, f in TrainConfig.model_fields.items() if f.exclude]
        document = self.model_dump(mode="json") | {"run_settings": {n: getattr(self.config, n) for n in excluded}}
        path.write_text(json.dumps(document, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> "TrainJob":
        """The job in a file that `write` wrote."""
        document = json.loads(path.read_text())
        document["config"] |= document.get("run_settings", {})
        return cls(**document)

    def facts(self) -> dict[str, Any]:
        """What identifies the run: a checkpoint with other facts is of another run."""
        names = sorted([s.clip_id, s.sha256, *([s.texts.sha256] if s.texts else [])] for s in self.samples)
        mixed = {"mixture": digest_of([self.weights, sorted([s.clip_id, *s.parts] for s in self.samples)])}
        return {
            "base": self.base_digest,
            "samples": digest_of(names),
            "configuration": digest_of(self.config.learning()),
            "schedule": digest_of(self.config.schedule()),
            **(mixed if self.weights else {}),
        }


@dataclass(frozen=True)
class Check:
    """One question with its answer.

    Args:
        measured, expected: for people, with units.
        advice: what to do; empty for a pass.
    """

    name: str
    measured: str
    expected: str
    verdict: Verdict
    advice: str = ""

    def row(self) -> dict[str, str]:
        """As a row of a table."""
        return asdict(self)


def check_captions(kinds: Iterable[str], *, allowed: bool) -> Check:
    """Did what wrote the captions look at the clips? Of each clip the kind of its captioner.

    A model learns from stand-in captions that words and pictures have little to do with each other.
    """
    counted = Counter(kinds)
    unseen, clips = counted["template"], counted.total()
    measured = f"{unseen} of {clips} clips have captions that saw no picture"
    if counted["unknown"]:
        measured += f", of {counted['unknown']} it is not known"
    if not unseen or allowed:
        return Check("captions", measured, "none, or allow_stand_in_captions", "pass")
    advice = (
        "Caption the release with a model that looks: medgen refresh --set captioner=openai:MODEL or "
        "transformers:NAME; or set allow_stand_in_captions=true to train on these all the same."
    )
    return Check("captions", measured, "none", "fail", advice)


def check_geometry(config: TrainConfig, family: Family, fps: float) -> Check:
    """Does the base take videos of the buckets whole, and is it asked for what it can do?

    A VAE drops the frames that don't fill a latent frame without a word, and a transformer can't take half a patch.

    Args:
        fps: frames per second of the base's own videos.
    """
    grid, geometries = family.grid, read_geometries(config.buckets)
    expected = f"{grid.frames}n + 1 frames, sides that are multiples of {grid.pixels} pixels ({family.name})"
    measured = f"{config.buckets}, {config.fps:g} frames a second"
    if bad := [g for g in geometries if not grid.fits(g.frames, g.height, g.width)]:
        better = ",".join(str(Geometry(*grid.nearest(g.frames, g.height, g.width))) for g in geometries)
        advice = f"{', '.join(map(str, bad))} would lose frames or pixels: set buckets={better}."
        return Check("buckets", measured, expected, "fail", advice)
    if config.first_frame_share and not family.first_frame:
        advice = f"{family.name} can't be given a first frame: set first_frame_share=0, or choose Wan 2.2 TI2V."
        return Check("buckets", f"first_frame_share {config.first_frame_share:g}", expected, "fail", advice)
    if config.validation_prompts and family.needs_image:
        advice = f"{family.name} makes no videos of prompts alone: set validation_prompts=[]."
        return Check("buckets", f"{len(config.validation_prompts)} validation_prompts", expected, "fail", advice)
    if config.fps != fps and not config.from_scratch:
        advice = f"The base makes {fps:g} frames a second: at another rate, it has to learn motion anew."
        return Check("buckets", measured, f"{fps:g} frames a second", "warn", advice)
    return Check("buckets", measured, expected, "pass")


class PreflightFailed(RunStopped):
    """Checks failed; the message names each with what was measured and what to do."""


def require(checks: list[Check]) -> None:
    """Raises PreflightFailed when a check failed."""
    failed = [check for check in checks if check.verdict == "fail"]
    if failed:
        lines = "\n".join(f"  {c.name}: {c.measured}; expected {c.expected}. {c.advice}" for c in failed)
        raise PreflightFailed(f"pre-flight: {len(failed)} of {len(checks)} checks failed\n{lines}")


def split_by_video(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """(training, held out) samples; all clips of a source video are on one side."""
    away = held_out_videos([(s.video_id, s.split) for s in samples], share, seed)
    return [s for s in samples if s.video_id not in away], [s for s in samples if s.video_id in away]


def memory_advice(config: TrainConfig) -> str:
    """Which arguments to lower, in the order in which they cost least."""
    steps = []
    if not config.gradient_checkpointing:
        steps.append("set gradient_checkpointing=true")
    if config.mixed_precision == "no":
        steps.append("set mixed_precision=bf16")
    if config.train_batch_size > 1:
        steps.append(
            f"lower train_batch_size ({config.train_batch_size}) and raise gradient_accumulation_steps "
            f"({config.gradient_accumulation_steps}) by as much, which learns the same"
        )
    if config.gradient_checkpointing and not config.offload_activations:
        steps.append("set offload_activations=true")
    if config.training == "full":
        if config.optimizer == "adamw":
            steps.append("set optimizer=adamw8bit")
        steps.append("train an adapter (training=lora), or shard with accelerate's FSDP over several GPUs")
    elif not config.blocks_to_swap:
        steps.append(
            "let frozen weights wait in the CPU's memory (blocks_to_swap), or keep them in 8 bits (frozen_dtype)"
        )
    if config.training == "lora" and config.rank > 8:
        steps.append(f"lower rank ({config.rank})")
    steps.append(f"choose smaller buckets ({config.buckets}): fewer frames first")
    return "; ".join(steps) + ". Checkpoints stay: run again to go on"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; a last line that a killed process left half-written is passed over."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
