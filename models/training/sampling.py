"""How a trained model wants to be sampled."""

import json
from pathlib import Path

from models.generation.video_diffusion import INDEX, Sampling, read_sampling, scheduler_shift
from models.generation.video_generator import negative_prompt
from models.training.clip_frames import read_geometries
from models.training.config import TrainConfig


def sampling_of(config: TrainConfig, base: Path) -> Sampling:
    """How the trained model wants to be sampled: as it was trained, away from what its base leads away from.

    Raises ModelUnavailable as `read_sampling`.
    """
    first = read_geometries(config.buckets)[0]
    shift = scheduler_shift(base)
    kind = json.loads((base / INDEX).read_bytes())["_class_name"]
    return Sampling(
        num_frames=first.frames,
        height=first.height,
        width=first.width,
        fps=config.fps,
        num_inference_steps=config.validation_inference_steps,
        guidance_scale=config.guidance_scale,
        max_sequence_length=config.max_sequence_length,
        flow_shift=config.flow_shift if shift not in (None, config.flow_shift) else None,
        negative_prompt=negative_prompt(kind, read_sampling(base)),
    )
