"""`medgen label`."""

import getpass
import threading
from pathlib import Path
from typing import Annotated

import typer

from apps.console import Json, err, out, print_json, report_expected_errors
from apps.host_check import AllowHost, HostCheck, is_loopback

LAST_GUESS_S = 5.0  # for the file that the model looks at when it ends


def label(
    folder: Annotated[Path, typer.Argument(help="Folder of videos or pictures; answers are kept in it.")],
    by: Annotated[str, typer.Option("--by", help="Who labels, as it stands in the answers; by default you.")] = "",
    encoder: Annotated[
        str, typer.Option(help="Frame encoder whose doubts lead: mobilenet_v2, a hub name, a folder, or none.")
    ] = "mobilenet_v2",
    head: Annotated[Path | None, typer.Option(help="Head for it, made by `medgen train-frames`.")] = None,
    write: Annotated[bool, typer.Option("--export", help="Only write MANIFEST.csv of the answers, and stop.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any.")] = 8009,
    allow_host: AllowHost = None,
    as_json: Json = False,
) -> None:
    """Label a folder's videos or pictures with the keyboard, until Ctrl-C: medical or not, and which category.

    What the model doubts most comes first, its guess after your answer. Answers are saved one by one; start again as
    you like, and several people may label one folder under names of their own. `--export`, or the button on the page,
    writes the MANIFEST.csv that `medgen train-frames` and `medgen judge` read.
    """
    from apps.label.answers import Answers, export, files_of
    from apps.label.site import label_site
    from apps.serve import listen, serve

    with report_expected_errors(OSError, ValueError):
        files, answers = files_of(folder), Answers(folder)
        if write:
            made = export(folder, files, answers)
            facts = {"medical": made.medical, "non_medical": made.other, "disputed": made.disputed}
            if as_json:
                print_json(facts)
                return
            out.print(f"MANIFEST.csv: {made.medical} medical, {made.other} non-medical, {len(made.disputed)} disputed")
            return
        guesses = None
        if encoder != "none":
            from apps.label.guesses import Guesses
            from models.segmentation.frames import load_frame_model

            guesses = Guesses(folder, files, load_frame_model(encoder, head))
        listening, url = listen(host, port)
        out.print(
            f"{len(files)} files to label at {url.replace('0.0.0.0', '127.0.0.1')}   (Ctrl-C stops)", soft_wrap=True
        )
        if not is_loopback(host):
            err.print("[yellow]plain HTTP, and whoever reaches it may answer: use a tunnel or a proxy with a log-in[/]")
        site = label_site(folder, files, by or getpass.getuser(), answers, guesses)
        thread = threading.Thread(target=guesses.judge_all, daemon=True) if guesses else None
        if thread:
            thread.start()
        serve(HostCheck(site, host, allow_host or ()), listening)
        if guesses and thread:
            guesses.stop()
            thread.join(timeout=LAST_GUESS_S)
