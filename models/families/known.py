"""The families that can be trained and how a pipeline's folder is told to be one of them."""

from pathlib import Path

from models import ModelUnavailable
from models.families.family import Family, folder_facts
from models.families.hunyuan_video import HunyuanVideo
from models.families.wan import Wan, WanImageToVideo
from models.generation.video_diffusion import Sampling, read_sampling

FAMILIES: tuple[type[Family], ...] = (Wan, WanImageToVideo, HunyuanVideo)


def family_of(folder: Path) -> Family:
    """The family of a text-to-video pipeline's folder.

    Raises:
        ModelUnavailable: it is no pipeline, or one that can't be trained here.
    """
    index, transformer, vae = folder_facts(folder)
    kind, model = index.get("_class_name"), transformer.get("_class_name")
    for family in FAMILIES:
        if (kind, model) == (family.pipeline, family.transformer_class):
            break
    else:
        known = ", ".join(f"{family.pipeline} of a {family.transformer_class}" for family in FAMILIES)
        raise ModelUnavailable(f"{folder} is a {kind} of a {model}; trained can be: {known}")
    if transformer.get("image_dim") is not None:
        raise ModelUnavailable(
            f"{folder} is told its first frame by CLIP too (Wan 2.1 I2V), which is not trained here: take "
            "Wan 2.2 I2V-A14B, or TI2V with first_frame_share"
        )
    found = family(index, transformer, vae)
    further = found.channels + int(vae.get("scale_factor_temporal") or 4) if found.needs_image else found.channels
    if transformer.get("in_channels") != further:
        raise ModelUnavailable(
            f"{folder} takes {transformer.get('in_channels')} channels, not {further} as {found.name}: it is told of "
            "more than is known here"
        )
    return found


def sampling_defaults(folder: Path) -> Sampling | None:
    """How a pipeline wants to be sampled: its folder's own word, else its authors'; None where neither is known.

    Raises:
        ModelUnavailable: its sampling.json is no such thing.
    """
    if own := read_sampling(folder):
        return own
    try:
        return family_of(folder).sampling
    except ModelUnavailable:
        return None
