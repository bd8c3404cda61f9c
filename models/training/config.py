"""The configuration of a training run: arguments named as in diffusers' training scripts."""

from typing import Any, Literal

from pydantic import Field, model_validator

from medgen.parameters import MOST_ITEMS, Parameters
from models.training.clip_frames import read_geometries
from models.training.presets import PRESETS

# Fields that came after models had been trained, with the values that leave everything as it was: runs from before are
# known by the same facts.
LATER: dict[str, Any] = {
    "expert": "",
    "first_frame_share": 0.0,
    "extends": "",
    "optimizer": "adamw",
    "windows_per_clip": 1,
    "frozen_dtype": "same",
    "attention_backend": "",
    "compile_blocks": False,
    "deliver": "last",
    "early_stopping_patience": 0,
}
SCHEDULE = ("max_train_steps", "lr_scheduler", "lr_warmup_steps", "lr_num_cycles")
# Fields that may differ between a checkpoint and the run that goes on from it.
NOT_LEARNT = (
    "pretrained_model_name_or_path", "from_scratch", "train_batch_size", "gradient_accumulation_steps", "num_processes",
    "gradient_checkpointing", "merge_lora", "validation_steps", "validation_samples", "validation_timesteps",
    "validation_prompts", "validation_inference_steps", "guidance_scale", "extends",
    "context_parallel_degree", "attention_backend", "compile_blocks", "deliver", "early_stopping_patience",
)  # fmt: skip


class TrainConfig(Parameters):
    """All that decides what a run learns. Fields marked `exclude` decide only how it is run and kept."""

    # what is trained, and on what
    pretrained_model_name_or_path: str = Field(
        "nano",
        description="Base: nano, medgen:NAME on record, a diffusers folder, a hub name, or WEIGHTS+COMPONENTS.",
    )
    training: Literal["lora", "full"] = Field("lora", description="Adapters beside frozen weights, or all weights.")
    expert: Literal["", "high_noise", "low_noise"] = Field(
        "", description="Which of two experts is trained (Wan 2.2 A14B), at its own noise levels; empty: there is one."
    )
    first_frame_share: float = Field(
        0.0, ge=0, le=1, description="How often a clip's first frame is given, for image-to-video (Wan 2.2 TI2V)."
    )
    from_scratch: bool = Field(False, description="The base's transformer is untrained; pre-flight expects its loss.")
    buckets: str = Field(
        "81x480x832", description="Allowed frames x height x width of clips, comma-separated; each takes the best fit."
    )
    fps: float = Field(16.0, gt=0, le=1000, description="Frames per second that clips are sampled at.")
    max_sequence_length: int = Field(512, ge=1, le=4096, description="Tokens of a caption; shorter are zero-padded.")
    windows_per_clip: int = Field(
        1, ge=1, le=1000, description="Most stretches of a clip that are samples; with one it is the clip's middle."
    )
    validation_share: float = Field(0.1, ge=0, lt=1, description="Share of source videos held out of training.")
    detailed_share: float = Field(0.5, ge=0, le=1, description="How often the detailed caption is used, 0 to 1.")
    caption_dropout: float = Field(0.1, ge=0, le=1, description="How often the caption is left empty, for guidance.")

    # optimisation
    max_train_steps: int = Field(1000, ge=1, le=MOST_ITEMS, description="Optimiser steps.")
    train_batch_size: int = Field(1, ge=1, le=100_000, description="Samples per process and forward pass.")
    gradient_accumulation_steps: int = Field(1, ge=1, le=100_000, description="Forward passes per optimiser step.")
    num_processes: int = Field(1, ge=1, le=100_000, description="Processes; with accelerate, one per GPU.")
    optimizer: Literal["adamw", "adamw8bit", "adafactor"] = Field(
        "adamw", description="adamw8bit: a quarter of AdamW's memory; adafactor: next to none, relative learning rate."
    )
    context_parallel_degree: int = Field(
        1, ge=1, le=1024, description="Processes that share the tokens of each sample (Ulysses); divides num_processes."
    )
    learning_rate: float = Field(1e-4, gt=0, le=1000, description="Peak learning rate.")
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
    frozen_dtype: Literal["same", "int8", "fp8"] = Field(
        "same", description="LoRA: how the frozen weights of blocks are kept; 8 bits halve bf16."
    )
    attention_backend: str = Field(
        "", max_length=100, description="Attention by diffusers' name, such as native, flash or _native_cudnn."
    )
    compile_blocks: bool = Field(False, description="torch.compile each block: faster after some minutes.")
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

    deliver: Literal["last", "best"] = Field(
        "last", description="Which weights are delivered: the last ones, or those with the lowest held-out loss."
    )
    early_stopping_patience: int = Field(
        0, ge=0, le=MOST_ITEMS, description="End after so many validations without a lower held-out loss; 0: never."
    )
    extends: str = Field(
        "", description="Finished model on record (medgen:NAME) whose run goes on; also where the schedule had an end."
    )

    # how it is run and kept: no part of a run's identity
    checkpointing_steps: int = Field(500, ge=1, le=MOST_ITEMS, exclude=True, description="Steps between checkpoints.")
    checkpoints_total_limit: int = Field(
        2, ge=1, le=MOST_ITEMS, exclude=True, description="Checkpoints kept; older ones go."
    )
    gradient_checkpointing_blocks: int = Field(
        -1, ge=-1, le=10_000, exclude=True, description="Blocks that gradient_checkpointing recomputes; -1: all."
    )
    offload_activations: bool = Field(
        False, exclude=True, description="Inputs of recomputed blocks wait in the CPU's memory."
    )
    blocks_to_swap: int = Field(
        0, ge=0, le=10_000, exclude=True, description="LoRA: blocks whose frozen weights wait in the CPU's memory."
    )
    log_with: tuple[str, ...] = Field(
        (), exclude=True, description="Trackers beside TensorBoard, by accelerate's names, such as wandb or mlflow."
    )
    keep_checkpoint: bool = Field(
        True, exclude=True, description="Keep a finished run's last checkpoint, so that it can be extended."
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
        if self.num_processes % self.context_parallel_degree:
            degree = self.context_parallel_degree
            raise ValueError(f"context_parallel_degree={degree} does not divide num_processes={self.num_processes}")
        if self.training == "full" and (self.blocks_to_swap or self.frozen_dtype != "same"):
            raise ValueError("blocks_to_swap and frozen_dtype are of frozen weights, which only training=lora has")
        return self

    @property
    def global_batch(self) -> int:
        """Samples per optimiser step over all processes."""
        groups = self.num_processes // self.context_parallel_degree
        return self.train_batch_size * self.gradient_accumulation_steps * groups

    def identity(self) -> dict[str, Any]:
        """What of the configuration decides the result, as JSON facts; later fields only where they are set."""
        facts = self.model_dump(mode="json")
        return {name: value for name, value in facts.items() if name not in LATER or value != LATER[name]}

    def learning(self) -> dict[str, Any]:
        """What two runs must share for one to go on from the other's checkpoint, but the schedule: JSON facts.

        How a step is spread over processes, how memory is saved without changing a number's meaning, and how progress
        is looked at are no part of it.
        """
        facts = {name: value for name, value in self.identity().items() if name not in (*NOT_LEARNT, *SCHEDULE)}
        return facts | {"global_batch": self.global_batch}

    def schedule(self) -> dict[str, Any]:
        """How the learning rate goes, as JSON facts; the end counts where the rate depends on it."""
        facts = self.identity()
        endless = self.lr_scheduler in ("constant", "constant_with_warmup")
        return {name: facts[name] for name in SCHEDULE if not (endless and name == "max_train_steps")}

    def lora_targets(self) -> list[str]:
        """Endings of the names of adapted modules."""
        return [name.strip() for name in self.lora_layers.split(",") if name.strip()]


def configured(preset: str, overrides: dict[str, Any] | None = None) -> TrainConfig:
    """A preset with some fields set otherwise.

    Raises:
        ValueError: unknown preset (pydantic's `ValidationError`, a ValueError, for bad fields).
    """
    if preset not in PRESETS:
        raise ValueError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    return TrainConfig(**{**PRESETS[preset], **(overrides or {})})
