"""The batch of a training step, drawn for its place in the run, and its flow-matching loss."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from models.families.family import Expert, Family
from models.training.config import TrainConfig
from models.training.flow_matching import draw_sigma, generator, noised, squared_error
from models.training.samples import Encoded


def batch_of(
    items: Sequence[tuple[int, Encoded]],
    step: int,
    config: TrainConfig,
    empty: Tensor,
    family: Family,
    expert: Expert | None = None,
) -> dict[str, Tensor]:
    """Noise, noise level and caption of each sample, drawn for its position in the global batch of `step`.

    Args:
        items: (position in the global batch, sample).
        empty: embedding of the empty caption, float32 (L, D).

    Returns:
        latents and noise (B, C, F, H, W), sigma (B,), what the family makes of the texts, and, where first frames may
        be given, `given` (B,): 1 for samples whose first frame is.
    """
    noise, sigmas, texts, given = [], [], [], []
    within = (expert or Expert()).sigma
    latents = torch.stack([sample.latents for _, sample in items])
    for position, sample in items:
        draw = generator(config.seed, "step", step, position)
        noise.append(torch.randn((family.predicted_channels, *sample.latents.shape[1:]), generator=draw))
        scheme = (config.weighting_scheme, config.logit_mean, config.logit_std, config.flow_shift)
        sigmas.append(draw_sigma(*scheme, draw, within))
        dropped, detailed = torch.rand(2, generator=draw).tolist()
        texts.append(
            empty if dropped < config.caption_dropout else caption_of(sample, detailed < config.detailed_share)
        )
        if config.first_frame_share:
            frames = sample.latents.shape[1]
            given.append(float(frames > 1 and torch.rand((), generator=draw) < config.first_frame_share))
    batch = {
        **split(latents, family),
        "noise": torch.stack(noise),
        "sigma": torch.stack(sigmas),
        **family.text_inputs(texts, config.max_sequence_length),
    }
    return batch | ({"given": torch.tensor(given)} if given else {})


def split(latents: Tensor, family: Family) -> dict[str, Tensor]:
    """`latents` (B, C, F, H, W) that are predicted, and `condition`, the channels that are given beside, if any are."""
    own, rest = latents[:, : family.predicted_channels], latents[:, family.predicted_channels :]
    return {"latents": own, "condition": rest} if rest.shape[1] else {"latents": own}


def caption_of(sample: Encoded, detailed: bool) -> Tensor:
    """The caption asked for, or the other one where that is missing: float32 (L, D)."""
    first, second = (sample.detailed, sample.brief) if detailed else (sample.brief, sample.detailed)
    return first if first.shape[0] else second


def losses_of(model: Any, batch: Mapping[str, Tensor], device: torch.device, family: Family) -> Tensor:
    """Flow-matching loss of each sample, float32 (B,).

    Args:
        model: the transformer, possibly wrapped by accelerate.
        batch: as `batch_of` makes it.
    """
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    noisy, velocity, timestep = noised(moved["latents"], moved["noise"], moved["sigma"])
    if (given := moved.get("given")) is not None:
        noisy[:, :, 0] = torch.where(given.bool()[:, None, None, None], moved["latents"][:, :, 0], noisy[:, :, 0])
    predicted = family.predict(model, noisy.to(family.compute_dtype(model)), timestep, moved)
    return squared_error(predicted, velocity, given)
