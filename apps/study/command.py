"""`medgen study`: new, open, invite, list, results, withdraw."""

import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from apps.console import Json, err, out, print_json, report_expected_errors

study_app = typer.Typer(
    help="Let people compare videos of several systems, side by side and blind.", no_args_is_help=True
)

MAX_CONSENT = 20_000  # characters
MANY_RATER_PAIRS = 6  # of more only the range is printed
CONSENT = """\
This study compares videos that were made for written descriptions, most of them by computers. Taking part means \
watching pairs of short videos and saying which is better. It is voluntary: you may stop at any time without giving a \
reason, by closing the page, and you may have your answers removed by telling the person who invited you.

What is kept: your answers, your comments, how long each answer took, and when you agreed to this. They are kept under \
a number, not under your name; please write no names into comments. The answers may be published together with the \
videos, in a form that does not name you.

Some videos may show surgery, blood or wounds. What they show may be wrong: nothing in them is to be learned from or \
followed in treatment."""

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
    prompts: Annotated[
        Path | None, typer.Option(help="Only videos of these prompts (.txt, .csv, .jsonl), or `medical`.")
    ] = None,
    raters: Annotated[int, typer.Option(help="People who will rate; each rates all pairs.")] = 3,
    pairs: Annotated[int, typer.Option(help="Pairs to rate; 0 takes all there are.")] = 0,
    checks: Annotated[int, typer.Option(help="Attention checks; -1: one for ten pairs, two at least.")] = -1,
    seed: Annotated[int, typer.Option(help="Of the choice of pairs, of orders and sides.")] = 0,
    consent: Annotated[Path | None, typer.Option(help="Text that raters agree to, instead of the plain one.")] = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Lay out a study: anonymous copies of the videos, pairs, attention checks, and a link for each rater.

    The links are shown once: only digests of them are kept.
    """  # fmt: skip
    from medgen.errors import RunStopped
    from medgen.ledger import open_ledger
    from models.generation.prompt_set import load_prompts
    from tasks.evaluation.study import StudyParams, new_study
    from tasks.evaluation.system_videos import videos_of

    with report_expected_errors():
        params = StudyParams(raters=raters, pairs=pairs, checks=checks, study_seed=seed)
        wanted = load_prompts(prompts) if prompts else []
        text = _consent(consent)
        sources = [_source(one) for one in videos]
        if len({label for label, _ in sources}) < max(2, len(sources)):
            raise RunStopped("a study compares two or more systems under names of their own: --videos NAME=FOLDER")
        ledger = open_ledger()
        systems = [videos_of(ledger, label, source, wanted) for label, source in sources]
        with Progress(console=err, disable=as_json, transient=True) as bars:
            bar = bars.add_task("copying videos", total=None)
            made = new_study(
                ledger, name, systems, params, text,
                progress=lambda done, total: bars.update(bar, completed=done, total=total),
            )  # fmt: skip
        links = {str(rater): f"{url.rstrip('/')}/r/{token}" for rater, token in made.tokens.items()}
        if as_json:
            facts = {"study": name, "pairs": made.pairs, "checks": made.checks, "links": links}
            print_json(facts | {"left_out": made.left_out, "looks": made.looks})
            return
        out.print(f"[bold]{name}[/]: {made.pairs} pairs and {made.checks} attention checks", highlight=False)
        for label, why in made.left_out.items():
            out.print(f"left out {escape(label)}: {escape(why)}", soft_wrap=True)
        if len({tuple(look) for look in made.looks.values()}) > 1:
            err.print("[yellow]raters may tell systems apart by what no copy can hide:[/]")
            for label, looks in made.looks.items():
                err.print(f"  {escape(label)}: {'; '.join(looks[:4])}", highlight=False, soft_wrap=True)
        _print_links(links)
        out.print(f"Serve the pages with [bold]medgen study open {name}[/]", soft_wrap=True)


@study_app.command("open")
def open_study(
    name: Name,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8008,
) -> None:
    """Serve the pages of a study until Ctrl-C. Answers are saved one by one; stop and open again as you like."""
    import uvicorn

    from apps.study.results import read_ratings
    from apps.study.site import study_site
    from medgen.ledger import open_ledger

    with report_expected_errors(OSError):
        ledger = open_ledger()
        raters = sum(rater.withdrawn_at is None for rater in read_ratings(ledger.engine, name).raters)
        # No access log: the links in it hold the raters' tokens.
        config = uvicorn.Config(
            study_site(ledger, name), host=host, port=port, access_log=False, log_level="error", server_header=False
        )
        server = uvicorn.Server(config)
        listener = config.bind_socket()
        # Or else each answer on a kept connection waits 40 ms between its headers and its body.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        shown = "127.0.0.1" if host == "0.0.0.0" else host
        out.print(f"{name} is open for {raters} raters at http://{shown}:{port}   (Ctrl-C stops)", soft_wrap=True)
        if host not in ("127.0.0.1", "::1", "localhost"):
            err.print("[yellow]plain HTTP: for raters elsewhere put a proxy with TLS before it[/]")
        server.run(sockets=[listener])


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

    from apps.study.results import read_ratings
    from medgen.catalog import Study
    from medgen.ledger import open_ledger

    with report_expected_errors():
        engine = open_ledger().engine
        with Session(engine) as session:
            names = session.scalars(select(Study.name).order_by(Study.created_at, Study.name)).all()
        rows = []
        for one in names:
            ratings = read_ratings(engine, one)
            raters = [rater for rater in ratings.raters if rater.withdrawn_at is None]
            rows.append(
                {"study": one, "systems": list(ratings.study.systems), "pairs": len(ratings.pairs),
                 "raters": len(raters), "answers": len(ratings.answers), "of": len(raters) * len(ratings.pairs),
                 "created_at": ratings.study.created_at.astimezone(UTC).isoformat()}
            )  # fmt: skip
        if as_json:
            print_json(rows)
            return
        table = Table("study", "systems", "pairs with checks", "raters", "answers", "made")
        for row in rows:
            told = f"{row['answers']} of {row['of']}"
            table.add_row(
                row["study"], escape(", ".join(row["systems"])), str(row["pairs"]), str(row["raters"]), told,
                row["created_at"][:16],
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
    """Win rates with intervals, Bradley–Terry ranking, agreement of raters, attention checks. Any time, also midway."""
    from apps.study.export import export
    from apps.study.results import read_ratings, results
    from medgen.ledger import open_ledger
    from tasks.evaluation.study import record_results

    with report_expected_errors(OSError):
        ratings = read_ratings(open_ledger().engine, name)
        found = results(ratings)
        recorded = record_results(open_ledger(), name, found) if record else {}
        written = export(ratings, found, folder) if folder else []
        if as_json:
            print_json(found)
            return
        _print_results(found)
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
            removed = session.execute(delete(StudyAnswer).where(mine)).rowcount
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


def _consent(path: Path | None) -> str:
    from medgen.errors import RunStopped

    if path is None:
        return CONSENT
    try:
        text = path.read_text("utf-8-sig").replace("\x00", "").replace("\r\n", "\n").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RunStopped(f"the consent text {path} can't be read: {error}") from error
    if not 0 < len(text) <= MAX_CONSENT:
        raise RunStopped(f"the consent text {path} must have 1 to {MAX_CONSENT} characters, not {len(text)}")
    return text


def _print_links(links: dict[str, str]) -> None:
    out.print("Send each rater their own link. They are shown only now:")
    for rater, link in links.items():
        out.print(f"  rater {rater}  {link}", soft_wrap=True, highlight=False)


def _print_results(found: dict[str, Any]) -> None:
    table = Table(title="Raters", title_justify="left")
    for column in ("rater", "answered", "checks failed", "median time", "chose A", "comments", "note"):
        table.add_column(column, justify="left" if column == "note" else "right")
    for row in found["raters"]:
        note = "withdrawn" if row["withdrawn"] else "" if row["attentive"] else "failed the attention checks"
        table.add_row(
            str(row["rater"]), f"{row['answered']} of {row['of']}",
            f"{row['checks_failed']} of {row['checks_answered']}",
            "–" if row["median_seconds"] is None else f"{row['median_seconds']:.0f} s",
            "–" if row["left_share"] is None else f"{row['left_share']:.0%}", str(row["comments"]), note,
        )  # fmt: skip
    out.print(table)
    _print_over(found["all_raters"], "all raters")
    if found["attentive_raters"]:
        names = ", ".join(map(str, found["attentive_raters"]["raters"])) or "none"
        _print_over(found["attentive_raters"], f"raters who passed the attention checks: {names}")


def _print_over(block: dict[str, Any], whose: str) -> None:
    ranking = _table(
        f"Win rates and ranking, {whose} (with 95 % intervals)", "axis system", "win rate,votes,rank,strength"
    )
    duels = _table(f"Head to head, {whose}", "axis first second", "first wins,second wins,both lose,lead of first")
    agreement = _table(f"Agreement, {whose}", "axis", "Fleiss' κ,Cohen's κ of pairs of raters")
    for axis, facts in block["axes"].items():
        name = axis.replace("_", " ")
        rates = {row["system"]: row for row in facts["systems"]}
        for number, place in enumerate(facts["bradley_terry"]):
            row = rates[place["system"]]
            rank = "–" if place["rank"] is None else str(place["rank"])
            cells = (_shown(row["win_rate"]), str(row["votes"]), rank, _shown(place["log_strength"], "+.2f"))
            ranking.add_row(name if number == 0 else "", escape(place["system"]), *cells)
        both = (_shown(facts["both_lose"]), str(facts["votes"]), "", "")
        ranking.add_row("", "[dim]both lose[/]", *both, end_section=True)
        for number, duel in enumerate(facts["head_to_head"]):
            counts = [str(count) for count in (*duel["wins"], duel["both_lose"])]
            names = (escape(duel["first"]), escape(duel["second"]))
            duels.add_row(name if number == 0 else "", *names, *counts, _shown(duel["lead"], "+.1%"))
        agreement.add_row(name, _shown(facts["fleiss_kappa"], ".2f"), _cohens(facts["cohen_kappa"]))
    for table in (ranking, duels, agreement):
        out.print(table)


def _table(title: str, words: str, numbers: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in words.split():
        table.add_column(column, overflow="fold")
    for column in numbers.split(","):
        table.add_column(column, justify="right")
    return table


def _cohens(rows: list[dict[str, Any]]) -> str:
    known = [row["value"] for row in rows if row["value"] is not None]
    if len(rows) > MANY_RATER_PAIRS and known:
        return f"{min(known):.2f} to {max(known):.2f}, {len(rows)} pairs"
    told = ("{}–{}: {}".format(*row["raters"], "–" if row["value"] is None else f"{row['value']:.2f}") for row in rows)
    return ", ".join(told) or "–"


def _shown(facts: dict[str, Any], how: str = ".1%") -> str:
    """A number with its interval."""
    if facts["value"] is None:
        return "–"
    if facts["low"] is None:
        return format(facts["value"], how)
    return f"{format(facts['value'], how)} ({format(facts['low'], how)} to {format(facts['high'], how)})"
