"""`medgen plan`."""

from collections.abc import Callable, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from apps.console import Json, finite, out, print_json, report_expected_errors, stop

if TYPE_CHECKING:  # loaded when the command needs it
    from tasks.operations.plan import Plan

MOST = 10**12
GB = 1e9
FIGURES: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "cpu hours": lambda cost: cost["worker_hours"],
    "hours": lambda cost: cost["elapsed_hours"],
    "gpu hours": lambda cost: cost["gpu_hours"],
    "GB": lambda cost: (cost["store_bytes"] + cost["catalog_bytes"]) / GB,
    "cost": lambda cost: cost["cost"],
}
"""Columns of the table: heading → figure of a step."""


def plan(
    listings: Annotated[int | None, typer.Option(min=0, max=MOST, help="Rows of listings.")] = None,
    videos: Annotated[int | None, typer.Option(min=0, max=MOST, help="Videos to download, in place of rows.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Worker processes of a machine; by default MEDGEN_WORKERS.")
    ] = None,
    download_workers: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help="Downloads of a machine at once; by default MEDGEN_DOWNLOAD_WORKERS."),
    ] = None,
    machines: Annotated[int, typer.Option(min=1, max=100_000, help="Machines that share the work.")] = 1,
    mbit: Annotated[
        float, typer.Option(min=0.001, max=1e7, callback=finite, help="Of the line that they share, megabits/second.")
    ] = 100.0,
    hosts: Annotated[int, typer.Option(min=1, max=10**6, help="Hosts that the videos come from.")] = 1,
    request_interval: Annotated[
        float | None,
        typer.Option(min=0, max=3600, callback=finite, help="Seconds between two requests to a host; as refresh's."),
    ] = None,
    video_seconds: Annotated[
        float | None, typer.Option(min=0.1, max=86_400, callback=finite, help="Mean length of a video; as measured.")
    ] = None,
    clips_per_video: Annotated[
        float | None,
        typer.Option(min=0, max=1e6, callback=finite, help="Clips of a video that classify keeps; as measured."),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="STEP=SHARE", help="Share of its items that a step keeps, 0 to 1.")
    ] = None,
    caption_price: Annotated[
        float,
        typer.Option(
            "--caption-price-per-million-tokens", min=0, max=1e6, callback=finite, help="Of tokens sent to a captioner."
        ),
    ] = 0.0,
    caption_price_out: Annotated[
        float | None,
        typer.Option(
            "--caption-price-per-million-tokens-out",
            min=0, max=1e6, callback=finite, help="Of tokens that it answers; by default the same.",
        ),
    ] = None,
    caption_tokens_in: Annotated[
        float | None, typer.Option(min=0, max=1e7, callback=finite, help="Tokens sent by clip; as measured.")
    ] = None,
    caption_tokens_out: Annotated[
        float | None, typer.Option(min=0, max=1e7, callback=finite, help="Tokens answered by clip; as measured.")
    ] = None,
    caption_gpu_seconds: Annotated[
        float | None, typer.Option(min=0, max=1e5, callback=finite, help="Of a GPU by caption; as measured.")
    ] = None,
    least: Annotated[
        int, typer.Option(min=1, max=10**6, help="Items on record that a step's own rates need; fewer: shipped ones.")
    ] = 100,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Tell what a refresh would cost in hours, disk, memory and captions, by records made here or shipped rates."""
    from medgen.catalog import open_catalog
    from medgen.settings import current
    from medgen.web.session import WebParams
    from tasks.operations import plan as planning
    from tasks.operations.rates import installation_rates

    with report_expected_errors():
        settings = current()
        scope = planning.Scope(
            listings=listings,
            videos=videos,
            workers=workers or settings.workers,
            download_workers=download_workers or settings.download_workers,
            machines=machines,
            mbit=mbit,
            hosts=hosts,
            request_interval_s=WebParams().request_interval_s if request_interval is None else request_interval,
            video_seconds=video_seconds,
            clips_per_video=clips_per_video,
            keep=_shares(keep or []),
            tokens_in=caption_tokens_in,
            tokens_out=caption_tokens_out,
            price_in=caption_price,
            price_out=caption_price if caption_price_out is None else caption_price_out,
            gpu_seconds=caption_gpu_seconds,
        )
        scope.check()
        made = planning.plan(scope, installation_rates(open_catalog(), least))
        if as_json:
            print_json(planning.as_json(made))
        else:
            _print(made, scope.machines, scope.workers)


def _shares(pairs: list[str]) -> dict[str, float]:
    shares: dict[str, float] = {}
    for pair in pairs:
        step, equals, share = pair.partition("=")
        try:
            shares[step] = float(share)
        except ValueError:
            equals = ""
        if not equals:
            stop(f"--keep takes STEP=SHARE, not {pair!r}", code=2)
    return shares


def _print(made: "Plan", machines: int, workers: int) -> None:
    table = Table(title="Plan", title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    costs = [*(vars(cost) for cost in made.steps), made.totals]
    # What costs nothing is left out, so that the rest fits a terminal. Below it stands where the rates come from.
    figures = [name for name, figure in FIGURES.items() if any(figure(cost) for cost in costs)]
    table.add_column("step", no_wrap=True)
    table.add_column("of", no_wrap=True)
    for column in ("in", "kept", *figures):
        table.add_column(column, justify="right", no_wrap=True)
    for cost in made.steps:
        counts = (f"{cost.items:,.0f}", f"{cost.kept:,.0f}")
        table.add_row(cost.step, cost.unit, *counts, *(_short(FIGURES[name](vars(cost))) for name in figures))
    table.add_section()
    table.add_row("all", "", "", "", *(_short(FIGURES[name](made.totals)) for name in figures))
    out.print(table)
    elapsed, disk = made.totals["elapsed_hours"], made.totals["store_bytes"] + made.totals["catalog_bytes"]
    out.print(
        f"elapsed: {_short(made.least_hours)} h if downloads, workers and records never wait for one another, "
        f"{_short(elapsed)} h one after the other",
        highlight=False,
    )
    memory = f", {_short(workers * made.worker_bytes / 2**30)} GiB for them" if made.worker_bytes else ""
    out.print(f"each of {machines} machine(s): {workers} cores for workers{memory}", highlight=False)
    decoded = f"; videos decoded {made.decodes:,.0f} times" if made.decodes is not None else ""
    out.print(f"disk: {_short(disk / GB)} GB; step runs {made.step_runs:,.0f}{decoded}", highlight=False)
    measured = [(cost.rates, cost.step) for cost in made.steps if cost.rates.startswith("measured here")]
    for rates, of_rates in groupby(sorted(measured), key=lambda pair: pair[0]):
        out.print(
            f"[dim]- {escape(rates)}: {', '.join(step for _, step in of_rates)}[/]", soft_wrap=True, highlight=False
        )
    for sentence in made.assumed:
        out.print(f"[dim]- {escape(sentence)}[/]", soft_wrap=True, highlight=False)


def _short(value: float) -> str:
    """Three significant digits; nothing for none, and of what is next to nothing only that."""
    if value == 0:
        return ""
    if value < 0.01:
        return "<0.01"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
