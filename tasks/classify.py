"""Classify: which stretches of a video are medical, and where its clips lie.

The paper's rule (MedGen, section on segmentation): frames at 1 per second; a stretch is valid when every frame in it
is medical, every neighbour similarity exceeds τ, and it lasts at least 6 s. Stretches never cross a shot boundary and
are cut into clips of 6 to 10 s. No frame is decoded here: segment has kept them.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from medgen.canonical import canonical_json, rounded
from medgen.ledger import Outcome, Record, StepIdentity, Work
from medgen.shard import Item, ShardResult, Step
from medgen.store import Store
from models.frames import FrameModel, frame_model_digest, load_frame_model
from tasks.prefect_step import run_in_prefect, step_task

NON_MEDICAL = "non-medical"


class ClassifyParams(BaseModel):
    """Parameters of classify."""

    model_config = ConfigDict(frozen=True)

    model: str = Field("mobilenet_v2", description="Frame encoder: mobilenet_v2, or a CLIP-class hub name or folder.")
    frame_head: str = Field(
        "", exclude=True, description="Head file (.safetensors) trained for the encoder; empty: the packaged one."
    )
    medical_threshold: float = Field(0.5, ge=0, le=1, description="A frame with this probability is medical.")
    similarity: float = Field(0.55, ge=-1, le=1, description="τ: cosine that neighbouring frames must exceed.")
    min_clip_s: float = Field(6.0, gt=0, description="Shortest clip, seconds (paper: 6).")
    max_clip_s: float = Field(10.0, gt=0, description="Longest clip, seconds (paper: mostly 6 to 10).")
    classify_limit_s: float = Field(3600.0, gt=0, exclude=True, description="Slower work is stopped, seconds.")


@dataclass(frozen=True)
class Stretch:
    """Frames [start, end) of one shot, and the samples [first, last] that lie in it."""

    start: int
    end: int
    first: int
    last: int


def stretches(
    medical: np.ndarray,
    similar: np.ndarray,
    sample_frames: np.ndarray,
    sample_shots: np.ndarray,
    frame_shots: np.ndarray,
) -> list[Stretch]:
    """Longest runs of samples that are medical, alike and of one shot.

    A run reaches to the shot's edge where no other sample lies between: those frames are within a second of a
    medical one and in the same shot. Otherwise it ends with its last medical sample.

    Args:
        medical: bool (N,), per sample.
        similar: bool (N - 1,), sample k to k + 1.
        sample_frames: int (N,), frame index of each sample.
        sample_shots: int (N,).
        frame_shots: int (F,), shot of every frame, growing.
    """
    found, first = [], 0
    count = len(medical)
    while first < count:
        if not medical[first]:
            first += 1
            continue
        last = first
        while (
            last + 1 < count and medical[last + 1] and similar[last] and sample_shots[last + 1] == sample_shots[first]
        ):
            last += 1
        shot = sample_shots[first]
        alone_before = first == 0 or sample_shots[first - 1] != shot
        alone_after = last == count - 1 or sample_shots[last + 1] != shot
        start = int(np.searchsorted(frame_shots, shot, "left")) if alone_before else int(sample_frames[first])
        end = int(np.searchsorted(frame_shots, shot, "right")) if alone_after else int(sample_frames[last]) + 1
        found.append(Stretch(start, end, first, last))
        first = last + 1
    return found


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


def classify(work: Work, store: Store, params: ClassifyParams) -> Outcome:
    """Judges every sampled frame and lays out the clips of a video.

    Outputs:
        classification: JSON: per sample time, shot, probabilities, similarity to the next; stretches; clips.
    """
    model = _model(params.model, params.frame_head)
    frames = pq.read_table(store.path(work.inputs["frames"]))
    samples = pq.read_table(store.path(work.inputs["samples"]))
    embeddings = np.concatenate(
        [model.embed([_rgb(jpeg) for jpeg in batch["jpeg"].to_pylist()]) for batch in samples.to_batches(64)]
    )
    probabilities = model.probabilities(embeddings)
    medical = 1.0 - probabilities[:, model.classes.index(NON_MEDICAL)]
    likeness = (embeddings[1:] * embeddings[:-1]).sum(axis=1)
    # Rounded before they are compared, so that the record alone explains the verdict.
    medical, likeness = np.round(medical, 4), np.round(likeness, 4)
    times = frames["time_s"].to_numpy()
    step_s = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    times = np.append(times, times[-1] + step_s)
    sample_frames, sample_shots = samples["frame"].to_numpy(), samples["shot"].to_numpy()
    runs = stretches(
        medical >= params.medical_threshold,
        likeness > params.similarity,
        sample_frames,
        sample_shots,
        frames["shot"].to_numpy(),
    )
    clips = []
    for run in runs:
        for start, end in pieces(times, run, params.min_clip_s, params.max_clip_s):
            inside = (sample_frames >= start) & (sample_frames < end)
            clips.append(_clip(start, end, times, probabilities[inside], medical[inside], model.classes))
    longest = max((times[run.end] - times[run.start] for run in runs), default=0.0)
    scores = {
        "medical_mean": rounded(medical.mean()),
        "medical_max": rounded(medical.max()),
        "longest_medical_stretch_s": rounded(longest),
    }
    report = {
        "classes": list(model.classes),
        "samples": [
            {
                "frame": int(frame),
                "time_s": rounded(time),
                "shot": int(shot),
                "medical": rounded(p),
                "probabilities": [rounded(q) for q in row],
                "similarity_to_next": rounded(likeness[k]) if k < len(likeness) else None,
            }
            for k, (frame, time, shot, p, row) in enumerate(
                zip(sample_frames, samples["time_s"].to_numpy(), sample_shots, medical, probabilities, strict=True)
            )
        ],
        "stretches": [vars(run) for run in runs],
        "clips": clips,
    }
    output = store.put_bytes(canonical_json(report), "application/json")
    common: dict[str, Any] = {
        "scores": scores,
        "score_models": dict.fromkeys(scores, model.digest),
        "outputs": {"classification": output},
    }
    if clips:
        return Outcome("kept", detail={"clips": clips}, **common)
    if scores["medical_max"] < params.medical_threshold:
        detail = {"metric": "medical_max", "score": scores["medical_max"], "threshold": params.medical_threshold}
        return Outcome("rejected", "not_medical", detail, **common)
    detail = {
        "metric": "longest_medical_stretch_s",
        "score": scores["longest_medical_stretch_s"],
        "threshold": params.min_clip_s,
    }
    return Outcome("rejected", "no_medical_stretch", detail, **common)


def _clip(
    start: int, end: int, times: np.ndarray, probabilities: np.ndarray, medical: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """Facts of one clip: frames, times, mean medical probability, category (the likeliest medical class)."""
    mean = probabilities.mean(axis=0)
    ranked = [(float(p), name) for p, name in zip(mean, classes, strict=True) if name != NON_MEDICAL]
    probability, category = max(ranked)
    return {
        "start_frame": start,
        "end_frame": end,
        "start_s": rounded(times[start]),
        "end_s": rounded(times[end]),
        "medical": rounded(medical.mean()),
        "category": category,
        "category_probability": rounded(probability),
    }


def _rgb(jpeg: bytes) -> np.ndarray:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


@cache
def _model(name: str, head: str) -> FrameModel:
    return load_frame_model(name, Path(head) if head else None)


def step(params: ClassifyParams) -> Step:
    """Classify, ready to run."""
    models = {"frames": frame_model_digest(params.model, Path(params.frame_head) if params.frame_head else None)}
    identity = StepIdentity("classify", 1, params.model_dump(mode="json"), models)
    return Step(identity, partial(classify, params=params), "processes", params.classify_limit_s)


def _work(item: Item, past: Mapping[str, Record]) -> Work:
    outputs = past["segment"].outputs
    return Work(item.subject, inputs={"frames": outputs["frames"], "samples": outputs["samples"]})


def _clips(item: Item, record: Record) -> Iterable[Item]:
    trail = {**item.trail, "classify": record.id}
    return [Item(f"{item.subject}/{c['start_frame']}-{c['end_frame']}", trail) for c in record.detail["clips"]]


def clip_facts(past: Mapping[str, Record], start_frame: int, end_frame: int) -> dict[str, Any]:
    """What classify said of the clip with these frames."""
    return next(
        c for c in past["classify"].detail["clips"] if (c["start_frame"], c["end_frame"]) == (start_frame, end_frame)
    )


@step_task("classify", "cpu")
def classify_shard(
    label: str, upstream: ShardResult, params: ClassifyParams, retry_quarantined: bool = False
) -> ShardResult:
    """Classifies a shard of videos; gives the stretches to cut."""
    return run_in_prefect(step(params), upstream.kept, _work, follow=_clips, retry_quarantined=retry_quarantined)
