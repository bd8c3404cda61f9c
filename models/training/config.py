"""The configuration of a training run: arguments named as in diffusers' training scripts, and presets."""

from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from medgen.parameters import MOST_ITEMS, Parameters
from models.training.clip_frames import read_geometries

Preset = Literal["nano", "wan-1.3b-lora", "wan-1.3b-full", "wan-14b-lora", "paper-lora"]


class TrainConfig(Parameters):
    """All that decides what a run learns. Fields marked `exclude` decide only how it is run and kept."""

    # what is trained, and on what
    pretrained_model_name_or_path: str = Field(
        "nano", description="Base: `nano`, a model on record (medgen:NAME), a diffusers folder, or a hub name."
    )
    training: Literal["lora", "full"] = Field("lora", description="Adapters beside frozen weights, or all weights.")
    from_scratch: bool = Field(False, description="The base's transformer is untrained; pre-flight expects its loss.")
    buckets: str = Field(
        "81x480x832", description="Allowed frames x height x width of clips, comma-separated; each takes the best fit."
    )
    fps: float = Field(16.0, gt=0, le=1000, description="Frames per second that clips are sampled at (Wan: 16).")
    max_sequence_length: int = Field(512, ge=1, le=4096, description="Tokens of a caption; shorter are zero-padded.")
    validation_share: float = Field(0.1, ge=0, lt=1, description="Share of source videos held out of training.")
    detailed_share: float = Field(0.5, ge=0, le=1, description="How often the detailed caption is used, 0 to 1.")
    caption_dropout: float = Field(0.1, ge=0, le=1, description="How often the caption is left empty, for guidance.")

    # optimisation
    max_train_steps: int = Field(1000, ge=1, le=MOST_ITEMS, description="Optimiser steps.")
    train_batch_size: int = Field(1, ge=1, le=100_000, description="Samples per process and forward pass.")
    gradient_accumulation_steps: int = Field(1, ge=1, le=100_000, description="Forward passes per optimiser step.")
    num_processes: int = Field(1, ge=1, le=100_000, description="Processes; with accelerate, one per GPU.")
    learning_rate: float = Field(1e-4, gt=0, le=1000, description="Peak learning rate of AdamW.")
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
    ] = Field("constant_with_warmup", description="Schedule of the learning rate, as diffusers names it.")
    lr_warmup_steps: int = Field(0, ge=0, le=MOST_ITEMS, description="Steps over which the learning rate rises.")
    lr_num_cycles: int = Field(1, ge=1, le=MOST_ITEMS, description="Hard restarts of cosine_with_restarts.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW β1.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW β2.")
    adam_weight_decay: float = Field(0.01, ge=0, le=1000, description="AdamW decoupled weight decay.")
    adam_epsilon: float = Field(1e-8, gt=0, le=1, description="AdamW ε.")
    max_grad_norm: float = Field(1.0, gt=0, le=1e9, description="Gradients are clipped to this norm.")
    mixed_precision: Literal["no", "bf16"] = Field("bf16", description="Arithmetic; bf16 is refused where missing.")
    gradient_checkpointing: bool = Field(True, description="Recompute activations: less memory, a third more time.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of everything random.")
    use_ema: bool = Field(False, description="Keep an exponential moving average of the weights and deliver that.")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="Decay of the moving average.")

    # adapters
    rank: int = Field(32, ge=1, le=100_000, description="LoRA: rank.")
    lora_alpha: int = Field(32, ge=1, le=MOST_ITEMS, description="LoRA: scale; adapters count alpha / rank times.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="LoRA: dropout.")
    lora_layers: str = Field("to_k,to_q,to_v,to_out.0", description="LoRA: modules, comma-separated name endings.")
    merge_lora: bool = Field(True, description="LoRA: deliver a pipeline with the adapter merged in, beside it.")

    # flow matching
    weighting_scheme: Literal["none", "logit_normal"] = Field("logit_normal", description="How timesteps are drawn.")
    logit_mean: float = Field(0.0, ge=-1000, le=1000, description="Mean of logit_normal.")
    logit_std: float = Field(1.0, gt=0, le=1000, description="Standard deviation of logit_normal.")
    flow_shift: float = Field(
        3.0, gt=0, le=1000, description="Shift of timesteps towards noise (Wan 480p: 3, 720p: 5)."
    )

    # validation
    validation_steps: int = Field(500, ge=1, le=MOST_ITEMS, description="Steps between validations.")
    validation_samples: int = Field(64, ge=0, le=MOST_ITEMS, description="Held-out clips behind the validation loss.")
    validation_timesteps: int = Field(4, ge=1, le=50, description="Fixed noise levels per clip.")
    validation_prompts: tuple[str, ...] = Field((), description="Prompts made into videos at each validation.")
    validation_inference_steps: int = Field(30, ge=1, le=10_000, description="Denoising steps of those videos.")
    guidance_scale: float = Field(5.0, ge=0, le=1000, description="Guidance of those videos; 1 or less is none.")

    # how it is run and kept: no part of a run's identity
    checkpointing_steps: int = Field(500, ge=1, le=MOST_ITEMS, exclude=True, description="Steps between checkpoints.")
    checkpoints_total_limit: int = Field(
        2, ge=1, le=MOST_ITEMS, exclude=True, description="Checkpoints kept; older ones go."
    )
    preflight: bool = Field(True, exclude=True, description="Check everything for a minute before the long part.")
    allow_stand_in_captions: bool = Field(
        False, exclude=True, description="Train on captions whose captioner saw no picture, which pre-flight refuses."
    )
    cache_latents_gb: float = Field(
        4.0, ge=0, le=1e6, exclude=True, description="Memory for encoded clips, GiB per process."
    )

    @model_validator(mode="after")
    def _fits(self) -> "TrainConfig":
        if self.lr_warmup_steps > self.max_train_steps:
            raise ValueError(f"lr_warmup_steps={self.lr_warmup_steps} exceeds max_train_steps={self.max_train_steps}")
        read_geometries(self.buckets)
        return self

    @property
    def global_batch(self) -> int:
        """Samples per optimiser step over all processes."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.num_processes

    def identity(self) -> dict[str, Any]:
        """What of the configuration decides the result, as JSON facts."""
        return self.model_dump(mode="json")

    def lora_targets(self) -> list[str]:
        """Endings of the names of adapted modules."""
        return [name.strip() for name in self.lora_layers.split(",") if name.strip()]


# Hub names of the bases in diffusers' format.
WAN_1_3B = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
WAN_14B = "Wan-AI/Wan2.1-T2V-14B-Diffusers"

PRESETS: dict[Preset, dict[str, Any]] = {
    # A toy that learns on two CPU cores in minutes: same classes, from scratch.
    "nano": {
        "pretrained_model_name_or_path": "nano",
        "training": "full",
        "from_scratch": True,
        "allow_stand_in_captions": True,  # made to be tried out offline
        "buckets": "17x64x96",
        "fps": 8.0,
        "max_sequence_length": 64,
        "validation_share": 0.15,
        "max_train_steps": 600,  # of the demo; with 1000 the loss on held-out videos rises again
        "train_batch_size": 8,
        "learning_rate": 1e-3,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 30,
        "adam_beta2": 0.99,
        "mixed_precision": "no",
        "gradient_checkpointing": False,
        "use_ema": True,
        "ema_decay": 0.99,
        "flow_shift": 3.0,
        "validation_steps": 150,
        "validation_inference_steps": 20,
        "guidance_scale": 1.5,  # 3 overexposes what 10 minutes of learning give, and shows no more of the prompt
        "checkpointing_steps": 150,
    },
    "wan-1.3b-lora": {
        "pretrained_model_name_or_path": WAN_1_3B,
        "training": "lora",
        "max_train_steps": 5000,
        "gradient_accumulation_steps": 8,
        "learning_rate": 1e-4,
        "lr_warmup_steps": 100,
        "use_ema": True,
    },
    "wan-1.3b-full": {
        "pretrained_model_name_or_path": WAN_1_3B,
        "training": "full",
        "max_train_steps": 10_000,
        "gradient_accumulation_steps": 32,
        "learning_rate": 1e-5,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 500,
        "use_ema": True,
    },
    "wan-14b-lora": {
        "pretrained_model_name_or_path": WAN_14B,
        "training": "lora",
        "max_train_steps": 5000,
        "gradient_accumulation_steps": 8,
        "learning_rate": 5e-5,
        "lr_warmup_steps": 100,
        "use_ema": True,
        "flow_shift": 3.0,
    },
    # arXiv 2507.05675: rank 32, alpha 32, learning rate 5e-5, bf16, 93 frames, shift 7, EMA 0.999, seed 1024, 50,000
    # steps, batch 32 on 8 GPUs. The paper's base is HunyuanVideo; its published weights are fine-tunes of Wan 2.1,
    # which this is. How its batch of 32 and its 8 accumulation steps go together it doesn't say: here 8 × 4 × 1.
    "paper-lora": {
        "pretrained_model_name_or_path": WAN_1_3B,
        "training": "lora",
        "buckets": "93x480x720",
        "max_train_steps": 50_000,
        "train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "num_processes": 8,
        "learning_rate": 5e-5,
        "lr_scheduler": "constant",
        "rank": 32,
        "lora_alpha": 32,
        "mixed_precision": "bf16",
        "flow_shift": 7.0,
        "use_ema": True,
        "ema_decay": 0.999,
        "seed": 1024,
        "checkpointing_steps": 1000,
    },
}  # fmt: skip
assert set(PRESETS) == set(get_args(Preset))


def configured(preset: str, overrides: dict[str, Any] | None = None) -> TrainConfig:
    """A preset with some fields set otherwise.

    Raises:
        ValueError: unknown preset (pydantic's `ValidationError`, a ValueError, for bad fields).
    """
    if preset not in PRESETS:
        raise ValueError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    return TrainConfig(**{**PRESETS[preset], **(overrides or {})})
