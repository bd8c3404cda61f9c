"""The one way in which a function becomes a flow."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from prefect import Flow, get_run_logger
from prefect.context import FlowRunContext
from prefect.states import Failed
from pydantic import ValidationError

from flows.flow_signature import flow_signature
from flows.run_record import on_record
from flows.runner import check_cluster, task_runner
from medgen.errors import ItemFailed, RunStopped
from medgen.parameters import Parameters, complaints
from models import ModelUnavailable

P = TypeVar("P", bound=Parameters)
Summary = dict[str, Any]
"""What a flow returns: JSON facts about the run."""


class MedgenFlow(Flow[..., Summary]):
    """A flow that checks its parameters as a whole, and accepts the former names that they had.

    Where Python calls it, they are checked before there is a run. A run of a deployment starts with what Prefect's
    server has checked one by one, against the schema that `apps.deployments` registers: what does not fit together
    ends it at its start, with a message for people.
    """

    parameters_type: type[Parameters] = Parameters

    def __call__(self, *arguments: Any, return_state: bool = False, wait_for: Any = None, **named: Any) -> Any:
        """Runs the flow. Raises ValidationError: bad parameters."""
        current = self.parameters_type.as_given(named)
        self.parameters_type(**current)
        return super().__call__(*arguments, return_state=return_state, wait_for=wait_for, **current)

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """All parameters of a run, typed. Bad ones pass as they are: the run itself says what is wrong with them."""
        fields = self.parameters_type.model_fields
        current = self.parameters_type.with_current_names(parameters)
        try:
            checked = self.parameters_type(**current)
        except ValidationError:
            defaults = {name: field.get_default() for name, field in fields.items() if not field.is_required()}
            return defaults | {name: value for name, value in current.items() if name in fields}
        return {name: getattr(checked, name) for name in fields}


def make_flow(
    function: Callable[[P], Summary],
    parameters: type[P],
    name: str,
    run_name: str | Callable[[], str],
    first: Sequence[str] = (),
) -> MedgenFlow:
    """The flow `name`: its form has a field for each parameter, its results are not stored, its parameters are
    validated, and a foreseen error ends it with a message for people.

    Args:
        function: gets the parameters, typed; its docstring describes the flow.
        run_name: template or function for the names of runs.
        first: parameters that come first in the form.
    """
    run = _reporting_expected_errors(function, parameters, name)
    run.__name__ = run.__qualname__ = name
    run.__module__ = function.__module__
    run.__doc__ = function.__doc__
    run.__signature__ = flow_signature(parameters, first)  # type: ignore[attr-defined]  # as `inspect` reads it
    made = MedgenFlow(
        run,
        name=name,
        description=inspect.getdoc(function),
        flow_run_name=run_name,
        task_runner=task_runner(),
        persist_result=False,
        validate_parameters=True,
    )
    made.parameters_type = parameters
    return made


def _reporting_expected_errors(function: Callable[[P], Summary], parameters: type[P], flow: str) -> Callable[..., Any]:
    """Puts each run on record; makes an expected error the message of the run's state, as it is, and the first thing
    that its log says of it.

    By itself Prefect writes ``Flow run encountered an exception: CLASS: …`` and, in the log, the error as Python's
    repr. The traceback stays in the log, below the message. Who called the flow gets the error itself.
    """

    def run(**arguments: Any) -> Any:
        try:
            with on_record(flow):
                check_cluster()
                return function(_checked(parameters, arguments))
        except (RunStopped, ItemFailed, ModelUnavailable) as error:
            if FlowRunContext.get() is None:
                raise
            get_run_logger().error("%s", error, exc_info=error)
            return Failed(message=str(error), data=error)

    return run


def _checked(parameters: type[P], arguments: dict[str, Any]) -> P:
    """The parameters of a run. Raises RunStopped: a bad value, or values that do not go together."""
    try:
        return parameters(**arguments)
    except ValidationError as error:
        raise RunStopped("bad parameters: " + "; ".join(complaints(error))) from None
