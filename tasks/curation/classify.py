"""Classify: which stretches of a video are medical, where its clips lie, and of which category they are.

The paper's rule (MedGen, section on segmentation): frames at 1 per second; a stretch is valid when every frame in it
is medical, every neighbour similarity exceeds τ, and it lasts at least 6 s. Stretches never cross a shot boundary and
are cut into clips of 6 to 10 s. Short interruptions can be tolerated: see `stretches`. No frame is decoded here:
segment has kept them.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from models.encoders import MOBILENET, ServedEncoder, encoder_digest, shown_name
from models.retrieval.vector_index import pack
from models.segmentation.category import DESCRIPTION_CHARS, category
from models.segmentation.frames import DEFAULT_PROMPTS, FrameModel, frame_model_digest, load_frame_model
from models.segmentation.similarity import OF_CLIP_CLASS, OF_MOBILENET
from tasks.curation.curation_step import CurationStep
from tasks.curation.download import DOWNLOAD
from tasks.curation.segment import SEGMENT

_TAU = f"set {OF_CLIP_CLASS} for CLIP-class models, or what medgen train-frames measured"
BATCH = 64  # samples that are read and embedded together


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

    `medical` and `category_probability` are in [0, 1]; the latter is the picture's, of `category_of_picture`.
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


class EncoderFacts(TypedDict):
    """The encoder of a video's frames: name, digest, numbers of an embedding."""

    name: str
    digest: str
    dimension: int


class ClassifyDetail(TypedDict):
    """What classify puts on record of a video that it keeps; before version 4 no encoder."""

    clips: list[ClassifiedClip]
    encoder: NotRequired[EncoderFacts]


class ClassifyOutputs(TypedDict):
    """The classification of every sample, JSON, and the embeddings of the clips, see `classify`."""

    classification: str
    embeddings: NotRequired[str]


CLASSIFY: Handover[ClassifyDetail, ClassifyOutputs] = Handover("classify")


@dataclass(frozen=True)
class Stretch:
    """Frames [start, end) of one shot, the samples [first, last] that lie in it, and those of them passed over."""

    start: int
    end: int
    first: int
    last: int
    bridged: tuple[int, ...] = ()


def stretches(
    medical: np.ndarray,
    alike: Callable[[int, int], bool],
    sample_frames: np.ndarray,
    sample_times: np.ndarray,
    sample_shots: np.ndarray,
    frame_shots: np.ndarray,
    *,
    gap_tolerance_s: float = 0.0,
    to_shot_edge: bool = True,
) -> list[Stretch]:
    """Longest runs of samples that are medical, alike and of one shot.

    From one sample a run goes on to the next medical sample of the shot that is like it. Samples in between are an
    interruption (a hand before the lens, a flash, a misjudged frame), which lasts from its first sample to the sample
    where the run goes on; it is bridged when that is no longer than `gap_tolerance_s`. So a picture that changes for
    good ends a run however long a gap is tolerated, and with 0 this is the paper's rule: neighbours only.

    With `to_shot_edge` a run reaches to the shot's edge where no other sample lies between: those frames are less
    than a sampling interval from a medical one and in the same shot. Otherwise it begins and ends with a sample.

    Args:
        medical: bool (N,), per sample.
        alike: (sample, later sample) → whether their similarity exceeds τ.
        sample_frames: int (N,), frame index of each sample.
        sample_times: float (N,), seconds.
        sample_shots: int (N,).
        frame_shots: int (F,), shot of every frame, growing.
    """
    runs: list[Stretch] = []
    first = 0
    count = len(medical)

    def following(sample: int) -> int | None:
        for later in range(sample + 1, count):
            gap_s = sample_times[later] - sample_times[sample + 1]
            if sample_shots[later] != sample_shots[sample] or gap_s > gap_tolerance_s + 1e-6:
                return None
            if medical[later] and alike(sample, later):
                return later
        return None

    while first < count:
        if not medical[first]:
            first += 1
            continue
        members = [first]
        while (later := following(members[-1])) is not None:
            members.append(later)
        last, shot = members[-1], sample_shots[first]
        alone_before = first == 0 or sample_shots[first - 1] != shot
        alone_after = last == count - 1 or sample_shots[last + 1] != shot
        start, end = int(sample_frames[first]), int(sample_frames[last]) + 1
        if to_shot_edge and alone_before:
            start = int(np.searchsorted(frame_shots, shot, "left"))
        if to_shot_edge and alone_after:
            end = int(np.searchsorted(frame_shots, shot, "right"))
        bridged = tuple(sorted(set(range(first, last + 1)) - set(members)))
        runs.append(Stretch(start, end, first, last, bridged))
        first = last + 1
    return runs


def pieces(times: np.ndarray, stretch: Stretch, min_s: float, max_s: float) -> list[tuple[int, int]]:
    """Frame ranges [start, end) of `min_s` to `max_s` seconds that fill a stretch as far as possible.

    Args:
        times: float (F + 1,), time of every frame and of the end of the last one, seconds.
    """
    length = times[stretch.end] - times[stretch.start]
    if length < min_s - 1e-6:
        return []
    count = math.ceil(length / max_s - 1e-6)
    each = length / count
    if each < min_s - 1e-6:  # between one and two clips: one of full length, the rest is left
        count, each = count - 1, max_s
    edges = [times[stretch.start] + each * k for k in range(count + 1)]
    cuts = [int(np.searchsorted(times, edge - 1e-6)) for edge in edges]
    cuts[0], cuts[-1] = stretch.start, min(cuts[-1], stretch.end)
    return [(a, b) for a, b in itertools.pairwise(cuts) if b > a]


@dataclass(frozen=True)
class JudgedSamples:
    """The samples of a video in order, with what the frame model says of each.

    Args:
        frame, time_s, shot: (N,), index of the frame, seconds, shot from 0.
        embeddings: float (N, D), of length 1.
        probabilities: float (N, classes).
        medical: float (N,), rounded as on record, so that the record alone explains the verdict.
    """

    frame: np.ndarray
    time_s: np.ndarray
    shot: np.ndarray
    embeddings: np.ndarray
    probabilities: np.ndarray
    medical: np.ndarray

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
    samples = _judged(model, store.path(work.inputs["samples"]), shots)
    times = np.append(frames["time_s"].to_numpy(), float(frames.schema.metadata[b"end_s"]))
    runs = stretches(
        samples.medical >= params.medical_threshold,
        lambda sample, later: samples.similarity(sample, later) > params.frame_similarity,
        samples.frame,
        samples.time_s,
        samples.shot,
        shots,
        gap_tolerance_s=params.gap_tolerance_s,
        to_shot_edge=params.to_shot_edge,
    )
    runs = [run for run in runs if run.last - run.first >= params.min_sample_steps]
    clips = [
        _clip(model, samples, times, run, start, end, work.context)
        for run in runs
        for start, end in pieces(times, run, params.min_clip_s, params.max_clip_s)
    ]
    scores = {
        "medical_mean": rounded(samples.medical.mean()),
        "medical_max": rounded(samples.medical.max()),
        "longest_medical_stretch_s": rounded(max((times[run.end] - times[run.start] for run in runs), default=0.0)),
    }
    common: dict[str, Any] = {
        "scores": scores,
        "score_models": dict.fromkeys(scores, model.digest),
        "outputs": {
            "classification": store.put_bytes(
                canonical_json(_classification(model, samples, runs, clips)), "application/json"
            )
        },
    }
    if clips:
        detail: ClassifyDetail = {"clips": clips, "encoder": _encoder_facts(params, samples)}
        vectors = np.stack([samples.embedding(clip["start_frame"], clip["end_frame"]) for clip in clips])
        common["outputs"]["embeddings"] = store.put_bytes(pack(vectors), "application/vnd.safetensors")
        return Outcome("kept", detail=detail, **common)
    reason, metric, threshold = (
        ("not_medical", "medical_max", params.medical_threshold)
        if scores["medical_max"] < params.medical_threshold
        else ("no_medical_stretch", "longest_medical_stretch_s", params.min_clip_s)
    )
    return Outcome("rejected", reason, {"metric": metric, "score": scores[metric], "threshold": threshold}, **common)


def _judged(model: FrameModel, path: Path, shots: np.ndarray) -> JudgedSamples:
    """Judges the table of samples at `path`, a few at a time; `shots` is the shot of every frame."""
    frames: list[int] = []
    times: list[float] = []
    embeddings: list[np.ndarray] = []
    with pq.ParquetFile(path) as table:
        for batch in table.iter_batches(BATCH):
            frames += batch["frame"].to_pylist()
            times += batch["time_s"].to_pylist()
            embeddings.append(model.embed([decode_jpeg(jpeg) for jpeg in batch["jpeg"].to_pylist()]))
    embedded = np.concatenate(embeddings)
    return JudgedSamples(
        np.array(frames),
        np.array(times),
        shots[frames],
        embedded,
        model.probabilities(embedded),
        np.round(model.medical(embedded), 4),
    )


def _clip(
    model: FrameModel,
    samples: JudgedSamples,
    times: np.ndarray,
    run: Stretch,
    start: int,
    end: int,
    words: Mapping[str, str],
) -> ClassifiedClip:
    """The clip of the frames [start, end) of a stretch; `times` and `words` as in `pieces` and `work_of`."""
    inside = samples.inside(start, end)
    picture = dict(zip(model.classes, samples.probabilities[inside].mean(axis=0).tolist(), strict=True))
    chosen = category(picture, words["title"], words["tags"], words["description"])
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
    }


def _classification(
    model: FrameModel, samples: JudgedSamples, runs: Sequence[Stretch], clips: Sequence[ClassifiedClip]
) -> dict[str, Any]:
    """All that the frame model said, as auditors read it."""
    count = len(samples.medical)
    return {
        "classes": list(model.classes),
        "samples": [
            {
                "frame": int(samples.frame[k]),
                "time_s": rounded(samples.time_s[k]),
                "shot": int(samples.shot[k]),
                "medical": rounded(samples.medical[k]),
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
    models = {"frames": frame_model_digest(params.frame_encoder, *_parts(params))}
    return Step(
        StepIdentity("classify", 4, params.model_dump(mode="json"), models),
        partial(classify, params=params),
        work_of=work_of,
        fan_out=clips_of,
        time_limit_s=params.classify_limit_s,
    )


def load_models(params: ClassifyParams) -> None:
    """Loads the encoder, unless it is the packaged one. Raises ModelUnavailable."""
    ServedEncoder(params.frame_encoder).ensure_available()


def work_of(item: Item, past: Past) -> Work:
    """The sampled frames of a video, and the words beside it that may name a category."""
    segmented, metadata = SEGMENT.outputs(past), DOWNLOAD.detail(past)["metadata"]
    words = {
        "title": metadata["title"] or "",
        "tags": "\n".join(metadata["tags"] or ()),
        "description": (metadata["description"] or "")[:DESCRIPTION_CHARS],
    }
    inputs = {"frames": segmented["frames"], "samples": segmented["samples"]}
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
