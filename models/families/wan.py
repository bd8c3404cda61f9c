"""Wan 2.1 and 2.2 (Wan Team, arXiv 2503.20314): WanTransformer3DModel, AutoencoderKLWan and UMT5 of diffusers.

Three kinds of checkpoint are told apart by their configurations: Wan 2.1 with one transformer; Wan 2.2 A14B with two
experts, of which one takes the noise levels above a boundary and the other those below; and Wan 2.2 TI2V-5B, whose VAE
compresses 16 × in space and which gives every token a timestep of its own, so that a first frame can be given as one
without noise. Sampling defaults are those of wan/configs in Wan-Video/Wan2.1 and Wan-Video/Wan2.2.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from models.families.family import Expert, Family, Grid
from models.families.lora_names import WAN_MODULES
from models.generation.video_diffusion import Sampling, decode_latents, encode_frames, encode_texts

if TYPE_CHECKING:
    from torch import Tensor

HIGH_NOISE, LOW_NOISE = "high_noise", "low_noise"
# `sample_neg_prompt` of wan/configs/shared_config.py, with which its authors make all their videos.
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，"
    "形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
# Wan 2.1's own shift follows the size (480p: 3, 720p: 5), and its published pipelines carry it in their schedules.
WAN_2_1 = Sampling(
    num_frames=81, height=480, width=832, fps=16, num_inference_steps=50, guidance_scale=5, max_sequence_length=512,
    negative_prompt=NEGATIVE_PROMPT,
)  # fmt: skip
WAN_2_2_A14B = Sampling(
    num_frames=81, height=720, width=1280, fps=16, num_inference_steps=40, guidance_scale=4, guidance_scale_2=3,
    max_sequence_length=512, flow_shift=12, negative_prompt=NEGATIVE_PROMPT,
)  # fmt: skip
WAN_2_2_TI2V = Sampling(
    num_frames=121, height=704, width=1280, fps=24, num_inference_steps=50, guidance_scale=5, max_sequence_length=512,
    flow_shift=5, negative_prompt=NEGATIVE_PROMPT,
)  # fmt: skip


WAN_2_2_I2V_A14B = WAN_2_2_A14B.model_copy(update={"guidance_scale": 3.5, "guidance_scale_2": 3.5, "flow_shift": 5.0})


class Wan(Family):
    """A checkpoint of Wan."""

    pipeline = "WanPipeline"
    transformer_class = "WanTransformer3DModel"
    module_names = WAN_MODULES

    @property
    def expands_timesteps(self) -> bool:
        """Whether it gives every token its own timestep (TI2V)."""
        return bool(self.index.get("expand_timesteps"))

    @property
    def boundary(self) -> float | None:
        """Noise level from which on the first of two experts is asked; None where there is one."""
        two = (self.index.get("transformer_2") or [None])[0] is not None
        return float(self.index["boundary_ratio"]) if two else None

    @property
    def name(self) -> str:
        """See Family."""
        if self.expands_timesteps:
            return "Wan 2.2 TI2V"
        return "Wan 2.1" if self.boundary is None else "Wan 2.2 A14B"

    @property
    def sampling(self) -> Sampling:
        """See Family."""
        if self.expands_timesteps:
            return WAN_2_2_TI2V
        return WAN_2_1 if self.boundary is None else WAN_2_2_A14B

    @property
    def grid(self) -> Grid:
        """See Family."""
        frames, pixels = (
            int(self.vae.get(f"scale_factor_{axis}") or n) for axis, n in (("temporal", 4), ("spatial", 8))
        )
        return Grid(frames, pixels * self.patch[1])

    @property
    def patch(self) -> tuple[int, int, int]:
        """See Family."""
        frames, height, width = self.transformer["patch_size"]
        return frames, height, width

    @property
    def text_width(self) -> int:
        """See Family."""
        return int(self.transformer["text_dim"])

    @property
    def experts(self) -> tuple[Expert, ...]:
        """See Family."""
        if self.boundary is None:
            return super().experts
        return (
            Expert("transformer", HIGH_NOISE, (self.boundary, 1.0)),
            Expert("transformer_2", LOW_NOISE, (0.0, self.boundary)),
        )

    @property
    def first_frame(self) -> bool:
        """See Family. Only TI2V: image-to-video models of other kinds take further channels."""
        return self.expands_timesteps

    def encode_video(self, vae: Any, frames: np.ndarray) -> np.ndarray:
        """See Family."""
        return encode_frames(vae, frames)

    def decode_video(self, vae: Any, latents: np.ndarray) -> np.ndarray:
        """See Family."""
        return decode_latents(vae, latents)

    def encode_texts(self, pipeline: Any, texts: Sequence[str], max_tokens: int) -> list[np.ndarray]:
        """See Family."""
        return encode_texts(pipeline, texts, max_tokens)

    def text_inputs(self, texts: "Sequence[Tensor]", max_tokens: int) -> "dict[str, Tensor]":
        """See Family. `texts` (B, max_tokens, D): Wan attends to the zeros of the padding too."""
        from models.families.padding import padded

        return {"texts": padded(texts, max_tokens)}

    def predict(self, model: Any, noisy: "Tensor", timestep: "Tensor", batch: "Mapping[str, Tensor]") -> "Tensor":
        """See Family. With `given` (B,) in the batch, samples where it is 1 have a first frame without noise."""
        if "given" in batch:
            timestep = self._of_tokens(timestep, noisy, batch["given"])
        predicted: Tensor = model(
            hidden_states=noisy,
            timestep=timestep,
            encoder_hidden_states=batch["texts"].to(noisy.dtype),
            return_dict=False,
        )[0]
        return predicted

    def prompt_arguments(
        self, texts: "Mapping[str, Tensor]", empty: "Mapping[str, Tensor]", guidance_scale: float
    ) -> dict[str, Any]:
        """See Family."""
        return {
            "prompt_embeds": texts["texts"],
            "negative_prompt_embeds": empty["texts"] if guidance_scale > 1 else None,
        }

    def _of_tokens(self, timestep: "Tensor", noisy: "Tensor", given: "Tensor") -> "Tensor":
        """(B, tokens): 0 for the tokens of a first frame that is given, as `WanImageToVideoPipeline` does."""
        frames, height, width = (size // p for size, p in zip(noisy.shape[2:], self.patch, strict=True))
        of_frames = timestep[:, None].repeat(1, frames)
        of_frames[:, 0] *= 1 - given
        return of_frames.repeat_interleave(height * width, dim=1)


class WanImageToVideo(Wan):
    """Wan 2.2 I2V-A14B: goes on from a first frame, which it is given as further channels.

    Beside its noisy latents the transformer sees the latents of a video that holds the first frame and then nothing
    (the middle between black and white), and four channels that say which frames are given; as
    `WanImageToVideoPipeline` makes them. `encode_video` gives the latents of the clip and, below them, those of that
    video.
    """

    pipeline = "WanImageToVideoPipeline"

    @property
    def name(self) -> str:
        """See Family."""
        return "Wan 2.2 I2V A14B"

    @property
    def sampling(self) -> Sampling:
        """See Family."""
        return WAN_2_2_I2V_A14B

    @property
    def channels(self) -> int:
        """See Family."""
        return 2 * self.predicted_channels

    @property
    def needs_image(self) -> bool:
        """See Family."""
        return True

    def encode_video(self, vae: Any, frames: np.ndarray) -> np.ndarray:
        """See Family: latents of the clip, then those of its first frame and nothing."""
        held = np.full(frames.shape, 127.5, np.float32)
        held[0] = frames[0]
        return np.concatenate([encode_frames(vae, frames), encode_frames(vae, held)])

    def decode_video(self, vae: Any, latents: np.ndarray) -> np.ndarray:
        """See Family."""
        return decode_latents(vae, latents[: self.predicted_channels])

    def predict(self, model: Any, noisy: "Tensor", timestep: "Tensor", batch: "Mapping[str, Tensor]") -> "Tensor":
        """See Family."""
        import torch

        condition = batch["condition"].to(noisy.dtype)
        given = torch.zeros_like(noisy[:, :1]).repeat(1, int(self.vae.get("scale_factor_temporal") or 4), 1, 1, 1)
        given[:, :, 0] = 1
        return super().predict(model, torch.cat([noisy, given, condition], dim=1), timestep, batch)
