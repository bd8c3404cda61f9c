"""Fit classifier: trains one classifier of the augmentation experiment and tests it on its fold.

One record per arm, seed and fold, so that a killed experiment loses no more than one training.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
from pydantic import Field

from medgen.canonical import digest_of, rounded
from medgen.errors import ItemFailed
from medgen.handover import Handover
from medgen.ledger import Outcome, StepIdentity, Work, open_ledger
from medgen.parameters import MOST_ITEMS, MOST_SECONDS
from medgen.shard import ShardResult, Step
from medgen.store import Store, open_store
from models.classifiers.augmentation import Arm, Fold, Sample, split, training_set
from models.classifiers.frozen_classifier import HEAD_RECIPE, TemporalHead, fit_frozen
from models.classifiers.whole_classifier import FullTraining, fit_whole
from models.encoders import shown_name
from tasks.augmentation.embed_video import (
    EmbedParams,
    classifier_digest,
    frames_wanted,
    network_of,
    read_embeddings,
    read_frames,
)
from tasks.augmentation.labelled_videos import LabelledVideo
from tasks.prefect_step import run_in_prefect, step_task


class FitParams(EmbedParams):
    """How a classifier is trained and what is left for its test."""

    folds: int = Field(3, ge=2, le=20, description="Parts of the real sources; each is tested once for each seed.")
    temporal_head: TemporalHead = Field("attention", description="What looks at the frozen embeddings over time.")
    head_steps: int = Field(150, ge=1, le=MOST_ITEMS, description="Training steps of a head, the same in every arm.")
    tune_steps: int = Field(
        300, ge=1, le=MOST_ITEMS, description="Training steps of a whole network, the same in every arm."
    )
    tune_batch: int = Field(8, ge=1, le=10_000, description="Videos in a step of a whole network's training.")
    tune_learning_rate: float = Field(
        1e-4, gt=0, le=1000, description="Of a whole network; its new last layer takes 10 times."
    )
    classifier_device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", exclude=True, description="Where whole networks are trained; auto: a GPU when there is one."
    )
    fit_limit_s: float = Field(
        6 * 3600.0, gt=0, le=MOST_SECONDS, exclude=True, description="Longest time of one training, seconds."
    )


class FitDetail(TypedDict):
    """Detail of a kept record.

    Args:
        test: numbers of the tested videos in the plan; `found`: the number of the class that each was taken for.
        trained_on: number of videos; `added`: label → how many of them the arm added.
        device: where a whole network was trained.
    """

    test: list[int]
    found: list[int]
    trained_on: int
    added: dict[str, int]
    device: NotRequired[str]


FIT_CLASSIFIER: Handover[FitDetail] = Handover("fit_classifier")


@dataclass(frozen=True)
class Fit:
    """One training: the arm, the seed of splits and weights, and the number of the fold that is tested."""

    arm: Arm
    seed: int
    fold: int


@dataclass(frozen=True)
class Plan:
    """What all trainings of an experiment share.

    Args:
        rows: of each video: label, source, synthetic, and sha256 of its sample.
        classes: labels in order.
        never_test: sources that are only trained on.
    """

    rows: tuple[dict[str, Any], ...]
    classes: tuple[str, ...]
    never_test: frozenset[str]

    @classmethod
    def of(cls, videos: Sequence[LabelledVideo], samples: Mapping[str, str], never_test: frozenset[str]) -> "Plan":
        """From videos and the sha256 of the samples of their subjects."""
        rows = tuple(
            {"label": v.label, "source": "" if v.synthetic else v.source, "synthetic": v.synthetic,
             "sample": samples[v.subject]}
            for v in videos
        )  # fmt: skip
        return cls(rows, tuple(sorted({v.label for v in videos if not v.synthetic})), never_test)

    @property
    def samples(self) -> list[Sample]:
        """The videos as the experiment sees them."""
        return [Sample(row["label"], row["source"], row["synthetic"]) for row in self.rows]

    @property
    def real(self) -> list[int]:
        """Numbers of the real videos."""
        return [number for number, row in enumerate(self.rows) if not row["synthetic"]]

    def digest(self) -> str:
        """sha256 of all of it."""
        return digest_of({"rows": list(self.rows), "never_test": sorted(self.never_test)})

    def folds(self, params: FitParams, seed: int) -> list[Fold]:
        """The folds of a seed. Raises CannotCompare."""
        return split(self.samples, params.folds, seed, self.never_test)

    def to_json(self) -> str:
        """As it travels to workers."""
        return json.dumps([self.rows, self.classes, sorted(self.never_test)])

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """The reverse of `to_json`."""
        rows, classes, never_test = json.loads(text)
        return cls(tuple(rows), tuple(classes), frozenset(never_test))


def fit_classifier(work: Work, store: Store, params: FitParams) -> Outcome:
    """Trains on one arm's videos, judges the fold's.

    Raises:
        ItemFailed: out_of_memory, with advice.
    """
    plan = _plan(work.access["plan"])
    arm = Arm(work.context["arm"], work.context["ratio"])
    seed, fold = work.context["seed"], plan.folds(params, work.context["seed"])[work.context["fold"]]
    chosen = training_set(plan.samples, fold, arm, seed, params.clip_variants)
    labels = [plan.classes.index(plan.rows[number]["label"]) for number, _ in chosen]
    if params.classifier_training == "whole":
        chances = _fit_whole(plan, fold, chosen, labels, params, seed)
    else:
        embeddings = _embeddings(work.access["plan"])
        chances = fit_frozen(
            np.stack([embeddings[number][variant] for number, variant in chosen]),
            labels,
            np.stack([embeddings[number][0] for number in fold.test]),
            len(plan.classes),
            head=params.temporal_head,
            steps=params.head_steps,
            seed=seed,
        )
    predicted: list[int] = chances.argmax(axis=1).tolist()
    right = sum(plan.classes[p] == plan.rows[number]["label"] for p, number in zip(predicted, fold.test, strict=True))
    added = Counter(plan.rows[number]["label"] for number, _ in chosen[len(fold.train) :])
    detail: FitDetail = {
        "test": list(fold.test),
        "found": predicted,
        "trained_on": len(chosen),
        "added": dict(sorted(added.items())),
    }
    if params.classifier_training == "whole":
        detail["device"] = _device(params)
    return Outcome("kept", detail=dict(detail), scores={"accuracy": rounded(right / len(fold.test))})


def _fit_whole(
    plan: Plan,
    fold: Fold,
    chosen: Sequence[tuple[int, int]],
    labels: Sequence[int],
    params: FitParams,
    seed: int,
) -> np.ndarray:
    """Probabilities (tested videos, classes) by a network that is trained whole. Raises ItemFailed: out_of_memory."""
    device = _device(params)
    training = FullTraining(params.tune_steps, params.tune_batch, params.tune_learning_rate, device=device)
    try:
        return fit_whole(
            network_of(params),
            lambda row: _frames(plan, *chosen[row]),
            labels,
            lambda row: _frames(plan, fold.test[row], 0),
            len(fold.test),
            len(plan.classes),
            training=training,
            seed=seed,
        )
    except RuntimeError as error:  # torch's OutOfMemoryError is one; on CPU it has no class of its own
        if "out of memory" not in str(error).lower() and "can't allocate memory" not in str(error).lower():
            raise
        raise ItemFailed(
            "out_of_memory",
            f"training {shown_name(params.classifier)} with {params.tune_batch} videos a step does not fit into "
            f"the memory of {device}: set a smaller tune_batch",
        ) from error


def _device(params: FitParams) -> str:
    if params.classifier_device != "auto":
        return params.classifier_device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@lru_cache(maxsize=1)
def _plan(path: str) -> Plan:
    return Plan.from_json(Path(path).read_text())


@lru_cache(maxsize=1)
def _embeddings(path: str) -> list[np.ndarray]:
    store = open_store()
    return [read_embeddings(store.read(row["sample"])) for row in _plan(path).rows]


def _frames(plan: Plan, number: int, variant: int) -> np.ndarray:
    return _samples(plan.rows[number]["sample"])[variant]


@lru_cache(maxsize=256)
def _samples(sha256: str) -> list[np.ndarray]:
    return read_frames(open_store().read(sha256))


def step(params: FitParams) -> Step:
    """Fit classifier, ready to run. Raises ModelUnavailable."""
    own = set(FitParams.model_fields) - {"classifier_device", "fit_limit_s"}
    recorded = params.model_dump(mode="json", include=own) | {
        "classifier": shown_name(params.classifier),
        "clip_frames": frames_wanted(params),
    }
    if params.classifier_training == "whole":
        recorded = {name: value for name, value in recorded.items() if name not in ("temporal_head", "head_steps")}
    else:
        recorded = {name: value for name, value in recorded.items() if not name.startswith("tune_")}
        recorded["recipe"] = HEAD_RECIPE
    identity = StepIdentity("fit_classifier", 1, recorded, {"classifier": classifier_digest(params)})
    return Step(identity, partial(fit_classifier, params=params), time_limit_s=params.fit_limit_s)


@step_task("fit_classifier", "cpu")
def fit_shard(
    label: str, plan: Plan, fits: Sequence[Fit], params: FitParams, retry_quarantined: bool = False
) -> ShardResult:
    """Trains and tests classifiers; records stand in the order of `fits`."""
    digest = plan.digest()
    named = {f"augment-{digest[:32]}/{f.arm.kind}-{f.arm.ratio:g}-{f.seed}-{f.fold}": f for f in fits}
    shared = open_ledger().store.scratch(".json")
    shared.write_text(plan.to_json())

    works = [
        Work(
            subject,
            context={
                "data": digest, "arm": fit.arm.kind, "ratio": fit.arm.ratio, "seed": fit.seed, "fold": fit.fold,
            },
            access={"plan": str(shared)},
        )
        for subject, fit in named.items()
    ]  # fmt: skip
    try:
        return run_in_prefect(step(params), works, retry_quarantined=retry_quarantined)
    finally:
        shared.unlink(missing_ok=True)
