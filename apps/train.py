"""`medgen train`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from apps.console import Json, err, out, parse_settings, print_json, report_expected_errors
from medgen.counted import counted


def train(
    release: Annotated[
        list[str],
        typer.Argument(
            metavar="RELEASE[=WEIGHT]...",
            help="Release to train on: its name, `latest`, or the first part of names for the newest such one, or "
            "a published set by its path. Several are mixed by their weights.",
        ),
    ],
    preset: Annotated[
        str, typer.Option(help="nano (a laptop), wan-1.3b-lora, wan2.2-5b-lora, hunyuan-lora, paper, … (see the docs).")
    ] = "nano",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Set any field of the preset (see --fields), vae_steps, …"),
    ] = None,
    base: Annotated[
        str,
        typer.Option(
            help="Base instead of the preset's: medgen:NAME, a diffusers folder, a hub name, WEIGHTS+COMPONENTS."
        ),
    ] = "",
    accelerate_config: Annotated[
        Path | None,
        typer.Option(help="Config file of `accelerate config` for several GPUs; set num_processes to their number."),
    ] = None,
    samples: Annotated[bool, typer.Option(help="Make a video of each category with the trained model.")] = True,
    check: Annotated[bool, typer.Option("--check", help="Only pre-flight: what would go wrong?")] = False,
    fields: Annotated[bool, typer.Option("--fields", help="List the preset's fields and values, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Train a text-to-video model on a release. Kill it whenever you like; run it again to go on.

    It makes the base (nano) or finds it, encodes the clips, checks for a minute that the long part can work, trains
    and puts the model on record. Arguments are named as in diffusers' training scripts.

    On several GPUs: `--accelerate-config FILE --set num_processes=8`. On several machines, make the job here with
    --check, copy the working folder, and run `accelerate launch … -m models.training FOLDER/job.json` on each; then
    run this command again to take the model in.
    """
    from apps.run_flow import run_flow

    with report_expected_errors(ValueError):
        if fields:
            _show_fields(preset, settings or [], as_json)
            return
        about = _about_the_run(settings or [])
        rest = [text for text in settings or [] if text.partition("=")[0] not in about]
        overrides = [*rest, *([f"pretrained_model_name_or_path={json.dumps(base)}"] if base else [])]
        _check(release, preset, overrides)
        arguments: dict[str, Any] = {
            "release": ",".join(_imported(one, as_json) for one in release),
            "preset": preset,
            "overrides": overrides,
            "accelerate_config": str(accelerate_config.resolve()) if accelerate_config else "",
            "sample_videos": samples,
            "check_only": check,
            **about,
        }
        summary = run_flow("train", arguments, quiet=as_json, on_training=None if as_json else _Teller())
        if as_json:
            print_json(summary)
            return
        print_training(summary)


def _check(releases: list[str], preset: str, overrides: list[str]) -> None:
    """What can be told at once, before a server is started for the run.

    Raises:
        ItemFailed: unknown_release.
        ValueError: no such preset or field, or a bad value.
    """
    from medgen.ledger import open_ledger
    from medgen.releases import named_release
    from models.training.config import configured

    configured(preset, parse_settings(overrides))
    for text in releases:
        if "/" not in text:
            named_release(open_ledger(), text.partition("=")[0])


def _imported(text: str, quiet: bool) -> str:
    """RELEASE[=WEIGHT]; a published set, which is named by its path, is imported and gives way to its release."""
    if "/" not in text:
        return text
    from apps.run_flow import run_flow

    place, equals, weight = text.rpartition("=")
    if not equals or not weight.replace(".", "", 1).isdigit():
        place, equals, weight = text, "", ""
    summary = run_flow("import_release", {"source": place}, quiet=quiet)
    if not quiet:
        err.print(
            f"imported {counted(summary['clips'], 'clip')}: {summary['release']}", highlight=False, soft_wrap=True
        )
    return f"{summary['release']}{equals}{weight}"


# Arguments of the flow, not fields of a preset, that --set sets all the same.
RUN_FIELDS = ("base_seed", "vae_steps", "vae_clips", "encode_shards", "sample_prompts", "retry_quarantined")


def _about_the_run(settings: list[str]) -> dict[str, Any]:
    """Those of the NAME=VALUE pairs that set an argument of the flow."""

    return parse_settings([text for text in settings if text.partition("=")[0] in RUN_FIELDS])


class _Teller:
    """Prints what a training run tells: checks, validations, checkpoints to go on from."""

    def __init__(self) -> None:
        self.step: dict[str, Any] = {}

    def __call__(self, facts: dict[str, Any]) -> None:
        kind = facts["event"]
        if kind == "step":
            first = not self.step
            self.step = facts
            if first:
                err.print(f"first step: loss {facts['loss']:.4f}", highlight=False)
        elif kind == "check":
            mark = {"pass": "[green]✓[/]", "warn": "[yellow]![/]", "fail": "[red]✗[/]"}[facts["verdict"]]
            err.print(f"{mark} {facts['name']}: {escape(facts['measured'])}", highlight=False, soft_wrap=True)
            if facts["advice"]:
                err.print(f"    expected {escape(facts['expected'])}. {escape(facts['advice'])}", soft_wrap=True)
        elif kind == "resumed":
            err.print(f"going on from step {facts['step']}")
        elif kind == "validation":
            step, held = self.step, facts["loss"]
            pace = f", {step['steps_per_s']:.2f} steps/s, {_clock(step['eta_s'])} to go" if step else ""
            err.print(
                f"step {facts['step']}: training clips {_number(facts['train_loss'])}, held-out clips {_number(held)}"
                f"{pace}",
                highlight=False,
            )


def print_training(summary: dict[str, Any]) -> None:
    """Prints losses, what was left out, and how to use the model."""
    if "model" not in summary:
        failed = [check["name"] for check in summary["checks"] if check["verdict"] == "fail"]
        if not summary["checks"]:
            out.print("nothing to check: this training has begun already")
        out.print("pre-flight: " + (f"[red]{', '.join(failed)} failed[/]" if failed else "[green]nothing failed[/]"))
        if failed:
            raise typer.Exit(1)
        return
    table = Table("step", "training clips", "held-out clips", title="Loss at fixed noise", title_justify="left")
    for row in summary["validations"]:
        table.add_row(str(row["step"]), _number(row["train_loss"]), _number(row["loss"]))
    out.print(table)
    for clip, reason in {**summary["not_encoded"], **summary["quarantined"]}.items():
        err.print(f"left out {escape(clip)}: {escape(reason)}", highlight=False, soft_wrap=True)
    out.print(
        f"{'known already' if summary['reused_model'] else 'trained'}: [bold]{escape(summary['name'])}[/] "
        f"on {counted(summary['train_clips'], 'clip')}, {summary['held_out_clips']} held out\n"
        f"{summary['model']}\n{escape(str(summary['folder'] or ''))}\n"
        f'use it with medgen generate --model medgen:{escape(summary["name"])} "PROMPT"',
        soft_wrap=True,
        highlight=False,
    )
    out.print(f"executed {summary['executed']}, reused {summary['reused']}", highlight=False)


def _show_fields(preset: str, settings: list[str], as_json: bool) -> None:
    from models.training.config import TrainConfig
    from tasks.training.train import TrainParams

    config = TrainParams(preset=preset, overrides=tuple(settings)).config()
    if as_json:
        sys.stdout.write(
            json.dumps({name: getattr(config, name) for name in TrainConfig.model_fields}, indent=1) + "\n"
        )
        return
    table = Table("name", preset, "meaning")
    for name, field in TrainConfig.model_fields.items():
        table.add_row(name, escape(str(getattr(config, name))), escape(field.description or ""))
    out.print(table)


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
