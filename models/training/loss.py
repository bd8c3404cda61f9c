"""The batch of a training step, drawn for its place in the run, and its flow-matching loss."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from models.training.config import TrainConfig
from models.training.flow_matching import draw_sigma, generator, noised, squared_error
from models.training.samples import Encoded, padded


def batch_of(items: Sequence[tuple[int, Encoded]], step: int, config: TrainConfig, empty: Tensor) -> dict[str, Tensor]:
    """Noise, noise level and caption of each sample, drawn for its position in the global batch of `step`.

    Args:
        items: (position in the global batch, sample).
        empty: embedding of the empty caption, float32 (L, D).

    Returns:
        latents and noise (B, C, F, H, W), sigma (B,), texts (B, max_sequence_length, D).
    """
    noise, sigmas, texts = [], [], []
    for position, sample in items:
        draw = generator(config.seed, "step", step, position)
        noise.append(torch.randn(sample.latents.shape, generator=draw))
        sigmas.append(draw_sigma(config.weighting_scheme, config.logit_mean, config.logit_std, config.flow_shift, draw))
        dropped, detailed = torch.rand(2, generator=draw).tolist()
        texts.append(
            empty if dropped < config.caption_dropout else caption_of(sample, detailed < config.detailed_share)
        )
    return {
        "latents": torch.stack([sample.latents for _, sample in items]),
        "noise": torch.stack(noise),
        "sigma": torch.stack(sigmas),
        "texts": padded(texts, config.max_sequence_length),
    }


def caption_of(sample: Encoded, detailed: bool) -> Tensor:
    """The caption asked for, or the other one where that is missing: float32 (L, D)."""
    first, second = (sample.detailed, sample.brief) if detailed else (sample.brief, sample.detailed)
    return first if first.shape[0] else second


def losses_of(model: Any, batch: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """Flow-matching loss of each sample, float32 (B,).

    Args:
        model: WanTransformer3DModel, possibly wrapped by accelerate.
        batch: as `batch_of` makes it.
    """
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    noisy, velocity, timestep = noised(moved["latents"], moved["noise"], moved["sigma"])
    dtype = _compute_dtype(model)
    predicted = model(
        hidden_states=noisy.to(dtype),
        timestep=timestep,
        encoder_hidden_states=moved["texts"].to(dtype),
        return_dict=False,
    )[0]
    return squared_error(predicted, velocity)


def _compute_dtype(model: Any) -> torch.dtype:
    weight: Tensor = getattr(model, "module", model).patch_embedding.weight
    return weight.dtype
