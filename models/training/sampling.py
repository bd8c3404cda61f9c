"""What a base is trained for and how the trained model wants to be sampled."""

from pathlib import Path

from models.families.known import family_of
from models.generation.video_diffusion import Sampling, read_sampling, scheduler_shift
from models.training.clip_frames import read_geometries
from models.training.config import TrainConfig
from models.training.job import Check, check_geometry


def checked_geometry(config: TrainConfig, base: Path) -> Check:
    """The check of the buckets for a base. Raises ModelUnavailable as `family_of` and `read_sampling`."""
    family = family_of(base)
    return check_geometry(config, family, (read_sampling(base) or family.sampling).fps)


def sampling_of(config: TrainConfig, base: Path) -> Sampling:
    """How the trained model wants to be sampled: the videos that it was trained on, made as its base makes them.

    Steps, guidance and negative prompt are the base's, not those of the short validation videos.

    Raises:
        ModelUnavailable: as `family_of` and `read_sampling`.
    """
    first = read_geometries(config.buckets)[0]
    shift = scheduler_shift(base)
    bases = read_sampling(base) or family_of(base).sampling
    return bases.model_copy(
        update={
            "num_frames": first.frames,
            "height": first.height,
            "width": first.width,
            "fps": config.fps,
            "max_sequence_length": config.max_sequence_length,
            "flow_shift": config.flow_shift if shift not in (None, config.flow_shift) else None,
        }
    )
