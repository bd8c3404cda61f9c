"""`medgen train` as people call it: base, encode, pre-flight, train; again: nothing recomputed."""

import json
import os
import subprocess
import sys

import pytest
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from apps.cli import app
from flows.train import PARAMETERS, train
from medgen.catalog import Release
from medgen.ledger import open_ledger
from models.training.job import PreflightFailed
from tests.conftest import ROOT, forked, inline, shared_prefect
from tests.made_release import made_release
from tests.published_sets import imports_here, made_clips, medvideocap


def command(*arguments: str) -> tuple[int, dict, str]:
    found = subprocess.run(
        [sys.executable, "-m", "apps.cli", "train", *arguments, "--json"],
        cwd=ROOT, env=os.environ | shared_prefect() | forked("apps.cli", "models.training"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return found.returncode, json.loads(found.stdout or "{}"), found.stderr


def test_from_releases_to_model_and_again(home, tmp_path, monkeypatch):
    # Of two releases, one of them from elsewhere.
    made_release(open_ledger(), tmp_path / "clips", {f"clip-{n:02d}": f"video-{n // 2}" for n in range(4)})
    inline(monkeypatch)
    with imports_here() as imported:
        theirs = imported(medvideocap(tmp_path / "theirs", made_clips(tmp_path / "clips", 4)))["release"]
    settings = ["vae_steps=0", "encode_shards=1", "max_train_steps=6", "lr_warmup_steps=1", "validation_steps=3"]
    arguments = ["made-1=2", theirs, "--no-samples", *(word for setting in settings for word in ("--set", setting))]
    code, summary, errors = command(*arguments)
    assert code == 0, errors[-3000:]
    assert summary["encoded"] == 8 and summary["not_encoded"] == {} and summary["steps"] == 6
    assert summary["release"].startswith("mixture-")
    with Session(open_ledger().engine) as session:
        shares = {n: p["share"] for n, p in session.get_one(Release, summary["release"]).policy["mixture"].items()}
    assert shares == {"made-1": 0.666666667, theirs: 0.333333333}
    names = ("split", "captions", "samples", "latents", "buckets", "disk", "memory", "vae_round_trip", "first_loss")
    found = {check["name"]: check["verdict"] for check in summary["checks"]}
    assert found == dict.fromkeys((*names, "overfit_probe"), "pass")
    code, again, errors = command(*arguments)
    assert code == 0, errors[-3000:]
    assert (again["model"], again["executed"], again["reused_model"]) == (summary["model"], 0, True)


def test_a_preset_for_real_models_refuses_captions_that_saw_no_picture_before_any_work(home, tmp_path):
    made_release(open_ledger(), tmp_path / "clips", {f"clip-{n}": f"video-{n}" for n in range(3)})
    for preset in ("wan-1.3b-lora", "wan-14b-lora", "paper-lora"):
        with pytest.raises(
            PreflightFailed, match=r"3 of 3 clips have captions that saw no(.|\n)*allow_stand_in_captions"
        ):
            train.fn(release="made-1", preset=preset)


def test_fields_and_bad_arguments(home):
    shown = CliRunner().invoke(app, ["train", "x", "--preset", "paper-lora", "--set", "rank=8", "--fields", "--json"])
    told = json.loads(shown.stdout)
    assert shown.exit_code == 0 and told["rank"] == 8 and told["flow_shift"] == 7.0
    wrong = CliRunner().invoke(app, ["train", "x", "--set", "rnak=8", "--fields"])
    assert wrong.exit_code != 0 and "no field 'rnak'" in wrong.output
    assert all(field.description for field in PARAMETERS.model_fields.values())
