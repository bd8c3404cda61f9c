"""Quality: measures a clip. It decides nothing: thresholds are decide's.

Each clip is decoded once; overlay text, technical and aesthetic scores share five frames (the paper's number).
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache, partial
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from medgen.canonical import rounded
from medgen.errors import ItemFailed
from medgen.ledger import Outcome, Record, StepIdentity, Work
from medgen.media import Limits, pictures
from medgen.shard import Item, ShardResult, Step
from medgen.store import Store
from models.aesthetic import aesthetic_digest, load_aesthetic
from models.captioner import evenly_spaced
from models.motion import measure_motion
from models.overlay_text import count_words, load_overlay_text, overlay_text_digest
from models.technical import load_technical, technical_digest
from tasks.prefect_step import run_in_prefect, step_task

FRAMES = 5
MOTION_FPS = 4.0
MOTION_WIDTH = 160


class QualityParams(BaseModel):
    """Parameters of quality."""

    model_config = ConfigDict(frozen=True)

    text_model: Literal["rapidocr", "tesseract"] = Field("rapidocr", description="Reader of overlay text.")
    technical_model: str = Field("piqe", description="pyiqa metric of technical quality.")
    aesthetic_model: str = Field("entropy", description="pyiqa metric of aesthetics; entropy is an offline stand-in.")
    max_pixels: int = Field(4096 * 2304, gt=0, description="Clips with larger pictures are refused, pixels.")
    quality_limit_s: float = Field(600.0, gt=0, exclude=True, description="Slower measuring is stopped, seconds.")


def quality(work: Work, store: Store, params: QualityParams) -> Outcome:
    """Measures one clip.

    Scores: overlay_words (over five frames), technical, aesthetic (means of five frames, on the scale of their
    model, which the detail names), motion_change (0..255), motion_moving_fraction (0..1), camera_shift (fraction of
    the width per step), short_side (pixels).
    """
    path = store.path(work.inputs["clip"])
    count = work.context["frames"]
    wanted = set(evenly_spaced(count, FRAMES))
    every = max(1, round(work.context["fps"] / MOTION_FPS))
    sharp: list[np.ndarray] = []
    small: list[np.ndarray] = []
    for picture in pictures(path, Limits(max_pixels=params.max_pixels)):
        if picture.index in wanted:
            sharp.append(picture.rgb())
        if picture.index % every == 0:
            height = max(2, round(picture.frame.height * MOTION_WIDTH / picture.frame.width))
            small.append(picture.frame.to_ndarray(format="gray", width=MOTION_WIDTH, height=height))
    if not sharp:
        raise ItemFailed("undecodable", "not one frame of the clip could be decoded")
    reader, technical, aesthetic = _models(params.text_model, params.technical_model, params.aesthetic_model)
    texts = reader.read(sharp)
    motion = measure_motion(np.stack(small))
    scores = {
        "overlay_words": float(count_words(texts)),
        "technical": rounded(float(np.mean(technical.scores(sharp)))),
        "aesthetic": rounded(float(np.mean(aesthetic.scores(sharp)))),
        "motion_change": rounded(motion.mean_change),
        "motion_moving_fraction": rounded(motion.moving_fraction),
        "camera_shift": rounded(motion.camera_shift),
        "short_side": float(min(sharp[0].shape[:2])),
    }
    detail: dict[str, Any] = {
        "motion": asdict(motion),
        "text": sorted({box.text for boxes in texts for box in boxes})[:50],
        "technical_model": technical.name,
        "technical_lower_is_better": technical.lower_is_better,
        "aesthetic_model": aesthetic.name,
        "aesthetic_lower_is_better": aesthetic.lower_is_better,
    }
    digests = {"overlay_words": reader.digest, "technical": technical.digest, "aesthetic": aesthetic.digest}
    return Outcome("kept", detail=detail, scores=scores, score_models=digests, clip_id=work.subject, decodes=1)


@cache
def _models(text: Literal["rapidocr", "tesseract"], technical: str, aesthetic: str) -> tuple[Any, Any, Any]:
    return load_overlay_text(text), load_technical(technical), load_aesthetic(aesthetic)


def step(params: QualityParams) -> Step:
    """Quality, ready to run."""
    models = {
        "text": overlay_text_digest(params.text_model),
        "technical": technical_digest(params.technical_model),
        "aesthetic": aesthetic_digest(params.aesthetic_model),
    }
    identity = StepIdentity("quality", 1, params.model_dump(mode="json"), models)
    return Step(identity, partial(quality, params=params), "processes", params.quality_limit_s)


def _work(item: Item, past: Mapping[str, Record]) -> Work:
    clip = past["cut"].detail["clip"]
    context = {"frames": clip["end_frame"] - clip["start_frame"], "fps": clip["fps"]}
    return Work(item.subject, inputs={"clip": clip["digest"]}, context=context)


@step_task("quality", "cpu")
def quality_shard(
    label: str, upstream: ShardResult, params: QualityParams, retry_quarantined: bool = False
) -> ShardResult:
    """Measures a shard of clips."""
    return run_in_prefect(step(params), upstream.kept, _work, retry_quarantined=retry_quarantined)
