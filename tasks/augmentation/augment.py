"""Augment: the record of an experiment on whether synthetic videos help a classifier.

Its trainings are on record one by one (`tasks.augmentation.fit_classifier`); here they become figures with intervals, a
table, a plot and a sentence.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import numpy as np
from pydantic import Field

from medgen.canonical import canonical_json, digest_of
from medgen.ledger import Ledger, Outcome, Record, StepIdentity, Work
from medgen.store import Store
from models.classifiers.augmentation import FEW_SOURCES, Arm, CannotCompare, all_arms, figures, headline, quotas
from models.classifiers.augmentation_report import markdown, plot
from models.encoders import shown_name
from tasks.augmentation.embed_video import classifier_digest, frames_wanted
from tasks.augmentation.fit_classifier import FIT_CLASSIFIER, Fit, FitParams, Plan
from tasks.augmentation.generator_lineage import Leakage
from tasks.augmentation.labelled_videos import CannotAugment, Labelled, LabelledVideo

# Output role → name of the file in a folder that the result is handed out to.
FILES = {"result": "result.json", "report": "report.md", "plot": "plot.png", "data_list": "data_list.json"}
ADVISED_SEEDS = 5


class AugmentParams(FitParams):
    """The experiment."""

    ratios: tuple[Annotated[float, Field(gt=0, le=100)], ...] = Field(
        (0.5, 1.0, 2.0), min_length=1, description="Synthetic videos per real training video, one arm each."
    )
    seeds: int = Field(5, ge=1, le=1000, description="Repetitions with other splits, choices and weights; at least 5.")
    min_sources: int = Field(2, ge=2, le=100_000, description="Classes of fewer real sources take no part.")
    leakage: Literal["warn", "drop", "refuse"] = Field(
        "warn",
        description="Sources that the generator was trained on: warn in the result; drop them from all tests; refuse.",
    )
    bootstrap_draws: int = Field(2000, ge=100, le=100_000, description="Draws behind each interval.")


class AugmentDetail(TypedDict):
    """Detail of the record: the sentence on the result, and arm → verdict."""

    headline: str
    verdicts: dict[str, str]


class AugmentOutputs(TypedDict):
    """Outputs of the record, role → sha256; see `augment`."""

    result: str
    report: str
    plot: str
    data_list: str


def plan_of(
    videos: Sequence[LabelledVideo], samples: Mapping[str, str], leaks: Leakage, params: AugmentParams
) -> tuple[Plan, list[Fit]]:
    """What is trained, in order of arm, seed and fold.

    Args:
        samples: subject → sha256 of its sample.

    Raises:
        CannotAugment: with what to do.
    """
    if leaks.leaked and params.leakage == "refuse":
        raise CannotAugment(
            f"the generator was trained on {len(leaks.leaked)} of the real sources ({_named(leaks.leaked)}): use other "
            "real videos or another model, or set leakage to drop (these are only trained on) or warn"
        )
    dropped = leaks.leaked if params.leakage == "drop" else frozenset()
    plan = Plan.of(videos, samples, frozenset(dropped))
    try:
        folds = {seed: plan.folds(params, seed) for seed in range(params.seeds)}
    except CannotCompare as error:
        why = f" without the {len(dropped)} sources that the generator was trained on" if dropped else ""
        raise CannotAugment(f"no fair test is possible{why}: {error}") from error
    return plan, [
        Fit(arm, seed, fold)
        for arm in all_arms(params.ratios)
        for seed in range(params.seeds)
        for fold in range(len(folds[seed]))
    ]


def require_all(trainings: Collection[Record], wanted: int) -> None:
    """Raises CannotAugment when a training failed."""
    errors = [f"{r.reason}: {r.detail.get('message', '')}" for r in trainings if r.status != "kept"]
    if errors:
        raise CannotAugment(
            f"{len(errors)} of {wanted} trainings failed: {'; '.join(sorted(set(errors))[:3])}. What was done stays "
            "done: run again to go on."
        )


def augment(
    ledger: Ledger,
    plan: Plan,
    fits: Sequence[Fit],
    records: Sequence[Record],
    labelled: Labelled,
    embedded: Mapping[str, int],
    leaks: Leakage,
    params: AugmentParams,
    flow_run_id: str | None = None,
) -> tuple[Record, bool]:
    """The record of the experiment, and whether it was there already.

    Outputs:
        result: JSON, everything below as facts.
        report: Markdown, with the plot beside it as plot.png.
        plot: PNG.
        data_list: JSON, every video with label, source, sha256; those left out with the reason.

    Args:
        records: of the fits, in their order.
        labelled: the videos that took part, those left out, and notes.
        embedded: subject → record of its sample.
    """
    data_list = {
        "videos": [video.row() for video in labelled.videos],
        "left_out": [vars(video) for video in labelled.left_out],
        "notes": list(labelled.notes),
        "leakage": {"sources": sorted(leaks.leaked), "unknown": leaks.unknown, "models": leaks.models},
    }
    settings = params.model_dump(mode="json") | {
        "classifier": shown_name(params.classifier),
        "clip_frames": frames_wanted(params),
    }
    digest = plan.digest()
    identity = StepIdentity("augment", 1, settings, {"classifier": classifier_digest(params)})
    parents = {f"video/{subject}": run_id for subject, run_id in embedded.items()}
    parents |= {f"fit/{_of(fit)}": record.id for fit, record in zip(fits, records, strict=True)}
    work = Work(f"augment-{digest[:32]}", context={"data": digest, "data_list": digest_of(data_list)}, parents=parents)

    def compare() -> Outcome:
        result = summarise(plan, fits, records, labelled, leaks, params)
        result |= {
            "settings": settings,
            "classifier_digest": classifier_digest(params),
            "data_digest": digest,
            "leakage": data_list["leakage"],
            "left_out": data_list["left_out"],
        }
        return _outcome(ledger.store, result, data_list)

    return ledger.once(identity, work, compare, flow_run_id=flow_run_id)


def summarise(
    plan: Plan,
    fits: Sequence[Fit],
    records: Sequence[Record],
    labelled: Labelled,
    leaks: Leakage,
    params: AugmentParams,
) -> dict[str, Any]:
    """JSON facts: what the arms reached, what was short, and the sentence on it."""
    arms = all_arms(params.ratios)
    place = {number: row for row, number in enumerate(plan.real)}
    predicted = np.full((len(arms), params.seeds, len(place)), -1)
    sizes: Counter[Arm] = Counter()
    for fit, record in zip(fits, records, strict=True):
        detail = FIT_CLASSIFIER.detail(record)
        predicted[arms.index(fit.arm), fit.seed, [place[number] for number in detail["test"]]] = detail["found"]
        sizes[fit.arm] += detail["trained_on"]
    truth = [plan.classes.index(plan.rows[number]["label"]) for number in plan.real]
    sources = [plan.rows[number]["source"] for number in plan.real]
    compared = figures(predicted, truth, sources, arms, plan.classes, draws=params.bootstrap_draws)
    trainings = len(fits) / len(arms)
    for row, arm in zip(compared["arms"], arms, strict=True):
        row["videos"] = round(sizes[arm] / trainings, 1)
    tested = {s for s in sources if s not in plan.never_test}
    leaked = leaks.leaked & tested
    notes = [*labelled.notes, *leaks.notes(len(set(sources))), *_shortages(plan, params)]
    if plan.never_test:
        notes.append(
            f"{len(plan.never_test)} sources that the generator was trained on are only trained on, not tested"
        )
    if len(tested) < FEW_SOURCES:
        notes.append(
            f"only {len(tested)} sources are tested: intervals from so few are too narrow, and only large differences "
            "can show"
        )
    if params.seeds < ADVISED_SEEDS:
        notes.append(f"only {params.seeds} seed(s): at least {ADVISED_SEEDS} are advised")
    return {
        **compared,
        "headline": headline(compared, len(leaked), len(tested)),
        "classes": list(plan.classes),
        "videos": _counts(labelled.videos, plan.classes),
        "seeds": params.seeds,
        "folds": len(plan.folds(params, 0)),
        "sources": len(tested),
        "comparisons_made": len(arms) - 1 + len(compared["comparisons"]),
        "notes": notes,
    }


def _shortages(plan: Plan, params: AugmentParams) -> list[str]:
    """Classes of which there are fewer synthetic videos than the largest ratio asks for."""
    samples = plan.samples
    notes = []
    there = Counter(sample.label for sample in samples if sample.synthetic)
    for ratio in sorted(set(params.ratios)):
        short = set()
        for fold in plan.folds(params, 0):
            real = Counter(samples[number].label for number in fold.train)
            given = quotas(samples, fold, ratio)
            short |= {label for label, count in given.items() if count < round(ratio * real[label])}
        if short:
            labels = ", ".join(f"{label} ({there[label]})" for label in sorted(short))
            notes.append(
                f"×{ratio:g}: fewer synthetic videos than asked for of {labels}; the other arms of this ratio add no "
                "more than that"
            )
    return notes


def _counts(videos: Sequence[LabelledVideo], classes: Sequence[str]) -> dict[str, dict[str, int]]:
    return {
        label: {
            "real": sum(v.label == label and not v.synthetic for v in videos),
            "sources": len({v.source for v in videos if v.label == label and not v.synthetic}),
            "synthetic": sum(v.label == label and v.synthetic for v in videos),
        }
        for label in classes
    }


def _outcome(store: Store, result: Mapping[str, Any], data_list: Mapping[str, Any]) -> Outcome:
    text = json.dumps(result, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    outputs = {
        "result": store.put_bytes(text.encode(), "application/json"),
        "report": store.put_bytes(markdown(result, FILES["plot"]).encode(), "text/markdown"),
        "plot": store.put_bytes(plot(result), "image/png"),
        "data_list": store.put_bytes(canonical_json(data_list), "application/json"),
    }
    scores = {f"accuracy {row['arm']}": row["accuracy"]["value"] for row in result["arms"]}
    scores |= {
        f"gain {row['arm']}": row["difference"]["accuracy"]["value"] for row in result["arms"] if "difference" in row
    }
    detail: AugmentDetail = {
        "headline": result["headline"],
        "verdicts": {row["arm"]: row["verdict"] for row in result["arms"][1:]},
    }
    return Outcome("kept", detail=dict(detail), scores=scores, outputs=outputs)


def export(store: Store, outputs: Mapping[str, str], folder: Path) -> dict[str, Path]:
    """Writes the outputs of a record into a folder; role → file. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {role: folder / name for role, name in FILES.items()}
    for role, path in written.items():
        path.write_bytes(store.read(outputs[role]))
    return written


def _of(fit: Fit) -> str:
    return f"{fit.arm.kind}-{fit.arm.ratio:g}-{fit.seed}-{fit.fold}"


def _named(names: frozenset[str]) -> str:
    some = sorted(names)[:5]
    return ", ".join(some) + (", …" if len(names) > len(some) else "")
