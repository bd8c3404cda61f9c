"""`medgen study`: new, open, invite, list, results, withdraw."""

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from apps.console import Json, err, out, print_json, report_expected_errors
from apps.host_check import AllowHost, HostCheck, is_loopback
from medgen.counted import counted

if TYPE_CHECKING:  # loaded when a command needs it
    from tasks.evaluation.study import NewStudy

study_app = typer.Typer(
    help="Let people rate videos of several systems, blind: side by side, or their errors.", no_args_is_help=True
)


Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the study.")]
Url = Annotated[str, typer.Option(help="Where raters reach the pages: the beginning of their links.")]
DEFAULT_URL = "http://127.0.0.1:8008"


@study_app.command("new")
def new(
    name: Name,
    videos: Annotated[
        list[str],
        typer.Option(
            "--videos",
            metavar="SYSTEM=SOURCE",
            help="A system's videos: a folder (with a table of file and prompt, or of `medgen generate`), a table, or "
            "medgen:MODEL for what a model on record generated. Two times or more.",
        ),
    ],
    kind: Annotated[
        Literal["pairs", "errors"],
        typer.Option(help="pairs: which of two videos is better; errors: one at a time, on four levels, as the paper."),
    ] = "pairs",
    prompts: Annotated[
        Path | None, typer.Option(help="Only videos of these prompts (.txt, .csv, .jsonl), `medical` or `paper`.")
    ] = None,
    raters: Annotated[int, typer.Option(help="People who will rate; each rates all.")] = 3,
    pairs: Annotated[int, typer.Option(help="Pairs (or videos) to rate; 0 takes all there are.")] = 0,
    checks: Annotated[int, typer.Option(help="Attention checks; -1: one for ten pairs, two at least.")] = -1,
    seed: Annotated[int, typer.Option(help="Of the choice of pairs, of orders and sides.")] = 0,
    consent: Annotated[Path | None, typer.Option(help="Text that raters agree to, instead of the plain one.")] = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Lay out a study: anonymous copies of the videos, pairs, attention checks, and a link for each rater.

    The links are shown once: only digests of them are kept.
    """  # fmt: skip
    from apps.study.consent import consent_text
    from medgen.errors import RunStopped
    from medgen.ledger import open_ledger
    from models.generation.prompt_set import load_prompts
    from tasks.evaluation.study import StudyParams, new_study
    from tasks.evaluation.system_videos import videos_of

    with report_expected_errors():
        params = StudyParams(kind=kind, raters=raters, pairs=pairs, checks=checks, study_seed=seed)
        wanted = load_prompts(prompts) if prompts else []
        agreement = consent_text(consent)
        sources = [_source(text) for text in videos]
        if len({label for label, _ in sources}) < max(1 if kind == "errors" else 2, len(sources)):
            raise RunStopped("a study compares two or more systems under names of their own: --videos NAME=FOLDER")
        ledger = open_ledger()
        systems = [videos_of(ledger, label, source, wanted) for label, source in sources]
        with Progress(console=err, disable=as_json, transient=True) as bars:
            bar = bars.add_task("copying videos", total=None)
            made = new_study(
                ledger, name, systems, params, agreement,
                progress=lambda done, total: bars.update(bar, completed=done, total=total),
            )  # fmt: skip
        links = {str(rater): f"{url.rstrip('/')}/r/{token}" for rater, token in made.tokens.items()}
        if as_json:
            facts = {"study": name, "kind": kind, "pairs": made.pairs, "checks": made.checks, "links": links}
            print_json(facts | {"left_out": made.left_out, "looks": made.looks})
            return
        _print_new(name, kind, made, links, url)


@study_app.command("open")
def open_study(
    name: Name,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8008,
    allow_host: AllowHost = None,
) -> None:
    """Serve the pages of a study until Ctrl-C. Answers are saved one by one; stop and open again as you like."""
    from apps.serve import listen, serve
    from apps.study.ratings import read_ratings
    from apps.study.site import study_site
    from medgen.ledger import open_ledger

    with report_expected_errors():
        ledger = open_ledger()
        raters = sum(rater.withdrawn_at is None for rater in read_ratings(ledger.engine, name).raters)
        listening, url = listen(host, port)
        shown = url.replace("0.0.0.0", "127.0.0.1")
        out.print(f"{name} is open for {counted(raters, 'rater')} at {shown}   (Ctrl-C stops)", soft_wrap=True)
        out.print(f"their links begin with {shown}/r/ unless a proxy stands before it", soft_wrap=True, highlight=False)
        if not is_loopback(host):
            err.print("[yellow]plain HTTP: for raters elsewhere put a proxy with TLS before it (--allow-host NAME)[/]")
        serve(HostCheck(study_site(ledger, name), host, allow_host or ()), listening)


@study_app.command("invite")
def invite_rater(
    name: Name,
    rater: Annotated[int | None, typer.Option(help="Replace this rater's link; without it one more joins.")] = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Make a link: for one more rater, or a new one for a rater who lost theirs (the old one then ends)."""
    from medgen.ledger import open_ledger
    from tasks.evaluation.study import invite

    with report_expected_errors():
        number, token = invite(open_ledger(), name, rater)
        link = f"{url.rstrip('/')}/r/{token}"
        if as_json:
            print_json({"study": name, "rater": number, "link": link})
            return
        _print_links({str(number): link})


@study_app.command("list")
def list_studies(as_json: Json = False) -> None:
    """List all studies and how far they are."""
    from sqlalchemy import select
    from sqlalchemy.orm import Session

    from apps.study.ratings import read_ratings
    from medgen.catalog import Study
    from medgen.ledger import open_ledger

    with report_expected_errors():
        engine = open_ledger().engine
        with Session(engine) as session:
            names = session.scalars(select(Study.name).order_by(Study.created_at, Study.name)).all()
        rows: list[dict[str, Any]] = []
        for name in names:
            ratings = read_ratings(engine, name)
            raters = [rater for rater in ratings.raters if rater.withdrawn_at is None]
            rows.append(
                {"study": name, "kind": ratings.study.kind, "systems": list(ratings.study.systems),
                 "pairs": len(ratings.pairs), "raters": len(raters),
                 "answers": len(ratings.answers), "of": len(raters) * len(ratings.pairs),
                 "created_at": ratings.study.created_at.astimezone(UTC).isoformat()}
            )  # fmt: skip
        if as_json:
            print_json(rows)
            return
        table = Table("study", "kind", "systems", "pairs (or videos) with checks", "raters", "answers", "made")
        for row in rows:
            answers = f"{row['answers']} of {row['of']}"
            table.add_row(
                row["study"], row["kind"], escape(", ".join(row["systems"])), str(row["pairs"]), str(row["raters"]),
                answers, row["created_at"][:16],
            )  # fmt: skip
        out.print(table)


@study_app.command("results")
def show_results(
    name: Name,
    folder: Annotated[
        Path | None, typer.Option("--export", metavar="FOLDER", help="Write answers.csv, .parquet and results.json.")
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Put them on record as evaluations, with their lineage to the models.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Win rates with intervals, Bradley–Terry ranking, agreement of raters, attention checks. Any time, also midway.

    Of errors: the share of videos that most raters found wrong.
    """
    from apps.study.export import export
    from apps.study.ratings import read_ratings
    from apps.study.results import results
    from apps.study.show import print_results
    from medgen.ledger import open_ledger
    from tasks.evaluation.study import record_results

    with report_expected_errors(OSError):
        ratings = read_ratings(open_ledger().engine, name)
        figures = results(ratings)
        recorded = record_results(open_ledger(), name, figures) if record else {}
        written = export(ratings, figures, folder) if folder else []
        if as_json:
            print_json(figures)
            return
        print_results(figures)
        for label, run in recorded.items():
            out.print(f"{escape(label)} is on record as step run {run.id}", soft_wrap=True)
        for path in written:
            out.print(f"wrote {escape(str(path))}", soft_wrap=True)


@study_app.command("withdraw")
def withdraw(
    name: Name,
    rater: Annotated[int, typer.Argument(help="The rater's number.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove a rater's answers and end their link, as the consent promises. This can't be undone."""
    from sqlalchemy import delete
    from sqlalchemy.orm import Session

    from medgen.catalog import StudyAnswer, StudyRater
    from medgen.errors import RunStopped
    from medgen.ledger import open_ledger

    with report_expected_errors():
        engine = open_ledger().engine
        if not yes:
            if not sys.stdin.isatty():
                raise RunStopped("this can't be undone: say --yes")
            typer.confirm(f"Remove all answers of rater {rater} of {name}?", abort=True)
        with Session(engine) as session, session.begin():
            row = session.get(StudyRater, (name, rater), with_for_update=True)
            if row is None:
                raise RunStopped(f"there is no rater {rater} of a study {name[:80]!r}")
            row.withdrawn_at = row.withdrawn_at or datetime.now(UTC)
            mine = (StudyAnswer.study_name == name) & (StudyAnswer.rater == rater)
            removed = len(session.scalars(delete(StudyAnswer).where(mine).returning(StudyAnswer.pair)).all())
        if as_json:
            print_json({"study": name, "rater": rater, "answers_removed": removed})
            return
        out.print(f"removed {removed} answers of rater {rater}; exports that were handed on hold them still")


def _source(text: str) -> tuple[str, str]:
    from medgen.errors import RunStopped

    label, equals, source = (part.strip() for part in text.partition("="))
    if not (equals and label and source) or len(label) > 100 or not label.isprintable():
        raise RunStopped(f"--videos takes SYSTEM=FOLDER, not {text[:100]!r}")
    return label, source


def _print_new(name: str, kind: str, made: "NewStudy", links: Mapping[str, str], url: str) -> None:
    items = counted(made.pairs, "video" if kind == "errors" else "pair")
    out.print(f"[bold]{name}[/]: {items} and {counted(made.checks, 'attention check')}", highlight=False)
    for label, why in made.left_out.items():
        out.print(f"left out {escape(label)}: {escape(why)}", soft_wrap=True)
    if len({tuple(look) for look in made.looks.values()}) > 1:
        err.print("[yellow]raters may tell systems apart by what no copy can hide:[/]")
        for label, looks in made.looks.items():
            err.print(f"  {escape(label)}: {'; '.join(looks[:4])}", highlight=False, soft_wrap=True)
    _print_links(links)
    port = urlsplit(url).port
    there = f" --port {port}" if port and port != urlsplit(DEFAULT_URL).port else ""
    out.print(f"Serve the pages with [bold]medgen study open {name}{there}[/]", soft_wrap=True)


def _print_links(links: Mapping[str, str]) -> None:
    out.print("Send each rater their own link. They are shown only now:")
    for rater, link in links.items():
        out.print(f"  rater {rater}  {link}", soft_wrap=True, highlight=False)
