"""Flow matching (rectified flow): what a Wan transformer learns, as diffusers' SD3 and Wan training scripts have it.

A sample x0 and noise n lie at the ends of a straight line, x_σ = (1 − σ)·x0 + σ·n, and the model learns the velocity
v = n − x0 along it (Liu et al., arXiv 2209.03003; Lipman et al., arXiv 2210.02747). Its place on the line is given
by the timestep 1000·σ, which is what diffusers' `FlowMatchEulerDiscreteScheduler` and `UniPCMultistepScheduler` with
`prediction_type="flow_prediction"` give it at generation.

Where on the line to train is drawn as in Stable Diffusion 3 (Esser et al., arXiv 2403.03206, section 3.1): uniformly,
or logit-normally, which favours the middle; Wan trains logit-normally (arXiv 2503.20314, section 4.2.1). The shift
moves everything towards noise, as big pictures need (Esser et al., equation 23): σ' = s·σ / (1 + (s − 1)·σ).

Everything random is a function of (seed, purpose, step, position in the global batch), so that it depends neither on
the number of processes nor on what ran before: a run that is resumed draws what it would have drawn.
"""

import hashlib
from typing import Literal

import torch
from torch import Tensor

TRAIN_TIMESTEPS = 1000  # `num_train_timesteps` of the schedulers of all Wan pipelines

DRAWS = 1000  # of a noise level within a range, before it is put there: a range that is hardly ever met
Weighting = Literal["none", "logit_normal"]


def stream_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one purpose: unlike any other purpose's, and the same in every process."""
    text = "\0".join(map(str, (seed, *names))).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator for one purpose; see `stream_seed`. On the CPU because other devices draw other numbers."""
    return torch.Generator("cpu").manual_seed(stream_seed(seed, *names))


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """σ' = s·σ / (1 + (s − 1)·σ): monotone, keeps 0 and 1, and is the identity for a shift of 1."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def unshifted(sigma: float, shift: float) -> float:
    """What `shifted` makes a noise level of: u = σ / (s − (s − 1)·σ)."""
    return sigma / (shift - (shift - 1) * sigma)


def levels(count: int, shift: float, within: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """`count` fixed noise levels (count,), evenly over those of a range before they are shifted."""
    low, high = (end if end in (0.0, 1.0) else unshifted(end, shift) for end in within)
    return shifted(low + (high - low) * ((torch.arange(count) + 0.5) / count), shift)


def draw_sigma(
    weighting_scheme: Weighting,
    logit_mean: float,
    logit_std: float,
    shift: float,
    randomness: torch.Generator,
    within: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """One σ in (0, 1): a float32 scalar.

    Args:
        weighting_scheme: "none" draws uniformly, "logit_normal" the sigmoid of a normal number; as in diffusers'
            `compute_density_for_timestep_sampling`.
        shift: see `shifted`.
        within: noise levels of the expert that is trained; one outside is drawn again, as musubi-tuner does.
    """
    sigma = torch.zeros(())
    for _ in range(DRAWS):
        if weighting_scheme == "logit_normal":
            u = torch.sigmoid(logit_mean + logit_std * torch.randn((), generator=randomness))
        else:
            u = torch.rand((), generator=randomness)
        # At exactly 0 the input is the sample itself and tells nothing of the noise that has to be predicted.
        sigma = shifted(u.clamp(1e-4, 1 - 1e-4), shift)
        if within[0] <= float(sigma) <= within[1]:
            return sigma
    return sigma.clamp(*within)


def noised(x0: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The model's input and its target.

    Args:
        x0: normalised latents (B, C, F, H, W).
        noise: standard normal, of the same shape.
        sigma: (B,), 0 is the sample and 1 is noise.

    Returns:
        x_σ, the velocity n − x0, and the timesteps 1000·σ of shape (B,).
    """
    along = sigma.view(-1, *[1] * (x0.ndim - 1))
    return (1 - along) * x0 + along * noise, noise - x0, sigma * TRAIN_TIMESTEPS


def squared_error(predicted: Tensor, velocity: Tensor, given: Tensor | None = None) -> Tensor:
    """Mean squared error of each sample, float32, of shape (B,).

    Args:
        given: (B,), 1 for samples whose first frame of latents is given and not to be predicted.
    """
    error = (predicted.float() - velocity.float()).pow(2)
    if given is None:
        return error.flatten(1).mean(1)
    learnt = error[:, :, 1:].flatten(1).mean(1)
    return torch.where(given.bool(), learnt, error.flatten(1).mean(1))


def loss_of_silence(x0: Tensor) -> float:
    """Expected loss of a model that always answers 0: E|n − x0|² = 1 + E[x0²], about 2 for normalised latents."""
    return 1.0 + float(x0.float().pow(2).mean())
