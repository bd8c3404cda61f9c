"""`medgen`: the command line. Each command is a module; here they are only put together."""

import logging
import os
from typing import Annotated

import typer
from rich.logging import RichHandler

from apps.audit.command import audit
from apps.audit.people_command import auditors_app
from apps.augment import augment
from apps.console import err, out
from apps.create import create
from apps.creation import creation_app
from apps.cut import cut
from apps.demo.command import demo
from apps.deploy import deploy
from apps.discover import discover
from apps.doctor import doctor
from apps.evaluate import evaluate
from apps.evidence.command import evidence_app
from apps.export_lora import export_lora
from apps.gc import gc
from apps.generate import generate
from apps.import_release import import_release
from apps.judge.command import judge, sample
from apps.label.command import label
from apps.metrics import metrics
from apps.models import models
from apps.note import note
from apps.plan import plan
from apps.probe import probe
from apps.refresh import parameters, refresh
from apps.release import release_app
from apps.retry import retry
from apps.search import search
from apps.show import show
from apps.source import source
from apps.status import status
from apps.study.command import study_app
from apps.takedown import forget, recheck
from apps.train import train
from apps.train_frames import train_frames
from apps.train_text import train_text
from apps.up import up
from apps.verify import verify
from medgen import __version__
from medgen.logs import JsonLines

app = typer.Typer(
    help="medgen: from public video listings to a clean, captioned, auditable medical video dataset.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(release_app, name="release")
app.add_typer(creation_app, name="creation")
app.add_typer(study_app, name="study")
app.add_typer(evidence_app, name="evidence")
app.add_typer(auditors_app, name="auditors")
for command in (
    audit, judge, sample, label, train_frames, train_text, augment, generate, evaluate, create, train, models, forget,
    recheck, retry, note, doctor, deploy, metrics, plan, demo, refresh, discover, parameters, status, source,
    search, show, probe, cut, gc, verify, up, export_lora,
):  # fmt: skip
    app.command()(command)
app.command("import")(import_release)  # its name is a word of Python's


def _print_version(asked: bool) -> None:
    if asked:
        out.print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_print_version)
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every step.")] = False,
) -> None:
    """Sets up logging for all commands."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO" if verbose else "ERROR")
    as_json = os.environ.get("MEDGEN_LOG_FORMAT") == "json"  # not by the settings, which may be faulty
    handler = logging.StreamHandler() if as_json else RichHandler(console=err, show_path=False)
    handler.setFormatter(JsonLines() if as_json else logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])
    # Each failed item is on record and in the summary; repeating it in the log helps only with --verbose.
    logging.getLogger("medgen.shard").setLevel(logging.INFO if verbose else logging.CRITICAL)


if __name__ == "__main__":
    app()
