"""HunyuanVideo (Tencent, arXiv 2412.03603), the base of MedGen's paper, as diffusers holds it.

A text is told in two ways: the tokens of a language model (after a template that asks it to describe the video), and
one pooled vector of CLIP. Both travel as one array: its first row is CLIP's vector, filled up with zeros, the others
are the tokens. The published model is distilled from guidance and takes its scale as an input; it is trained at 1, as
FastVideo and musubi-tuner do, and sampled at 6. It has no second pass for a negative prompt.
Sampling defaults are those of sample_video.py in Tencent-Hunyuan/HunyuanVideo.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from models.families.family import Family, Grid
from models.families.lora_names import HUNYUAN_MODULES
from models.generation.video_diffusion import Sampling, as_uint8

if TYPE_CHECKING:
    from torch import Tensor

HUNYUAN_VIDEO = Sampling(
    num_frames=129, height=720, width=1280, fps=24, num_inference_steps=50, guidance_scale=6, max_sequence_length=256,
    flow_shift=7,
)  # fmt: skip
TRAINED_GUIDANCE = 1.0
TILED_ABOVE = 544 * 960  # pixels of a frame that the VAE sees in tiles, as its authors do: whole, 720p fills a GPU


class HunyuanVideo(Family):
    """A checkpoint of HunyuanVideo."""

    pipeline = "HunyuanVideoPipeline"
    transformer_class = "HunyuanVideoTransformer3DModel"
    module_names = HUNYUAN_MODULES
    encoder_parts = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    lora_excluded = r"context_embedder\..*"  # no other tool adapts the refiner of the text's tokens

    @property
    def name(self) -> str:
        """See Family."""
        return "HunyuanVideo"

    @property
    def sampling(self) -> Sampling:
        """See Family."""
        return HUNYUAN_VIDEO

    @property
    def grid(self) -> Grid:
        """See Family."""
        frames, pixels = (
            int(self.vae.get(f"{axis}_compression_ratio") or n) for axis, n in (("temporal", 4), ("spatial", 8))
        )
        return Grid(frames * self.patch[0], pixels * self.patch[1])

    @property
    def patch(self) -> tuple[int, int, int]:
        """See Family."""
        size = int(self.transformer["patch_size"])
        return int(self.transformer["patch_size_t"]), size, size

    @property
    def text_width(self) -> int:
        """See Family."""
        return max(int(self.transformer["text_embed_dim"]), int(self.transformer["pooled_projection_dim"]))

    def encode_video(self, vae: Any, frames: np.ndarray) -> np.ndarray:
        """See Family: the mode of the posterior times `scaling_factor`."""
        import torch

        if frames.shape[1] * frames.shape[2] > TILED_ABOVE:
            vae.enable_tiling()
        first = next(vae.parameters())
        video = torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2)[None]
        with torch.inference_mode():
            latents = vae.encode(video.to(first.device, first.dtype) / 127.5 - 1.0).latent_dist.mode()
            return np.asarray((latents[0].float() * vae.config.scaling_factor).cpu())

    def decode_video(self, vae: Any, latents: np.ndarray) -> np.ndarray:
        """See Family."""
        import torch

        first = next(vae.parameters())
        with torch.inference_mode():
            scaled = torch.from_numpy(np.ascontiguousarray(latents))[None].to(first.device, first.dtype)
            video = vae.decode(scaled / vae.config.scaling_factor, return_dict=False)[0][0]
            return as_uint8((video.float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0).cpu().numpy())

    def encode_texts(self, pipeline: Any, texts: Sequence[str], max_tokens: int) -> list[np.ndarray]:
        """See Family: row 0 is CLIP's pooled vector, the others are the language model's tokens."""
        import torch

        rows = []
        with torch.inference_mode():
            for text in texts:
                tokens, pooled, mask = pipeline.encode_prompt([text], max_sequence_length=max_tokens)
                there = tokens[0][mask[0].bool()].float().cpu().numpy()
                packed = np.zeros((1 + len(there), self.text_width), np.float32)
                packed[0, : pooled.shape[1]] = pooled[0].float().cpu().numpy()
                packed[1:, : there.shape[1]] = there
                rows.append(packed)
        return rows

    def text_inputs(self, texts: "Sequence[Tensor]", max_tokens: int) -> "dict[str, Tensor]":
        """See Family. `texts` (B, max_tokens, D), `pooled` (B, P) and `text_mask` (B, max_tokens), 1 for tokens."""
        import torch

        from models.families.padding import padded

        lengths = torch.tensor([min(max_tokens, len(text) - 1) for text in texts])
        return {
            "texts": padded([text[1:, : int(self.transformer["text_embed_dim"])] for text in texts], max_tokens),
            "pooled": torch.stack([text[0, : int(self.transformer["pooled_projection_dim"])] for text in texts]),
            "text_mask": (torch.arange(max_tokens)[None] < lengths[:, None]).float(),
        }

    def predict(self, model: Any, noisy: "Tensor", timestep: "Tensor", batch: "Mapping[str, Tensor]") -> "Tensor":
        """See Family."""
        import torch

        guided = bool(self.transformer.get("guidance_embeds"))
        predicted: Tensor = model(
            hidden_states=noisy,
            timestep=timestep,
            encoder_hidden_states=batch["texts"].to(noisy.dtype),
            encoder_attention_mask=batch["text_mask"].to(noisy.dtype),
            pooled_projections=batch["pooled"].to(noisy.dtype),
            guidance=torch.full_like(timestep, TRAINED_GUIDANCE * 1000).to(noisy.dtype) if guided else None,
            return_dict=False,
        )[0]
        return predicted

    def prompt_arguments(
        self, texts: "Mapping[str, Tensor]", empty: "Mapping[str, Tensor]", guidance_scale: float
    ) -> dict[str, Any]:
        """See Family."""
        return {
            "prompt_embeds": texts["texts"],
            "pooled_prompt_embeds": texts["pooled"],
            "prompt_attention_mask": texts["text_mask"],
        }
