"""How a run ends when something foreseen goes wrong: with a message for people, before any traceback."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from prefect import get_run_logger
from prefect.context import FlowRunContext
from prefect.states import Failed

from medgen.errors import ItemFailed, RunStopped
from models import ModelUnavailable


def ends_plainly(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a foreseen error the message of the run's state, as it is, and the first thing that its log says of it.

    By itself Prefect writes ``Flow run encountered an exception: CLASS: …`` and, in the log, the error as Python's
    repr. The traceback stays in the log, below the message. Who called the flow gets the error itself.
    """

    @wraps(function)
    def run(**arguments: Any) -> Any:
        try:
            return function(**arguments)
        except (RunStopped, ItemFailed, ModelUnavailable) as error:
            if FlowRunContext.get() is None:
                raise
            get_run_logger().error("%s", error, exc_info=error)
            return Failed(message=str(error), data=error)

    return run
