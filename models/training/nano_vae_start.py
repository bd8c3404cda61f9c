"""The starting weights of nano's VAE: a linear transform coder, as the best linear autoencoders are.

Blocks of 8 x 8 pixels become their first principal components (Baldi & Hornik 1989), pairs of frames their mean and
difference, and the decoder is the least-squares inverse that its upsampling allows. All residual branches start at
zero.
"""

import math
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


def as_videos(clips: np.ndarray) -> torch.Tensor:
    """float32 (N, 3, F, H, W) of -1 to 1, of clips uint8 RGB (N, F, H, W, 3)."""
    return torch.from_numpy(np.ascontiguousarray(clips)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0


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
    patches = patchify(as_videos(clips), vae.config["patch_size"])  # type: ignore[no-untyped-call]  # (N, C, F, h, w)
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
