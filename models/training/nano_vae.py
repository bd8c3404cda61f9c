"""Training of nano's VAE: minutes on a CPU, because it does not start from nothing.

Weights are first set so that the network is a linear transform coder, as the best linear autoencoders are (Baldi &
Hornik 1989): blocks of 8 x 8 pixels become their first principal components, pairs of frames their mean and
difference, and the decoder is the least-squares inverse that its upsampling allows. All residual branches start at
zero. Gradient descent then improves on that with what a linear map can't do. From random weights the same time on the
same machine ended 8 dB lower.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    AutoencoderKLWan,
    WanAttentionBlock,
    WanResample,
    WanResidualBlock,
    WanRMS_norm,
    patchify,
)
from torch.nn import functional

REFERENCE = 60.0  # of the channel that keeps the length of a pixel's features, and so the norms, nearly constant
LOGVAR = -5.0  # of the posterior at the start: noise of 0.08 on latents of standard deviation 1
SLOW = 12  # latent channels that hold the mean of two frames; the others hold how the first ones differ
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
    videos = _as_videos(clips)
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
        latents = torch.cat([vae.encode(video[None]).latent_dist.mode() for video in _as_videos(clips)])
    mean, std = latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4)).clamp(min=1e-3)
    vae.register_to_config(  # type: ignore[no-untyped-call]  # has no types
        latents_mean=[round(float(value), 5) for value in mean], latents_std=[round(float(value), 5) for value in std]
    )


def psnr(vae: AutoencoderKLWan, clips: np.ndarray) -> float:
    """Mean over clips of the peak signal-to-noise ratio of what comes back from the mode of the posterior, dB."""
    values = []
    with torch.inference_mode():
        for video in _as_videos(clips):
            back = vae.decode(vae.encode(video[None]).latent_dist.mode()).sample
            error = ((back - video[None]) / 2).square().mean()
            values.append(-10 * math.log10(max(float(error), 1e-10)))
    return float(np.mean(values))


def _as_videos(clips: np.ndarray) -> torch.Tensor:
    """float32 (N, 3, F, H, W) of -1 to 1."""
    return torch.from_numpy(np.ascontiguousarray(clips)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0


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


@torch.no_grad()
def start_as_transform(vae: AutoencoderKLWan, clips: np.ndarray) -> None:
    """Sets the weights so that the VAE is a linear transform coder for these clips.

    Norms would forget how bright a pixel is; so one channel, the last, holds a large constant, beside which the others
    hardly change the length of a pixel's features. SiLU is no line, but SiLU(x) - SiLU(-x) = x; so before it each
    component stands twice, with either sign.
    """
    _start_branches(vae)
    # The layers' own layers are looked up by name, which has no types.
    encoder: Any = vae.encoder
    decoder: Any = vae.decoder
    width, depth = vae.config["base_dim"], vae.config["z_dim"]
    fine = decoder.up_blocks[0].upsamplers[0].resample[1].out_channels - 1  # components of a patch in the decoder
    pairs = (width - 1) // 2
    patches = patchify(_as_videos(clips), vae.config["patch_size"])  # type: ignore[no-untyped-call]  # (N, C, F, h, w)
    mean = patches.mean(dim=(0, 2, 3, 4))
    basis = _principal(_rows(patches) - mean)[:, : width - 1]
    _now(encoder.conv_in)[: basis.shape[1]] = basis.T
    encoder.conv_in.bias[: basis.shape[1]] = -basis.T @ mean
    encoder.conv_in.bias[-1] = REFERENCE
    parts = torch.einsum("ncfhw,ck->nkfhw", patches - mean[:, None, None, None], basis)

    # Blocks of 2 x 2 patches, each component with either sign.
    down: Any = next(block for block in encoder.down_blocks if isinstance(block, WanResample))
    count = parts.shape[1]
    blocks = torch.cat([parts[..., y::2, x::2] for y in (0, 1) for x in (0, 1)], dim=1)
    spatial = _principal(_rows(blocks))[:, :pairs]
    kernel = spatial.T.reshape(pairs, 2, 2, count).permute(0, 3, 1, 2)  # (component, patch component, y, x)
    _both_signs(down.resample[1].weight[:, :count, :2, :2], kernel)
    down.resample[1].weight[-1, -1, 0, 0] = 1.0
    code = torch.einsum("ncfhw,ck->nkfhw", blocks, spatial)

    # Pairs of frames: the mean of the first components, and how those of them that move most differ.
    first, second = code[:, :, 1::2], code[:, :, 2::2]
    quick = depth - SLOW
    stretch = code[:, SLOW:depth].std(dim=(0, 2, 3, 4)) / ((second - first) / 2)[:, :quick].std(dim=(0, 2, 3, 4))
    stretch = stretch.clamp(max=1e3)
    taps = torch.zeros(2, pairs, pairs)  # (which frame, to, from)
    slow = torch.arange(SLOW)
    taps[:, slow, slow] = 0.5
    for index in range(quick):
        taps[1, SLOW + index, index] = 0.5 * stretch[index]
        taps[0, SLOW + index, index] = -0.5 * stretch[index]
    for tap, map_ in zip((1, 2), taps, strict=True):
        for sign in (0, 1):
            down.time_conv.weight[sign : 2 * pairs : 2, sign : 2 * pairs : 2, tap, 0, 0] = map_
    down.time_conv.weight[-1, -1, 2, 0, 0] = 1.0
    joined = torch.einsum("kc,ncfhw->nkfhw", taps[0], first) + torch.einsum("kc,ncfhw->nkfhw", taps[1], second)
    latents = torch.cat([code[:, :depth, :1], joined[:, :depth]], dim=2)
    scale = latents.std(dim=(0, 2, 3, 4)).clamp(min=1e-3)
    for channel in range(depth):
        _now(encoder.conv_out)[channel, 2 * channel] = 1 / scale[channel]
        _now(encoder.conv_out)[channel, 2 * channel + 1] = -1 / scale[channel]
    encoder.conv_out.bias[depth:] = LOGVAR
    _now(vae.quant_conv).copy_(torch.eye(2 * depth))

    # Back again.
    _now(vae.post_quant_conv).copy_(torch.eye(depth))
    _now(decoder.conv_in)[:depth] = torch.diag(scale)
    decoder.conv_in.bias[-1] = REFERENCE
    up = decoder.up_blocks[0].upsamplers[0]
    for frame, direction in ((0, -1.0), (1, 1.0)):
        out = _now(up.time_conv)[frame * width : (frame + 1) * width]
        out[slow, slow] = 1.0
        for index in range(quick):
            out[index, SLOW + index] = direction / stretch[index]
        out[-1, -1] = 1.0
    still = torch.zeros_like(code[:, :depth])
    still[:, :, :1] = latents[:, :, :1]
    for frame, direction in ((1, -1.0), (2, 1.0)):
        still[:, :SLOW, frame::2] = joined[:, :SLOW]
        still[:, :quick, frame::2] += direction * joined[:, SLOW:depth] / stretch[:, None, None, None]
    weight, bias = _least_squares(still, parts[:, :fine])
    up.resample[1].weight[:fine, :depth] = weight
    up.resample[1].bias[:fine] = bias
    up.resample[1].bias[-1] = REFERENCE
    shortcut = decoder.up_blocks[1].resnets[0].conv_shortcut
    _both_signs(_now(shortcut), torch.eye(fine, fine + 1))
    _now(shortcut)[-1, -1] = 1.0
    restored = basis[:, :fine]
    _now(decoder.conv_out)[:, 0 : 2 * fine : 2] = restored
    _now(decoder.conv_out)[:, 1 : 2 * fine : 2] = -restored
    decoder.conv_out.bias.copy_(mean)


def _start_branches(vae: AutoencoderKLWan) -> None:
    """Zeroes what residual branches add and all convolutions on the main path; fits the norms to the reference."""
    for module in vae.modules():
        if isinstance(module, WanResidualBlock):
            _zero(module.conv2)
            _fit_norm(module.norm1, 2.0)
        elif isinstance(module, WanAttentionBlock):
            _zero(module.proj)
            _fit_norm(module.norm, 2.0)
    path: list[Any] = [vae.quant_conv, vae.post_quant_conv]
    halves: tuple[Any, Any] = (vae.encoder, vae.decoder)
    for half in halves:
        path += [half.conv_in, half.conv_out]
        _fit_norm(half.norm_out, 1.0)
        for module in half.modules():
            if isinstance(module, WanResample):
                path += [module.time_conv, module.resample[1]]
            elif isinstance(module, WanResidualBlock) and isinstance(module.conv_shortcut, torch.nn.Conv3d):
                path.append(module.conv_shortcut)
    for convolution in path:
        _zero(convolution)


def _zero(convolution: Any) -> None:
    """Zeroes weights and biases."""
    torch.nn.init.zeros_(convolution.weight)
    torch.nn.init.zeros_(convolution.bias)


def _fit_norm(norm: WanRMS_norm, spread: float) -> None:
    """Makes a norm give back its input over `spread`, and 1 for the reference."""
    width = len(norm.gamma)
    norm.gamma.fill_(REFERENCE / math.sqrt(width) / spread)
    norm.gamma[-1] = 1 / math.sqrt(width)


def _now(convolution: torch.nn.Conv3d) -> torch.Tensor:
    """The weights (out, in) that a causal convolution gives the present frame at the very place."""
    weight = convolution.weight
    return weight[:, :, -1, weight.shape[3] // 2, weight.shape[4] // 2]


def _both_signs(weight: torch.Tensor, kernel: torch.Tensor) -> None:
    """Rows 2 k and 2 k + 1 of `weight` become row k of `kernel` and its negative."""
    weight[0 : 2 * len(kernel) : 2] = kernel
    weight[1 : 2 * len(kernel) : 2] = -kernel


def _rows(maps: torch.Tensor) -> torch.Tensor:
    """(N, C, F, h, w) → (N F h w, C)."""
    return maps.movedim(1, -1).reshape(-1, maps.shape[1])


def _principal(rows: torch.Tensor) -> torch.Tensor:
    """Principal directions as columns, the strongest first; signs so that each sums to at least 0."""
    vectors: torch.Tensor = torch.linalg.eigh((rows.T @ rows).double() / len(rows))[1].flip(1)
    return (vectors * torch.where(vectors.sum(dim=0) < 0, -1.0, 1.0)).float()


def _least_squares(code: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (out, in, 3, 3) and bias (out) of the convolution that best makes `wanted` of the code, enlarged by 2.

    Args:
        code: (N, C, F, h, w).
        wanted: (N, K, F, 2 h, 2 w).
    """
    size = 9 * code.shape[1] + 1
    products, targets = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, wanted.shape[1]).double()
    for clip, target in zip(code, wanted, strict=True):  # a clip at a time, for memory's sake
        large = functional.interpolate(clip.movedim(1, 0), scale_factor=2.0, mode="nearest-exact")
        windows = functional.unfold(large, 3, padding=1).movedim(1, -1).reshape(-1, size - 1)
        windows = torch.cat([windows, torch.ones(len(windows), 1)], dim=1)
        products += (windows.T @ windows).double()
        targets += (windows.T @ target.movedim(0, -1).reshape(-1, wanted.shape[1])).double()
    ridge = 1e-4 * products.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    solved = torch.linalg.solve(products + ridge, targets).float()
    return solved[:-1].T.reshape(wanted.shape[1], code.shape[1], 3, 3), solved[-1]
