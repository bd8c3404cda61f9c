"""Does synthetic data help a classifier? From labelled videos to a table with intervals."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.runtime import flow_run
from pydantic import ConfigDict, Field

from flows.parameters import part, takes
from flows.run_name import run_name
from flows.runner import task_runner
from medgen.ledger import Ledger, Record, open_ledger
from medgen.shard import ShardResult
from models.classifiers.augmentation_report import markdown, table_rows
from models.generation.prompt_set import load_prompts
from tasks.augmentation import augment as experiment
from tasks.augmentation.augment import AugmentParams, CannotAugment, plan_of
from tasks.augmentation.embed_video import EmbedParams, classifier_digest, embed_shard
from tasks.augmentation.fit_classifier import FitParams, fit_shard
from tasks.augmentation.generator_lineage import with_lineage
from tasks.augmentation.labelled_videos import (
    Labelled,
    LabelledVideo,
    LeftOut,
    fit_for_experiment,
    generated,
    read_labelled,
)
from tasks.evaluation import generate
from tasks.evaluation.generate import GenerateParams


class AugmentParameters(AugmentParams, GenerateParams):
    """Everything that an augmentation experiment can be told, the generation of its synthetic videos included."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labelled: str = Field(
        "",
        description="Real videos: a folder whose sub-folders are labels, a CSV with path, label, source (synthetic, "
        "trained_on), or the name of a release.",
    )
    synthetic: str = Field("", description="Synthetic videos: a folder whose sub-folders are labels, or a CSV.")
    prompts: str = Field(
        "",
        description="File of prompts (.txt, .csv, .jsonl), or `medical`: a prompt's category is the label of the "
        "synthetic videos that `model` makes of it.",
    )
    label_from: Literal["category", "title"] = Field(
        "category", description="Label of a release's clips: their category, or the one of title_words in their title."
    )
    title_words: tuple[str, ...] = Field((), description="Words that titles are looked through for, as labels.")
    retry_quarantined: bool = Field(False, exclude=True, description="Try videos again that failed for good.")


def _augment(**arguments: Any) -> dict[str, Any]:
    """Read labelled videos, embed them, train and test a classifier for every arm, seed and fold, compare."""
    log = get_run_logger()
    parameters = AugmentParameters(**arguments)
    if not parameters.labelled:
        raise CannotAugment("no videos: name a folder, a CSV file or a release")
    classifier_digest(parameters)  # a model that can't be had must be an error before any work
    ledger = open_ledger()
    runs: list[ShardResult] = []
    read = fit_for_experiment(_read(ledger, parameters, runs), parameters.min_sources)
    embedded, bad = _embedded(ledger, read.videos, parameters, runs)
    # Once more: what could not be read may have been all that a class had.
    good = tuple(video for video in read.videos if video.subject in embedded)
    read = fit_for_experiment(Labelled(good, read.left_out + bad, read.notes), parameters.min_sources)
    videos, leaks = with_lineage(ledger, read.videos)
    read = replace(read, videos=tuple(videos))
    samples = {video.subject: embedded[video.subject].outputs["sample"] for video in videos}
    plan, fits = plan_of(videos, samples, leaks, parameters)
    log.info("%d videos, %d trainings", len(videos), len(fits))
    label = f"{len(fits)}-trainings"
    fitted = fit_shard.submit(label, plan, fits, part(parameters, FitParams), parameters.retry_quarantined).result()
    runs.append(fitted)
    trained = ledger.load(fitted.records)
    if fitted.ended:
        failed = [f"{r.reason}: {r.detail.get('message', '')}" for r in trained.values() if r.status != "kept"]
        raise CannotAugment(
            f"{len(failed)} of {len(fits)} trainings failed: {'; '.join(sorted(set(failed))[:3])}. What was done stays "
            "done: run again to go on."
        )
    record, known = experiment.augment(
        ledger,
        plan,
        fits,
        [trained[run_id] for run_id in fitted.records],
        read,
        {subject: embedded[subject].id for subject in samples},
        leaks,
        part(parameters, AugmentParams),
        flow_run.id,
    )
    result = json.loads(ledger.store.read(record.outputs["result"]))
    _show(result, ledger.store.read(record.outputs["plot"]))
    log.info("%s", result["headline"])
    return {
        "executed": sum(run.executed for run in runs) + (not known),
        "reused": sum(run.reused for run in runs) + known,
        "decodes": sum(run.decodes for run in runs),
        "step_run_id": record.id,
        "artifacts": record.outputs,
        "result": result,
    }


def _read(ledger: Ledger, parameters: AugmentParameters, runs: list[ShardResult]) -> Labelled:
    """Real and synthetic videos; these are made first where a model is named. What ran joins `runs`."""
    read = read_labelled(
        ledger,
        parameters.labelled,
        label_from=parameters.label_from,
        title_words=parameters.title_words,
    )
    if parameters.synthetic:
        read += read_labelled(ledger, parameters.synthetic, synthetic=True)
    if bool(parameters.model) != bool(parameters.prompts):
        raise CannotAugment("synthetic videos to be made need both a model and a file of prompts")
    if not parameters.model:
        return read
    labels = {video.label for video in read.videos if not video.synthetic}
    every = load_prompts(parameters.prompts)
    wanted = [prompt for prompt in every if prompt.category in labels]
    if not wanted:
        raise CannotAugment(
            f"no prompt of {parameters.prompts} has a label of the real videos as its category: labels are "
            f"{', '.join(sorted(labels))}; categories {', '.join(sorted({p.category or 'none' for p in every}))}"
        )
    settings = part(parameters, GenerateParams)
    generate.plan(ledger, settings)  # a model that can't be had must be an error before any work
    made = generate.generate_shard.submit("synthetic", wanted, settings, parameters.retry_quarantined).result()
    runs.append(made)
    return read + generated(ledger.load(made.records).values())


def _embedded(
    ledger: Ledger, videos: Sequence[LabelledVideo], parameters: AugmentParameters, runs: list[ShardResult]
) -> tuple[dict[str, Record], tuple[LeftOut, ...]]:
    """Subject → record of the videos that could be read; those that could not. What ran joins `runs`."""
    params = part(parameters, EmbedParams)
    futures = [
        embed_shard.submit(
            label,
            [video for video in videos if video.synthetic == synthetic],
            params,
            0 if synthetic else params.clip_variants,
            parameters.retry_quarantined,
        )
        for label, synthetic in (("real", False), ("synthetic", True))
    ]
    found = [future.result() for future in futures]
    runs += found
    records = {r.subject: r for r in ledger.load({run_id for run in found for run_id in run.records}).values()}
    bad = tuple(
        LeftOut(video.name, record.reason or "", str(record.detail.get("message", "")))
        for video in videos
        if (record := records[video.subject]).status != "kept"
    )
    return {subject: record for subject, record in records.items() if record.status == "kept"}, bad


def _show(result: Mapping[str, Any], picture: bytes) -> None:
    create_table_artifact(table_rows(result), key="augmentation", description=result["headline"])
    create_markdown_artifact(
        markdown(result, f"data:image/png;base64,{base64.b64encode(picture).decode()}"),
        key="augmentation-report",
        description="Does synthetic data help?",
    )


augment = flow(
    takes(
        _augment,
        "augment",
        AugmentParameters,
        first=("labelled", "synthetic", "model", "prompts", "classifier", "ratios", "seeds", "leakage"),
    ),
    name="augment",
    flow_run_name=run_name("augment", "labelled", "synthetic", "model"),
    task_runner=task_runner(),
    persist_result=False,
    validate_parameters=True,
)
PARAMETERS = AugmentParameters
