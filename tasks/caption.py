"""Caption: says in words what a kept clip shows, briefly and in detail.

Runs last before the release, so that no language model is asked about a clip that is dropped.
"""

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from medgen.canonical import canonical_json
from medgen.errors import ItemFailed
from medgen.ledger import Outcome, Record, StepIdentity, Work
from medgen.media import Limits, pictures
from medgen.settings import current
from medgen.shard import Item, ShardResult, Step
from medgen.store import Store
from models.captioner import (
    FRAMES_SENT,
    Captioner,
    CaptionRejected,
    CaptionUnavailable,
    Evidence,
    captioner_digest,
    evenly_spaced,
    load_captioner,
)
from models.transcript import transcript_between
from tasks.classify import clip_facts
from tasks.prefect_step import run_in_prefect, step_task


class CaptionParams(BaseModel):
    """Parameters of caption."""

    model_config = ConfigDict(frozen=True)

    captioner: str = Field(
        "evidence_template",
        description="openai:MODEL, or evidence_template, the offline stand-in that sees no picture.",
    )


def caption(work: Work, store: Store, params: CaptionParams) -> Outcome:
    """Captions one clip.

    Raises:
        ItemFailed: caption_unavailable, when the endpoint gave no answer.
    """
    captioner = _captioner(params.captioner)
    facts = dict(work.context)
    transcript, note = "", None
    if "subtitles" in work.inputs:
        text = store.read(work.inputs["subtitles"]).decode("utf-8", "replace")
        try:
            transcript = transcript_between(text, facts["start_s"], facts["end_s"])
        except ValueError as error:
            note = f"subtitles unreadable: {error}"
    evidence = Evidence(
        title=facts["title"] or "",
        description=facts["description"] or "",
        transcript=transcript,
        category=facts["category"],
        category_probability=facts["category_probability"],
        motion_type=facts["motion_type"],
        duration_s=facts["end_s"] - facts["start_s"],
        width=facts["width"],
        height=facts["height"],
        fps=facts["fps"],
        tags=tuple(facts["tags"] or ()),
    )
    frames: list[np.ndarray] = []
    if captioner.needs_frames:
        wanted = set(evenly_spaced(facts["frames"], FRAMES_SENT))
        frames = [p.rgb() for p in pictures(store.path(work.inputs["clip"]), Limits()) if p.index in wanted]
    detail: dict[str, Any] = {"captioner": captioner.name, "transcript": transcript, "note": note}
    try:
        written = captioner.caption(evidence, frames)
    except CaptionUnavailable as error:
        raise ItemFailed("caption_unavailable", str(error), transient=error.transient) from error
    except CaptionRejected as error:
        return Outcome("rejected", "caption_unusable", detail | {"message": str(error)}, decodes=bool(frames))
    detail |= {"tokens_in": written.tokens_in, "tokens_out": written.tokens_out}
    texts = {"brief": written.brief, "detailed": written.detailed}
    common = {"model": written.model, "model_digest": written.model_digest, "prompt_version": written.prompt_version}
    return Outcome(
        "kept",
        detail=detail,
        outputs={"captions": store.put_bytes(canonical_json(texts | common), "application/json")},
        captions={kind: {"text": text, **common} for kind, text in texts.items()},
        clip_id=work.subject,
        decodes=int(bool(frames)),
    )


@cache
def _captioner(name: str) -> Captioner:
    key = current().caption_api_key
    return load_captioner(name, base_url=current().caption_base_url, api_key=key.get_secret_value() if key else None)


def step(params: CaptionParams) -> Step:
    """Caption, ready to run.

    Raises:
        ModelUnavailable: the captioner can't be had; before any work.
    """
    needs_frames = _captioner(params.captioner).needs_frames
    identity = StepIdentity(
        "caption", 1, params.model_dump(mode="json"), {"captioner": captioner_digest(params.captioner)}
    )
    return Step(identity, partial(caption, params=params), "threads" if needs_frames else "inline")


def _work(item: Item, past: Mapping[str, Record]) -> Work:
    downloaded, clip = past["download"], past["cut"].detail["clip"]
    facts = clip_facts(past, clip["start_frame"], clip["end_frame"])
    metadata = downloaded.detail["metadata"]
    inputs = {"clip": clip["digest"]}
    if "subtitles" in downloaded.outputs:
        inputs["subtitles"] = downloaded.outputs["subtitles"]
    return Work(
        item.subject,
        inputs=inputs,
        context={
            **{name: metadata[name] for name in ("title", "description", "tags")},
            **{name: facts[name] for name in ("category", "category_probability")},
            **{name: clip[name] for name in ("start_s", "end_s", "width", "height", "fps")},
            "frames": clip["end_frame"] - clip["start_frame"],
            "motion_type": past["decide"].detail["motion_type"],
        },
    )


@step_task("caption", "network")
def caption_shard(
    label: str, upstream: ShardResult, params: CaptionParams, retry_quarantined: bool = False
) -> ShardResult:
    """Captions a shard of clips."""
    return run_in_prefect(step(params), upstream.kept, _work, retry_quarantined=retry_quarantined)
