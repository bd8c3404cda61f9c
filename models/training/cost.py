"""What a transformer costs, Wan's or HunyuanVideo's, counted from its architecture: weights, arithmetic, memory.

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
        if "num_single_layers" in config:
            return _hunyuan(config)
        return Architecture(
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


@dataclass(frozen=True)
class JointArchitecture(Architecture):
    """The numbers of a HunyuanVideoTransformer3DModel: blocks of two streams, then of one, of text and video together.

    `ffn` is what makes a Wan block as large as these are on average, 7 widths at the published size, for estimates of
    memory that go by Wan's blocks.
    """

    double: int
    single: int
    refiners: int
    pooled_dim: int
    head_dim: int
    guided: bool


def _hunyuan(config: Mapping[str, Any]) -> JointArchitecture:
    double, single = config["num_layers"], config["num_single_layers"]
    d = config["num_attention_heads"] * config["attention_head_dim"]
    patch = config["patch_size"]
    return JointArchitecture(
        layers=double + single,
        width=d,
        ffn=d * (28 * double + 7 * single) // (2 * (double + single)),
        text_dim=config["text_embed_dim"],
        freq_dim=256,
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        patch=(config["patch_size_t"], patch, patch),
        cross_attn_norm=False,
        double=double,
        single=single,
        refiners=config["num_refiner_layers"],
        pooled_dim=config["pooled_projection_dim"],
        head_dim=config["attention_head_dim"],
        guided=bool(config["guidance_embeds"]),
    )


def _joint_weights(a: JointArchitecture) -> int:
    """Weights with their biases, layer by layer; the feed-forward networks are 4 widths wide."""
    d, patch = a.width, math.prod(a.patch)
    two_streams = 2 * (6 * d * d + 6 * d + 4 * (d * d + d) + 2 * a.head_dim + 8 * d * d + 5 * d)
    one_stream = 3 * d * d + 3 * d + 3 * (d * d + d) + 2 * a.head_dim + 4 * d * d + 4 * d + 5 * d * d + d
    time = a.freq_dim * d + d + d * d + d
    refiner = 4 * d + 4 * (d * d + d) + 8 * d * d + 5 * d + 2 * d * d + 2 * d
    texts = a.text_dim * d + d + time + a.text_dim * d + d + d * d + d + a.refiners * refiner
    conditions = time * (2 if a.guided else 1) + a.pooled_dim * d + d + d * d + d
    ends = a.in_channels * patch * d + d + 2 * d * d + 2 * d + (d + 1) * a.out_channels * patch
    return a.double * two_streams + a.single * one_stream + texts + conditions + ends


def _joint_lora(a: JointArchitecture, rank: int, targets: Sequence[str]) -> int:
    # Module → (its two sides in widths, in blocks of two streams, in blocks of one).
    modules = {
        **{f"attn.{name}": (2, 1, 1) for name in ("to_q", "to_k", "to_v")},
        **{f"attn.{name}": (2, 1, 0) for name in ("to_out.0", "to_add_out", "add_q_proj", "add_k_proj", "add_v_proj")},
        **{f"{ff}.{net}": (5, 1, 0) for ff in ("ff", "ff_context") for net in ("net.0.proj", "net.2")},
        "proj_mlp": (5, 0, 1),
        "proj_out": (6, 0, 1),
    }
    return sum(
        rank * a.width * sides * (in_double * a.double + in_single * a.single)
        for module, (sides, in_double, in_single) in modules.items()
        if any(f".{module}".endswith(f".{target}") for target in targets)
    )


def _joint_flops(a: JointArchitecture, latent: Sequence[int], text_tokens: int) -> int:
    video, d = a.tokens(latent), a.width
    both = video + text_tokens
    block = both * 2 * 12 * d * d + 2 * 2 * both * both * d
    modulation = 2 * d * d * (12 * a.double + 3 * a.single)
    ends = 2 * video * d * math.prod(a.patch) * (a.in_channels + a.out_channels)
    refiner = text_tokens * 2 * 12 * d * d + 2 * 2 * text_tokens * text_tokens * d
    return a.layers * block + modulation + ends + a.refiners * refiner + 2 * text_tokens * a.text_dim * d


def weights(a: Architecture) -> int:
    """Number of weights."""
    if isinstance(a, JointArchitecture):
        return _joint_weights(a)
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
    if isinstance(a, JointArchitecture):
        return _joint_lora(a, rank, targets)
    d, per_block = a.width, 0
    for target in targets:
        if target in ("to_q", "to_k", "to_v", "to_out.0"):
            per_block += 2 * rank * 2 * d  # in self- and cross-attention
        elif target.endswith(("net.0.proj", "net.2")):
            per_block += rank * (d + a.ffn)
    return a.layers * per_block


def forward_flops(a: Architecture, latent: Sequence[int], text_tokens: int) -> int:
    """Operations of one forward pass over one video with latents (C, F, H, W)."""
    if isinstance(a, JointArchitecture):
        return _joint_flops(a, latent, text_tokens)
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
