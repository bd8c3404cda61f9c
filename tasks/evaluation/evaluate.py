"""Evaluate: measured videos of several systems become a leaderboard with intervals, paired tests and what they copy.

Values are means over videos, as in VBench. The mean over measured terms is ours: the paper's Total recomputes as
(imaging quality + subject consistency + background consistency + motion smoothness + (100 - error share)) / 6, five
terms over six (arXiv 2507.05675), so that it is shown beside, and each term by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from medgen.canonical import canonical_json, digest_of, rounded
from medgen.catalog import Evaluation, Score
from medgen.ledger import Ledger, Outcome, Record, StepIdentity, Work
from medgen.store import Artifact
from models.metrics.statistics import Estimate, grouped_interval, holm, paired, share_interval
from models.metrics.suite import describe
from models.metrics.trace import (
    LEAST_NEAR_COPY,
    NEAR_COPY,
    Nearest,
    Retrieval,
    Trace,
    nearest,
    reference_similarity,
    retrieve,
)
from tasks.evaluation.measure_video import Video, unpacked

VERSION = 1
# The paper's five terms, by the beginning of a metric's name, all from 0 to 1 here.
TERMS = (
    "imaging_quality",
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "medical_accuracy",
)
TERM_MEAN = "mean_of_terms"
# Say how much or how the measure came about, not how well: never part of a comparison of quality.
NEUTRAL = ("dynamic_degree", "motion_speed", "medical_error_level")
PLACES = 6


@dataclass(frozen=True)
class System:
    """What made videos: a model, or a folder of videos.

    Args:
        digest: of the model; None for a folder.
        on_record: whether the model is in the catalog.
    """

    name: str
    digest: str | None = None
    on_record: bool = False


@dataclass(frozen=True)
class Measured:
    """One video and all that is on record of it.

    Args:
        scores: metric's name → value; empty when it could not be measured.
        models: metric's name → digest of the model behind it.
        trouble: reason and message when it could not be measured.
        detail: frames, fps, width, height of a measured video.
        votes: the judge's votes.
        picture: sha256 of its middle frame.
        runs: ids of the records behind this.
    """

    video: Video
    scores: Mapping[str, float]
    models: Mapping[str, str]
    trouble: str | None
    detail: Mapping[str, Any]
    votes: Sequence[Mapping[str, Any]]
    picture: str | None
    trace: Trace | None
    runs: tuple[int, ...]
    nearest: Nearest | None = None


def metric_family(metric: str) -> str:
    """A metric's name without its backbone."""
    return metric.split("[")[0]


def with_terms(scores: Mapping[str, float]) -> dict[str, float]:
    """The scores and, if any of TERMS is among them, their mean."""
    terms = [value for metric, value in scores.items() if metric_family(metric) in TERMS]
    return dict(scores) | ({TERM_MEAN: sum(terms) / len(terms)} if terms else {})


def near_copies(
    measured: Sequence[Measured], clips: Sequence[tuple[str, str, Trace]]
) -> tuple[list[Measured], dict[str, Any]]:
    """The videos with the training clip that each resembles most, and how that was judged.

    Args:
        clips: (clip id, source video, trace) of the training release.
    """
    reference = reference_similarity([(source, found) for _, source, found in clips])
    threshold = max(LEAST_NEAR_COPY, reference if reference is not None else 0.0)
    pool = [(name, found) for name, _, found in clips]
    told = [replace(one, nearest=nearest(one.trace, pool, threshold)) if one.trace else one for one in measured]
    about = {
        "threshold": rounded(threshold),
        "reference": None if reference is None else rounded(reference),
        "least": LEAST_NEAR_COPY,
        "clips": len(clips),
        "digest": NEAR_COPY,
    }
    return told, about


def retrieval_of(
    measured: Sequence[Measured], clips: Sequence[tuple[str, str, Trace]], seed: int
) -> dict[str, Any] | None:
    """The probe of one system's videos, with Wilson's interval; None when there is nothing to tell apart.

    Args:
        clips: (clip id, category, trace).
    """
    asked = [(one.video.category, one.trace.features) for one in measured if one.trace and one.video.category]
    found: Retrieval | None = retrieve(asked, [(n, category, t.features) for n, category, t in clips], seed=seed)
    if found is None:
        return None
    share = share_interval(found.right, found.asked)
    return {
        "accuracy": rounded(share.mean),
        "low": rounded(share.low or 0.0),
        "high": rounded(share.high or 0.0),
        "right": found.right,
        "videos": found.asked,
        "chance": rounded(found.chance),
        "categories": list(found.categories),
        "p_shuffled": rounded(found.shuffled_p),
        "pairs": [dict(zip(("category", "nearest_category", "clip"), pair, strict=True)) for pair in found.pairs],
    }


def compare(
    systems: Sequence[System], measured: Sequence[Measured], baseline: str, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Leaderboard rows, best first by mean over measured terms, and paired tests against the baseline."""
    by_system = {system.name: [one for one in measured if one.video.system == system.name] for system in systems}
    board = []
    for system in systems:
        mine = by_system[system.name]
        good = [one for one in mine if one.scores]
        grouped: dict[str, dict[str, list[float]]] = {}
        for one in good:
            for metric, value in with_terms(one.scores).items():
                grouped.setdefault(metric, {}).setdefault(one.video.prompt_id, []).append(value)
        values = {m: _told(grouped_interval(list(g.values()), seed)) for m, g in sorted(grouped.items())}
        terms = sorted(metric for metric in values if metric_family(metric) in TERMS)
        complete = {metric_family(metric) for metric in terms} == set(TERMS)
        board.append(
            {
                "system": system.name,
                "model": system.digest,
                "videos": len(good),
                "failed": len(mine) - len(good),
                "values": values,
                "terms": terms,
                "paper_total": rounded(100 * sum(values[m]["mean"] for m in terms) / 6, 2) if complete else None,
                "near_copies": sum(bool(one.nearest and one.nearest.near_copy) for one in good),
            }
        )
    board.sort(key=lambda row: (-row["values"].get(TERM_MEAN, {"mean": -1.0})["mean"], row["system"]))
    tests = [
        test
        for system in systems
        if baseline and system.name != baseline
        for test in _tests(system.name, by_system[system.name], by_system.get(baseline, []), baseline, seed)
    ]
    return board, tests


def _tests(
    system: str, mine: Sequence[Measured], theirs: Sequence[Measured], baseline: str, seed: int
) -> list[dict[str, Any]]:
    """One test for each metric that both have, over the prompts that both have; a prompt's videos are averaged."""
    means = [_by_prompt(mine), _by_prompt(theirs)]
    found = {}
    for metric in sorted(means[0].keys() & means[1].keys()):
        prompts = sorted(means[0][metric].keys() & means[1][metric].keys())
        if prompts:
            pairs = [[side[metric][prompt] for prompt in prompts] for side in means]
            found[metric] = paired(pairs[0], pairs[1], seed)
    adjusted = holm({metric: one.p for metric, one in found.items() if one.p is not None})
    return [
        {
            "system": system,
            "baseline": baseline,
            "metric": metric,
            "difference": _told(one.difference),
            "p": None if one.p is None else rounded(one.p, PLACES),
            "adjusted_p": rounded(adjusted[metric], PLACES) if metric in adjusted else None,
        }
        for metric, one in found.items()
    ]


def _by_prompt(measured: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """metric → prompt → mean over the prompt's videos."""
    gathered: dict[str, dict[str, list[float]]] = {}
    for one in measured:
        for metric, value in with_terms(one.scores).items() if one.scores else ():
            gathered.setdefault(metric, {}).setdefault(one.video.prompt_id, []).append(value)
    return {m: {p: sum(values) / len(values) for p, values in prompts.items()} for m, prompts in gathered.items()}


def _told(estimate: Estimate) -> dict[str, Any]:
    return {k: rounded(v, PLACES) if isinstance(v, float) else v for k, v in asdict(estimate).items()}


def gathered(ledger: Ledger, videos: Sequence[Video], runs: Mapping[str, Sequence[int | None]]) -> list[Measured]:
    """Videos with what is on record of them.

    Args:
        runs: step → id of the record of each video in order, None where the step didn't run on it.
    """
    records = ledger.load({run_id for ids in runs.values() for run_id in ids if run_id is not None})
    models = _score_models(ledger, list(records))
    found = []
    for place, video in enumerate(videos):
        mine = [records[ids[place]] for ids in runs.values() if ids[place] is not None]  # type: ignore[index]
        first = mine[0]
        scores = {metric: value for record in mine for metric, value in record.scores.items()}
        troubles = [_trouble(record) for record in mine if record.status != "kept"]
        votes = next((r.detail["votes"] for r in mine if r.step == "judge_video" and r.status == "kept"), [])
        found.append(
            Measured(
                video,
                scores if first.status == "kept" else {},
                {metric: digest for record in mine for metric, digest in models.get(record.id, {}).items()},
                "; ".join(troubles) or None,
                first.detail if first.status == "kept" else {},
                votes,
                first.outputs.get("picture"),
                _trace(ledger, first),
                tuple(record.id for record in mine),
            )
        )
    return found


def _trouble(record: Record) -> str:
    message = str(record.detail.get("message", ""))
    return f"{record.step}: {record.reason}" + (f" ({message})" if message else "")


def _trace(ledger: Ledger, record: Record) -> Trace | None:
    return unpacked(ledger.store.path(record.outputs["trace"])) if "trace" in record.outputs else None


def _score_models(ledger: Ledger, ids: Sequence[int]) -> dict[int, dict[str, str]]:
    found: dict[int, dict[str, str]] = {}
    with Session(ledger.engine) as session:
        query = select(Score.step_run_id, Score.metric, Score.model_digest).where(Score.step_run_id.in_(ids))
        for run_id, metric, digest in session.execute(query):
            found.setdefault(run_id, {})[metric] = digest or ""
    return found


def report(
    systems: Sequence[System],
    measured: Sequence[Measured],
    *,
    prompts: Mapping[str, Any],
    baseline: str,
    seed: int,
    against: str,
    copies: Mapping[str, Any] | None,
    clips: Sequence[tuple[str, str, str, Trace]],
) -> dict[str, Any]:
    """All of an evaluation as JSON: the same videos give the same bytes.

    Args:
        prompts: name, version and digest of the set.
        against: name of the training release, or "".
        copies: as `near_copies` tells.
        clips: (clip id, source video, category, trace).
    """
    board, tests = compare(systems, measured, baseline, seed)
    categories = [(name, category, found) for name, _, category, found in clips]
    probes = {
        system.name: retrieval_of([one for one in measured if one.video.system == system.name], categories, seed)
        for system in systems
    }
    metrics: dict[str, dict[str, Any]] = {}
    for one in measured:
        for metric in one.scores:
            metrics.setdefault(metric, {"model": one.models.get(metric), "meaning": describe(metric)})
    return {
        "format": 1,
        "prompts": dict(prompts),
        "baseline": baseline,
        "seed": seed,
        "metrics": dict(sorted(metrics.items())),
        "leaderboard": board,
        "paired": tests,
        "against": against,
        "near_copies": dict(copies) if copies else None,
        "retrieval": {name: found for name, found in probes.items() if found} if against else {},
        "videos": [_row(one) for one in measured],
    }


def _row(one: Measured) -> dict[str, Any]:
    video = one.video
    return {
        "system": video.system,
        "subject": video.subject,
        "file": video.name,
        "sha256": video.sha256,
        "prompt_id": video.prompt_id,
        "prompt": video.prompt,
        "category": video.category,
        "procedure": video.procedure,
        **{name: one.detail.get(name) for name in ("frames", "fps", "width", "height")},
        "scores": dict(sorted(one.scores.items())),
        "trouble": one.trouble,
        "votes": [dict(vote) for vote in one.votes],
        "nearest": asdict(one.nearest) if one.nearest else None,
    }


def put_on_record(
    ledger: Ledger, systems: Sequence[System], measured: Sequence[Measured], content: Mapping[str, Any]
) -> dict[str, tuple[Record, bool]]:
    """system → the record of its evaluation, and whether it was there already.

    Output `report`: the JSON. Evaluation rows: one for each metric, with interval and number of videos. Lineage: the
    records behind each video.
    """
    artifact = ledger.store.put_bytes(canonical_json(content), "application/json")
    found = {}
    for system in systems:
        row = next(row for row in content["leaderboard"] if row["system"] == system.name)
        runs = [run for one in measured if one.video.system == system.name for run in one.runs]
        identity = StepIdentity("evaluate", VERSION, {"seed": content["seed"]}, {})
        work = Work(
            f"evaluation-{digest_of([system.name, system.digest, artifact.sha256])[:32]}",
            context={"system": system.name, "report": artifact.sha256},
            parents={f"video-{place:05}": run for place, run in enumerate(runs)},
        )
        found[system.name] = ledger.once(identity, work, partial(_evaluation, system, row, content, artifact))
    return found


def _evaluation(system: System, row: Mapping[str, Any], content: Mapping[str, Any], report: Artifact) -> Outcome:
    rows: list[Any] = [
        Evaluation(
            model_digest=system.digest if system.on_record else None,
            metric=metric,
            value=value["mean"],
            detail={
                **value,
                "system": system.name,
                "prompts": content["prompts"],
                "backbone": content["metrics"].get(metric, {}).get("model"),
            },
        )
        for metric, value in row["values"].items()
    ]
    return Outcome(
        "kept",
        detail={
            "system": system.name,
            "model": system.digest,
            "prompts": content["prompts"],
            "videos": row["videos"],
            "failed": row["failed"],
            "paper_total": row["paper_total"],
            "near_copies": row["near_copies"],
            "against": content["against"],
        },
        scores={metric: value["mean"] for metric, value in row["values"].items()},
        outputs={"report": report},
        rows=rows,
    )
