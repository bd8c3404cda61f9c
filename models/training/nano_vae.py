"""Training of nano's VAE: minutes on a CPU, because it does not start from nothing.

Weights are first set so that the network is a linear transform coder (`models.training.nano_vae_start`). Gradient
descent then improves on that with what a linear map can't do. From random weights the same time on the same machine
ended 8 dB lower.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch.nn import functional

from models.training.nano_vae_start import as_videos, start_as_transform

KL_WEIGHT = 1e-4
EDGE_WEIGHT = 0.5
SQUARE_WEIGHT = 2.0
LEARNING_RATE = 1e-3
BATCH = 4
CROP_FRAMES, CROP_HEIGHT, CROP_WIDTH = 9, 32, 48


@dataclass(frozen=True)
class TrainedVae:
    """A VAE and how well it does on what it was trained on.

    Args:
        vae: with `latents_mean` and `latents_std` measured and in its config.
        psnr_db: mean over clips of the peak signal-to-noise ratio of the mode's reconstruction, dB.
        psnr_start_db: the same before gradient descent.
        losses: loss of every step.
    """

    vae: AutoencoderKLWan
    psnr_db: float
    psnr_start_db: float
    losses: list[float]


def train_vae(
    vae: AutoencoderKLWan,
    clips: np.ndarray,
    *,
    seed: int,
    steps: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TrainedVae:
    """Trains nano's VAE in place.

    The same clips, seed and number of threads give the same weights.

    Args:
        vae: of the sizes in `models.training.nano.VAE`.
        clips: uint8 RGB (N, F, H, W, 3), F = 1 + 2 n.

    Raises:
        ValueError: no clips.
    """
    if not len(clips):
        raise ValueError("a VAE can't be trained on no clips")
    videos = as_videos(clips)
    start_as_transform(vae, clips)
    before = psnr(vae, clips)
    random = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    losses = []
    vae.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 20) * (0.02 + 0.98 * _cosine(step / steps))
        loss = _loss(vae, _crops(videos, random), random)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
        progress(step + 1, steps)
    vae.eval()
    measure_latents(vae, clips)
    return TrainedVae(vae, psnr(vae, clips), before, losses)


def measure_latents(vae: AutoencoderKLWan, clips: np.ndarray) -> None:
    """Writes mean and standard deviation of each latent channel into the VAE's config."""
    with torch.inference_mode():
        latents = torch.cat([vae.encode(video[None]).latent_dist.mode() for video in as_videos(clips)])
    mean, std = latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4)).clamp(min=1e-3)
    vae.register_to_config(  # type: ignore[no-untyped-call]  # has no types
        latents_mean=[round(float(value), 5) for value in mean], latents_std=[round(float(value), 5) for value in std]
    )


def psnr(vae: AutoencoderKLWan, clips: np.ndarray) -> float:
    """Mean over clips of the peak signal-to-noise ratio of what comes back from the mode of the posterior, dB."""
    values = []
    with torch.inference_mode():
        for video in as_videos(clips):
            back = vae.decode(vae.encode(video[None]).latent_dist.mode()).sample
            error = ((back - video[None]) / 2).square().mean()
            values.append(-10 * math.log10(max(float(error), 1e-10)))
    return float(np.mean(values))


def _cosine(part: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * part))


def _crops(videos: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """A batch of pieces of random clips, half of them mirrored."""
    _, _, frames, height, width = videos.shape
    size = min(CROP_FRAMES, frames), min(CROP_HEIGHT, height), min(CROP_WIDTH, width)

    def draw(high: int) -> int:
        return int(torch.randint(high, (1,), generator=random))

    pieces = []
    for _ in range(BATCH):
        video = videos[draw(len(videos))]
        at, y, x = (draw(length - crop + 1) for length, crop in zip((frames, height, width), size, strict=True))
        piece = video[:, at : at + size[0], y : y + size[1], x : x + size[2]]
        pieces.append(piece.flip(-1) if draw(2) else piece)
    return torch.stack(pieces)


def _loss(vae: AutoencoderKLWan, videos: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Absolute and squared error, error of the gradients in space, and the posterior's divergence from N(0, 1)."""
    posterior = vae.encode(videos).latent_dist
    latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=random)
    back: torch.Tensor = vae.decode(latents).sample
    divergence: torch.Tensor = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    across, down = ((back.diff(dim=dim) - videos.diff(dim=dim)).abs().mean() for dim in (-1, -2))
    return (
        functional.l1_loss(back, videos)
        + SQUARE_WEIGHT * functional.mse_loss(back, videos)
        + EDGE_WEIGHT * (across + down)
        + KL_WEIGHT * divergence
    )
