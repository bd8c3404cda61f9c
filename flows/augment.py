"""Does synthetic data help a classifier? From labelled videos to a table with intervals."""

import json
from collections.abc import Sequence
from dataclasses import replace

from prefect import get_run_logger
from prefect.runtime import flow_run
from pydantic import ConfigDict, Field

from flows.flow_signature import subset
from flows.make_flow import Summary, make_flow
from flows.run_name import run_name
from medgen.ledger import Ledger, Record, open_ledger
from medgen.shard import ShardResult
from tasks.augmentation import augment as experiment
from tasks.augmentation.artifacts import show_experiment
from tasks.augmentation.augment import AugmentParams, plan_of, require_all
from tasks.augmentation.embed_video import EmbedParams, classifier_digest, embed_shard
from tasks.augmentation.fit_classifier import FitParams, fit_shard
from tasks.augmentation.generator_lineage import with_lineage
from tasks.augmentation.labelled_videos import (
    CannotAugment,
    Labelled,
    LabelledVideo,
    LeftOut,
    fit_for_experiment,
    generated,
    prompts_of_labels,
    unreadable,
)
from tasks.augmentation.read_labelled import LabelParams, read_labelled
from tasks.evaluation import generate
from tasks.evaluation.generate import GenerateParams


class AugmentParameters(AugmentParams, GenerateParams, LabelParams):
    """Everything that an augmentation experiment can be told, the generation of its synthetic videos included."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labelled: str = Field(
        "",
        description="Real videos: a folder whose sub-folders are labels, a CSV with path, label, source (synthetic, "
        "trained_on), MedVidCL, HyperKvasir or SurgVisDom as their authors lay them out, or the name of a release.",
    )
    synthetic: str = Field("", description="Synthetic videos: a folder whose sub-folders are labels, or a CSV.")
    prompts: str = Field(
        "",
        description="File of prompts (.txt, .csv, .jsonl), or `medical`: a prompt's category is the label of the "
        "synthetic videos that `model` makes of it.",
    )
    retry_quarantined: bool = Field(False, exclude=True, description="Try videos again that failed for good.")


def _augment(parameters: AugmentParameters) -> Summary:
    """Read labelled videos, embed them, train and test a classifier for every arm, seed and fold, compare."""
    log = get_run_logger()
    if not parameters.labelled:
        raise CannotAugment("no videos: name a folder, a CSV file or a release")
    if bool(parameters.model) != bool(parameters.prompts):
        raise CannotAugment("synthetic videos to be made need both a model and a file of prompts")
    classifier_digest(parameters)  # a model that can't be had must be an error before any work
    ledger = open_ledger()
    shards: list[ShardResult] = []
    labelled = fit_for_experiment(_read(ledger, parameters, shards), parameters.min_sources)
    embedded, bad = _embed(ledger, labelled.videos, parameters, shards)
    # Once more: what could not be read may have been all that a class had.
    good = tuple(video for video in labelled.videos if video.subject in embedded)
    labelled = fit_for_experiment(Labelled(good, labelled.left_out + bad, labelled.notes), parameters.min_sources)
    videos, leaks = with_lineage(ledger, labelled.videos)
    labelled = replace(labelled, videos=tuple(videos))
    samples = {video.subject: embedded[video.subject].outputs["sample"] for video in videos}
    plan, fits = plan_of(videos, samples, leaks, parameters)
    log.info("%d videos, %d trainings", len(videos), len(fits))
    label = f"{len(fits)}-trainings"
    fitted = fit_shard.submit(label, plan, fits, subset(parameters, FitParams), parameters.retry_quarantined).result()
    shards.append(fitted)
    trainings = ledger.load(fitted.records)
    require_all(trainings.values(), len(fits))
    record, stood = experiment.augment(
        ledger,
        plan,
        fits,
        [trainings[run_id] for run_id in fitted.records],
        labelled,
        {subject: embedded[subject].id for subject in samples},
        leaks,
        subset(parameters, AugmentParams),
        flow_run.id,
    )
    result = json.loads(ledger.store.read(record.outputs["result"]))
    show_experiment(result, ledger.store.read(record.outputs["plot"]))
    log.info("%s", result["headline"])
    return {
        "executed": sum(shard.executed for shard in shards) + (not stood),
        "reused": sum(shard.reused for shard in shards) + stood,
        "decodes": sum(shard.decodes for shard in shards),
        "step_run_id": record.id,
        "artifacts": record.outputs,
        "result": result,
    }


def _read(ledger: Ledger, parameters: AugmentParameters, shards: list[ShardResult]) -> Labelled:
    """Real and synthetic videos; these are made first where a model is named. What ran joins `shards`."""
    params = subset(parameters, LabelParams)
    labelled = read_labelled(ledger, parameters.labelled, params)
    if parameters.synthetic:
        labelled += read_labelled(ledger, parameters.synthetic, params, synthetic=True)
    if not parameters.model:
        return labelled
    prompts = prompts_of_labels(parameters.prompts, labelled)
    settings = subset(parameters, GenerateParams)
    generate.plan(ledger, settings)  # a model that can't be had must be an error before any work
    made = generate.generate_shard.submit("synthetic", prompts, settings, parameters.retry_quarantined).result()
    shards.append(made)
    return labelled + generated(ledger.load(made.records).values())


def _embed(
    ledger: Ledger, videos: Sequence[LabelledVideo], parameters: AugmentParameters, shards: list[ShardResult]
) -> tuple[dict[str, Record], tuple[LeftOut, ...]]:
    """Subject → record of the videos that could be read; those that could not. What ran joins `shards`."""
    params = subset(parameters, EmbedParams)
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
    results = [future.result() for future in futures]
    shards += results
    ids = {run_id for result in results for run_id in result.records}
    records = {record.subject: record for record in ledger.load(ids).values()}
    kept = {subject: record for subject, record in records.items() if record.status == "kept"}
    return kept, unreadable(videos, records)


augment = make_flow(
    _augment,
    AugmentParameters,
    "augment",
    run_name("augment", "labelled", "synthetic", "model"),
    first=("labelled", "synthetic", "model", "prompts", "classifier", "ratios", "seeds", "leakage"),
)
PARAMETERS = AugmentParameters
