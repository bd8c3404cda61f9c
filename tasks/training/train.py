"""Train: the encoded clips of a release and a base become a model, on record.

The training itself is a process of its own (`tasks.training.process`) in a working folder. Killed anywhere, the same
command goes on from the last checkpoint and ends with the same model. The key holds base, configuration and the
digests of all encoded clips: the same model is not trained twice.
"""

import io
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from prefect.context import TaskRunContext
from prefect.runtime import flow_run
from pydantic import Field, model_validator
from sqlalchemy.orm import Session

from medgen.canonical import canonical_json
from medgen.catalog import ModelVersion
from medgen.errors import ItemFailed
from medgen.folders import put_folder
from medgen.handover import Handover
from medgen.ledger import Ledger, Outcome, Record, StepIdentity, Work, open_ledger
from medgen.model_lineage import LATENTS, TRAIN
from medgen.parameters import Parameters, suggestion
from medgen.store import Artifact, Store
from models.training.best import read_facts
from models.training.config import TrainConfig, configured
from models.training.job import CHECKPOINT, CHECKPOINTS, TrainJob, read_rows, split_by_video
from models.training.presets import Preset
from models.training.sampling import sampling_of
from tasks.prefect_step import StepProgress, step_task
from tasks.progress import training_listener
from tasks.training.earlier_run import go_on_from_earlier
from tasks.training.encode import EMPTY_TEXT, ENCODE, ENCODE_TEXT, TEXT
from tasks.training.job_folder import TEXTS, materialize_job, working_folder
from tasks.training.mixture import weights_of
from tasks.training.model_files import ADAPTER, KIND, ON_RECORD, model_on_record
from tasks.training.process import Report, launch
from tasks.training.released import stream_clips, usable_release
from tasks.training.training_report import TrainFacts, ValidationRow, loss_plot, model_card


class TrainParams(Parameters):
    """Parameters of training as people give them: a preset, and what of it they want otherwise."""

    preset: Preset = Field("nano", description="nano runs on a laptop; the others need GPUs and Wan 2.1's weights.")
    overrides: tuple[str, ...] = Field(
        (), description="NAME=VALUE for fields of the preset, such as learning_rate=1e-4 or max_train_steps=200."
    )
    accelerate_config: str = Field(
        "", exclude=True, description="Config file of `accelerate config`, for several GPUs (DDP or FSDP 2)."
    )

    @model_validator(mode="after")
    def _check(self) -> "TrainParams":
        self.config()
        return self

    def config(self) -> TrainConfig:
        """The preset with the overrides. Raises ValueError."""
        changed: dict[str, Any] = {}
        for text in self.overrides:
            name, equals, value = text.partition("=")
            if not equals:
                raise ValueError(f"overrides are NAME=VALUE, not {text!r}")
            if name not in TrainConfig.model_fields:
                meant = suggestion(name, TrainConfig.model_fields)
                raise ValueError(
                    f"training has no field {name!r}{meant}; there are {', '.join(sorted(TrainConfig.model_fields))}"
                )
            try:
                changed[name] = json.loads(value)
            except ValueError:
                changed[name] = value
        return configured(self.preset, changed)


class TrainDetail(TrainFacts):
    """Detail of the record of a training run: `model` is the digest, `name` what people call it."""

    model: str
    name: str
    seconds: float


TRAINED: Handover[TrainDetail] = Handover(TRAIN)


def prepare(
    ledger: Ledger,
    release: str,
    base: Path,
    base_digest: str,
    encoded: Sequence[Record],
    empty: Record,
    params: TrainParams,
) -> tuple[StepIdentity, Work]:
    """What the training of these clips goes on record as.

    Args:
        encoded: kept records of the steps encode and encode_text, one of each per clip.
        empty: record whose output `empty` is the embedding of the empty caption.

    Raises:
        ItemFailed: nothing_encoded when there is no encoded clip.
    """
    if not encoded:
        raise ItemFailed(
            "nothing_encoded",
            f"no clip of the release {release} could be encoded: see `medgen status` for the reasons (clips shorter "
            "than the smallest bucket, captions missing)",
        )
    row = usable_release(ledger, release)
    inputs, parents = {"empty": EMPTY_TEXT.outputs(empty)["empty"]}, {"empty": empty.id, "release": row.step_run_id}
    for record in encoded:
        if record.step == TEXT:
            inputs[TEXTS + record.subject] = ENCODE_TEXT.outputs(record)["texts"]
            parents[TEXTS + record.subject] = record.id
            continue
        for role, sha256 in ENCODE.outputs(record).items():  # windows but the first have their number behind an @
            inputs[LATENTS + record.subject + role.removeprefix("latents")] = str(sha256)
        parents[LATENTS + record.subject] = record.id
    with Session(ledger.engine) as session:
        version = session.get(ModelVersion, base_digest)
        if version is not None:
            inputs["base"] = base_digest
            if version.step_run_id is not None:
                parents["base"] = version.step_run_id
    config = params.config()
    facts = {"preset": params.preset, **config.identity()}
    if config.extends:
        extended = model_on_record(ledger, config.extends.removeprefix(ON_RECORD))
        facts["extends"] = extended.digest
        if extended.step_run_id is not None:
            parents["extends"] = extended.step_run_id
    if sampling := _sampling_facts(config, base):
        facts["sampling"] = sampling
    identity = StepIdentity(TRAIN, 1, facts, {"base": base_digest})
    return identity, Work(release, inputs, parents=parents, access={"base": str(base)})


def _sampling_facts(config: TrainConfig, base: Path) -> dict[str, Any]:
    """How the model will want to be sampled, but only what differs from how models were delivered before: with the
    steps and the guidance of the validation videos. So their records stand."""
    sampling = sampling_of(config, base)
    facts = sampling.model_dump(mode="json", exclude_defaults=True, include={"flow_shift", "negative_prompt"})
    before = {
        "num_inference_steps": config.validation_inference_steps,
        "guidance_scale": config.guidance_scale,
        "guidance_scale_2": None,
    }
    return facts | {name: getattr(sampling, name) for name, value in before.items() if getattr(sampling, name) != value}


def train(
    ledger: Ledger,
    identity: StepIdentity,
    work: Work,
    params: TrainParams,
    report: Report = lambda facts: None,
    flow_run_id: str | None = None,
) -> tuple[Record, bool]:
    """The record of the trained model, and whether it was there already.

    Outputs: `manifest` and the files of the diffusers pipeline; `curve/losses.parquet`, `curve/validations.json`,
    `curve/plot.png`, `preflight.json`, `tensorboard/…`, `videos/…`.

    Args:
        report: called with every check, step, validation and checkpoint; see `models.training.trainer.Report`.

    Raises:
        PreflightFailed: nothing was trained. TrainingEnded, and others of `models.training.trainer` by their message:
        the working folder stays, and the same call goes on. Nothing is recorded then.
    """

    def make() -> Outcome:
        began = time.monotonic()
        job = _job(ledger, identity, work, params)
        go_on_from_earlier(ledger, job)
        launch(job, params.accelerate_config, report)
        return _outcome(ledger.store, job, work.subject, params, time.monotonic() - began)

    record, stood = ledger.once(identity, work, make, flow_run_id=flow_run_id)
    if not stood:
        folder = working_folder(identity.key(work))
        kept = (
            max((folder / CHECKPOINTS).glob(f"{CHECKPOINT}*"), default=None)
            if params.config().keep_checkpoint
            else None
        )
        for path in (folder / "samples", folder / "model", *(folder / CHECKPOINTS).glob("*")):
            if path != kept:  # a longer run can go on from it
                shutil.rmtree(path, ignore_errors=True)
    return record, stood


@step_task("train", "gpu")
def train_release(
    label: str,
    release: str,
    base: str,
    base_digest: str,
    encoded: Sequence[int],
    empty: int,
    params: TrainParams,
    check_only: bool = False,
) -> tuple[int | None, bool, list[dict[str, str]]]:
    """Trains, with progress in the UI.

    Args:
        encoded, empty: ids of records; see `prepare`.
        check_only: stop after pre-flight.

    Returns:
        Id of the record (None with `check_only`), whether it was there already, and pre-flight's checks.
    """
    ledger = open_ledger()
    records = ledger.load([*encoded, empty])
    identity, work = prepare(
        ledger, release, Path(base), base_digest, [records[i] for i in encoded], records[empty], params
    )
    bar = StepProgress(TRAIN) if TaskRunContext.get() else None
    listener = training_listener()
    checks: list[dict[str, str]] = []

    def report(facts: dict[str, Any]) -> None:
        if facts["event"] == "check":
            checks.append({name: value for name, value in facts.items() if name != "event"})
        if bar and facts["event"] == "step":
            bar(facts["step"], facts["steps"])
        if listener:
            listener(facts)

    if check_only:
        launch(_job(ledger, identity, work, params), params.accelerate_config, report, check_only=True)
        return None, False, checks
    record, reused = train(ledger, identity, work, params, report, flow_run.id)
    return record.id, reused, checks


# Retries are for outages; training has resumption instead, and a failed check fails again.
train_release = train_release.with_options(retries=0)


def read_validations(ledger: Ledger, record: Record) -> list[ValidationRow]:
    """The validations of a training run."""
    validations: list[ValidationRow] = json.loads(ledger.store.read(record.outputs["curve/validations.json"]))
    return validations


def _job(ledger: Ledger, identity: StepIdentity, work: Work, params: TrainParams) -> TrainJob:
    clips, release = stream_clips(ledger, work.subject)
    folder = working_folder(identity.key(work))
    weights = weights_of(release.policy)
    return materialize_job(ledger.store, folder, work, clips, params.config(), identity.models["base"], weights)


def _outcome(store: Store, job: TrainJob, release: str, params: TrainParams, seconds: float) -> Outcome:
    """Takes the model and its curves into the store."""
    folder, config = job.folder, job.config
    curve, validations = read_rows(folder / "losses.jsonl"), read_rows(folder / "validation.jsonl")
    facts = _facts(job, release, params, curve, validations)
    (folder / "model" / "README.md").write_text(model_card(facts, config), encoding="utf-8")
    stored = put_folder(store, folder / "model")
    digest = stored.manifest.sha256
    name = f"{params.preset}-{digest[:12]}"
    outputs: dict[str, Artifact] = stored.outputs()
    outputs["curve/losses.parquet"] = store.put_bytes(_parquet(curve), "application/vnd.apache.parquet")
    outputs["curve/validations.json"] = store.put_bytes(canonical_json(validations), "application/json")
    outputs["curve/plot.png"] = store.put_bytes(loss_plot(curve, validations), "image/png")
    if (folder / "preflight.json").exists():
        outputs["preflight.json"] = store.put_bytes((folder / "preflight.json").read_bytes(), "application/json")
    for subfolder, kind in (("tensorboard", "application/octet-stream"), ("videos", "video/mp4")):
        for path in sorted((folder / subfolder).rglob("*")):
            if path.is_file():
                role = f"{subfolder}/{path.relative_to(folder / subfolder).as_posix()}"
                outputs[role] = store.put_bytes(path.read_bytes(), kind)
    version = ModelVersion(
        digest=digest,
        name=name,
        kind=KIND if config.training == "full" or config.merge_lora else ADAPTER,
        checkpoint_sha256=digest,
        release_name=release,
    )
    scores = {"train_loss": facts["train_loss"][1], "held_out_loss": facts["held_out_loss"][1]}
    detail: TrainDetail = {"model": digest, "name": name, **facts, "seconds": round(seconds, 1)}
    return Outcome(
        "kept",
        detail=dict(detail),
        scores={metric: value for metric, value in scores.items() if value is not None},
        score_models=dict.fromkeys(scores, digest),
        outputs=outputs,
        rows=[version],
    )


def _facts(
    job: TrainJob,
    release: str,
    params: TrainParams,
    curve: Sequence[Mapping[str, Any]],
    validations: Sequence[Mapping[str, Any]],
) -> TrainFacts:
    """What the working folder tells of a training run that came to its end."""
    config = job.config
    quarantined = json.loads((job.folder / "quarantined.json").read_text())
    train, away = split_by_video(job.samples, config.validation_share, config.seed)
    best = read_facts(job.folder) if config.deliver == "best" else None
    delivered = best["step"] if best else len(curve)
    last = next((row for row in validations if row["step"] == delivered), validations[-1])
    return {
        "release": release,
        "base": job.base_digest,
        "base_name": config.pretrained_model_name_or_path,
        "preset": params.preset,
        "steps": len(curve),
        "train_clips": len({s.clip_id for s in train if s.name not in quarantined}),
        "train_videos": len({s.video_id for s in train}),
        "held_out_clips": len({s.clip_id for s in away if s.name not in quarantined}),
        "held_out_videos": sorted({s.video_id for s in away}),
        "quarantined": quarantined,
        "delivered_step": delivered,
        "train_loss": [validations[0]["train_loss"], last["train_loss"]],
        "held_out_loss": [validations[0]["loss"], last["loss"]],
    }


def _parquet(curve: Sequence[Mapping[str, Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(curve)), out)
    return out.getvalue()
