"""Classify: which stretches of a video are medical, where its clips lie, and of which category they are.

A frame is medical, not medical, or one of which the frame model is unsure: it can't tell pictures of that kind. What
becomes of those says the parameter `unsure`: they count as medical, as not medical, or the words beside the video are
weighed in (`models.segmentation.evidence`). Words never overrule a picture of which the model is sure.

The paper's rule (MedGen, section on segmentation): frames at 1 per second; a stretch is valid when every frame in it
is medical, every neighbour similarity exceeds τ, and it lasts at least 6 s. Stretches never cross a shot boundary and
are cut into clips of 6 to 10 s. Short interruptions can be tolerated: see `stretches`. No frame is decoded here:
segment has kept them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
import pyarrow.parquet as pq
from pydantic import Field

from medgen.canonical import canonical_json, rounded
from medgen.handover import Handover
from medgen.ledger import Outcome, Record, StepIdentity, Work
from medgen.parameters import MOST_ITEMS, MOST_SECONDS, Parameters
from medgen.shard import Item, Past, Step
from medgen.store import Store
from medgen.video.pictures import decode_jpeg
from models.captioning.transcript import transcript_between
from models.encoders import MOBILENET, ServedEncoder, encoder_digest, shown_name
from models.relevance.classifier import TextClassifier, load_text_classifier, text_classifier_digest
from models.retrieval.vector_index import pack
from models.segmentation.category import DESCRIPTION_CHARS, Words, category
from models.segmentation.evidence import evidence_digest, load_title_evidence, words_beside
from models.segmentation.frames import DEFAULT_PROMPTS, FrameModel, frame_model_digest, load_frame_model
from models.segmentation.heads import NON_MEDICAL
from models.segmentation.similarity import OF_CLIP_CLASS, OF_MOBILENET
from tasks.curation.curation_step import CurationStep
from tasks.curation.download import DOWNLOAD
from tasks.curation.segment import SEGMENT
from tasks.curation.stretches import Stretch, pieces, stretches

_TAU = f"set {OF_CLIP_CLASS} for CLIP-class models, or what medgen train-frames measured"
BATCH = 64  # samples that are read and embedded together
ASK_THE_TITLE = "ask_the_title"


class ClassifyParams(Parameters):
    """Parameters of classify."""

    former_names = MappingProxyType({"model": "frame_encoder", "similarity": "frame_similarity"})
    in_order = (("min_clip_s", "max_clip_s"),)

    frame_encoder: str = Field("mobilenet_v2", description="mobilenet_v2, or a CLIP-class hub name or folder.")
    frame_head: str = Field(
        "", exclude=True, description="Head file (.safetensors) trained for the encoder; empty: the packaged one."
    )
    frame_judge: Literal["head", "zero_shot"] = Field(
        "head", description="A trained head, or text prompts per class (CLIP-class models only)."
    )
    medical_threshold: float = Field(0.5, ge=0, le=1, description="A frame with this probability is medical.")
    unsure: Literal["ask_the_title", "keep", "reject"] = Field(
        "ask_the_title",
        description="Frames that the head can't tell: weigh in title, tags and description, keep them, or reject them.",
    )
    frame_similarity: float = Field(
        OF_MOBILENET,
        ge=-1,
        le=1,
        description="τ: cosine that neighbouring frames must exceed (mobilenet_v2: 0.55; CLIP-class: 0.8).",
    )
    min_clip_s: float = Field(6.0, gt=0, le=MOST_SECONDS, description="Shortest clip, seconds (paper: 6).")
    max_clip_s: float = Field(10.0, gt=0, le=MOST_SECONDS, description="Longest clip, seconds (paper: mostly 6 to 10).")
    gap_tolerance_s: float = Field(
        0.0, ge=0, le=MOST_SECONDS, description="Interruptions up to this long are bridged, seconds (paper: none)."
    )
    to_shot_edge: bool = Field(
        True,
        description="Stretches reach to a shot's edge less than a sample away; false: they end with samples (paper).",
    )
    # Left out of records where it is not set.
    min_sample_steps: int = Field(
        0,
        ge=0,
        le=MOST_ITEMS,
        exclude_if=lambda steps: steps == 0,
        description="Sampling steps j - i that a stretch of samples i to j must have (paper: 6); 0: any.",
    )
    classify_limit_s: float = Field(
        3600.0, gt=0, le=MOST_SECONDS, exclude=True, description="Slower work is stopped, seconds."
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Values that do not go together."""
        yield from super().conflicts()
        if self.frame_encoder != MOBILENET and self.frame_similarity == OF_MOBILENET:
            yield "frame_similarity", f"{OF_MOBILENET} is meant for {MOBILENET}, not for {self.frame_encoder}: {_TAU}"

    @classmethod
    def conflict_schemas(cls) -> list[dict[str, Any]]:
        """The same as a JSON schema."""
        others = {"not": {"properties": {"frame_encoder": {"const": MOBILENET}}}}
        tau = {"not": {"const": OF_MOBILENET, "$comment": f"{OF_MOBILENET} is meant for {MOBILENET}: {_TAU}"}}
        own = {"if": others, "then": {"properties": {"frame_similarity": tau}, "required": ["frame_similarity"]}}
        return [*super().conflict_schemas(), own]


class ClassifiedClip(TypedDict):
    """Where a clip lies in its video, frames [start_frame, end_frame), and what its samples show.

    `medical` and `category_probability` are in [0, 1]; both are the picture's, the latter of `category_of_picture`.
    `category_share` is the probability of `category` by picture and words, `unsure_samples` counts those of which the
    frame model was unsure and that were kept; before version 5 neither was on record.
    """

    start_frame: int
    end_frame: int
    start_s: float
    end_s: float
    medical: float
    bridged_samples: int
    category: str
    category_by: str
    category_words: list[str]
    category_of_picture: str
    category_probability: float
    category_share: NotRequired[float]
    unsure_samples: NotRequired[int]


class EncoderFacts(TypedDict):
    """The encoder of a video's frames: name, digest, numbers of an embedding."""

    name: str
    digest: str
    dimension: int


class ClassifyDetail(TypedDict):
    """What classify puts on record of a video that it keeps; before version 4 no encoder.

    `words_medical`: P(medical) of the words beside the video, where frames were in doubt and words were asked.
    """

    clips: list[ClassifiedClip]
    encoder: NotRequired[EncoderFacts]
    words_medical: NotRequired[float]


class ClassifyOutputs(TypedDict):
    """The classification of every sample, JSON, and the embeddings of the clips, see `classify`."""

    classification: str
    embeddings: NotRequired[str]


CLASSIFY: Handover[ClassifyDetail, ClassifyOutputs] = Handover("classify")


@dataclass(frozen=True)
class JudgedSamples:
    """The samples of a video in order, with what the frame model says of each.

    Args:
        frame, time_s, shot: (N,), index of the frame, seconds, shot from 0.
        embeddings: float (N, D), of length 1.
        probabilities: float (N, classes).
        medical: float (N,), rounded as on record, so that the record alone explains the verdict.
        unsure: bool (N,), where the model is unsure.
        decided: float (N,), rounded: `medical`, but where words were asked what both say together.
        is_medical: bool (N,), the verdict.
        words_medical: P(medical) of the words; None where they were not asked.
    """

    frame: np.ndarray
    time_s: np.ndarray
    shot: np.ndarray
    embeddings: np.ndarray
    probabilities: np.ndarray
    medical: np.ndarray
    unsure: np.ndarray
    decided: np.ndarray
    is_medical: np.ndarray
    words_medical: float | None

    def similarity(self, sample: int, later: int) -> float:
        """Cosine of two samples, -1 to 1, rounded as on record."""
        return rounded(self.embeddings[sample] @ self.embeddings[later])

    def inside(self, start: int, end: int) -> np.ndarray:
        """bool (N,): the samples of frames [start, end)."""
        within: np.ndarray = (self.frame >= start) & (self.frame < end)
        return within

    def embedding(self, start: int, end: int) -> np.ndarray:
        """float (D,): mean of the samples of frames [start, end)."""
        mean: np.ndarray = self.embeddings[self.inside(start, end)].mean(axis=0)
        return mean


def classify(work: Work, store: Store, params: ClassifyParams) -> Outcome:
    """Judges every sampled frame and lays out the clips of a video.

    Outputs:
        classification: JSON: per sample time, shot, probabilities, similarity to the next; stretches; clips.
        embeddings: of a video with clips, as `models.retrieval.vector_index.pack`: the mean of each clip's samples, in
            the order of the detail's clips.
    """
    model = loaded_model(params)
    frames = pq.read_table(store.path(work.inputs["frames"]))
    shots = frames["shot"].to_numpy()
    samples = _judged(model, store.path(work.inputs["samples"]), shots, work.context, params)
    times = np.append(frames["time_s"].to_numpy(), float(frames.schema.metadata[b"end_s"]))
    runs = stretches(
        samples.is_medical,
        lambda sample, later: samples.similarity(sample, later) > params.frame_similarity,
        samples.frame,
        samples.time_s,
        samples.shot,
        shots,
        gap_tolerance_s=params.gap_tolerance_s,
        to_shot_edge=params.to_shot_edge,
    )
    runs = [run for run in runs if run.last - run.first >= params.min_sample_steps]
    subtitles = store.read(work.inputs["subtitles"]).decode("utf-8", "replace") if "subtitles" in work.inputs else ""
    clips = [
        _clip(model, samples, times, run, start, end, work.context, subtitles)
        for run in runs
        for start, end in pieces(times, run, params.min_clip_s, params.max_clip_s)
    ]
    scores = {
        "medical_mean": rounded(samples.medical.mean()),
        "medical_max": rounded(samples.decided.max()),
        "longest_medical_stretch_s": rounded(max((times[run.end] - times[run.start] for run in runs), default=0.0)),
    }
    common: dict[str, Any] = {
        "scores": scores,
        "score_models": dict.fromkeys(scores, model.digest),
        "outputs": {
            "classification": store.put_bytes(
                canonical_json(_classification(model, samples, runs, clips, params)), "application/json"
            )
        },
    }
    if clips:
        detail: ClassifyDetail = {"clips": clips, "encoder": _encoder_facts(params, samples)}
        if samples.words_medical is not None:
            detail["words_medical"] = samples.words_medical
        vectors = np.stack([samples.embedding(clip["start_frame"], clip["end_frame"]) for clip in clips])
        common["outputs"]["embeddings"] = store.put_bytes(pack(vectors), "application/vnd.safetensors")
        return Outcome("kept", detail=detail, **common)
    reason, metric, threshold = (
        ("not_medical", "medical_max", params.medical_threshold)
        if not samples.is_medical.any()
        else ("no_medical_stretch", "longest_medical_stretch_s", params.min_clip_s)
    )
    return Outcome("rejected", reason, {"metric": metric, "score": scores[metric], "threshold": threshold}, **common)


def _judged(
    model: FrameModel, path: Path, shots: np.ndarray, words: Mapping[str, str], params: ClassifyParams
) -> JudgedSamples:
    """Judges the table of samples at `path`, a few at a time; `shots` is the shot of every frame."""
    frames: list[int] = []
    times: list[float] = []
    features: list[np.ndarray] = []
    with pq.ParquetFile(path) as table:
        for batch in table.iter_batches(BATCH):
            frames += batch["frame"].to_pylist()
            times += batch["time_s"].to_pylist()
            features.append(model.features([decode_jpeg(jpeg) for jpeg in batch["jpeg"].to_pylist()]))
    seen = np.concatenate(features)
    probabilities = model.probabilities(seen)
    medical = np.round(1 - probabilities[:, model.classes.index(NON_MEDICAL)], 4)
    unsure = in_doubt(model, medical, params.medical_threshold)
    said = words_medical(words) if params.unsure == ASK_THE_TITLE and unsure.any() else None
    decided, verdict = decide_doubts(medical, unsure, said, params)
    return JudgedSamples(
        np.array(frames),
        np.array(times),
        shots[frames],
        model.embeddings(seen),
        probabilities,
        medical,
        unsure,
        decided,
        verdict,
        said,
    )


def in_doubt(model: FrameModel, medical: np.ndarray, threshold: float) -> np.ndarray:
    """bool (N,): where P(medical) lies between the bounds of the model's doubt. A threshold beyond a bound moves it, so
    that with a threshold of 0 all frames are medical."""
    low, high = model.unsure
    if low == high:
        return np.zeros(len(medical), bool)
    unsure: np.ndarray = (medical > min(low, threshold)) & (medical < max(high, threshold))
    return unsure


def words_medical(words: Mapping[str, str]) -> float | None:
    """P(medical) of the words beside a video; None where there are none. Raises ModelUnavailable."""
    if not any(words[name].strip() for name in ("title", "tags", "description")):
        return None
    found = _text_classifier().probability([words["title"]], [words["description"]], [words["tags"]])
    return rounded(float(found[0]))


@cache
def _text_classifier() -> TextClassifier:
    return load_text_classifier(served=True)


def decide_doubts(
    medical: np.ndarray, unsure: np.ndarray, said: float | None, params: ClassifyParams
) -> tuple[np.ndarray, np.ndarray]:
    """(float (N,) probability that decides, bool (N,) verdict) of frames; `said` is what the words say, if asked.

    Without words the picture alone decides, as it does where the model is sure.
    """
    decided = medical
    if said is not None:
        decided = np.where(unsure, np.round(load_title_evidence().medical(medical, said), 4), medical)
    verdict = decided >= params.medical_threshold
    if params.unsure != ASK_THE_TITLE:
        verdict = np.where(unsure, params.unsure == "keep", verdict)
    return decided, verdict


def _clip(
    model: FrameModel,
    samples: JudgedSamples,
    times: np.ndarray,
    run: Stretch,
    start: int,
    end: int,
    words: Mapping[str, str],
    subtitles: str,
) -> ClassifiedClip:
    """The clip of the frames [start, end) of a stretch; `times` and `words` as in `pieces` and `work_of`."""
    inside = samples.inside(start, end)
    picture = dict(zip(model.classes, samples.probabilities[inside].mean(axis=0).tolist(), strict=True))
    said = _words(words, subtitles, times[start], times[end])
    chosen = category(picture, said, load_title_evidence().category, float(samples.decided[inside].mean()))
    return {
        "start_frame": start,
        "end_frame": end,
        "start_s": rounded(times[start]),
        "end_s": rounded(times[end]),
        "medical": rounded(samples.medical[inside].mean()),
        "bridged_samples": int(inside[list(run.bridged)].sum()),
        "category": chosen.name,
        "category_by": chosen.by,
        "category_words": list(chosen.words),
        "category_of_picture": chosen.picture,
        "category_probability": rounded(chosen.picture_probability),
        "category_share": rounded(chosen.probability),
        "unsure_samples": int((samples.unsure & samples.is_medical)[inside].sum()),
    }


def _words(words: Mapping[str, str], subtitles: str, start_s: float, end_s: float) -> Words | None:
    """What title, tags, description and the words spoken in [start_s, end_s) say of the category."""
    transcript = ""
    if subtitles:
        with suppress(ValueError):  # no WebVTT: caption says so on record
            transcript = transcript_between(subtitles, float(start_s), float(end_s))
    return words_beside(words["title"], words["tags"], words["description"], transcript)


def _classification(
    model: FrameModel,
    samples: JudgedSamples,
    runs: Sequence[Stretch],
    clips: Sequence[ClassifiedClip],
    params: ClassifyParams,
) -> dict[str, Any]:
    """All that the frame model said, as auditors read it, and how doubts were decided."""
    count, evidence = len(samples.medical), load_title_evidence()
    return {
        "classes": list(model.classes),
        "doubt": {
            "between": list(model.unsure),
            "policy": params.unsure,
            "words_medical": samples.words_medical,
            "weights": {"picture": evidence.picture, "text": evidence.text, "offset": evidence.offset},
        },
        "samples": [
            {
                "frame": int(samples.frame[k]),
                "time_s": rounded(samples.time_s[k]),
                "shot": int(samples.shot[k]),
                "medical": rounded(samples.medical[k]),
                "unsure": bool(samples.unsure[k]),
                "decided": rounded(samples.decided[k]),
                "probabilities": [rounded(p) for p in samples.probabilities[k]],
                "similarity_to_next": samples.similarity(k, k + 1) if k + 1 < count else None,
            }
            for k in range(count)
        ],
        "stretches": [vars(run) for run in runs],
        "clips": list(clips),
    }


def _encoder_facts(params: ClassifyParams, samples: JudgedSamples) -> EncoderFacts:
    name = params.frame_encoder
    return {"name": shown_name(name), "digest": encoder_digest(name), "dimension": samples.embeddings.shape[1]}


def loaded_model(params: ClassifyParams) -> FrameModel:
    """The frame model that the parameters name, loaded once per process. Raises as `load_frame_model`."""
    return _model(params.frame_encoder, *_parts(params))


@cache
def _model(name: str, head: Path | None, prompts: Path | None) -> FrameModel:
    return load_frame_model(name, head, prompts, served=True)


def _parts(params: ClassifyParams) -> tuple[Path | None, Path | None]:
    """Head file (None: the packaged one) and prompts file."""
    head = Path(params.frame_head) if params.frame_head else None
    return head, DEFAULT_PROMPTS if params.frame_judge == "zero_shot" else None


def step(params: ClassifyParams) -> Step:
    """Classify, ready to run."""
    models = {"frames": frame_model_digest(params.frame_encoder, *_parts(params)), "evidence": evidence_digest()}
    if params.unsure == ASK_THE_TITLE:
        models["text"] = text_classifier_digest()
    return Step(
        StepIdentity("classify", 5, params.model_dump(mode="json"), models),
        partial(classify, params=params),
        work_of=work_of,
        fan_out=clips_of,
        time_limit_s=params.classify_limit_s,
    )


def load_models(params: ClassifyParams) -> None:
    """Loads the encoder, unless it is the packaged one. Raises ModelUnavailable."""
    ServedEncoder(params.frame_encoder).ensure_available()


def work_of(item: Item, past: Past) -> Work:
    """The sampled frames of a video, and the words beside it; a file's name is no title."""
    segmented, metadata = SEGMENT.outputs(past), DOWNLOAD.detail(past)["metadata"]
    title = metadata["title"] or ""
    words = {
        "title": "" if title == Path(metadata["external_id"] or "").stem else title,
        "tags": "\n".join(metadata["tags"] or ()),
        "description": (metadata["description"] or "")[:DESCRIPTION_CHARS],
    }
    inputs = {"frames": segmented["frames"], "samples": segmented["samples"]}
    if "subtitles" in DOWNLOAD.outputs(past):
        inputs["subtitles"] = DOWNLOAD.outputs(past)["subtitles"]
    return Work(item.subject, inputs=inputs, context=words)


def clips_of(item: Item, record: Record) -> Iterable[Item]:
    """The stretches of a video that become clips; their subject is VIDEO/START_FRAME-END_FRAME."""
    clips = CLASSIFY.detail(record)["clips"]
    return [Item(f"{item.subject}/{clip['start_frame']}-{clip['end_frame']}", item.lineage) for clip in clips]


def classified_clip(past: Past, start_frame: int, end_frame: int) -> ClassifiedClip:
    """What classify put on record of the clip with these frames."""
    return next(
        clip
        for clip in CLASSIFY.detail(past)["clips"]
        if (clip["start_frame"], clip["end_frame"]) == (start_frame, end_frame)
    )


STEP = CurationStep("classify", ClassifyParams, step, load_models)
