"""`medgen import`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from apps.console import Json, out, parse_settings, print_json, report_expected_errors
from apps.funnel import print_funnel
from apps.run_flow import run_flow


def import_release(
    source: Annotated[
        str,
        typer.Argument(
            metavar="[NAME=]SET",
            help="Folder of a published set, or the .csv, .json, .jsonl, .parquet or .tar that describes it.",
        ),
    ],
    videos: Annotated[
        Path | None, typer.Option(help="Folder of its videos, where they lie beside no file that describes them.")
    ] = None,
    name: Annotated[str, typer.Option(help="First part of the release's name; the set's by default.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the clips whose rows state none.")] = "",
    captioner: Annotated[str, typer.Option(help="What wrote the captions, where rows don't say.")] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="""Further parameters: 'columns=["detailed=text"]', …"""),
    ] = None,
    retry_quarantined: Annotated[bool, typer.Option(help="Try clips again that failed for good.")] = False,
    as_json: Json = False,
) -> None:
    """Take a captioned video set, as published, into the catalog, as a release to train on.

    Known are a table beside its videos, Hugging Face's videofolder, its Parquet files with the videos inside,
    WebDataset shards, and releases and exports of medgen. Kill it whenever you like; run it again to go on.
    """
    with report_expected_errors():
        given = {"videos": str(videos) if videos else "", "release_prefix": name, "licence": licence}
        given |= {"captioner": captioner}
        arguments: dict[str, Any] = {name: value for name, value in given.items() if value}
        arguments |= parse_settings(settings or [])
        arguments |= {"source": source, "retry_quarantined": retry_quarantined}
        summary = run_flow("import_release", arguments, quiet=as_json)
        if as_json:
            print_json(summary)
        else:
            print_import(summary)


def print_import(summary: Mapping[str, Any]) -> None:
    """Prints what was taken of a set, and how to train on it."""
    print_funnel(summary["funnel"])
    out.print(f"executed {summary['executed']}, reused {summary['reused']}", highlight=False)
    out.print(f"release {summary['release']} {summary['digest']}", highlight=False, soft_wrap=True)
    if summary["awaits_approval"]:
        out.print(f"awaits approval: medgen release approve {summary['release']} --by NAME", soft_wrap=True)
        return
    out.print(escape(summary["folder"]), soft_wrap=True, highlight=False)
    out.print(f"train on it with medgen train {summary['release']}", soft_wrap=True, highlight=False)
