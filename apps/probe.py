"""`medgen probe`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from apps.console import Json, err, out, print_json, report_expected_errors
from apps.pictures_in_words import breaks_in_words, colours_in_words


def probe(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A video file.", exists=True, dir_okay=False)],
    as_json: Json = False,
) -> None:
    """Show what medgen sees of a video file: all of it is decoded. Exit code 1 when it would be refused.

    Streams and the one chosen, frames, times that had to be rebuilt, size as shown, colours and what is done to them.
    """
    with report_expected_errors(), err.status(f"decoding {escape(file.name)}"):
        facts = inspected(file)
    if as_json:
        print_json(facts)
    else:
        print_facts(facts)
    if facts["reason"]:
        raise typer.Exit(1)


def inspected(path: Path) -> dict[str, Any]:
    """All that medgen sees of a file; `reason` and `message` say why it is refused, or are None."""
    from medgen.errors import ItemFailed
    from medgen.video.container import open_video
    from medgen.video.limits import Limits
    from medgen.video.pictures import VideoReader
    from medgen.video.probe import probe
    from medgen.video.report import report, stored_as

    facts: dict[str, Any] = {"file": path.name, "bytes": path.stat().st_size, "reason": None, "message": None}
    limits = Limits()
    try:
        facts |= asdict(probe(path, limits))
        with open_video(path, limits) as video:
            reader = VideoReader(video, limits)
            frames, breaks, sizes = 0, [], set()
            for picture in reader:
                frames += 1
                sizes.add((picture.frame.width, picture.frame.height))
                if picture.after_break:
                    breaks.append({"frame": picture.index, "time_s": picture.time_s, "change": picture.after_break})
            seen = report(video, reader, frames)
        facts |= {
            "frames": frames,
            **{name: seen[name] for name in ("decoded", "repaired", "dropped", "fps", "duration_s", "clock")},
            "breaks": breaks,
            "stored_as": [stored_as(frame, source) for frame, source in reader.sources],
        }
    except ItemFailed as failure:
        facts |= {"reason": failure.reason, "message": str(failure)}
    return facts


def print_facts(facts: dict[str, Any]) -> None:
    """Prints what `inspected` gives for people."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in _lines(facts):
        table.add_row(f"[bold]{name}[/]", escape(value))
    out.print(table)
    if facts["reason"]:
        out.print(f"[red]refused:[/] {escape(facts['message'])}", soft_wrap=True)


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [("file", f"{facts['file']}, {facts['bytes']} bytes")]
    if "container" not in facts:
        return lines
    turn = f", turned by {facts['rotation']}°" if facts["rotation"] else ""
    turn += ", mirrored" if facts["mirrored"] else ""
    lines += [
        ("container", f"{facts['container']}, {facts['bit_rate'] // 1000} kbit/s"),
        ("picture", f"stream {facts['stream']}, {facts['codec']}: {facts['chosen_for']}"),
        ("size as shown", f"{facts['width']}x{facts['height']}, pixels of {facts['pixel_aspect']}{turn}"),
        ("interlaced", "yes, made progressive" if facts["interlaced"] else "no"),
        ("colours", colours_in_words(facts["colour"])),
    ]
    if "frames" in facts:
        lines += [
            ("frames", f"{facts['frames']}; {facts['repaired']} with rebuilt times, {facts['dropped']} lost, broken"),
            ("time", f"{facts['duration_s']:.3f} s, {facts['fps']:g} frames a second, as measured"),
            ("clock", f"its first picture is at {facts['clock_start_s']:g} s by the file's own clock"),
        ]
        changes = [(entry["change"], f"at {entry['time_s']:.3f} s") for entry in facts["breaks"]]
        lines += [("breaks", breaks_in_words(changes))] if changes else []
    subtitles = [
        f"stream {s['stream']}, {s['codec']}, {s['language'] or 'no language told'}{'' if s['text'] else ', pictures'}"
        for s in facts["subtitles"]
    ]
    lines.append(("subtitles", "; ".join(subtitles) or "none"))
    lines.append(("sound", "yes" if facts["has_audio"] else "none"))
    return lines
