"""`medgen`: the command line."""

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from apps.audit.command import audit
from apps.augment import augment
from apps.deployments import deploy, tag_limits
from apps.doctor import doctor
from apps.evaluate import evaluate
from apps.forget import forget, recheck
from apps.generate import generate
from apps.judge.command import judge, sample
from apps.metrics import metrics
from apps.run_flow import run_flow
from apps.study.command import study_app
from apps.train import train
from apps.train_frames import train_frames
from apps.train_text import train_text
from medgen import __version__
from medgen.logs import JsonLines
from medgen.settings import current

app = typer.Typer(
    help="medgen: from public video listings to a clean, captioned, auditable medical video dataset.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
release_app = typer.Typer(help="Look at releases.", no_args_is_help=True)
app.add_typer(release_app, name="release")
app.add_typer(study_app, name="study")
app.command()(audit)
app.command()(judge)
app.command()(sample)
app.command()(train_frames)
app.command()(train_text)
app.command()(augment)
app.command()(generate)
app.command()(evaluate)
app.command()(train)
app.command()(forget)
app.command()(recheck)
app.command()(doctor)
app.command()(deploy)
app.command()(metrics)

out = Console()
err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON for machines.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Set any parameter of the refresh; see `medgen parameters`."),
]

# Licences of the videos that come inside packages.
DEMO_LICENCES = ["MIT*", "BSD*", "CC-BY*", "CC0*", "Creative Commons*", "Public domain*"]


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every step.")] = False,
) -> None:
    """Sets up logging for all commands."""
    if version:
        out.print(__version__)
        raise typer.Exit
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO" if verbose else "ERROR")
    as_json = os.environ.get("MEDGEN_LOG_FORMAT") == "json"  # not by the settings, which may be faulty
    handler = logging.StreamHandler() if as_json else RichHandler(console=err, show_path=False)
    handler.setFormatter(JsonLines() if as_json else logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])
    # Each failed item is on record and in the summary; repeating it in the log helps only with --verbose.
    logging.getLogger("medgen.shard").setLevel(logging.INFO if verbose else logging.CRITICAL)


@app.command()
def demo(
    train: Annotated[
        bool, typer.Option("--train", help="Go on to a small model, its evaluation and an augmentation table.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run everything on real videos that come inside packages: serve, download, judge, release."""
    with plain_errors():
        if train:
            _demo_train(as_json)
            return
        summary = _demo_release(training=False, quiet=as_json)
        if not as_json:
            _show_one_clip(summary["release"])
            out.print(
                f"\nThe release lies in [bold]{escape(summary['folder'])}[/]: clips/, metadata.parquet, README.md"
            )
        _print_summary(summary, as_json)


def _demo_release(*, training: bool, quiet: bool) -> dict[str, Any]:
    from apps import demo_corpus

    folder = current().home / "demo"
    with err.status("making the demo's videos"):
        demo_corpus.build_corpus(folder, training=training)
    with demo_corpus.serve(folder) as url:
        listing = demo_corpus.write_listing(folder, url, training=training)
        return run_flow(
            "refresh",
            {
                "sources": [str(listing)],
                "licences": DEMO_LICENCES,
                "allowed_hosts": ["127.0.0.1"],
                "min_height": 240,  # the packages' videos are small
                "request_interval_s": 0,  # of our own server
                "release_prefix": "demo-scans" if training else "demo",
            },
            quiet=quiet,
        )


def _demo_train(as_json: bool) -> None:
    """Release, model, evaluation beside the untrained twin, augmentation. Each part is a run of its own."""
    from apps import demo_train
    from apps.augment import show as show_augmentation
    from apps.evaluate import show as show_evaluation
    from apps.prefect_server import prefect_server
    from apps.train import show as show_training

    runs: dict[str, Any] = {}

    def told(part: str, summary: dict[str, Any], show: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        runs[part] = summary
        if not as_json:
            out.rule(part)
            show(summary)
        return summary

    with prefect_server(current().home):  # one for all runs
        released = _demo_release(training=True, quiet=as_json)
        told("release", released, lambda summary: _print_summary(summary, False))
        folder = current().home / "demo-train"
        files = demo_train.write_files(released["release"], Path(released["folder"]), folder)
        trained = run_flow("train", demo_train.training_arguments(released["release"]), quiet=as_json)
        told("model", trained, show_training)
        arguments = demo_train.evaluation_arguments(trained, files, folder / "report.html")
        told("evaluation", run_flow("evaluate", arguments, quiet=as_json), show_evaluation)
        arguments = demo_train.augmentation_arguments(trained, files)
        told("augmentation", run_flow("augment", arguments, quiet=as_json), lambda s: show_augmentation(s, {}))
    counts = {kind: sum(run[kind] for run in runs.values()) for kind in ("executed", "reused")}
    if as_json:
        _print_json(runs | counts)
        return
    out.rule()
    out.print(f"executed {counts['executed']}, reused {counts['reused']}", highlight=False)


@app.command()
def refresh(
    source: Annotated[
        list[str],
        typer.Option("--source", "-s", metavar="[NAME=]SOURCE", help="Listings, folders, feeds; may be repeated."),
    ],
    name: Annotated[str, typer.Option(help="First part of the release's name.")] = "medgen",
    settings: Settings = None,
    retry_quarantined: Annotated[bool, typer.Option(help="Try items again that failed for good.")] = False,
    as_json: Json = False,
) -> None:
    """Take sources through all steps to a release. Kill it whenever you like; run it again to go on."""
    with plain_errors():
        parameters = parse_settings(settings or [])
        parameters |= {"sources": source, "release_prefix": name, "retry_quarantined": retry_quarantined}
        summary = run_flow("refresh", parameters, quiet=as_json)
        _print_summary(summary, as_json)


@app.command()
def discover(
    source: Annotated[
        list[str],
        typer.Option("--source", "-s", metavar="[NAME=]SOURCE", help="Listings, folders, feeds; may be repeated."),
    ],
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Judge listings without downloading anything: which videos would a refresh take, and why not the others?"""
    with plain_errors():
        arguments = parse_settings(settings or []) | {"sources": source}
        summary = run_flow("discover", arguments, quiet=as_json)
        if as_json:
            _print_json(summary)
            return
        table = Table("verdict", "rows")
        for verdict, count in sorted(summary["counts"].items(), key=lambda pair: -pair[1]):
            table.add_row(verdict, f"{count:,}")
        out.print(table)
        out.print(
            f"{summary['rows']:,} rows in {summary['shards']} shards: executed {summary['executed']}, "
            f"reused {summary['reused']}"
        )


@app.command()
def parameters(as_json: Json = False) -> None:
    """List every parameter of a refresh with its default."""
    os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "false")
    from flows.refresh import RefreshParameters

    if as_json:
        _print_json(RefreshParameters.model_json_schema()["properties"])
        return
    table = Table("name", "default", "meaning")
    for name, field in RefreshParameters.model_fields.items():
        table.add_row(name, escape(str(field.default)), escape(field.description or ""))
    out.print(table)


@app.command()
def status(
    every: Annotated[bool, typer.Option("--all", help="List the verdict on every item.")] = False, as_json: Json = False
) -> None:
    """Show the funnel of all that is on record, and failures by reason."""
    from apps.status import missing, totals, verdicts
    from medgen.ledger import open_ledger
    from tasks.operations.failures import failures

    with plain_errors():
        table, gone = totals(open_ledger()), missing(open_ledger())
        failed = failures(open_ledger())
        items = list(verdicts(open_ledger())) if every else []
        if as_json:
            _print_json({"funnel": table, "failures": failed} | gone | ({"items": items} if every else {}))
            return
        _print_funnel(table)
        if failed:
            _print_failures(failed)
        if gone["taken_down"]:
            out.print(f"taken down: {gone['taken_down']} videos (`medgen forget --list`)", highlight=False)
        if gone["vanished"]:
            named = ", ".join([*gone["vanished"]][:10]) + (", …" if len(gone["vanished"]) > 10 else "")
            out.print(f"vanished from their source: {len(gone['vanished'])} videos: {named}", highlight=False)
        if every:
            _print_verdicts(items)


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Clip or video: id, its beginning, digest or URL. Model: name or digest."),
    ],
    as_json: Json = False,
) -> None:
    """Show the whole life of a clip or video, or of a model what trained it."""
    from apps.life import Unknown, life
    from apps.life import show as show_life
    from apps.model_story import show as show_model
    from medgen.errors import ItemFailed
    from medgen.ledger import open_ledger
    from tasks.training.model_lineage import trained_by

    with plain_errors(Unknown):
        try:
            story, show_story = life(open_ledger(), name), show_life
        except Unknown as unknown:
            try:
                story, show_story = trained_by(open_ledger(), name), show_model
            except ItemFailed as failure:
                raise (unknown if failure.reason == "unknown_model" else failure) from None
        if as_json:
            _print_json(story)
        else:
            show_story(story, out)


@release_app.command("list")
def release_list(as_json: Json = False) -> None:
    """List all releases."""
    rows = _releases()
    if as_json:
        _print_json(rows)
        return
    table = Table("name", "clips", "made", "digest")
    for row in rows:
        table.add_row(row["name"], str(row["clips"]), row["created_at"][:19], row["digest"])
    out.print(table)


@release_app.command("show")
def release_show(name: str, as_json: Json = False) -> None:
    """Show a release: its policy, funnel, clips and folder."""
    from medgen.errors import ItemFailed
    from medgen.ledger import open_ledger
    from tasks.curation.release import lay_out, read_funnel

    with plain_errors():
        row = next((row for row in _releases() if row["name"] == name), None)
        if row is None:
            _stop(f"no release goes by {name!r}; see `medgen release list`")
        record = open_ledger().load([row["step_run_id"]])[row["step_run_id"]]
        try:
            folder = str(lay_out(open_ledger().store, name, record.outputs["manifest"]))
        except ItemFailed as failure:
            if failure.reason != "release_not_approved":
                raise
            folder = "awaits approval"
        taken = _taken_down(open_ledger(), name, record.outputs["manifest"])
        row |= {
            "folder": folder,
            "funnel": read_funnel(record),
            "clip_ids": _clips_of(name),
            "taken_down": taken,
        }
        if as_json:
            _print_json(row)
            return
        out.print(f"[bold]{name}[/]  {row['clips']} clips\nsha256 {row['digest']}\n{escape(row['folder'])}")
        for takedown in taken["takedowns"] if taken else ():
            out.print(
                f"[red]taken down[/] {takedown['forgotten_at'][:19]}: video {takedown['video_id']}, "
                f"{len(takedown['clips'])} clips: {escape(takedown['reason'])}",
                soft_wrap=True,
            )
        _print_funnel(row["funnel"])
        out.print("clips:", ", ".join(row["clip_ids"]) or "none")
        out.print("policy:", json.dumps(row["policy"], indent=1, sort_keys=True), markup=False)


@release_app.command("approve")
def release_approve(
    name: str,
    by: Annotated[str, typer.Option(help="Who approves.")],
    note: Annotated[str, typer.Option(help="What was looked at, and why it is fit for use.")] = "",
    as_json: Json = False,
) -> None:
    """Approve a release that waits for it: it is laid out, and models may be trained on it."""
    from medgen.ledger import open_ledger
    from tasks.curation.approve import approve

    with plain_errors():
        record, folder = approve(open_ledger(), name, by, note)
        if as_json:
            _print_json({"release": name, "by": record.detail["by"], "folder": str(folder), "step_run": record.id})
            return
        out.print(f"{name} approved by {escape(record.detail['by'])}; it lies in {escape(str(folder))}", soft_wrap=True)


@app.command()
def gc(
    grace_minutes: Annotated[float, typer.Option(help="Leave what is younger: work may be in progress.")] = 60.0,
    dry_run: Annotated[bool, typer.Option(help="Only count.")] = False,
    as_json: Json = False,
) -> None:
    """Sweep what killed runs left: objects without a record, scratch files. Finish takedowns that were cut short."""
    from medgen.gc import collect_garbage
    from medgen.ledger import open_ledger
    from tasks.operations.takedown import finish

    with plain_errors():
        finished = [] if dry_run else finish(open_ledger())
        if finished and not as_json:
            out.print(f"finished the takedown of {', '.join(one.video_id for one in finished)}")
        swept = collect_garbage(open_ledger(), grace_s=60 * grace_minutes, dry_run=dry_run)
        if as_json:
            _print_json(vars(swept))
        else:
            word = "would remove" if dry_run else "removed"
            out.print(f"{word} {swept.objects} objects and {swept.scratch_files} scratch files, {swept.bytes} bytes")


@app.command()
def verify(
    artifacts: Annotated[bool, typer.Option(help="Read every artifact and recompute its digest.")] = True,
    as_json: Json = False,
) -> None:
    """Recompute the hash chain and all digests; name what is wrong. Exit 1 when anything is."""
    from medgen.ledger import open_ledger
    from medgen.verify import taken_down
    from medgen.verify import verify as verify_all

    with plain_errors():
        with err.status("verifying") as state:
            faults = verify_all(
                open_ledger(),
                current().releases_folder,
                artifacts=artifacts,
                progress=lambda what, done, total: state.update(f"verifying {what}: {done} of {total}"),
            )
        known = taken_down(open_ledger())
        if as_json:
            _print_json({"clean": not faults, "faults": faults} | ({"taken_down": known} if known else {}))
            if faults:
                raise typer.Exit(1)
            return
        for sentence in known:
            out.print(f"[dim]{escape(sentence)}[/]", soft_wrap=True)
        if faults:
            for fault in faults:
                out.print(f"[red]✗[/] {escape(fault)}")
        else:
            but = ", but for what was taken down" if known else ""
            out.print(f"[green]clean[/]: every record, artifact and release is as it was written{but}", soft_wrap=True)
        if faults:
            raise typer.Exit(1)


@app.command()
def up(
    port: Annotated[int, typer.Option(help="Port of the Prefect UI, on loopback.")] = 4200,
    worker_limit: Annotated[int, typer.Option(help="Flow runs at once.")] = 1,
) -> None:
    """Start Prefect's server, UI and a worker with the deployments of prefect.yaml. Ctrl-C stops them."""
    from apps.prefect_server import prefect_server, worker

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, from the first moment on
    with plain_errors(), prefect_server(current().home, port) as url:
        from medgen.catalog import open_catalog

        open_catalog()  # flow runs share its embedded Postgres, which stays up between them
        with worker(current().home, worker_limit, tag_limits()) as process:
            out.print(f"Prefect UI: [bold]{url.removesuffix('/api')}[/]   (Ctrl-C stops)", soft_wrap=True)
            process.wait()
        _stop("the worker ended by itself")


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` pairs; values are JSON where they parse as JSON, text otherwise."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            _stop(f"--set takes NAME=VALUE, not {pair!r}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


@contextmanager
def plain_errors(*expected: type[Exception]) -> Iterator[None]:
    """Foreseen troubles end in one plain line and exit code 1, not in a traceback."""
    from medgen.catalog import CatalogUnreachable
    from medgen.errors import ItemFailed, RunStopped
    from models import ModelUnavailable

    try:
        yield
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors()]
        _stop("bad parameters or settings:\n  " + "\n  ".join(lines), code=2)
    except (CatalogUnreachable, ItemFailed, ModelUnavailable, RunStopped, *expected) as error:
        _stop(str(error))
    except KeyboardInterrupt:
        _stop("stopped; run the same command again to go on", code=130)


def _stop(message: str, code: int = 1) -> Any:
    err.print(f"[red]error:[/] {escape(message)}")
    raise typer.Exit(code)


def _releases() -> list[dict[str, Any]]:
    from sqlalchemy import select
    from sqlalchemy.orm import Session

    from medgen.catalog import Release, open_catalog

    with plain_errors(), Session(open_catalog()) as session:
        rows = session.scalars(select(Release).order_by(Release.created_at, Release.name)).all()
        return [
            {
                "name": row.name,
                "digest": row.digest,
                "clips": row.clips,
                "created_at": row.created_at.isoformat(),
                "policy": row.policy,
                "record_root": row.record_root,
                "step_run_id": row.step_run_id,
            }
            for row in rows
        ]


def _taken_down(ledger: Any, release: str, manifest: str) -> dict[str, Any] | None:
    """The release's TAKEDOWN.json, from the catalog."""
    from sqlalchemy.orm import Session

    from medgen.takedown import release_takedown

    with Session(ledger.engine) as session:
        found = release_takedown(session, release, json.loads(ledger.store.read(manifest))["files"])
    return json.loads(found.notice) if found else None


def _clips_of(release: str) -> list[str]:
    from sqlalchemy import select
    from sqlalchemy.orm import Session

    from medgen.catalog import ReleaseClip, open_catalog

    with Session(open_catalog()) as session:
        members = select(ReleaseClip.clip_id).where(ReleaseClip.release_name == release).order_by(ReleaseClip.clip_id)
        return list(session.scalars(members))


def _show_one_clip(release: str) -> None:
    from apps.life import life
    from apps.life import show as show_life
    from medgen.ledger import open_ledger

    clips = _clips_of(release)
    if clips:
        show_life(life(open_ledger(), clips[0]), out)


def _print_summary(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(summary)
        return
    _print_funnel(summary["funnel"])
    out.print(f"videos decoded {summary['decodes']}")
    out.print(f"executed {summary['executed']}, reused {summary['reused']}", highlight=False)
    out.print(f"release {summary['release']} {summary['digest']}", highlight=False, soft_wrap=True)
    for said in summary["departures"]:
        out.print(f"[yellow]departs from its history:[/] {escape(said)}", soft_wrap=True)
    if summary["awaits_approval"]:
        out.print(f"awaits approval: medgen release approve {summary['release']} --by NAME", soft_wrap=True)


def _print_funnel(funnel: Sequence[dict[str, Any]]) -> None:
    from tasks.curation.funnel import table_rows

    table = Table(title="Funnel", title_justify="left")
    for column in ("step", "unit", "in", "kept", "rejected", "failed", "reasons"):
        table.add_column(column, justify="right" if column in ("in", "kept", "rejected", "failed") else "left")
    for row in table_rows(funnel):
        table.add_row(*(escape(str(value)) for value in row.values()))
    out.print(table)


def _print_failures(report: Sequence[dict[str, Any]]) -> None:
    from tasks.operations.failures import table_rows

    table = Table(title="Failures", title_justify="left")
    for column in ("step", "reason", "count", "tried again", "example"):
        table.add_column(column, justify="right" if column == "count" else "left", overflow="fold")
    for row in table_rows(report):
        table.add_row(*(escape(str(value)) for value in row.values()))
    out.print(table)


def _print_verdicts(items: Sequence[dict[str, Any]]) -> None:
    table = Table(title="Verdicts", title_justify="left")
    for column in ("item", "verdict", "step", "reason", "explanation"):
        table.add_column(column, overflow="fold")
    for item in items:
        name = item["title"] or item["url"] or f"{item['source']} row {item['row']}"
        kept = f"kept ({item['clips']} clips)" if item["clips"] else item["status"]
        table.add_row(*(escape(str(v or "")) for v in (name, kept, item["step"], item["reason"], item["message"])))
    out.print(table)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


if __name__ == "__main__":
    app()
