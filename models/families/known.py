"""The families that can be trained and how a pipeline's folder is told to be one of them."""

from pathlib import Path

from models import ModelUnavailable
from models.families.family import Family, folder_facts
from models.families.hunyuan_video import HunyuanVideo
from models.families.wan import Wan
from models.generation.video_diffusion import Sampling, read_sampling

FAMILIES: tuple[type[Family], ...] = (Wan, HunyuanVideo)


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
    if transformer.get("image_dim") is not None or transformer.get("in_channels") != transformer.get("out_channels"):
        raise ModelUnavailable(f"{folder} is an image-to-video model of another kind; this trains text-to-video models")
    return family(index, transformer, vae)


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
