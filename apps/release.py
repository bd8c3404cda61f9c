"""`medgen release`: list, show, approve, export."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from apps.console import Json, out, print_json, report_expected_errors
from apps.funnel import print_funnel
from apps.progress import stage_bars
from medgen.counted import counted

if TYPE_CHECKING:  # loaded when a command needs it
    from medgen.ledger import Ledger

Named = Annotated[
    str, typer.Argument(help="Its name, `latest`, or the first part of a name for the newest that begins so.")
]

release_app = typer.Typer(help="Look at releases.", no_args_is_help=True)


@release_app.command("list")
def release_list(as_json: Json = False) -> None:
    """List all releases."""
    with report_expected_errors():
        rows = _releases()
        if as_json:
            print_json(rows)
            return
        table = Table("name", "clips", "made", "digest")
        for row in rows:
            table.add_row(row["name"], str(row["clips"]), row["created_at"][:19], row["digest"])
        out.print(table)


@release_app.command("show")
def release_show(name: Named, as_json: Json = False) -> None:
    """Show a release: its policy, funnel, clips and folder."""
    from medgen.ledger import open_ledger
    from medgen.releases import named_release

    with report_expected_errors():
        name = named_release(open_ledger(), name)
        release = next(row for row in _releases() if row["name"] == name)
        release |= _contents(release)
        if as_json:
            print_json(release)
        else:
            _print_release(release)


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

    with report_expected_errors():
        record, folder = approve(open_ledger(), name, by, note)
        if as_json:
            print_json({"release": name, "by": record.detail["by"], "folder": str(folder), "step_run": record.id})
            return
        out.print(f"{name} approved by {escape(record.detail['by'])}; it lies in {escape(str(folder))}", soft_wrap=True)


@release_app.command("export")
def release_export(
    name: Named,
    folder: Annotated[Path, typer.Argument(help="Where the shards go; made if it is not there.")],
    form: Annotated[Literal["webdataset"], typer.Option("--format", help="webdataset: tar files for trainers.")],
    shard_size: Annotated[int, typer.Option(min=1, max=10**6, help="Most megabytes of a shard.")] = 1000,
    caption: Annotated[Literal["brief", "detailed"], typer.Option(help="Which caption the .txt is.")] = "detailed",
    as_json: Json = False,
) -> None:
    """Write a release as WebDataset shards; run it again to go on, or after a takedown."""
    from medgen.ledger import open_ledger
    from medgen.releases import named_release
    from tasks.training.webdataset import export_webdataset

    with report_expected_errors(), stage_bars(quiet=as_json) as show:
        made = export_webdataset(
            open_ledger(),
            named_release(open_ledger(), name),
            folder,
            shard_bytes=shard_size * 10**6,
            caption=caption,
            progress=lambda done, total: show("clips", done, total),
        )
        if as_json:
            print_json(vars(made))
            return
        out.print(
            f"{counted(made.shards, 'shard')} of {counted(made.clips, 'clip')}, {made.bytes / 1e6:,.1f} MB, "
            f"{made.written} written now, in "
            f"{escape(str(made.folder))}",
            soft_wrap=True,
            highlight=False,
        )
        if made.left_out:
            out.print(f"left out, because taken down: {counted(made.left_out, 'clip')}", highlight=False)


def clips_of(release: str) -> list[str]:
    """Ids of the clips that a release holds, in order."""
    from sqlalchemy import select
    from sqlalchemy.orm import Session

    from medgen.catalog import ReleaseClip, open_catalog

    with Session(open_catalog()) as session:
        members = select(ReleaseClip.clip_id).where(ReleaseClip.release_name == release).order_by(ReleaseClip.clip_id)
        return list(session.scalars(members))


def _releases() -> list[dict[str, Any]]:
    """All releases, oldest first."""
    from sqlalchemy import select
    from sqlalchemy.orm import Session

    from medgen.catalog import Release, open_catalog

    with Session(open_catalog()) as session:
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


def _contents(release: dict[str, Any]) -> dict[str, Any]:
    """Folder, funnel, clips and takedowns of a release."""
    from medgen.errors import ItemFailed
    from medgen.ledger import open_ledger
    from tasks.curation.release_files import materialize

    ledger, name = open_ledger(), release["name"]
    record = ledger.load([release["step_run_id"]])[release["step_run_id"]]
    try:
        folder = str(materialize(ledger.store, name, record.outputs["manifest"]))
    except ItemFailed as failure:
        if failure.reason != "release_not_approved":
            raise
        folder = "awaits approval"
    taken_down = _taken_down(ledger, name, record.outputs["manifest"])
    funnel = json.loads(ledger.store.read(record.outputs["funnel"]))
    return {"folder": folder, "funnel": funnel, "clip_ids": clips_of(name), "taken_down": taken_down}


def _taken_down(ledger: "Ledger", release: str, manifest: str) -> dict[str, Any] | None:
    """The release's TAKEDOWN.json, from the catalog."""
    from sqlalchemy.orm import Session

    from medgen.takedown import release_takedown

    with Session(ledger.engine) as session:
        takedown = release_takedown(session, release, json.loads(ledger.store.read(manifest))["files"])
    if takedown is None:
        return None
    notice: dict[str, Any] = json.loads(takedown.notice)
    return notice


def _print_release(release: dict[str, Any]) -> None:
    out.print(
        f"[bold]{release['name']}[/]  {counted(release['clips'], 'clip')}\nsha256 {release['digest']}\n"
        f"{escape(release['folder'])}"
    )
    for takedown in release["taken_down"]["takedowns"] if release["taken_down"] else ():
        out.print(
            f"[red]taken down[/] {takedown['forgotten_at'][:19]}: video {takedown['video_id']}, "
            f"{counted(len(takedown['clips']), 'clip')}: {escape(takedown['reason'])}",
            soft_wrap=True,
        )
    print_funnel(release["funnel"])
    out.print("clips:", ", ".join(release["clip_ids"]) or "none")
    out.print("policy:", json.dumps(release["policy"], indent=1, sort_keys=True), markup=False)
