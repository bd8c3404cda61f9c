"""What a Wan transformer costs, counted from its architecture: weights, arithmetic, memory.

Floating-point operations are counted as 2 per multiply-add, matrix products and attention only, as model FLOPs
utilisation is commonly defined (PaLM, Chowdhery et al., arXiv 2204.02311, appendix B): recomputation by gradient
checkpointing is work of the machine, not of the model, and does not count.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.training.config import TrainConfig

GIB = 2**30

# Bytes that autograd keeps per token in one block without gradient checkpointing, as multiples of the width and of
# the feed-forward width: counted with saved-tensor hooks on diffusers' WanTransformerBlock (0.42); a test recounts.
KEPT = {"no": (91.0, 8.0), "bf16": (71.0, 4.0)}
KEPT_BESIDE = 1.1  # the allocator's waste, workspaces of matrix products and attention
CONTEXT_BYTES = 0.7 * GIB  # CUDA context and libraries


@dataclass(frozen=True)
class Architecture:
    """The numbers of a WanTransformer3DModel that its costs depend on."""

    layers: int
    width: int
    ffn: int
    text_dim: int
    freq_dim: int
    in_channels: int
    out_channels: int
    patch: tuple[int, int, int]
    cross_attn_norm: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Architecture":
        """From a transformer's config."""
        return cls(
            config["num_layers"],
            config["num_attention_heads"] * config["attention_head_dim"],
            config["ffn_dim"],
            config["text_dim"],
            config["freq_dim"],
            config["in_channels"],
            config["out_channels"],
            tuple(config["patch_size"]),
            config["cross_attn_norm"],
        )

    def tokens(self, latent: Sequence[int]) -> int:
        """Tokens of latents (C, F, H, W)."""
        return math.prod(size // patch for size, patch in zip(latent[1:], self.patch, strict=True))


def weights(a: Architecture) -> int:
    """Number of weights."""
    d = a.width
    attention = 4 * (d * d + d) + 2 * d  # projections, and the norms of query and key
    ffn = d * a.ffn + a.ffn + a.ffn * d + d
    block = 2 * attention + ffn + (2 * d if a.cross_attn_norm else 0) + 6 * d
    patches = a.in_channels * math.prod(a.patch) * d + d
    time = a.freq_dim * d + d + d * d + d + d * 6 * d + 6 * d
    text = a.text_dim * d + d + d * d + d
    out = d * a.out_channels * math.prod(a.patch) + a.out_channels * math.prod(a.patch)
    return a.layers * block + patches + time + text + out + 2 * d


def lora_weights(a: Architecture, rank: int, targets: Sequence[str]) -> int:
    """Number of weights of adapters on the attention's projections (`to_…`) and the feed-forward network (`ffn…`)."""
    d, per_block = a.width, 0
    for target in targets:
        if target in ("to_q", "to_k", "to_v", "to_out.0"):
            per_block += 2 * rank * 2 * d  # in self- and cross-attention
        elif target.endswith(("net.0.proj", "net.2")):
            per_block += rank * (d + a.ffn)
    return a.layers * per_block


def forward_flops(a: Architecture, latent: Sequence[int], text_tokens: int) -> int:
    """Operations of one forward pass over one video with latents (C, F, H, W)."""
    t, d = a.tokens(latent), a.width
    self_attention = 4 * 2 * t * d * d + 2 * 2 * t * t * d
    cross_attention = 2 * 2 * t * d * d + 2 * 2 * text_tokens * d * d + 2 * 2 * t * text_tokens * d
    block = self_attention + cross_attention + 2 * 2 * t * d * a.ffn
    patches = 2 * t * a.in_channels * math.prod(a.patch) * d
    text = 2 * text_tokens * (a.text_dim * d + d * d)
    time = 2 * (a.freq_dim * d + d * d + 6 * d * d)
    out = 2 * t * d * a.out_channels * math.prod(a.patch)
    return a.layers * block + patches + text + time + out


def training_flops(a: Architecture, latent: Sequence[int], text_tokens: int, *, lora: bool) -> int:
    """Operations of one training step on one video: forward, and backward at twice its cost.

    With LoRA, the frozen weights need no gradient of their own, so that backward costs about as much as forward; the
    adapters' own arithmetic (about rank / width of it) is left out.
    """
    return forward_flops(a, latent, text_tokens) * (2 if lora else 3)


@dataclass(frozen=True)
class Memory:
    """Bytes that training takes on one device."""

    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    overhead: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.ema + self.activations + self.overhead

    def text(self) -> str:
        """In GiB, for people."""
        parts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items()) + f"; {self.total / GIB:.2f} GiB"


def trainable_weights(a: Architecture, config: TrainConfig) -> int:
    """Number of weights that training changes."""
    return weights(a) if config.training == "full" else lora_weights(a, config.rank, config.lora_targets())


def training_memory(a: Architecture, config: TrainConfig, latent: Sequence[int], *, cuda: bool) -> Memory:
    """An estimate for one unsharded process; latents (C, F, H, W) of the largest bucket.

    Frozen weights of LoRA are held in bf16 under mixed precision, trained ones in float32, with a gradient, two
    moments of AdamW and, if asked for, a moving average beside each. Under autocast a bf16 copy of each block's
    weights lives for the length of the step.
    """
    trained, all_weights = trainable_weights(a, config), weights(a)
    half = config.mixed_precision == "bf16"
    frozen_size = 2 if half else 4
    held = 4 * all_weights if config.training == "full" else frozen_size * all_weights + 4 * trained
    if config.training == "full" and half:
        held += 2 * all_weights
    tokens = a.tokens(latent) * config.train_batch_size
    per_width, per_ffn = KEPT[config.mixed_precision]
    block = int(tokens * (per_width * a.width + per_ffn * a.ffn))
    stream = tokens * a.width * (2 if half else 4)
    activations = stream * a.layers + block if config.gradient_checkpointing else block * a.layers
    overhead = int((KEPT_BESIDE - 1) * (held + activations)) + (int(CONTEXT_BYTES) if cuda else 0)
    return Memory(
        weights=held,
        gradients=4 * trained,
        optimizer=8 * trained,
        ema=4 * trained if config.use_ema else 0,
        activations=activations,
        overhead=overhead,
    )


def checkpoint_bytes(a: Architecture, config: TrainConfig) -> int:
    """Size of one checkpoint: weights, two moments, and the moving average."""
    return trainable_weights(a, config) * 4 * (4 if config.use_ema else 3)
