"""Training: from a release and a base to a model on record."""

from pathlib import Path
from typing import Any

from prefect import get_run_logger
from pydantic import ConfigDict, Field, field_validator

from flows.flow_signature import subset
from flows.make_flow import Summary, make_flow
from flows.run_name import run_name
from medgen.inference import close_inference
from medgen.ledger import Ledger, Record, open_ledger
from medgen.parameters import MOST_ITEMS
from medgen.shard import ShardResult
from models.families.known import family_of
from models.training.config import TrainConfig
from models.training.job import check_captions, require
from models.training.nano import NANO
from models.training.sampling import checked_geometry
from tasks.evaluation.generate import GenerateParams, generate_shard
from tasks.training import base_model
from tasks.training import train as training
from tasks.training.artifacts import show_checks, show_model, show_not_encoded
from tasks.training.encode import TEXT, EncodeParams, bytes_to_encode, empty_text, encode_shard
from tasks.training.mixture import is_mixture, mix, named_releases, read_mixture
from tasks.training.model_files import model_folder
from tasks.training.released import stream_clips
from tasks.training.sample_files import check_room
from tasks.training.sample_videos import SampleVideo, sample_prompts, sample_videos
from tasks.training.train import TrainParams, read_validations, train_release


class TrainParameters(TrainParams):
    """Everything that a training run can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    release: str = Field(
        "latest",
        min_length=1,
        description="Release to train on: its name, `latest`, or the first part of a name for the newest that begins "
        "so. Several are mixed, each with its weight: NAME=2,NAME=1.",
    )
    max_train_steps: int = Field(0, ge=0, le=MOST_ITEMS, exclude=True, description="Optimiser steps; 0: the preset's.")
    learning_rate: float = Field(0.0, ge=0, le=1, exclude=True, description="Largest learning rate; 0: the preset's.")
    train_batch_size: int = Field(
        0, ge=0, le=MOST_ITEMS, exclude=True, description="Samples per process and step; 0: the preset's."
    )
    base_seed: int = Field(0, ge=0, lt=2**63, description="nano: seed of its weights and of the VAE's training.")
    vae_steps: int = Field(
        400, ge=0, le=MOST_ITEMS, description="nano: steps of the VAE's training; 0: a linear transform coder."
    )
    vae_clips: int = Field(64, ge=1, le=MOST_ITEMS, description="nano: most clips that the VAE is trained on.")
    encode_shards: int = Field(4, ge=1, le=1000, exclude=True, description="Task runs that share the encoding.")
    sample_videos: bool = Field(True, exclude=True, description="Make videos with the trained model at the end.")
    sample_prompts: tuple[str, ...] = Field(
        (), exclude=True, description="Prompts of those videos; none: a caption of each category of the release."
    )
    check_only: bool = Field(False, exclude=True, description="Stop after pre-flight; train nothing.")
    retry_quarantined: bool = Field(False, exclude=True, description="Encode clips again that failed for good.")

    @field_validator("release")
    @classmethod
    def _release(cls, text: str) -> str:
        if is_mixture(text):
            read_mixture(text)
        return text


# Fields of a preset that the form has by themselves; the others are set by `overrides`.
IN_FORM = ("max_train_steps", "learning_rate", "train_batch_size")


def _train(parameters: TrainParameters) -> Summary:
    """Base model, encode, pre-flight, train: the model, its curves and its card go on record."""
    ledger = open_ledger()
    set_here = tuple(f"{name}={value}" for name in IN_FORM if (value := getattr(parameters, name)))
    parameters = parameters.model_copy(
        update={
            "release": named_releases(ledger, parameters.release),
            "overrides": (*parameters.overrides, *set_here),
        }
    )
    params = subset(parameters, TrainParams)
    config = params.config()
    if is_mixture(parameters.release):
        mixed = mix.submit("mixture", parameters.release).result()
        parameters = parameters.model_copy(update={"release": mixed})
    clips, _ = stream_clips(ledger, parameters.release)  # an unknown release is an error at once
    if config.preflight:  # and captions that no training should learn from, before clips are encoded for hours
        require([check_captions((c.captioner_kind for c in clips), allowed=config.allow_stand_in_captions)])
    base, digest = _base(ledger, parameters, config)
    require([checked_geometry(config, base)])  # before anything is encoded that would be cut off
    encoded, empty, counts = _encode(ledger, parameters, config, base)
    run_id, reused, checks = train_release.submit(
        parameters.release, parameters.release, str(base), digest, encoded, empty, params, parameters.check_only
    ).result()
    show_checks(checks)
    if run_id is None:
        return {"release": parameters.release, "base": digest, "checks": checks, **counts}
    record = ledger.load([run_id])[run_id]
    detail = training.TRAINED.detail(record)
    is_pipeline = "model_index.json" in record.outputs
    samples = parameters.sample_videos and not family_of(base).needs_image
    summary = {
        **detail,
        "validations": read_validations(ledger, record),
        "reused_model": reused,
        "executed": counts["executed"] + (not reused),
        "reused": counts["reused"] + reused,
        "encoded": counts["encoded"],
        "not_encoded": counts["not_encoded"],
        "folder": str(model_folder(ledger, f"medgen:{detail['model']}")[0]) if is_pipeline else None,
        "checks": checks,
        "outputs": record.outputs,
        "samples": _samples(ledger, parameters, record) if samples else [],
    }
    show_model(summary, ledger.store.read(record.outputs["curve/plot.png"]))
    get_run_logger().info("model %s of release %s", summary["name"], parameters.release)
    return summary


def _base(ledger: Ledger, parameters: TrainParameters, config: TrainConfig) -> tuple[Path, str]:
    """(folder, digest) of the base; nano's is made on record from the release's training clips.

    Raises:
        ItemFailed: unknown_model, unknown_release, empty_release.
    """
    name = config.pretrained_model_name_or_path
    if name == NANO:
        # The VAE must not see what training holds out.
        params = base_model.BaseModelParams(
            base_seed=parameters.base_seed,
            vae_steps=parameters.vae_steps,
            vae_clips=parameters.vae_clips,
            validation_share=config.validation_share,
            split_seed=config.seed,
        )
        run_id = base_model.base_model_task.submit(parameters.release, parameters.release, params).result()
        name = f"medgen:{base_model.BASE_MODEL.detail(ledger.load([run_id])[run_id])['model']}"
    return model_folder(ledger, name)


def _encode(
    ledger: Ledger, parameters: TrainParameters, config: TrainConfig, base: Path
) -> tuple[list[int], int, dict[str, Any]]:
    """Ids of the records of the encoded clips, id of that of the empty caption, and counts."""
    params = EncodeParams.of(config)
    if config.preflight:
        total, missing = bytes_to_encode(ledger, parameters.release, base, params)
        require([check_room(ledger.store, total, missing)])
    futures = [
        encode_shard.submit(
            f"{parameters.release}-{n + 1}", parameters.release, str(base), params, parameters.retry_quarantined,
            (n, parameters.encode_shards),
        )
        for n in range(parameters.encode_shards)
    ]  # fmt: skip
    shards: list[ShardResult] = [future.result() for future in futures]
    kept = sorted(item.lineage[name] for shard in shards for item in shard.kept for name in ("encode", TEXT))
    dropped = [record for shard in shards for lineage in shard.dropped for record in lineage.values()]
    show_not_encoded(ledger, dropped)
    counts = {
        "encoded": sum(len(shard.kept) for shard in shards),
        "not_encoded": {record.subject: record.reason or "" for record in ledger.load(dropped).values()},
        "executed": sum(shard.executed for shard in shards),
        "reused": sum(shard.reused for shard in shards),
    }
    empty = empty_text(ledger, base, params).id
    close_inference()  # training needs the devices' memory
    return kept, empty, counts


def _samples(ledger: Ledger, parameters: TrainParameters, record: Record) -> list[SampleVideo]:
    """Videos of the trained model."""
    prompts = sample_prompts(ledger, parameters.release, parameters.sample_prompts)
    params = GenerateParams(model=f"medgen:{training.TRAINED.detail(record)['model']}")
    return sample_videos(ledger, prompts, generate_shard.submit(parameters.release, prompts, params).result())


train = make_flow(
    _train,
    TrainParameters,
    "train",
    run_name("train", "release", "preset"),
    first=("release", "preset", "max_train_steps", "learning_rate", "train_batch_size", "overrides"),
)
PARAMETERS = TrainParameters
