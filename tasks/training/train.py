"""Train: the encoded clips of a release and a base become a model, on record.

The training itself is a process of its own in a working folder (`models.training`), so that a lack of memory or a
crash takes nothing else along, and so that accelerate can start it on many GPUs. Killed anywhere, the same command
goes on from the last checkpoint and ends with the same model. The key holds base, configuration and the digests of
all encoded clips: the same model is not trained twice.
"""

import collections
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from prefect.context import TaskRunContext
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy.orm import Session

import models
from medgen.canonical import canonical_json
from medgen.catalog import ModelVersion
from medgen.errors import ItemFailed, RunStopped
from medgen.folders import put_folder
from medgen.ledger import Ledger, Outcome, Record, StepIdentity, Work
from medgen.settings import current
from medgen.store import Artifact, Store
from models.training.clip_frames import best_fit, read_frames, read_geometries
from models.training.config import Preset, TrainConfig, configured
from models.training.job import STOPPED, Check, Sample, TrainJob, memory_advice, read_rows, require, split_by_video
from tasks.prefect_step import StepProgress, step_task
from tasks.training.released import ReleasedClip, released_clips
from tasks.training.training_report import loss_plot, model_card, watchers

TRAIN = "train"
LATENTS = "latents:"  # beginning of the role of an encoded clip among a training run's inputs; the clip's id follows
MERGED, ADAPTER = "text_to_video", "text_to_video_adapter"  # kinds of model versions


class TrainParams(BaseModel):
    """Parameters of training as people give them: a preset, and what of it they want otherwise."""

    model_config = ConfigDict(frozen=True)

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
                raise ValueError(
                    f"training has no field {name!r}; there are {', '.join(sorted(TrainConfig.model_fields))}"
                )
            try:
                changed[name] = json.loads(value)
            except ValueError:
                changed[name] = value
        return configured(self.preset, changed)


class TrainingEnded(RunStopped):
    """The training process ended before its time. Checkpoints stay in the working folder."""


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
        encoded: kept records of the step encode, one per clip.
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
    _, row = released_clips(ledger, release)
    inputs, parents = {"empty": empty.outputs["empty"]}, {"empty": empty.id, "release": row.step_run_id}
    for record in encoded:
        inputs[LATENTS + record.subject] = record.outputs["latents"]
        parents[LATENTS + record.subject] = record.id
    with Session(ledger.engine) as session:
        version = session.get(ModelVersion, base_digest)
        if version is not None:
            inputs["base"] = base_digest
            if version.step_run_id is not None:
                parents["base"] = version.step_run_id
    config = params.config()
    identity = StepIdentity(TRAIN, 1, {"preset": params.preset, **config.identity()}, {"base": base_digest})
    return identity, Work(release, inputs, parents=parents, access={"base": str(base)})


def train(
    ledger: Ledger,
    identity: StepIdentity,
    work: Work,
    params: TrainParams,
    report: Callable[[dict[str, Any]], None] = lambda facts: None,
    flow_run_id: str | None = None,
) -> tuple[Record, bool]:
    """The record of the trained model, and whether it was there already.

    Outputs: `manifest` and the files of the diffusers pipeline; `curve/losses.parquet`, `curve/validations.json`,
    `curve/plot.png`, `preflight.json`, `tensorboard/…`, `videos/…`.

    Args:
        report: told of every check, step, validation and checkpoint; see `models.training.trainer.Report`.

    Raises:
        PreflightFailed: nothing was trained. TrainingEnded, and others of `models.training.trainer` by their message:
        the working folder stays, and the same call goes on. Nothing is recorded then.
    """

    def make() -> Outcome:
        began = time.monotonic()
        job = _job(ledger, identity, work, params)
        launch(job, params, report)
        return _outcome(ledger.store, job, work.subject, params, time.monotonic() - began)

    record, stood = ledger.once(identity, work, make, flow_run_id=flow_run_id)
    if not stood:
        folder = working_folder(identity.key(work))
        for name in ("samples", "checkpoints", "model"):
            shutil.rmtree(folder / name, ignore_errors=True)
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
    from medgen.ledger import open_ledger

    ledger = open_ledger()
    records = ledger.load([*encoded, empty])
    identity, work = prepare(
        ledger, release, Path(base), base_digest, [records[i] for i in encoded], records[empty], params
    )
    bar = StepProgress(TRAIN) if TaskRunContext.get() else None
    checks: list[dict[str, str]] = []

    def report(facts: dict[str, Any]) -> None:
        if facts["event"] == "check":
            checks.append({name: value for name, value in facts.items() if name != "event"})
        if bar and facts["event"] == "step":
            bar(facts["step"], facts["steps"])
        for watcher in watchers:
            watcher(facts)

    if check_only:
        launch(_job(ledger, identity, work, params), params, report, check_only=True)
        return None, False, checks
    record, reused = train(ledger, identity, work, params, report, flow_run.id)
    return record.id, reused, checks


# Retries are for outages; training has resumption instead, and a failed check fails again.
train_release = train_release.with_options(retries=0)


def read_validations(ledger: Ledger, record: Record) -> list[dict[str, Any]]:
    """Rows of the validations of a training run; see `models.training.trainer.Trained`."""
    return json.loads(ledger.store.read(record.outputs["curve/validations.json"]))


def _job(ledger: Ledger, identity: StepIdentity, work: Work, params: TrainParams) -> TrainJob:
    clips, _ = released_clips(ledger, work.subject)
    by_id = {clip.clip_id: clip for clip in clips}
    return lay_out_job(ledger.store, working_folder(identity.key(work)), work, by_id, params, identity.models["base"])


def working_folder(key: str) -> Path:
    """Where a training run works. Its checkpoints, log and TensorBoard files lie here."""
    return current().home / "training" / key


def lay_out_job(
    store: Store,
    folder: Path,
    work: Work,
    clips: Mapping[str, ReleasedClip],
    params: TrainParams,
    base_digest: str,
) -> TrainJob:
    """Writes the job and links its encoded clips into the working folder, where no cache can drop them.

    Clips of videos that were taken down since they were encoded are left out.

    Raises:
        ArtifactLost, StoreUnavailable: as `Store.path`.
    """
    places = folder / "samples"
    places.mkdir(parents=True, exist_ok=True)
    samples = []
    for role, sha256 in sorted(work.inputs.items()):
        clip = clips.get(role.removeprefix(LATENTS))
        if role.startswith(LATENTS) and clip is not None:
            path = _linked(store.path(sha256), places / f"{sha256}.safetensors")
            samples.append(
                Sample(path=path, clip_id=clip.clip_id, video_id=clip.video_id, category=clip.category, sha256=sha256)
            )
    job = TrainJob(
        config=params.config(),
        base=str(work.access["base"]),
        base_digest=base_digest,
        samples=tuple(samples),
        empty=_linked(store.path(work.inputs["empty"]), places / "empty.safetensors"),
        folder=folder,
        probe_clip=_probe_clip(store, folder, [clips[s.clip_id] for s in samples], params.config()),
    )
    job.write(folder / "job.json")
    return job


def _linked(source: Path, target: Path) -> Path:
    if not target.exists():
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
    return target


def _probe_clip(store: Store, folder: Path, clips: Sequence[ReleasedClip], config: TrainConfig) -> Path | None:
    """Frames of the first clip that can be read, for pre-flight's round trip; None when there is none."""
    for clip in clips[:3]:
        size = {"duration_s": clip.duration_s, "width": clip.width, "height": clip.height}
        geometry = best_fit(read_geometries(config.buckets), config.fps, **size)
        try:
            if geometry is not None:
                frames = read_frames(store.path(clip.sha256), geometry, config.fps, clip.duration_s)
                np.save(folder / "probe_clip.npy", frames, allow_pickle=False)
                return folder / "probe_clip.npy"
        except ItemFailed:
            continue
    return None


def launch(
    job: TrainJob, params: TrainParams, report: Callable[[dict[str, Any]], None], *, check_only: bool = False
) -> None:
    """Pre-flight, where nothing was trained yet, and training, in processes of their own.

    Args:
        check_only: stop after pre-flight, whatever it finds.

    Raises: as `train`.
    """
    begun = any((job.folder / "checkpoints").glob("checkpoint-*"))
    if (job.config.preflight or check_only) and not begun:
        checks: list[Check] = []

        def heard(facts: dict[str, Any]) -> None:
            if facts["event"] == "check":
                checks.append(Check(**{k: v for k, v in facts.items() if k != "event"}))
            report(facts)

        _run([sys.executable, "-m", "models.training", "--preflight", str(job.folder / "job.json")], job, heard)
        rows = [check.row() for check in checks]
        (job.folder / "preflight.json").write_text(json.dumps(rows, indent=1) + "\n")
        if not check_only:
            require(checks)
    if not check_only:
        _run(training_command(job, params), job, report)


def training_command(job: TrainJob, params: TrainParams) -> list[str]:
    """The command of the training process or processes; people can run it by hand just as well."""
    target = ["-m", "models.training", str(job.folder / "job.json")]
    if not params.accelerate_config and job.config.num_processes == 1:
        return [sys.executable, *target]
    if not params.accelerate_config and not _has_gpu():
        # `accelerate launch` starts several processes on GPUs only; on CPUs this is what it would call.
        processes = ["--standalone", "--nproc-per-node", str(job.config.num_processes)]
        return [sys.executable, "-m", "torch.distributed.run", *processes, *target]
    options = ["--num_processes", str(job.config.num_processes), "--mixed_precision", job.config.mixed_precision]
    if params.accelerate_config:
        options = ["--config_file", params.accelerate_config, *options]
    else:
        # On CPUs too, where `--cpu` would want MPI; there `_run` keeps the processes off a GPU that is not there.
        port = ["--main_process_port", "0"]
        options = ["--multi_gpu", "--num_machines", "1", "--dynamo_backend", "no", *port, *options]
    return [sys.executable, "-m", "accelerate.commands.launch", *options, *target]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _run(command: Sequence[str], job: TrainJob, report: Callable[[dict[str, Any]], None]) -> None:
    """Runs a process to its end and hands on what it tells."""
    environment = dict(os.environ)
    threads = max(1, (os.cpu_count() or 1) // job.config.num_processes)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        environment[variable] = str(threads)
    here = str(Path(models.__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [here, environment.get("PYTHONPATH", "")]))
    if not _has_gpu():
        environment["ACCELERATE_USE_CPU"] = "true"
    environment["MEDGEN_ENDS_WITH_STDIN"] = "1"  # the process must not outlive this one
    stopped: dict[str, Any] = {}
    with (job.folder / "log.txt").open("ab") as log_file:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        last: collections.deque[bytes] = collections.deque(maxlen=12)

        def keep() -> None:
            assert process.stderr
            for line in process.stderr:
                log_file.write(line)
                last.append(line)

        listener = threading.Thread(target=keep, daemon=True)
        listener.start()
        try:
            assert process.stdout
            for line in process.stdout:
                try:
                    facts = json.loads(line)
                except ValueError:
                    continue  # a library's word
                if isinstance(facts, dict) and "event" in facts:
                    stopped = facts if facts["event"] == "stopped" else stopped
                    report(facts)
        finally:
            if process.stdin:
                process.stdin.close()
            if process.poll() is None:
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
            code = process.wait()
            listener.join(10)
    if stopped:
        raise TrainingEnded(stopped["message"])
    if code in (-9, 137):
        raise TrainingEnded(
            f"the training process was killed, most likely for lack of memory: {memory_advice(job.config)}"
        )
    if code != 0:
        assert code != STOPPED
        said = b"".join(last).decode(errors="replace").strip()
        raise TrainingEnded(
            f"the training process ended with exit code {code}; its log is {job.folder / 'log.txt'}. "
            f"Run again to go on from the last checkpoint. It said:\n{said}"
        )


def _outcome(store: Store, job: TrainJob, release: str, params: TrainParams, seconds: float) -> Outcome:
    """Takes the model and its curves into the store."""
    folder, config = job.folder, job.config
    curve, validations = read_rows(folder / "losses.jsonl"), read_rows(folder / "validation.jsonl")
    quarantined = json.loads((folder / "quarantined.json").read_text())
    train, away = split_by_video(job.samples, config.validation_share, config.seed)
    facts: dict[str, Any] = {
        "release": release,
        "base": job.base_digest,
        "base_name": config.pretrained_model_name_or_path,
        "preset": params.preset,
        "steps": len(curve),
        "train_clips": sum(s.clip_id not in quarantined for s in train),
        "train_videos": len({s.video_id for s in train}),
        "held_out_clips": sum(s.clip_id not in quarantined for s in away),
        "held_out_videos": sorted({s.video_id for s in away}),
        "quarantined": quarantined,
        "train_loss": [validations[0]["train_loss"], validations[-1]["train_loss"]],
        "held_out_loss": [validations[0]["loss"], validations[-1]["loss"]],
    }
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
    for part, kind in (("tensorboard", "application/octet-stream"), ("videos", "video/mp4")):
        for path in sorted((folder / part).rglob("*")):
            if path.is_file():
                outputs[f"{part}/{path.relative_to(folder / part).as_posix()}"] = store.put_bytes(
                    path.read_bytes(), kind
                )
    version = ModelVersion(
        digest=digest,
        name=name,
        kind=MERGED if config.training == "full" or config.merge_lora else ADAPTER,
        checkpoint_sha256=digest,
        release_name=release,
    )
    scores = {"train_loss": facts["train_loss"][1], "held_out_loss": facts["held_out_loss"][1]}
    return Outcome(
        "kept",
        detail={"model": digest, "name": name, **facts, "seconds": round(seconds, 1)},
        scores={metric: value for metric, value in scores.items() if value is not None},
        score_models=dict.fromkeys(scores, digest),
        outputs=outputs,
        rows=[version],
    )


def _parquet(curve: Sequence[Mapping[str, Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(curve)), out)
    return out.getvalue()
