"""`medgen evidence`."""

import re
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from apps.console import Json, err, out, print_json, report_expected_errors
from medgen.settings import current

evidence_app = typer.Typer(
    help="Pack what is on record about a clip or a release into one signed archive; check such an archive.",
    no_args_is_help=True,
)

KeyFile = Annotated[
    Path | None,
    typer.Option(help="Secret minisign key to sign with. [default: the installation's own]", show_default=False),
]


@evidence_app.command("pack")
def pack(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of a release; or a clip: id, its beginning, digest.")
    ],
    to: Annotated[
        Path | None, typer.Option("--out", help="File to write. [default: NAME.evidence.zip]", show_default=False)
    ] = None,
    media: Annotated[bool, typer.Option(help="Put the clip's own file in.")] = False,
    key: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Write records, lineage, captions, licence and what was verified, signed. Exit 1 when anything is wrong."""
    from sqlalchemy.orm import Session

    from apps.evidence.archive import seal
    from apps.evidence.pack import clip_pack, release_pack
    from apps.evidence.signature import one_line, own_key, secret_key
    from apps.history import Unknown, find
    from medgen import __version__
    from medgen.catalog import Release, now
    from medgen.errors import RunStopped
    from medgen.home import private_home
    from medgen.ledger import open_ledger

    with report_expected_errors(Unknown):
        ledger = open_ledger()
        path = key or own_key(private_home(current().home))
        secret = secret_key(path, lambda what: str(typer.prompt(what, hide_input=True, err=True)))
        with Session(ledger.engine) as session:
            kind, identity = ("release", name) if session.get(Release, name) else find(ledger, name)
        if kind == "video":
            raise RunStopped(f"{identity} is a video: name one of its clips (`medgen show {identity}` lists them)")
        file = to or Path(f"{re.sub('[^A-Za-z0-9._-]', '_', identity)}.evidence.zip")
        with tempfile.TemporaryDirectory(prefix=".evidence-", dir=file.absolute().parent) as scratch:
            folder = Path(scratch)
            with err.status("gathering") as state:
                if kind == "clip":
                    faults = clip_pack(ledger, identity, folder, media)
                else:
                    faults = release_pack(
                        ledger, identity, folder, current().releases_folder,
                        lambda what, done, total: state.update(f"verifying {what}: {done} of {total}"),
                    )  # fmt: skip
            when = now().isoformat(timespec="seconds")
            info = {
                "External-Identifier": f"{kind} {identity}", "Packed-At": when,
                "Bag-Software-Agent": f"medgen {__version__}",
            }  # fmt: skip
            seal(folder, file, info, secret, f"medgen {kind} {identity} {when}")
        public = one_line(secret.get_public_key())
        if as_json:
            print_json({"file": str(file), "kind": kind, "id": identity, "public_key": public, "faults": faults})
        else:
            out.print(f"[green]{escape(str(file))}[/]: {kind} {escape(identity)}, signed", soft_wrap=True)
            out.print(f"public key {public}", soft_wrap=True, highlight=False)
            for fault in faults:
                out.print(f"[red]✗[/] {escape(fault)}", soft_wrap=True)
        if faults:
            raise typer.Exit(1)


@evidence_app.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="An evidence pack.", exists=True, dir_okay=False)],
    key: Annotated[
        str | None,
        typer.Option(
            help="Public minisign key that must have signed it: the key itself, or its file.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check the signature of a pack and each file in it. Needs no installation."""
    from apps.evidence.archive import check_pack
    from apps.evidence.signature import public_key

    with report_expected_errors():
        checked = check_pack(file, public_key(key) if key else None)
        if as_json:
            print_json({"comment": checked.comment, "info": checked.info, "key_given": key is not None})
            return
        out.print(f"[green]as it was packed[/]: {escape(checked.comment)}", soft_wrap=True)
        if key is None:
            out.print(
                "[yellow]signed with the key that lies in it: who made it is proven only with --key[/]", soft_wrap=True
            )


@evidence_app.command("key")
def key_command() -> None:
    """Print the public key of this installation's evidence packs. Publish it where the catalog's owners can't write."""
    from apps.evidence.signature import one_line, own_key, secret_key
    from medgen.home import private_home

    with report_expected_errors():
        path = own_key(private_home(current().home))
        out.print(one_line(secret_key(path).get_public_key()), soft_wrap=True, highlight=False)
