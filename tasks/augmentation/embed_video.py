"""Embed video: evenly spaced frames of a labelled video, plain and as variants, through a frozen image encoder.

For a network that is trained whole there is nothing to embed: then the frames themselves are kept, as JPEG. Either is
done once per video, encoder or network, number of frames and number of variants.
"""

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from pydantic import Field
from safetensors.numpy import load, save

from medgen.errors import ItemFailed
from medgen.ledger import Outcome, StepIdentity, Work
from medgen.parameters import Parameters
from medgen.shard import ShardResult, Step
from medgen.store import Store
from models.classifiers.clip_sample import RECIPE, sample_clip
from models.classifiers.whole_classifier import Network, find_network, squeezed
from models.encoders import MOBILENET, Encoder, ServedEncoder, encoder_digest, shown_name
from models.hub_files import file_digest
from tasks.augmentation.labelled_videos import LabelledVideo
from tasks.prefect_step import run_in_prefect, step_task

JPEG_QUALITY = 95
TIME_LIMIT_S = 1800.0


class EmbedParams(Parameters):
    """How the classifier sees videos."""

    classifier: str = Field(
        MOBILENET,
        description="Frozen: mobilenet_v2 or a CLIP-class model; whole: mobilenet_v2 or a video classifier of "
        "transformers such as VideoMAE; by hub name or folder.",
    )
    classifier_training: Literal["frozen", "whole"] = Field(
        "frozen", description="frozen: a temporal head on the encoder's embeddings; whole: all weights are trained."
    )
    clip_frames: int = Field(
        8, ge=1, le=64, description="Evenly spaced frames of a video; a transformers video classifier has its own."
    )
    clip_variants: int = Field(3, ge=1, le=32, description="Variants of each real video by standard augmentation.")


def frames_wanted(params: EmbedParams) -> int:
    """How many frames the classifier is given. Raises ModelUnavailable."""
    own = network_of(params).frames if params.classifier_training == "whole" else None
    return own or params.clip_frames


def network_of(params: EmbedParams) -> Network:
    """The network that is trained whole. Raises ModelUnavailable."""
    return find_network(params.classifier)


def classifier_digest(params: EmbedParams) -> str:
    """sha256 of the encoder or network before training. Raises ModelUnavailable."""
    if params.classifier_training == "whole":
        return network_of(params).digest
    return encoder_digest(params.classifier)


def embed_video(work: Work, store: Store, params: EmbedParams, frames: int, variants: int) -> Outcome:
    """Embeddings or frames of one video.

    Outputs:
        sample: safetensors. Frozen: ``embeddings`` float32 (variants + 1, frames, D), the plain ones first. Whole:
            ``VARIANT/FRAME`` uint8, each a JPEG.

    Raises:
        ItemFailed: as `sample_clip`; file_changed.
    """
    path = store.path(work.inputs["video"]) if "video" in work.inputs else _unchanged(work)
    samples = sample_clip(path, frames, variants, _digest(work))
    if params.classifier_training == "whole":
        side = network_of(params).side
        data = save(
            {
                f"{variant}/{number}": _jpeg(frame)
                for variant, sample in enumerate(samples)
                for number, frame in enumerate(squeezed(sample, side))
            }
        )
    else:
        rows = _encoder(params.classifier).embed([frame for sample in samples for frame in sample])
        data = save({"embeddings": rows.reshape(len(samples), frames, -1).astype(np.float32)})
    return Outcome("kept", outputs={"sample": store.put_bytes(data, "application/vnd.safetensors")}, decodes=1)


def read_embeddings(data: bytes) -> np.ndarray:
    """float32 (variants + 1, frames, D) of an output."""
    return load(data)["embeddings"]


def read_frames(data: bytes) -> list[np.ndarray]:
    """uint8 RGB (frames, side, side, 3) of the plain sample and each variant of an output."""
    samples: dict[int, dict[int, np.ndarray]] = {}
    for name, jpeg in load(data).items():
        variant, number = map(int, name.split("/"))
        picture = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
        assert picture is not None, f"{name} is no JPEG"
        samples.setdefault(variant, {})[number] = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    return [np.stack([frames[n] for n in sorted(frames)]) for _, frames in sorted(samples.items())]


def _jpeg(frame: np.ndarray) -> np.ndarray:
    done, jpeg = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done
    return jpeg.reshape(-1)


def _digest(work: Work) -> str:
    return work.inputs.get("video") or work.context["sha256"]


def _unchanged(work: Work) -> Path:
    path = Path(work.access["path"])
    if not path.is_file() or file_digest(path) != work.context["sha256"]:
        raise ItemFailed("file_changed", "the file is gone or was changed during the run: run again", transient=True)
    return path


@cache
def _encoder(name: str) -> Encoder:
    return ServedEncoder(name)


def step(params: EmbedParams, variants: int) -> Step:
    """Embed video, ready to run. Raises ModelUnavailable."""
    frames = frames_wanted(params)
    recorded = {
        "classifier": shown_name(params.classifier),
        "training": params.classifier_training,
        "frames": frames,
        "variants": variants,
        "recipe": RECIPE | ({"jpeg": JPEG_QUALITY} if params.classifier_training == "whole" else {}),
    }
    identity = StepIdentity("embed_video", 1, recorded, {"classifier": classifier_digest(params)})
    function = partial(embed_video, params=params, frames=frames, variants=variants)
    return Step(identity, function, time_limit_s=TIME_LIMIT_S)


@step_task("embed_video", "cpu")
def embed_shard(
    label: str,
    videos: Sequence[LabelledVideo],
    params: EmbedParams,
    variants: int,
    retry_quarantined: bool = False,
) -> ShardResult:
    """Embeds videos: those in the store as artifacts, those elsewhere by path and sha256."""
    works = [
        Work(video.subject, inputs={"video": video.sha256}, parents=video.parents)
        if video.path is None
        else Work(video.subject, context={"sha256": video.sha256}, access={"path": video.path})
        for video in {video.subject: video for video in videos}.values()
    ]
    return run_in_prefect(step(params, variants), works, retry_quarantined=retry_quarantined)
