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
from medgen.errors import ItemFailed, RunStopped
from medgen.store import Store
from tasks.evaluation.evaluate import NEUTRAL, TERM_MEAN, TERMS, Measured, metric_family

INLINE_BYTES = 200_000  # a video up to this size goes into the page itself
INLINE_TOTAL = 12_000_000
SUFFIXES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm", ".mov": "video/quicktime"}
CLIPS_SHOWN = 50  # nearest training clips that are copied beside the page


def write_report(
    path: Path,
    content: Mapping[str, Any],
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
        videos = [players.of(one) | {"row": row} for one, row in zip(measured, content["videos"], strict=True)]
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


def page(content: Mapping[str, Any], videos: Sequence[Mapping[str, Any]], nearest: Mapping[str, str]) -> str:
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
        backbone=lambda metric: metric[len(metric_family(metric)) :].strip("[]"),
        by_prompt=by_prompt,
        nearest=nearest,
        flagged=[v for v in videos if v["row"]["nearest"] and v["row"]["nearest"]["near_copy"]],
        failed=[v["row"] for v in videos if v["row"]["trouble"]],
        plot=base64.b64encode(leaderboard_plot(content)).decode(),
        version=__version__,
    )


def shown_value(metric: str, value: float | None) -> str:
    """A value as people read it: parts of one as 0 to 100, like the paper; others as they are."""
    if value is None:
        return "–"
    return f"{value:.3f}" if _raw(metric) else f"{100 * value:.2f}"


def shown_range(metric: str, estimate: Mapping[str, Any]) -> str:
    """An interval, or why there is none."""
    if estimate["low"] is None:
        return "one prompt"
    return f"{shown_value(metric, estimate['low'])} to {shown_value(metric, estimate['high'])}"


def shown_p(p: float | None) -> str:
    """A p-value."""
    return "–" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def _raw(metric: str) -> bool:
    return metric_family(metric).startswith(("videoscore", "motion_speed", "medical_error_level", "text_alignment"))


def _order(metric: str) -> tuple[int, str]:
    family = metric_family(metric)
    return (TERMS.index(family) if family in TERMS else len(TERMS) + (family in NEUTRAL), metric)


def leaderboard_plot(content: Mapping[str, Any]) -> bytes:
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
            scale = 1 if _raw(metric) else 100
            for place, row in enumerate(reversed(board)):
                value = row["values"].get(metric)
                if value is None:
                    continue
                mean = scale * value["mean"]
                low, high = (mean if value[k] is None else scale * value[k] for k in ("low", "high"))
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

    def of(self, one: Measured) -> dict[str, Any]:
        """`player` (address or None) and `poster` (address or None) of a video."""
        player = None
        if one.scores:
            try:
                source = one.video.file(self.store)
                suffix = Path(one.video.name).suffix.lower()
                player = self._address(source, one.video.sha256, suffix if suffix in SUFFIXES else ".mp4")
            except (ItemFailed, FileNotFoundError):
                player = None
        poster = None
        if one.picture:
            poster = f"data:image/jpeg;base64,{base64.b64encode(self.store.read(one.picture)).decode()}"
        return {"player": player, "poster": poster}

    def clips(self, measured: Sequence[Measured], clips: Mapping[str, str]) -> dict[str, str]:
        """Training clip → address, of those most resembled; near copies first."""
        ranked = sorted(
            (one.nearest for one in measured if one.nearest),
            key=lambda found: (not found.near_copy, -found.similarity, found.clip),
        )
        names = list(dict.fromkeys(found.clip for found in ranked if found.clip in clips))[:CLIPS_SHOWN]
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
