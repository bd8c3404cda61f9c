"""`medgen train-frames`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from apps.console import Json, err, out, print_json, report_expected_errors
from apps.progress import stage_bars


def train_frames(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of videos or pictures, each with a MANIFEST.csv: file, source, is_medical; kind, made, "
            "licence, sha256."
        ),
    ],
    encoder: Annotated[
        str, typer.Option(help="mobilenet_v2, or a CLIP-class model by hub name or folder.")
    ] = "mobilenet_v2",
    target: Annotated[Path, typer.Option("--out", help="Folder for the head, its scores and its model card.")] = Path(
        "frame_head"
    ),
    as_json: Json = False,
) -> None:
    """Train a head that tells medical frames from others; validate it by leaving out one source at a time."""
    from medgen.ledger import open_ledger
    from tasks.training import train_frames as step

    with report_expected_errors(OSError):
        ledger = open_ledger()
        with stage_bars(quiet=as_json) as show:
            record, reused = step.train_frames(
                ledger, folders, encoder, lambda stage, done, total, item: show(stage, done, total)
            )
        files = step.export(ledger.store, record.outputs, target)
        left_out = json.loads(ledger.store.read(record.outputs["data_list"]))["left_out"]
        if as_json:
            facts = {
                **record.detail,
                "reused": reused,
                "artifacts": record.outputs,
                "files": {role: str(path) for role, path in files.items()},
                "left_out": left_out,
            }
            print_json(facts)
            return
        validation, similarity = record.detail["leave_one_source_out"], record.detail["similarity"]
        for name, reason in left_out.items():
            err.print(f"left out {escape(name)}: {escape(reason)}", soft_wrap=True, highlight=False)
        table = Table("leave one source out", "value")
        for name, value in validation.items():
            if isinstance(value, int | float):
                table.add_row(name.replace("_", " "), str(value))
        out.print(table)
        for name, probability in validation["misjudged"].items():
            out.print(f"misjudged: {escape(name)}  P(medical) {probability}", highlight=False, soft_wrap=True)
        out.print(
            f"{'known already' if reused else 'trained'}: [bold]{escape(str(files['head']))}[/]\n"
            f"use it with --set frame_head={escape(str(files['head'].resolve()))}"
            + ("" if encoder == "mobilenet_v2" else f" --set frame_encoder={escape(encoder)}")
            + (f" --set frame_similarity={similarity['frame_similarity']}" if similarity else ""),
            soft_wrap=True,
            highlight=False,
        )
