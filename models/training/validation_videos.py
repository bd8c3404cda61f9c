"""Validation prompts as videos, made with the transformer as it is in the midst of training."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medgen.video_file import write_video
from models.families.family import Family
from models.generation.video_diffusion import as_uint8, open_pipeline, scheduler_shift, set_flow_shift
from models.training.clip_frames import read_geometries
from models.training.config import TrainConfig
from models.training.flow_matching import generator


class PromptVideos:
    """The validation prompts, embedded once; the text encoder is let go afterwards.

    Args:
        base: pipeline folder or hub name, for VAE, scheduler and text encoder.
        empty: embedding of the empty caption (L, D), which guidance compares with.

    Raises:
        ModelUnavailable: the base can't be loaded.
    """

    def __init__(self, base: Path, config: TrainConfig, empty: Tensor, device: torch.device, family: Family) -> None:
        length = config.max_sequence_length
        pipeline = open_pipeline(base, parts=[part for part in family.encoder_parts if part != "vae"])
        texts = family.encode_texts(pipeline, config.validation_prompts, length)
        self.texts = [family.text_inputs([torch.from_numpy(text)], length) for text in texts]
        self.empty = family.text_inputs([empty], length)
        del pipeline
        self.family, self.part = family, family.expert(config.expert).part
        others = [expert.part for expert in family.experts if expert.part != self.part]
        self.pipeline: Any = open_pipeline(base, parts=("vae", "scheduler", *others))
        if scheduler_shift(base) is not None:
            set_flow_shift(self.pipeline, config.flow_shift)  # as the model will be delivered
        self.config, self.device = config, device

    def make(self, transformer: Any, folder: Path, *, write: bool = True) -> list[Path]:
        """One MP4 per prompt, in order, with the same noise every time. Returns their paths."""
        geometry = read_geometries(self.config.buckets)[0]
        self.pipeline.to(self.device)
        self.pipeline.register_modules(**{self.part: transformer})
        transformer.eval()
        paths = []
        try:
            for number, text in enumerate(self.texts):
                said = self.family.prompt_arguments(text, self.empty, self.config.guidance_scale)
                made = self.pipeline(
                    **{name: None if tensor is None else tensor.to(self.device) for name, tensor in said.items()},
                    height=geometry.height,
                    width=geometry.width,
                    num_frames=geometry.frames,
                    num_inference_steps=self.config.validation_inference_steps,
                    guidance_scale=self.config.guidance_scale,
                    max_sequence_length=self.config.max_sequence_length,
                    generator=generator(self.config.seed, "prompt", number),
                    output_type="np",
                ).frames[0]
                if write:
                    path = folder / f"{number:02d}.mp4"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    metadata = {
                        "synthetic": True,
                        "generator": "medgen",
                        "prompt": self.config.validation_prompts[number],
                    }
                    write_video(path, as_uint8(made), self.config.fps, metadata)
                    paths.append(path)
        finally:
            transformer.train()
            self.pipeline.register_modules(**{self.part: None})
            self.pipeline.to("cpu")
        return paths
