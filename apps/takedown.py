"""`medgen forget` and `medgen recheck`."""

import sys
from collections.abc import Collection, Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from apps.console import err, out, print_json
from medgen.counted import counted

if TYPE_CHECKING:  # loaded when a command needs them: they bring yt-dlp and Prefect along
    from medgen.catalog import Tombstone
    from medgen.ledger import Ledger
    from medgen.takedown import NearCopy, Takedown

MAX_URL = 8192  # characters
MAX_REASON = 1000
MOST_COPIES = 5  # clips of one video that are named


class NotTakenDown(RuntimeError):
    """Nothing was taken down, and why."""


def forget(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="URL|VIDEO...", help="URL of a video, or its id or the start of it.")
    ] = None,
    reason: Annotated[
        str, typer.Option(help="Goes on record and into the releases' TAKEDOWN.json: name nobody in it.")
    ] = "not stated",
    with_copies: Annotated[
        bool, typer.Option("--with-copies", help="Take down the videos too that hold near-duplicates of them, whole.")
    ] = False,
    block: Annotated[
        bool | None,
        typer.Option(
            "--block-copies/--allow-copies",
            help="Whether near-duplicates of them are kept out of new releases, whatever address they come from: kept "
            "out, unless allowed. May be changed by taking down once more.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    retention_ended: Annotated[
        bool, typer.Option("--retention-ended", help="The videos whose source's retention has ended (`medgen source`).")
    ] = False,
    list_all: Annotated[bool, typer.Option("--list", help="List what was taken down.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print facts as JSON for machines.")] = False,
) -> None:
    """Take videos down: their bytes and words go, a tombstone stays, no later refresh takes them again.

    A URL that was never listed gets a tombstone too. Killed halfway: run it again, or `medgen gc`.
    """
    from apps.console import report_expected_errors
    from apps.history import Unknown
    from medgen.ledger import open_ledger
    from medgen.source_terms import retention_ended as ended
    from tasks.operations import takedown

    with report_expected_errors(NotTakenDown, Unknown):
        if list_all:
            _list(as_json)
            return
        reason = reason.strip()
        if not 0 < len(reason) <= MAX_REASON or not reason.isprintable():
            raise NotTakenDown(f"a reason is one line of 1 to {MAX_REASON} characters")
        ledger = open_ledger()
        urls = dict(locate(ledger, name) for name in names or ())
        if retention_ended:
            urls |= {video_id: url for video_id, url, _ in ended(ledger.engine)}
            if not urls:
                out.print("no video's retention has ended")
                return
        if with_copies and block is False:
            raise NotTakenDown("either copies go too (--with-copies), or they may stay (--allow-copies)")
        if not urls:
            raise NotTakenDown("name at least one video: its URL or its id (`medgen forget --help`)")
        if dry_run or not (yes or as_json):
            planned = takedown.survey(ledger, urls, with_copies=with_copies, block=block)
            if dry_run:
                _print(planned, as_json, done=False)
                return
            _print(planned, False, done=False)
            if not sys.stdin.isatty():
                raise NotTakenDown("this can't be undone: say --yes")
            typer.confirm("This can't be undone. Go on?", abort=True)
        elif not yes:
            raise NotTakenDown("this can't be undone: say --yes")
        done = takedown.take_down(ledger, urls, reason, with_copies=with_copies, block=block)
        _print(done, as_json, done=True)


def locate(ledger: "Ledger", name: str) -> tuple[str, str]:
    """(video id, URL) of the video that a person names: a known one, or a URL that may be listed one day.

    Raises:
        Unknown: no video, and no URL of one, goes by that name.
    """
    from sqlalchemy.orm import Session

    from apps.history import Unknown, find
    from medgen.catalog import Tombstone, Video
    from medgen.listings.sources import FOLDER_SCHEME
    from tasks.curation.discover import video_id

    shown = f"{name[:80]!r}" + ("…" if len(name) > 80 else "")
    if not name.strip() or len(name) > MAX_URL or not name.isprintable():
        raise Unknown(f"{shown} is neither the URL nor the id of a video")
    with Session(ledger.engine) as session:
        if tombstone := session.get(Tombstone, name):
            return tombstone.video_id, tombstone.url
    if "://" in name or name.startswith(FOLDER_SCHEME):
        if not name.startswith(FOLDER_SCHEME) and not _is_url(name):
            raise Unknown(f"{shown} is no http or https URL")
        return video_id(name), name
    kind, identity = find(ledger, name)
    if kind == "clip":
        raise Unknown(f"{shown} is a clip; videos are taken down with all their clips: `medgen show {identity}`")
    with Session(ledger.engine) as session:
        return identity, session.get_one(Video, identity).url


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme.lower() in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _list(as_json: bool) -> None:
    from sqlalchemy.orm import Session

    from medgen.catalog import open_catalog
    from medgen.takedown import list_tombstones, stamp, unfinished_takedowns

    with Session(open_catalog()) as session:
        cut_short = set(unfinished_takedowns(session))
        tombstones = list_tombstones(session)
        if as_json:
            names = ("artifacts", "bytes", "clips", "releases", "models")
            print_json(
                [
                    {"video_id": tombstone.video_id, "url": tombstone.url, "reason": tombstone.reason}
                    | {"forgotten_at": stamp(tombstone.forgotten_at), "finished": tombstone.video_id not in cut_short}
                    | {name: tombstone.detail[name] for name in names if name in tombstone.detail}
                    for tombstone in tombstones
                ]
            )
        else:
            _print_tombstones(tombstones, cut_short)


def _print_tombstones(tombstones: "Iterable[Tombstone]", cut_short: Collection[str]) -> None:
    from medgen.takedown import stamp

    table = Table("video", "taken down", "url", "reason", "artifacts", "releases")
    for tombstone in tombstones:
        state = "" if tombstone.video_id not in cut_short else "\nnot finished: run `medgen gc`"
        table.add_row(
            tombstone.video_id,
            stamp(tombstone.forgotten_at)[:19] + state,
            escape(tombstone.url),
            escape(tombstone.reason),
            str(tombstone.detail.get("artifacts", 0)),
            escape(", ".join(tombstone.detail.get("releases", ()))),
        )
    out.print(table)


def _print(reports: "Sequence[Takedown]", as_json: bool, *, done: bool) -> None:
    word = "removed" if done else "would remove"
    if as_json:
        print_json(
            [report.model_dump(mode="json", exclude={"sealed"}) | {"advice": advice(report)} for report in reports]
        )
        return
    for report in reports:
        out.print(f"[bold]{report.video_id}[/]  {escape(report.url)}", soft_wrap=True)
        if report.forgotten_at:
            out.print(f"taken down {report.forgotten_at[:19]}: {escape(report.reason)}", soft_wrap=True)
        elif not report.artifacts:
            out.print("nothing of it is in the store; its tombstone keeps it from ever being taken")
        out.print(
            f"{word} {report.artifacts} artifacts, {report.bytes} bytes, {counted(len(report.clips), 'clip')}",
            highlight=False,
        )
        if report.copy_of:
            out.print(f"as a copy of {', '.join(report.copy_of)}", soft_wrap=True)
        for line in advice(report):
            out.print(f"• {escape(line)}", soft_wrap=True)
    if len(reports) > 1:
        gone = {digest for report in reports for digest in (*report.removed, *report.replaced)}
        out.print(f"{word} {len(gone)} artifacts of {len(reports)} videos in all", highlight=False)


def advice(report: "Takedown") -> list[str]:
    """What else there is to do after a takedown, a sentence each."""
    lines = []
    for digest, subjects in report.kept_for_others.items():
        others = ", ".join(subjects)
        lines.append(f"artifact {digest[:12]} stays, because {others} has the same bytes: forget that too if need be")
    for name, clips in report.releases.items():
        what = f"held {counted(clips, 'clip')} of it" if clips else "listed it among the rejected"
        lines.append(f"release {name} {what}: copies that were handed on must be recalled; make a new release")
    lines += [f"model {name} was trained on it: withdraw the model, or train it again" for name in report.models]
    lines += [
        f"creation {name} was made by a model that learned from it: recall copies that were handed on"
        for name in report.creations
    ]
    lines += _advice_on_copies(report)
    lines += [f"step run {run_id} was altered even before: see `medgen verify`" for run_id in report.altered]
    return lines


def _advice_on_copies(report: "Takedown") -> list[str]:
    """The near-duplicates of a video that was taken down, a sentence for each video that holds some."""
    videos: dict[str, list[NearCopy]] = {}
    for copy in report.copies or ():
        videos.setdefault(copy.video_id, []).append(copy)
    lines = []
    for video_id, copies in videos.items():
        clips = [copy for copy in copies if copy.clip]
        if not clips:
            lines.append(f"video {video_id} ({copies[0].url}) is the same file: --with-copies takes it down too")
            continue
        shown = ", ".join(
            f"clip {copy.clip} ({copy.reason or copy.status}, similarity {copy.similarity:g})"
            for copy in clips[:MOST_COPIES]
        )
        more = f" and {len(clips) - MOST_COPIES} more" if len(clips) > MOST_COPIES else ""
        held = sorted({name for copy in clips for name in copy.releases})
        in_releases = f", held by {', '.join(held)}" if held else ""
        lines.append(f"video {video_id} ({copies[0].url}) shows the same in {shown}{more}{in_releases}")
    if videos:
        kept_out = "new releases leave these clips out" if report.blocking is None else "they may stay"
        lines.append(f"{kept_out}; --with-copies takes down their videos too")
    return lines


def recheck(
    older_than: Annotated[
        float,
        typer.Option("--older-than", metavar="DAYS", min=0, help="Leave out what was asked for since."),
    ] = 0.0,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many videos, the longest unasked first.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="recheck_limit_s or stall_limit_s.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print facts as JSON for machines.")] = False,
) -> None:
    """Ask the sources of kept videos whether they still exist; mark those that vanished."""
    from apps.console import parse_settings, report_expected_errors
    from medgen.ledger import open_ledger
    from medgen.shard import ShardFailed
    from medgen.takedown import stamp
    from tasks.curation.vanished import vanished
    from tasks.operations import recheck as step

    with report_expected_errors(ShardFailed):
        params = step.RecheckParams(**parse_settings(settings or []))
        ledger = open_ledger()
        with Progress(console=err, disable=as_json, transient=True) as bars:
            bar = bars.add_task("asking sources", total=None)
            rechecked = step.recheck_videos(
                ledger,
                params,
                older_than=timedelta(days=min(older_than, 36500.0)),
                limit=limit,
                progress=lambda done, total: bars.update(bar, completed=done, total=total),
            )
        gone = {video_id: stamp(when) for video_id, when in vanished(ledger.engine).items()}
        if as_json:
            print_json(vars(rechecked) | {"vanished": gone})
            return
        out.print(
            f"asked for {rechecked.asked} videos, {rechecked.reused} more were asked for today: "
            f"{rechecked.there} exist, {rechecked.gone} are gone, {rechecked.unanswered} without an answer",
            highlight=False,
            soft_wrap=True,
        )
        for video_id, when in sorted(gone.items()):
            out.print(f"{video_id} vanished, found {when[:19]}", highlight=False)
