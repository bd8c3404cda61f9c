"""The judge's report as one HTML file: figures per question and pictures of the mistakes."""

import base64
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from apps.judge.measure import Verdict
from apps.judge.score import Agreement, Answer, Mistake
from medgen import __version__
from medgen.errors import ItemFailed
from medgen.video.limits import Limits
from medgen.video.pictures import pictures

FRAMES = 6
TALL = 120  # pixels
AROUND_S = 1.0  # pictures before and after a boundary
LONGEST_S = 600.0  # of a video that pictures are looked for in


def write_report(
    target: Path,
    folder: Path,
    answers: Sequence[Answer],
    agreements: Sequence[Agreement],
    verdicts: Mapping[str, Verdict],
    notes: Sequence[str],
) -> None:
    """Writes the report; pictures are inside the file, so that it can be sent around."""
    sheets = {mistake: contact_sheet(folder / mistake.file, mistake) for a in answers for mistake in a.mistakes}
    environment = Environment(loader=PackageLoader("apps.judge", "."), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("report.html.jinja").render(
        folder=folder.name,
        version=__version__,
        answers=answers,
        agreements=agreements,
        verdicts=verdicts,
        notes=notes,
        sheets={m: base64.b64encode(jpeg).decode() for m, jpeg in sheets.items() if jpeg},
    )
    target.write_text(page, encoding="utf-8")


def contact_sheet(path: Path, mistake: Mistake) -> bytes:
    """JPEG of a few pictures in a row: around the moment of the mistake, or spread over the video; b"" if none."""
    times: list[float] = []
    with suppress(ItemFailed, OSError):  # what decoded before the fault is shown
        for picture in pictures(path, Limits(max_duration_s=LONGEST_S)):
            times.append(picture.time_s)
    if not times:
        return b""
    low, high = (0, len(times) - 1)
    if mistake.time_s is not None:
        first = times[0] + mistake.time_s
        low = int(np.searchsorted(times, first - AROUND_S))
        high = min(len(times) - 1, int(np.searchsorted(times, first + AROUND_S)))
    wanted = set(np.linspace(min(low, high), high, FRAMES).round().astype(int).tolist())
    row = []
    for picture in pictures(path, Limits(max_duration_s=LONGEST_S)):
        if picture.index in wanted:
            rgb = picture.rgb()
            row.append(cv2.resize(rgb, (max(1, round(rgb.shape[1] * TALL / rgb.shape[0])), TALL)))
        if picture.index >= high:
            break
    return cv2.imencode(".jpg", cv2.cvtColor(np.hstack(row), cv2.COLOR_RGB2BGR))[1].tobytes()
