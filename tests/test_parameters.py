"""Parameters: bad ones are refused in words wherever they are given; former names are accepted with a warning."""

import importlib
import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from prefect.utilities.schema_tools.validation import ValidationError as SchemaError
from prefect.utilities.schema_tools.validation import validate
from pydantic import ValidationError
from typer.testing import CliRunner

from apps.cli import app
from apps.deployments import strict_schema, with_current_names
from flows.refresh import RefreshParameters, refresh
from medgen.errors import RunStopped
from medgen.parameters import Parameters, complaints
from models.quality.scales import SUGGESTED, scales
from tasks.curation.classify import ClassifyParams
from tasks.curation.curation_step import steps
from tasks.training.train import TrainParams


def test_a_former_name_is_accepted_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert ClassifyParams(similarity=0.7) == ClassifyParams(frame_similarity=0.7)
    assert ["similarity is called frame_similarity" in record.message for record in caplog.records] == [True]
    parameters = RefreshParameters(
        word_threshold=2.0, copies="keep", preset="fast", with_sound=True, model="m", similarity=0.8
    )
    assert (parameters.keyword_threshold, parameters.near_duplicates) == (2.0, "keep")
    assert (parameters.x264_preset, parameters.with_audio, parameters.frame_encoder) == ("fast", True, "m")
    assert "similarity" not in parameters.model_dump(mode="json")


def test_both_names_and_unknown_ones_are_refused() -> None:
    with pytest.raises(ValidationError, match="similarity is the former name of frame_similarity"):
        ClassifyParams(similarity=0.7, frame_similarity=0.7)
    with pytest.raises(ValidationError, match="similarty"):
        RefreshParameters(similarty=0.7)


def test_deployments_are_registered_by_the_new_names() -> None:
    written = {"sources": ["videos"], "similarity": 0.7}  # as prefect.yaml may still have it
    assert with_current_names("refresh", written) == {"sources": ["videos"], "frame_similarity": 0.7}


def test_a_refresh_has_the_parameters_of_all_its_steps() -> None:
    for step in steps():
        for name, field in step.params.model_fields.items():
            assert RefreshParameters.model_fields[name].default == field.default, (step.name, name)


SCHEMA = strict_schema(refresh.parameters.model_dump_for_openapi(), RefreshParameters.conflict_schemas())
FLOWS = (
    "refresh",
    "discover",
    "recheck",
    "gc",
    "verify",
    "doctor",
    "approve",
    "train",
    "evaluate",
    "augment",
    "create",
    "approve_creation",
)


def all_parameters() -> list[type[Parameters]]:
    """Every class of parameters, of flows, steps and commands."""
    for name in (*(f"flows.{name}" for name in FLOWS), "apps.judge.measure", "tasks.evaluation.study"):
        importlib.import_module(name)
    found, new = set[type[Parameters]](), {Parameters}
    while new := {below for known in new for below in known.__subclasses__() if below.__module__ != __name__}:
        found |= new
    return sorted(found, key=lambda kind: f"{kind.__module__}.{kind.__name__}")


def numbers() -> Iterator[tuple[type[Parameters], str, dict[str, Any]]]:
    """(class, name, JSON schema) of every number that can be set."""
    for kind in all_parameters():
        for name, schema in kind.model_json_schema()["properties"].items():
            inner = schema.get("items", schema) if schema.get("type") == "array" else schema
            if inner.get("type") in ("number", "integer"):
                yield kind, name, inner


def test_every_number_has_limits_on_both_sides() -> None:
    bare = [
        f"{kind.__module__}.{kind.__name__}.{name}"
        for kind, name, schema in numbers()
        if not {"minimum", "exclusiveMinimum"} & schema.keys() or not {"maximum", "exclusiveMaximum"} & schema.keys()
    ]
    assert not bare
    assert {"RefreshParameters", "TrainConfig", "RecheckParams", "StudyParams"} <= {k.__name__ for k, _, _ in numbers()}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "NaN", "Infinity", "1e999", 10**400])
def test_no_number_is_not_a_number_or_beyond_all_numbers(value: float | str) -> None:
    for kind, name, _ in numbers():
        several = "tuple" in str(kind.model_fields[name].annotation)
        with pytest.raises(ValidationError) as refused:
            kind(**{name: (value,) if several else value})
        assert any(line.startswith(name) for line in complaints(refused.value)), (kind, name)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"min_clip_s": 12}, "min_clip_s: 12.0 is more than max_clip_s=10.0: they must be in order"),
        ({"min_duration_s": 60, "max_duration_s": 30}, "min_duration_s: 60.0 is more than max_duration_s=30.0"),
        ({"min_height": 720, "wanted_height": 480}, "min_height: 720 is more than wanted_height=480"),
        ({"wanted_height": 2160}, "wanted_height: 2160 is more than max_height=1080"),
        ({"brief_min_words": 40}, "brief_min_words: 40 is more than brief_max_words=36"),
        ({"detailed_max_words": 30}, "detailed_min_words: 60 is more than detailed_max_words=30"),
        ({"max_bytes": 10**24}, f"max_bytes: Input should be less than or equal to {2**50}, not {10**24}"),
        ({"store_quota_bytes": -1}, "store_quota_bytes: Input should be greater than or equal to 0, not -1"),
        ({"preset": "nonsense"}, "x264_preset: Input should be 'ultrafast', 'superfast', "),
        ({"x264_preset": "veryfsat"}, "not 'veryfsat'; did you mean veryfast?"),
        ({"medical_treshold": 0.5}, "medical_treshold: there is no such parameter; did you mean medical_threshold?"),
        ({"zzz": 0.5}, "zzz: there is no such parameter"),
        ({"text_threshold": math.nan}, "text_threshold: Input should be a finite number, not nan"),
        ({"technical_model": "piqee"}, "technical_model: there is no metric 'piqee'; did you mean piqe?"),
        (
            {"technical_model": "dover", "technical_threshold": 95, "mediocre_technical": 0.5},
            "technical_threshold: 95 is not on the scale of dover, which runs from 0 (worst) to 1 (best): set 0.13",
        ),
        (
            {"technical_model": "musiq", "mediocre_technical": 40},
            "technical_threshold: 95 is meant for piqe, not for musiq, which runs from 0 (worst) to 100 (best): set 0",
        ),
        ({"frame_encoder": "clip"}, "frame_similarity: 0.55 is meant for mobilenet_v2, not for clip: set 0.8 for"),
        ({"technical_threshold": 500}, "technical_threshold: 500 is not on the scale of piqe, which runs from 100 "),
    ],
)
def test_what_is_refused_is_named_with_the_reason_and_what_may_be_meant(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as refused:
        RefreshParameters(**given)
    (line,) = complaints(refused.value)
    assert told in line


def test_fields_of_a_training_are_held_to_the_same() -> None:
    for override, told in (
        ("learning_rate=NaN", "learning_rate: Input should be a finite number, not nan"),
        ("lr_warmup_steps=2000", "lr_warmup_steps=2000 exceeds max_train_steps=600"),
        ("learning_rat=1", "training has no field 'learning_rat'; did you mean learning_rate?; there are "),
        ("lr_scheduler=cosin", "lr_scheduler: Input should be 'constant', "),
    ):
        with pytest.raises(ValidationError) as refused:
            TrainParams(overrides=(override,))
        (line,) = complaints(refused.value)
        assert told in line


def test_python_is_refused_before_there_is_a_run() -> None:
    """No server is asked: with none, a run could not even begin."""
    with pytest.raises(ValidationError, match=r"min_clip_s(.|\n)*12.0 is more than max_clip_s"):
        refresh(sources=["videos"], min_clip_s=12)
    with pytest.raises(ValidationError, match="did you mean medical_threshold"):
        refresh(sources=["videos"], medical_treshold=0.7)
    with pytest.raises(ValidationError, match="similarity is the former name"):
        refresh(sources=["videos"], similarity=0.7, frame_similarity=0.7)


def test_a_run_of_a_deployment_that_got_past_the_server_is_refused_by_itself() -> None:
    """As where its caller has switched off the server's check: the run's name is made first, then it ends."""
    for given in ({"min_clip_s": 12}, {"medical_threshold": None}):
        passed = refresh.validate_parameters({"sources": ["videos"], **given})
        assert passed["release_prefix"] == "medgen" and passed.items() >= given.items()
        with pytest.raises(RunStopped, match=f"^bad parameters: {next(iter(given))}: "):
            refresh.fn(**passed)
    good = refresh.validate_parameters({"sources": ["videos"], "similarity": "0.7"})
    assert (good["sources"], good["frame_similarity"]) == (("videos",), 0.7)


def test_commands_refuse_it_in_one_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    no_server = SimpleNamespace(kept_alive=nullcontext)
    monkeypatch.setattr("apps.prefect_server.prefect_server", lambda *_: nullcontext(no_server))
    for command, told in (
        (["refresh", "--source", "v", "--set", "medical_threshold=NaN"], "medical_threshold: Input should be a finite"),
        (["refresh", "--source", "v", "--set", "max_bytes=1e400"], "max_bytes: Input should be a finite number"),
        (["refresh", "--source", "v", "--set", "min_clip_s=99"], "min_clip_s: 99.0 is more than max_clip_s=10.0"),
        (["refresh", "--source", "v", "--set", "x264_preset=fastr"], "did you mean faster?"),
        (["refresh", "--source", "v", "--set", "technical_model=dover"], "technical_threshold: 95 is not on the scale"),
        (["refresh", "--source", "v", "--profile", "papr"], "profile: there is no profile 'papr'; did you mean paper?"),
        (
            ["refresh", "--source", "v", "--profile", "paper", "--set", "technical_threshold=95"],
            "technical_threshold: 95 is not on the scale of dover",
        ),
        (["parameters", "--profile", "pap.toml"], "profile: there is no profile 'pap.toml'"),
        (["discover", "-s", "v", "--set", "word_treshold=2"], "word_treshold: there is no such parameter"),
        (["recheck", "--set", "stall_limits=2"], "did you mean stall_limit_s?"),
        (["gc", "--grace-minutes", "nan"], "nan is not a finite number"),
        (["generate", "x", "--model", "m", "--guidance", "inf"], "guidance_scale: Input should be a finite number"),
    ):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 2 and told in " ".join(done.output.split()), (command, done.output, done.exception)
        assert "Traceback" not in done.output


@hypothesis.settings(deadline=None)
@hypothesis.given(
    kind=st.sampled_from(("technical", "aesthetic")),
    metric=st.sampled_from(("", "piqe", "dover", "laion_aes", "entropy", "niqe", "musiq", "nima", "unique", "guess")),
    single=st.none() | st.sampled_from((95.0, 0.5, 0.0, 3.0, -2.0)) | st.floats(-5, 120),
    joint=st.none() | st.sampled_from((95.0, 0.0, 0.5)) | st.floats(-5, 120),
)
def test_forms_and_python_refuse_the_same_thresholds(
    kind: str, metric: str, single: float | None, joint: float | None
) -> None:
    chosen = {f"{kind}_model": metric or None, f"{kind}_threshold": single, f"mediocre_{kind}": joint}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    try:
        RefreshParameters(**chosen)
    except ValidationError as refused:
        also = [f"{error.json_path} {error.message}" for error in validate(chosen, SCHEMA)]
        assert also and all(any(line.split(":")[0] in told for told in also) for line in complaints(refused))
    else:
        assert not validate(chosen, SCHEMA)


def test_thresholds_with_a_reason_lie_on_their_scales() -> None:
    for (kind, metric), thresholds in SUGGESTED.items():
        assert scales(kind)[metric].holds(thresholds.single) and scales(kind)[metric].holds(thresholds.joint)
        RefreshParameters(
            **{
                f"{kind}_model": metric,
                f"{kind}_threshold": thresholds.single,
                f"mediocre_{kind}": thresholds.joint,
            }
        )


def test_what_is_given_beside_a_profile_wins(tmp_path: Path) -> None:
    paper = RefreshParameters(profile="paper")
    assert (paper.technical_model, paper.mediocre_aesthetic, paper.output_size) == ("dover", 4.0, "720x480")
    assert RefreshParameters(**paper.model_dump()) == paper  # as a run of a deployment is given it
    # A form sends all parameters: those that are at their default have not been touched.
    form = RefreshParameters().model_dump() | {"profile": "paper", "captioner": "transformers:m"}
    assert RefreshParameters(**form) == paper.model_copy(update={"captioner": "transformers:m"})
    kept = RefreshParameters(profile="paper", profile_exceptions=("captioner",))
    assert kept.captioner == "evidence_template" and kept.technical_model == "dover"
    # Who names one by one means also the default.
    given = {"profile": "paper", "captioner": "evidence_template", "crf": 18}
    assert RefreshParameters(**RefreshParameters.as_given(given)) == kept
    own = tmp_path / "ours.toml"
    own.write_text('profile = "paper"\nmax_words = 30\n')
    assert RefreshParameters(profile=str(own)) == paper.model_copy(update={"profile": str(own), "max_words": 30.0})
    for text, told in (
        ('captionr = "x"', "ours.toml sets captionr: there is no such parameter; did you mean captioner?"),
        ("technical_threshold = 500", "technical_threshold: 500 is not on the scale of piqe"),
        ('sources = ["x"]', "ours.toml sets sources, which is for each run to say"),
        ("max_words", "ours.toml can't be read as TOML"),
        ('profile = "ours"', "starts from 'ours'; a profile can start from offline or paper"),
        ('max_words = "many"', "max_words: Input should be a valid number"),
    ):
        own.write_text(text)
        with pytest.raises(ValidationError) as refused:
            RefreshParameters(profile=str(own))
        assert told in complaints(refused.value)[0]


def test_the_schema_of_a_deployment_refuses_what_json_does_not_know() -> None:
    """Prefect's server takes NaN, Infinity and 1e999 for numbers, and NaN passes every minimum and maximum."""
    schema = strict_schema(refresh.parameters.model_dump_for_openapi())
    validate({"medical_threshold": 0.7, "sources": ["v"], "max_bytes": 2**50, "shard_size": 5}, schema, True)
    for text in ("NaN", "Infinity", "-Infinity", "1e999", '"NaN"', '"0.5"', "null", "[0.5]"):
        for name in ("medical_threshold", "keyword_threshold", "caption_price_in", "max_bytes", "shard_size"):
            with pytest.raises(SchemaError, match=name):
                validate({name: json.loads(text)}, schema, True)
    with pytest.raises(SchemaError, match="medical_treshold"):
        validate({"medical_treshold": 0.7}, schema, True)
