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
FITS = 0.85  # of the free memory may be asked for: estimates are off by some tenths at most
CONTEXT_BYTES = 0.7 * GIB  # CUDA context and libraries


# Dense bf16 tensor-core operations per second, from NVIDIA's data sheets (without sparsity).
PEAK_FLOPS = {
    "B200": 2250e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12, "RTX 5090": 209e12,
    "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip


def peak_flops(device: str) -> float | None:
    """Operations that a GPU of that name can do in a second; None where it is not known."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device), None)


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


def block_matrices(a: Architecture) -> int:
    """Weights of the linear layers of one block."""
    return 8 * a.width * a.width + 2 * a.width * a.ffn


# Bytes that each optimiser keeps of a trained weight; Adafactor's rows and columns are next to nothing.
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw8bit": 2.0, "adafactor": 0.1}
EIGHT_BITS = 1.01  # bytes a weight, with the scale of its row


def _held(a: Architecture, config: TrainConfig) -> int:
    """Bytes of all weights, and of copies of them in bf16."""
    half, everything = config.mixed_precision == "bf16", weights(a)
    if config.training == "full":
        return (6 if half else 4) * everything
    size = 2 if half else 4
    swapped = min(config.blocks_to_swap, a.layers)
    in_blocks, kept = block_matrices(a), EIGHT_BITS if config.frozen_dtype != "same" else size
    held = size * (everything - a.layers * in_blocks) + kept * in_blocks * (a.layers - swapped)
    if swapped or config.frozen_dtype != "same":
        held += (size + kept) * a.width * a.ffn  # the largest one, as it is fetched or made out of 8 bits
    return int(held) + 4 * trainable_weights(a, config)


def _activations(a: Architecture, config: TrainConfig, latent: Sequence[int]) -> int:
    """Bytes of what is kept on the way forward, at its most."""
    half = config.mixed_precision == "bf16"
    tokens = a.tokens(latent) * config.train_batch_size // config.context_parallel_degree
    per_width, per_ffn = KEPT[config.mixed_precision]
    block = int(tokens * (per_width * a.width + per_ffn * a.ffn))
    if not config.gradient_checkpointing:
        return block * a.layers
    stream = tokens * a.width * (2 if half else 4)
    asked = config.gradient_checkpointing_blocks
    recomputed = a.layers if asked < 0 else min(asked, a.layers)
    streams = min(2, recomputed) if config.offload_activations else recomputed
    return stream * streams + block * max(1, a.layers - recomputed)


def waiting_memory(a: Architecture, config: TrainConfig, latent: Sequence[int]) -> int:
    """Bytes of the CPU's memory in which frozen weights and activations of one process wait."""
    size = 2 if config.mixed_precision == "bf16" else 4
    each = EIGHT_BITS if config.frozen_dtype != "same" else size
    waiting = each * block_matrices(a) * min(config.blocks_to_swap, a.layers)
    if config.gradient_checkpointing and config.offload_activations:
        waiting += (
            size * a.tokens(latent) * config.train_batch_size * a.width * a.layers / config.context_parallel_degree
        )
    return int(waiting)


def training_memory(a: Architecture, config: TrainConfig, latent: Sequence[int], *, cuda: bool) -> Memory:
    """An estimate for one unsharded process; latents (C, F, H, W) of the largest bucket.

    Frozen weights of LoRA are held in bf16 under mixed precision, trained ones in float32, with a gradient, what the
    optimiser keeps and, if asked for, a moving average beside each. Under autocast a bf16 copy of each block's
    weights lives for the length of the step.
    """
    trained = trainable_weights(a, config)
    held, activations = _held(a, config), _activations(a, config, latent)
    overhead = int((KEPT_BESIDE - 1) * (held + activations)) + (int(CONTEXT_BYTES) if cuda else 0)
    return Memory(
        weights=held,
        gradients=4 * trained,
        optimizer=int(OPTIMIZER_BYTES[config.optimizer] * trained),
        ema=4 * trained if config.use_ema else 0,
        activations=activations,
        overhead=overhead,
    )


def what_fits(
    a: Architecture, config: TrainConfig, latent: Sequence[int], free: int, *, cuda: bool
) -> dict[str, Any] | None:
    """Arguments that differ from the configuration and with which a step fits, of the ways that cost least time.

    In order: recompute activations, keep moments in 8 bits, smaller forward passes, let activations wait, let frozen
    weights wait, and only then keep them in 8 bits, which alone changes what is computed.

    Args:
        free: bytes.

    Returns:
        Nothing when no way helps.
    """
    ways: list[dict[str, Any]] = [{"gradient_checkpointing": True, "gradient_checkpointing_blocks": -1}]
    if config.mixed_precision == "no" and cuda:
        ways.append({"mixed_precision": "bf16"})
    if config.training == "full":
        ways.append({"optimizer": "adamw8bit"})
    if config.train_batch_size > 1:
        passes = config.gradient_accumulation_steps * config.train_batch_size
        ways.append({"train_batch_size": 1, "gradient_accumulation_steps": passes})
    ways.append({"offload_activations": True})
    if config.training == "lora":
        ways += [
            {"blocks_to_swap": max(config.blocks_to_swap, math.ceil(a.layers * part / 4))} for part in (1, 2, 3, 4)
        ]
        ways.append({"frozen_dtype": "int8"})
    changes: dict[str, Any] = {}
    for way in ways:
        changes |= {name: value for name, value in way.items() if getattr(config, name) != value}
        need = training_memory(a, config.model_copy(update=changes), latent, cuda=cuda)
        if need.total < FITS * free:
            return changes
    return None


def checkpoint_bytes(a: Architecture, config: TrainConfig) -> int:
    """Size of one checkpoint: weights, what the optimiser keeps, and the moving average."""
    return int(trainable_weights(a, config) * (4 + OPTIMIZER_BYTES[config.optimizer] + 4 * config.use_ema))
