"""Training: from a release and a base to a model on record."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from pydantic import ConfigDict, Field

from flows.parameters import part, takes
from flows.runner import task_runner
from medgen.ledger import Record, open_ledger
from medgen.shard import ShardResult
from models.generation.prompt_set import Prompt
from models.training.config import TrainConfig
from models.training.nano import NANO
from tasks.evaluation import generate
from tasks.operations.failures import failures
from tasks.operations.failures import table_rows as failure_rows
from tasks.training import base_model, encode
from tasks.training import train as training
from tasks.training.model_files import model_folder
from tasks.training.released import released_clips
from tasks.training.training_report import loss_rows


class TrainParameters(training.TrainParams):
    """Everything that a training run can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    release: str = Field(min_length=1, description="Release to train on; see `medgen release list`.")
    base_seed: int = Field(0, ge=0, lt=2**63, description="nano: seed of its weights and of the VAE's training.")
    vae_steps: int = Field(400, ge=0, description="nano: steps of the VAE's training; 0: a linear transform coder.")
    vae_clips: int = Field(64, ge=1, description="nano: most clips that the VAE is trained on.")
    encode_shards: int = Field(4, ge=1, le=1000, exclude=True, description="Task runs that share the encoding.")
    sample_videos: bool = Field(True, exclude=True, description="Make videos with the trained model at the end.")
    sample_prompts: tuple[str, ...] = Field(
        (), exclude=True, description="Prompts of those videos; none: a caption of each category of the release."
    )
    check_only: bool = Field(False, exclude=True, description="Stop after pre-flight; train nothing.")
    retry_quarantined: bool = Field(False, exclude=True, description="Encode clips again that failed for good.")


def _train(**arguments: Any) -> dict[str, Any]:
    """Base model, encode, pre-flight, train: the model, its curves and its card go on record."""
    log = get_run_logger()
    parameters = TrainParameters(**arguments)
    params = part(parameters, training.TrainParams)
    config = params.config()
    ledger = open_ledger()
    released_clips(ledger, parameters.release)  # tells at once when there is no such release
    base, digest = base_of(parameters, config)
    encoded, empty, counts = _encoded(parameters, config, base)
    record, reused, checks = training.train_release.submit(
        parameters.release, parameters.release, str(base), digest, encoded, empty, params, parameters.check_only
    ).result()
    if record is None:
        _show_checks(checks)
        return {"release": parameters.release, "base": digest, "checks": checks, **counts}
    made: Record = ledger.load([record])[record]
    validations = training.read_validations(ledger, made)
    summary = {
        **made.detail,
        "validations": validations,
        "reused_model": reused,
        "executed": counts["executed"] + (not reused),
        "reused": counts["reused"] + reused,
        "encoded": counts["encoded"],
        "not_encoded": counts["not_encoded"],
        "folder": str(model_folder(ledger, f"medgen:{made.detail['model']}")[0]) if _is_pipeline(made) else None,
        "checks": checks,
        "outputs": made.outputs,
        "samples": _samples(parameters, made) if _is_pipeline(made) and parameters.sample_videos else [],
    }
    _show_checks(checks)
    _show(summary, ledger.store.read(made.outputs["curve/plot.png"]))
    log.info("model %s of release %s", summary["name"], parameters.release)
    return summary


def base_of(parameters: TrainParameters, config: TrainConfig) -> tuple[Path, str]:
    """(folder, digest) of the base; nano's is made on record from the release's training clips.

    Raises:
        ItemFailed: unknown_model, unknown_release, empty_release.
    """
    ledger = open_ledger()
    name = config.pretrained_model_name_or_path
    if name == NANO:
        # The VAE must not see what training holds out.
        told = base_model.BaseModelParams(
            base_seed=parameters.base_seed,
            vae_steps=parameters.vae_steps,
            vae_clips=parameters.vae_clips,
            validation_share=config.validation_share,
            split_seed=config.seed,
        )
        made = base_model.base_model_task.submit(parameters.release, parameters.release, told).result()
        name = f"medgen:{ledger.load([made])[made].detail['model']}"
    return model_folder(ledger, name)


def encode_params(config: TrainConfig) -> encode.EncodeParams:
    """How clips are encoded for a configuration."""
    return encode.EncodeParams(
        buckets=config.buckets,
        fps=config.fps,
        max_sequence_length=config.max_sequence_length,
        latents_dtype="bfloat16" if config.mixed_precision == "bf16" else "float32",
    )


def _encoded(parameters: TrainParameters, config: TrainConfig, base: Path) -> tuple[list[int], int, dict[str, Any]]:
    """Ids of the records of the encoded clips, id of that of the empty caption, and counts."""
    params = encode_params(config)
    futures = [
        encode.encode_shard.submit(
            f"{parameters.release}-{n + 1}", parameters.release, str(base), params, parameters.retry_quarantined,
            (n, parameters.encode_shards),
        )
        for n in range(parameters.encode_shards)
    ]  # fmt: skip
    results: list[ShardResult] = [future.result() for future in futures]
    kept = sorted(item.trail["encode"] for result in results for item in result.kept)
    ended = [trail["encode"] for result in results for trail in result.ended]
    ledger = open_ledger()
    create_table_artifact(failure_rows(failures(ledger, ended)), key="not-encoded", description="Clips left out.")
    reasons: dict[str, str] = {r.subject: r.reason or "" for r in ledger.load(ended).values()}
    counts = {
        "encoded": len(kept),
        "not_encoded": reasons,
        "executed": sum(result.executed for result in results),
        "reused": sum(result.reused for result in results),
    }
    return kept, encode.empty_text(ledger, base, params).id, counts


def _samples(parameters: TrainParameters, made: Record) -> list[dict[str, Any]]:
    """Videos of the trained model: prompt, category, sha256 of the video; or why there is none."""
    ledger = open_ledger()
    prompts = [Prompt(f"sample-{n}", text) for n, text in enumerate(parameters.sample_prompts)]
    if not prompts:
        first: dict[str, Prompt] = {}
        for clip in released_clips(ledger, parameters.release)[0]:
            if clip.brief.strip():
                first.setdefault(clip.category, Prompt(f"sample-{clip.category}", clip.brief, clip.category))
        prompts = [first[category] for category in sorted(first)]
    params = generate.GenerateParams(model=f"medgen:{made.detail['model']}")
    result = generate.generate_shard.submit(parameters.release, prompts, params).result()
    records = ledger.load(result.records)
    return [
        {
            "prompt": prompt.text,
            "category": prompt.category,
            "video": records[run_id].outputs.get("video"),
            "reason": records[run_id].reason,
        }
        for prompt, run_id in zip(prompts, result.records, strict=True)
    ]


def _is_pipeline(record: Record) -> bool:
    return "model_index.json" in record.outputs


def _show_checks(checks: Sequence[Mapping[str, str]]) -> None:
    if checks:
        create_table_artifact(list(map(dict, checks)), key="preflight", description="What was checked beforehand.")


def _show(summary: Mapping[str, Any], plot: bytes) -> None:
    rows = loss_rows(summary["validations"])
    create_table_artifact(rows, key="losses", description="Losses at fixed noise, by step.")
    encoded = base64.b64encode(plot).decode()
    create_markdown_artifact(
        f"# Model {summary['name']}\n\ndigest `{summary['model']}`\n\ntrained on the release {summary['release']}: "
        f"{summary['train_clips']} clips, {summary['held_out_clips']} held out, {summary['steps']} steps\n\n"
        f"![losses](data:image/png;base64,{encoded})\n\n`medgen show {summary['name']}` lists what trained it.\n",
        key="model",
        description="The model that this run trained.",
    )
    if summary["folder"]:
        create_link_artifact(Path(summary["folder"]).as_uri(), key="model-folder", link_text=summary["name"])


train = flow(
    takes(_train, "train", TrainParameters, first=("release", "preset", "overrides")),
    name="train",
    flow_run_name="train-{release}-{preset}",
    task_runner=task_runner(),
    persist_result=False,
    validate_parameters=True,
)
PARAMETERS = TrainParameters
