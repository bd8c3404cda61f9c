"""`medgen export-lora`."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from apps.console import Json, out, print_json, report_expected_errors


def export_lora(
    lora: Annotated[str, typer.Argument(help="medgen:NAME of a model that was trained as a LoRA, or a LoRA file.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File to write, such as style.safetensors.")],
    form: Annotated[
        Literal["original", "musubi", "diffusers"],
        typer.Option("--format", help="original: ComfyUI and DiffSynth-Studio; musubi: musubi-tuner, ComfyUI."),
    ] = "original",
    base: Annotated[
        str, typer.Option(help="Base of a LoRA file: a diffusers folder or hub name. Models on record know theirs.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Write a LoRA in the names of another tool. Rank, alpha and what it does to the weights stay the same."""
    with report_expected_errors(ValueError):
        from medgen.ledger import open_ledger
        from tasks.training.lora_export import export_lora as export

        facts = export(open_ledger(), lora, target, form, base)
        if as_json:
            print_json(facts)
            return
        out.print(
            f"{escape(facts['file'])}: {facts['modules']} modules, rank {facts['rank']}, alpha {facts['alpha']:g}",
            highlight=False,
            soft_wrap=True,
        )
