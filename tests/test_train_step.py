"""Training on record: killed and run again, the same model; lineage both ways; nothing twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from apps.cli import app
from medgen.catalog import ModelVersion, StepRun
from medgen.errors import ItemFailed
from medgen.gc import collect_garbage
from medgen.ledger import open_ledger
from medgen.model_lineage import models_of
from medgen.verify import verify
from models.training.config import TrainConfig
from models.training.job import read_rows
from models.training.trainer import Trainer
from tasks.training import train
from tasks.training.job_folder import working_folder
from tasks.training.model_files import model_folder
from tasks.training.model_lineage import trained_by
from tasks.training.process import TrainingEnded
from tests.conftest import ROOT, forked
from tests.made_release import made_release, put_encoded
from tests.tiny_wan import made_up_samples, tiny_base, tiny_config, tiny_job

OVERRIDES = [
    f"{name}={json.dumps(value)}"
    for name, value in tiny_config(preflight=False, checkpointing_steps=5).model_dump(mode="json").items()
    if name != "pretrained_model_name_or_path"
] + ["preflight=false", "checkpointing_steps=5"]  # fmt: skip

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"

RUN = """
import sys
from pathlib import Path
from medgen.ledger import open_ledger
from tasks.training import train
from tests.test_train_step import arrange
ledger = open_ledger()
train.train(ledger, *arrange(ledger, Path(sys.argv[1]), sys.argv[2:]))
"""


def arrange(ledger, folder: Path, overrides):
    """(identity, work, params) of a training run; the same for the same folder in any process."""
    base, samples = folder / "b" / "pipeline", folder / "samples"
    if not base.exists():
        tiny_base(base)
        (folder / "j").mkdir()
        tiny_job(folder / "j", base, ())
    encoded = made_up_samples(samples)
    made_release(ledger, folder / "clips", {s.clip_id: s.video_id for s in encoded})
    records, empty = put_encoded(ledger, encoded, folder / "j" / "empty.safetensors")
    params = train.TrainParams(preset="nano", overrides=tuple([*OVERRIDES, *overrides]))
    digest = model_folder(ledger, str(base))[1]
    return *train.prepare(ledger, "made-1", base, digest, records, empty, params), params


def test_killed_and_run_again_is_the_same_model(home, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ledger = open_ledger()
    changes = ["max_train_steps=80", "validation_steps=40"]
    identity, work, params = arrange(ledger, tmp_path, changes)
    folder = working_folder(identity.key(work))
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path), *changes], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    while len(read_rows(folder / "losses.jsonl")) < 20:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for variable, value in forked("models.training").items():
        monkeypatch.setenv(variable, value)
    told = []
    record, reused = train.train(ledger, identity, work, params, told.append)
    assert not reused and any(facts["event"] == "resumed" and facts["step"] >= 5 for facts in told)
    killed_model, killed_curve = record.detail["model"], ledger.store.read(record.outputs["curve/losses.parquet"])

    again, reused = train.train(ledger, identity, work, params)
    assert reused and again.id == record.id
    # The whole run, uninterrupted, under another key: checkpoints are no part of what is learnt, a preset's name is.
    shutil.rmtree(folder / "checkpoints")  # it would go on from the end
    other = train.StepIdentity(identity.name, identity.version + 1, identity.params, identity.models)
    whole, _ = train.train(ledger, other, work, params)
    assert whole.detail["model"] == killed_model
    assert ledger.store.read(whole.outputs["curve/losses.parquet"]) == killed_curve

    # Another cadence goes on from the end; a longer run, whose cosine ends later, only where that is said.
    told = []
    monkeypatch.setattr(train, "launch", lambda job, config, report: Trainer(job, report).run())  # in this process
    identity, work, more = arrange(ledger, tmp_path, [*changes, "validation_steps=20"])
    again, _ = train.train(ledger, identity, work, more, told.append)
    assert again.outputs[TRANSFORMER] == record.outputs[TRANSFORMER]
    assert [facts["step"] for facts in told if facts["event"] == "resumed"] == [80]
    longer = ["max_train_steps=83", f"extends=medgen:{again.detail['name']}"]
    identity, work, more = arrange(ledger, tmp_path, [*changes, *longer])
    extended, _ = train.train(ledger, identity, work, more, told.append)
    assert extended.detail["steps"] == 83
    assert [facts["step"] for facts in told if facts["event"] == "resumed"] == [80, 80]
    losses = pq.read_table(ledger.store.path(extended.outputs["curve/losses.parquet"])).to_pylist()
    assert [row["step"] for row in losses] == list(range(1, 84))
    identity, work, more = arrange(ledger, tmp_path, [*changes, *longer, "learning_rate=0.01"])
    with pytest.raises(ItemFailed, match="trained with other configuration"):
        train.train(ledger, identity, work, more)

    # lineage
    with Session(ledger.engine) as session:
        version = session.scalars(select(ModelVersion).where(ModelVersion.digest == killed_model)).one()
        run = session.get(StepRun, version.step_run_id)
    assert version.release_name == "made-1" and version.name == f"nano-{killed_model[:12]}" and run.step == "train"
    facts = trained_by(ledger, version.name)
    parts = {row["clip_id"]: row["part"] for row in facts["clips"]}
    assert len(parts) == 10 and set(parts.values()) == {"trained_on", "held_out"}
    assert facts["release"] == "made-1" and facts["step"]["params"]["learning_rate"] == 1e-3
    by_video = {}
    for row in facts["clips"]:
        by_video.setdefault(row["video_id"], set()).add(row["part"])
    assert all(len(found) == 1 for found in by_video.values())
    entered = {m["name"]: m["part"] for m in models_of(ledger, "clip-0-0")}
    assert entered[version.name] == parts["clip-0-0"] and set(entered.values()) == {parts["clip-0-0"]}
    assert models_of(ledger, "no-such-clip") == []

    listed = json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout)
    (row,) = (row for row in listed if row["digest"] == killed_model)
    assert (row["steps"], row["preset"], row["release"]) == (80, "nano", "made-1") and row["held_out_loss"] > 0
    assert extended.detail["name"] in CliRunner().invoke(app, ["models"], terminal_width=300).stdout

    # the folder can be had, and nothing of it is garbage
    collect_garbage(ledger, grace_s=0, dry_run=False)
    laid, digest = model_folder(ledger, f"medgen:{version.name}")
    assert digest == killed_model and "made-1" in (laid / "README.md").read_text()
    # The made-up release was not made by a refresh: its own records are too short for the check.
    assert not [fault for fault in verify(ledger, home / "releases") if not fault.startswith(("clip ", "release "))]


def test_what_stops_a_run(home, tmp_path, monkeypatch):
    for variable, value in {"OMP_NUM_THREADS": "1", **forked("models.training")}.items():
        monkeypatch.setenv(variable, value)
    ledger = open_ledger()
    identity, work, params = arrange(ledger, tmp_path, ["preflight=true", "max_train_steps=4"])
    empty = work.parents["empty"]
    with pytest.raises(ItemFailed, match="no clip of the release made-1"):
        train.prepare(ledger, "made-1", tmp_path, "0" * 64, [], ledger.load([empty])[empty], params)
    with pytest.raises(ItemFailed, match="unknown_release"):
        train.prepare(ledger, "nothing", tmp_path, "0" * 64, [object()], None, params)
    # Pre-flight stops: this VAE is untrained.
    told = []
    from models.training.job import PreflightFailed

    with pytest.raises(PreflightFailed, match="vae_round_trip"):
        train.train(ledger, identity, work, params, told.append)
    assert [facts["event"] for facts in told] == ["check"] * 10
    with Session(ledger.engine) as session:
        assert session.scalars(select(StepRun).where(StepRun.step == "train")).all() == []
    # A learning rate that makes no sense, and fields that do not exist.
    wild = train.TrainParams(
        overrides=(
            *OVERRIDES,
            "learning_rate=1000",
            "adam_weight_decay=1000",  # each step multiplies the weights by a million
            "lr_scheduler=constant",
            "lr_warmup_steps=0",
        )
    )
    identity, work = train.prepare(
        ledger, "made-1", tmp_path / "b" / "pipeline", identity.models["base"],
        [r for i, r in ledger.load(work.parents.values()).items() if r.step == "encode"],
        ledger.load([empty])[empty], wild,
    )  # fmt: skip
    with pytest.raises(TrainingEnded, match="lower learning_rate"):
        train.train(ledger, identity, work, wild)
    with pytest.raises(ValueError, match="no field 'leraning_rate'"):
        train.TrainParams(overrides=("leraning_rate=1",))
    with pytest.raises(ValueError, match="NAME=VALUE"):
        train.TrainParams(overrides=("learning_rate",))
    assert TrainConfig.model_fields
