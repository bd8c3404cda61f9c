"""The report of an evaluation: one HTML page with players and plots, its files beside it, and the same as JSON.

Everything that strangers wrote (prompts, names of files and systems, a judge's reasons) is escaped, and the page runs
no script.
"""

import base64
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from medgen import __version__
from medgen.canonical import digest_of
from medgen.errors import ItemFailed, RunStopped
from medgen.settings import current
from medgen.store import Store
from models.metrics.terms import NEUTRAL, TERM_MEAN, TERMS
from tasks.evaluation.evaluate import Report
from tasks.evaluation.frechet import frechet_table, frechet_warning
from tasks.evaluation.leaderboard import metric_family
from tasks.evaluation.measured import Measured
from tasks.evaluation.sampling import sampling_line, sampling_rows, sampling_sentences
from tasks.evaluation.tables import is_raw, shown_p, shown_range, shown_value

INLINE_BYTES = 200_000  # a video up to this size goes into the page itself
INLINE_TOTAL = 12_000_000
SUFFIXES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm", ".mov": "video/quicktime"}
CLIPS_SHOWN = 50  # nearest training clips that are copied beside the page


def report_path(given: str, content: Report) -> Path:
    """Where the page goes: as given, a folder getting report.html; or a folder of the installation, by its content."""
    if not given:
        return current().home / "evaluations" / digest_of(content)[:16] / "report.html"
    path = Path(given).expanduser()
    return path if path.suffix.lower() in (".html", ".htm") else path / "report.html"


def write_report(
    path: Path,
    content: Report,
    measured: Sequence[Measured],
    clips: Mapping[str, str],
    store: Store,
) -> dict[str, Path]:
    """Writes the page, and beside it the JSON and the files that it plays.

    Args:
        path: of the page; NAME.json and NAME_files go beside it.
        content: as `tasks.evaluation.evaluate.report` makes it.
        measured: in the order of `content["videos"]`.
        clips: training clip → sha256 of its MP4.

    Returns:
        "html", "json" and "files" → path.

    Raises:
        RunStopped: the files can't be written.
    """
    html, data, folder = path, path.with_suffix(".json"), path.with_name(f"{path.stem}_files")
    try:
        html.parent.mkdir(parents=True, exist_ok=True)
        players = _Players(folder, store)
        videos = [players.of(video) | {"row": row} for video, row in zip(measured, content["videos"], strict=True)]
        nearest = players.clips(measured, clips)
        data.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
        making = html.with_name(f".{html.name}.making")
        making.write_text(page(content, videos, nearest), "utf-8")
        making.replace(html)
    except OSError as error:
        raise RunStopped(
            f"the report can't be written to {path}: {error}. What was measured stays on record"
        ) from error
    return {"html": html, "json": data, "files": folder}


def page(content: Report, videos: Sequence[Mapping[str, Any]], nearest: Mapping[str, str]) -> str:
    """The HTML page. `videos` are the content's rows with `player` and `poster`; `nearest` is clip → its player."""
    environment = Environment(
        loader=PackageLoader("tasks.evaluation", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"value": shown_value, "range": shown_range, "p": shown_p}
    by_prompt: dict[str, list[Mapping[str, Any]]] = {}
    for video in videos:
        by_prompt.setdefault(video["row"]["prompt_id"], []).append(video)
    metrics = [m for m in content["metrics"] if any(m in row["values"] for row in content["leaderboard"])]
    return environment.get_template("evaluation_report.html.jinja").render(
        content=content,
        metrics=sorted(metrics, key=_order),
        term_mean=TERM_MEAN,
        terms=TERMS,
        neutral=NEUTRAL,
        family=metric_family,
        sampling={row["system"]: sampling_line(row) for row in content["sampling"]["systems"]},
        sampling_table=sampling_rows(content["sampling"]),
        sampling_told=sampling_sentences(content["sampling"]),
        backbone=lambda metric: metric[len(metric_family(metric)) :].strip("[]"),
        frechet_table=frechet_table(content["frechet"]),
        frechet_warning=frechet_warning(content["frechet"]),
        by_prompt=by_prompt,
        nearest=nearest,
        flagged=[v for v in videos if v["row"]["nearest"] and v["row"]["nearest"]["near_copy"]],
        failed=[v["row"] for v in videos if v["row"]["trouble"]],
        plot=base64.b64encode(leaderboard_plot(content)).decode(),
        version=__version__,
    )


def _order(metric: str) -> tuple[int, str]:
    family = metric_family(metric)
    return (TERMS.index(family) if family in TERMS else len(TERMS) + (family in NEUTRAL), metric)


def leaderboard_plot(content: Report) -> bytes:
    """PNG: each metric's mean and interval by system."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    board = content["leaderboard"]
    metrics = [m for m in sorted(content["metrics"], key=_order) if any(m in row["values"] for row in board)]
    if any(TERM_MEAN in row["values"] for row in board):
        metrics = [TERM_MEAN, *metrics]
    columns = min(3, max(1, len(metrics)))
    rows = max(1, -(-len(metrics) // columns))
    # Names may hold dollar signs, which would be read as formulas.
    with pyplot.rc_context({"text.parse_math": False, "font.size": 8}):
        figure, axes = pyplot.subplots(
            rows, columns, figsize=(3.6 * columns, rows * (0.9 + 0.28 * len(board))), squeeze=False, sharey=True
        )
        for axis in axes.flat[len(metrics) :]:
            axis.set_axis_off()
        for axis, metric in zip(axes.flat, metrics, strict=False):
            scale = 1 if is_raw(metric) else 100
            for place, row in enumerate(reversed(board)):
                value = row["values"].get(metric)
                if value is None:
                    continue
                mean = scale * value["mean"]
                low, high = (mean if b is None else scale * b for b in (value["low"], value["high"]))
                colour = "#c0504d" if row["system"] == content["baseline"] else "#1f5f8b"
                axis.plot([low, high], [place, place], color=colour, linewidth=2, alpha=0.5)
                axis.plot([mean], [place], "o", color=colour, markersize=5)
            axis.set_yticks(range(len(board)), [row["system"][:28] for row in reversed(board)])
            axis.set_ylim(-0.6, len(board) - 0.4)
            axis.set_title(metric.replace("_", " "), fontsize=8)
            axis.grid(axis="x", alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=130, metadata={"Software": None})
        pyplot.close(figure)
    return out.getvalue()


class _Players:
    """Videos as the page plays them: small ones in the page, others copied beside it."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder = folder
        self.store = store
        self.inlined = 0

    def of(self, measured: Measured) -> dict[str, Any]:
        """`player` (address or None) and `poster` (address or None) of a video."""
        player = None
        if measured.scores:
            try:
                source = measured.video.file(self.store)
                suffix = Path(measured.video.name).suffix.lower()
                player = self._address(source, measured.video.sha256, suffix if suffix in SUFFIXES else ".mp4")
            except (ItemFailed, FileNotFoundError):
                player = None
        poster = None
        if measured.picture:
            poster = f"data:image/jpeg;base64,{base64.b64encode(self.store.read(measured.picture)).decode()}"
        return {"player": player, "poster": poster}

    def clips(self, measured: Sequence[Measured], clips: Mapping[str, str]) -> dict[str, str]:
        """Training clip → address, of those most resembled; near copies first."""
        ranked = sorted(
            (video.nearest for video in measured if video.nearest),
            key=lambda nearest: (not nearest.near_copy, -nearest.similarity, nearest.clip),
        )
        names = list(dict.fromkeys(nearest.clip for nearest in ranked if nearest.clip in clips))[:CLIPS_SHOWN]
        return {name: self._address(self.store.path(clips[name]), clips[name], ".mp4") for name in names}

    def _address(self, source: Path, sha256: str, suffix: str) -> str:
        size = source.stat().st_size
        if size <= INLINE_BYTES and self.inlined + size <= INLINE_TOTAL:
            self.inlined += size
            return f"data:{SUFFIXES[suffix]};base64,{base64.b64encode(source.read_bytes()).decode()}"
        # The name is the digest's: nothing of a stranger's file name becomes a path.
        target = self.folder / f"{sha256[:32]}{suffix}"
        if not target.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            making = target.with_name(f".{target.name}.making")
            shutil.copyfile(source, making)
            making.replace(target)
        return f"{self.folder.name}/{target.name}"
