"""Caption: says in words what a kept clip shows, briefly and in detail.

Runs last before the release, so that no language model is asked about a clip that is dropped.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
from pydantic import Field

from medgen.audio import decode_audio
from medgen.canonical import canonical_json, rounded
from medgen.errors import ItemFailed
from medgen.handover import Handover
from medgen.ledger import Outcome, StepIdentity, Work
from medgen.parameters import MOST_SECONDS, Parameters
from medgen.settings import current
from medgen.shard import Item, Past, Step
from medgen.store import Store
from medgen.video.limits import Limits
from medgen.video.pictures import evenly_spaced, pictures
from medgen.video.report import clock_shift
from medgen.worker_processes import decoded_apart
from models.captioning.captioner import FRAMES_SENT, Caption, Captioner, CaptionRejected, CaptionUnavailable, Evidence
from models.captioning.category_question import AskedCategory, ask_category, category_question_digest
from models.captioning.chat import Chat
from models.captioning.checks import CaptionLimits, checks_digest
from models.captioning.loading import load_captioner, load_chat
from models.captioning.speech import MAX_S, RATE, SpeechUnavailable, Whisper
from models.captioning.terms import TermPolicy
from models.captioning.transcript import transcript_between
from tasks.curation.classify import classified_clip
from tasks.curation.curation_step import CurationStep
from tasks.curation.decide import DECIDE
from tasks.curation.download import DOWNLOAD
from tasks.curation.privacy import PRIVACY
from tasks.curation.quality import QUALITY
from tasks.curation.segment import SEGMENT

HEAR_LIMIT_S = 600.0  # to decode the sound of a clip
SCORES = frozenset({"brief_words", "detailed_words", "brief_unsupported_terms", "detailed_unsupported_terms"})


class CaptionParams(Parameters):
    """Parameters of caption."""

    in_order = (("brief_min_words", "brief_max_words"), ("detailed_min_words", "detailed_max_words"))

    captioner: str = Field(
        "evidence_template",
        description="openai:MODEL, transformers:NAME_OR_FOLDER, or evidence_template, which sees no picture.",
    )
    caption_prompts: str = Field(
        "v1", exclude=True, description="Version of the prompts, or a folder with detailed.txt, brief.txt, again.txt."
    )
    caption_attempts: int = Field(3, ge=1, le=100, description="Answers asked for until a caption passes its checks.")
    caption_terms: TermPolicy = Field(
        "specific", description="Terms that need support on record: specific (diagnoses, procedures, drugs), all, none."
    )
    max_unsupported_terms: int = Field(0, ge=0, le=10_000, description="Unsupported terms that a caption may name.")
    brief_min_words: int = Field(
        12, ge=1, le=10_000, description="Fewest words of a brief caption (15 to 30 are asked for)."
    )
    brief_max_words: int = Field(36, ge=1, le=10_000, description="Most words of a brief caption.")
    detailed_min_words: int = Field(
        60, ge=1, le=10_000, description="Fewest words of a detailed caption (about 170 asked for)."
    )
    detailed_max_words: int = Field(260, ge=1, le=10_000, description="Most words of a detailed caption.")
    caption_batch: int = Field(
        1, ge=1, le=10_000, description="Questions that a transformers model answers at once; 1: exactly repeatable."
    )
    # Left out of records where they are not set, so that steps without these models keep their keys.
    category_model: str = Field(
        "",
        exclude_if=lambda name: not name,
        description="Names a clip's category: openai:MODEL or transformers:NAME_OR_FOLDER; empty: classify does.",
    )
    speech_model: str = Field(
        "",
        exclude_if=lambda name: not name,
        description="Whisper-class model (hub name or folder) for videos without subtitles; needs with_audio.",
    )
    speech_batch: int = Field(
        1,
        ge=1,
        le=10_000,
        exclude_if=lambda batch: batch == 1,
        description="Stretches of sound that the speech model hears at once; 1: exactly repeatable.",
    )
    caption_price_in: float = Field(0, ge=0, le=1e6, exclude=True, description="Price of a million tokens sent.")
    caption_price_out: float = Field(0, ge=0, le=1e6, exclude=True, description="Price of a million tokens answered.")
    caption_limit_s: float = Field(
        600.0,
        gt=0,
        le=MOST_SECONDS,
        exclude=True,
        description="Longest wait for one answer of an endpoint, retries included, seconds.",
    )


class AskedCategoryRow(TypedDict):
    """What a model said when it was asked for a clip's category: one of the five or "unclear", and why."""

    model: str
    digest: str
    said: str
    reason: str
    questions: int


class CaptionDetail(TypedDict):
    """What caption puts on record: what was asked and spent, every check, the transcript and where it came from.

    `category` is there where a model that was asked for it named one; it takes the place of classify's.
    Of a rejected clip also the first check that failed, and the last answer.
    """

    captioner: str
    transcript: str
    transcript_source: str
    transcript_language: NotRequired[str | None]
    note: str | None
    checks: list[dict[str, Any]]
    questions: int
    tokens_in: int
    tokens_out: int
    cost: float
    category: NotRequired[str]
    category_asked: NotRequired[AskedCategoryRow]
    metric: NotRequired[str]
    score: NotRequired[float]
    threshold: NotRequired[float]
    message: NotRequired[str]
    answer: NotRequired[str]


class CaptionOutputs(TypedDict):
    """Both captions with their model and prompts, JSON."""

    captions: str


CAPTION: Handover[CaptionDetail, CaptionOutputs] = Handover("caption")


def caption(work: Work, store: Store, params: CaptionParams) -> Outcome:
    """Captions one clip and checks the captions.

    Scores: brief_words, detailed_words, brief_unsupported_terms, detailed_unsupported_terms. All checks are in the
    detail, with what was asked and spent, the transcript and where it came from. Rejected for the first check that the
    last answer failed.

    Raises:
        ItemFailed: caption_unavailable or speech_unavailable, when a model gave no answer.
    """
    captioner = _captioner(params)
    speech = _spoken(work, store, params)
    evidence = _evidence(work.context, speech.transcript)
    frames: list[np.ndarray] = []
    if captioner.needs_frames or params.category_model:
        wanted = set(evenly_spaced(work.context["frames"], FRAMES_SENT))
        frames = [p.rgb() for p in pictures(store.path(work.inputs["clip"]), Limits()) if p.index in wanted]
    asked: AskedCategory | None = None
    written: Caption | CaptionRejected
    try:
        if params.category_model:
            asked = ask_category(_category_chat(params), evidence, frames)
            if asked.named:
                evidence = replace(evidence, category=asked.named, category_probability=None)
        written = captioner.caption(evidence, frames)
    except CaptionUnavailable as error:
        raise ItemFailed("caption_unavailable", str(error), transient=error.transient) from error
    except CaptionRejected as error:
        written = error
    scores = {check.metric: check.score for check in written.checks if check.metric in SCORES}
    common: dict[str, Any] = {
        "scores": scores,
        "score_models": dict.fromkeys(scores, checks_digest()),
        "clip_id": work.subject,
        "decodes": int(bool(frames)) + speech.decodes,
    }
    tokens_in, tokens_out = (
        written.tokens_in + (asked.tokens_in if asked else 0),
        written.tokens_out + (asked.tokens_out if asked else 0),
    )
    cost = (tokens_in * params.caption_price_in + tokens_out * params.caption_price_out) / 1e6
    detail: CaptionDetail = {
        "captioner": captioner.name,
        "transcript": speech.transcript,
        "transcript_source": speech.source,
        "transcript_language": speech.language,
        "note": speech.note,
        "checks": [check.on_record() for check in written.checks],
        "questions": written.questions + (asked.questions if asked else 0),
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "cost": rounded(cost, 6),
    }
    if asked:
        chat = _category_chat(params)
        detail["category_asked"] = {
            "model": chat.name,
            "digest": category_question_digest(chat.digest),
            "said": asked.answer.category,
            "reason": asked.answer.reason,
            "questions": asked.questions,
        }
    if asked and asked.named:
        detail["category"] = asked.named
    if isinstance(written, CaptionRejected):
        first = written.first
        detail |= {"metric": first.metric, "score": first.score, "threshold": first.threshold}
        detail |= {"message": first.message, "answer": written.text}
        return Outcome("rejected", first.reason, detail, **common)
    texts = {"brief": written.brief, "detailed": written.detailed}
    made_by = {"model": written.model, "model_digest": written.model_digest, "prompt_version": written.prompt_version}
    return Outcome(
        "kept",
        detail=detail,
        outputs={"captions": store.put_bytes(canonical_json(texts | made_by), "application/json")},
        captions={kind: {"text": text, **made_by} for kind, text in texts.items()},
        **common,
    )


def _evidence(facts: Mapping[str, Any], transcript: str) -> Evidence:
    """What is on record of a clip before it is captioned; `facts` as `work_of` gathers them."""
    return Evidence(
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
        start_s=facts["start_s"],
        shown_text="\n".join(facts["shown_text"]),
    )


@dataclass(frozen=True)
class _Speech:
    """What is known of the words spoken in a clip: the words, what told them, and why nothing did."""

    transcript: str
    source: Literal["subtitles", "embedded_subtitles", "speech_model", "none"]
    note: str | None = None
    decodes: int = 0
    language: str | None = None


def _spoken(work: Work, store: Store, params: CaptionParams) -> _Speech:
    """By subtitles if the video has any, else by the speech model if one is set and the video has sound.

    A transcript is welcome but not needed: what cannot be read fails nothing. Raises ItemFailed: speech_unavailable.
    """
    start_s, end_s = work.context["spoken_s"]
    if "subtitles" in work.inputs:
        text = store.read(work.inputs["subtitles"]).decode("utf-8", "replace")
        try:
            words = transcript_between(text, max(0.0, start_s), end_s) if end_s > 0 else ""
            return _Speech(words, work.context["subtitles"], language=work.context["language"])
        except ValueError as error:
            return _Speech("", "none", f"subtitles unreadable: {error}")
    source = work.inputs.get("sound") or work.inputs.get("video")
    if source is None:
        return _Speech("", "none", "the video has no sound" if params.speech_model else None)
    try:
        decode = partial(decode_audio, rate=RATE)
        end_s = min(end_s, start_s + MAX_S)
        heard = decoded_apart(decode, store.path(source), start_s, end_s, time_limit_s=HEAR_LIMIT_S)
    except ItemFailed as error:
        return _Speech("", "none", f"sound unreadable: {error}", decodes=1)
    if heard is None:
        return _Speech("", "none", "the video has no sound", decodes=1)
    try:
        return _Speech(_whisper(params).transcript(heard), "speech_model", decodes=1)
    except SpeechUnavailable as error:
        raise ItemFailed("speech_unavailable", str(error), transient=error.transient) from error


@cache
def _whisper(params: CaptionParams) -> Whisper:
    """Loaded. Raises ModelUnavailable."""
    whisper = Whisper(params.speech_model, params.speech_batch)
    whisper.ensure_available()
    return whisper


@cache
def _category_chat(params: CaptionParams) -> Chat:
    """Raises ModelUnavailable when it can't be asked; once for a process."""
    return load_chat(
        params.category_model,
        base_url=current().caption_base_url,
        api_key=current().caption_key,
        time_limit_s=params.caption_limit_s,
        batch=params.caption_batch,  # as the captioner: where it is the same model, it is loaded once
        without="leave category_model empty to keep what picture and words say",
    )


@cache
def _captioner(params: CaptionParams) -> Captioner:
    """Raises ModelUnavailable when it can't be asked; once for a process, so that no work begins."""
    captioner = load_captioner(
        params.captioner,
        limits=CaptionLimits(
            params.brief_min_words,
            params.brief_max_words,
            params.detailed_min_words,
            params.detailed_max_words,
            params.max_unsupported_terms,
            params.caption_terms,
        ),
        attempts=params.caption_attempts,
        prompts=params.caption_prompts,
        base_url=current().caption_base_url,
        api_key=current().caption_key,
        time_limit_s=params.caption_limit_s,
        batch=params.caption_batch,
    )
    captioner.ensure_available()
    return captioner


def step(params: CaptionParams) -> Step:
    """Caption, ready to run.

    Raises:
        ModelUnavailable: the captioner, the speech model or that for categories can't be had; before any work.
    """
    captioner = _captioner(params)
    models = {"captioner": captioner.digest, "checks": checks_digest()}
    if params.speech_model:
        models["speech"] = _whisper(params).digest
    if params.category_model:
        models["category"] = category_question_digest(_category_chat(params).digest)
    waits = captioner.needs_frames or bool(params.speech_model or params.category_model)
    return Step(
        StepIdentity("caption", 3, params.model_dump(mode="json"), models),
        partial(caption, params=params),
        work_of=partial(work_of, listen=bool(params.speech_model)),
        runs_in="threads" if waits else "inline",
    )


def work_of(item: Item, past: Past, *, listen: bool) -> Work:
    """A clip with all that is known of it.

    Args:
        listen: a video without subtitles gives its audio, which may be in a file of its own.
    """
    downloaded, fetched, clip = DOWNLOAD.detail(past), DOWNLOAD.outputs(past), PRIVACY.detail(past)["clip"]
    classified = classified_clip(past, clip["start_frame"], clip["end_frame"])
    metadata = downloaded["metadata"]
    segmented, video = SEGMENT.outputs(past), SEGMENT.detail(past)["video"]
    inputs = {"clip": clip["digest"]}
    # Where the source of words counts its time from: the first picture, its own clock's 0, or its file's beginning.
    shift_s, subtitles, language = clock_shift(video, clip["start_s"]), None, None
    if "subtitles" in fetched:
        inputs["subtitles"], subtitles = fetched["subtitles"], "subtitles"
        shift_s -= video["file_start_s"]
    elif "subtitles" in segmented:
        inputs["subtitles"], subtitles = segmented["subtitles"], "embedded_subtitles"
        language, shift_s = (SEGMENT.detail(past)["subtitles"] or {}).get("language"), 0.0
    elif listen and "sound" in fetched:
        inputs["sound"] = fetched["sound"]
        shift_s -= video["file_start_s"]
    elif listen and downloaded["probe"]["has_audio"]:
        inputs["video"] = fetched["video"]
    return Work(
        item.subject,
        inputs=inputs,
        context={
            "title": metadata["title"],
            "description": metadata["description"],
            "tags": metadata["tags"],
            "category": classified["category"],
            "category_probability": classified["category_probability"],
            "start_s": clip["start_s"],
            "end_s": clip["end_s"],
            "spoken_s": [rounded(clip["start_s"] + shift_s), rounded(clip["end_s"] + shift_s)],
            "subtitles": subtitles,
            "language": language,
            "width": clip["width"],
            "height": clip["height"],
            "fps": clip["fps"],
            "frames": clip["end_frame"] - clip["start_frame"],
            "motion_type": DECIDE.detail(past)["motion_type"],
            "shown_text": [line["text"] for line in QUALITY.detail(past)["text"]],
        },
    )


STEP = CurationStep("caption", CaptionParams, step, resource="network")
