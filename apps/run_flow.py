"""Runs a flow in this process, with a Prefect server of the installation behind it."""

import importlib
import logging
from collections.abc import Callable
from typing import Any

import httpx
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from apps.console import err, fault_of_the_place
from medgen.errors import ItemFailed, RunStopped
from medgen.native_threads import limit_native_threads
from medgen.settings import current
from models import ModelUnavailable


def run_flow(
    name: str,
    arguments: dict[str, Any],
    *,
    quiet: bool,
    on_training: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """The summary of the flow `name` of the module `flows.NAME`, with a progress bar for each step.

    Args:
        arguments: of the flow; checked against the module's `PARAMETERS` before anything starts.
        quiet: show no bars.
        on_training: called with each event of a training process.

    Raises:
        ValidationError: bad arguments.
        RunStopped: the run can't go on.
    """
    from apps.prefect_server import prefect_server

    limit_native_threads(1)  # workers share the cores by processes, not by threads
    with (
        err.status("starting the Prefect server") as state,
        prefect_server(current().home) as server,
        server.kept_alive(),
    ):
        from prefect.logging.handlers import APILogHandler

        from medgen.shard import close_pools
        from tasks.progress import progress_to

        module = importlib.import_module(f"flows.{name}")
        arguments = module.PARAMETERS.as_given(arguments)
        module.PARAMETERS(**arguments)
        state.stop()
        for handler in [*logging.getLogger().handlers, *logging.getLogger("prefect").handlers]:
            handler.addFilter(without_expected_errors)
        times = (TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn())
        columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), *times)
        with Progress(*columns, console=err, disable=quiet, transient=True) as bars:
            try:
                with progress_to(_Bars(bars), on_training):
                    summary: dict[str, Any] = getattr(module, name)(**arguments)
                    return summary
            except httpx.TransportError as error:
                raise RunStopped(
                    f"Prefect's server at {server.url} does not answer any more: {error or type(error).__name__}\n"
                    "Run the same command again: what was done stays done."
                ) from error
            finally:
                close_pools()
                APILogHandler().flush()  # before the server goes


def without_expected_errors(record: logging.LogRecord) -> bool:
    """A log filter: expected errors end the command in one plain line; the run's log in Prefect keeps the traceback."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, OSError):
        return fault_of_the_place(error) is None
    return not isinstance(error, RunStopped | ItemFailed | ModelUnavailable | httpx.TransportError)


class _Bars:
    """One progress bar a step, over all its shards."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.bars: dict[str, Any] = {}
        self.totals: dict[str, int] = {}

    def __call__(self, step: str, advanced: int, added: int) -> None:
        if step not in self.bars:
            self.bars[step] = self.progress.add_task(step, total=0)
        self.totals[step] = self.totals.get(step, 0) + added
        self.progress.update(self.bars[step], advance=advanced, total=self.totals[step])
