"""Where Prefect runs the tasks."""

import copy
from collections.abc import Callable
from functools import cache, wraps
from typing import Any
from urllib.parse import urlsplit

from prefect.settings import PREFECT_API_URL
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.tasks import Task

from flows.dask_profiler import stop_profiler
from flows.ray_inference import use_inference_owner
from medgen.errors import RunStopped
from medgen.installation import Installation, require_same, require_shared, this_installation
from medgen.settings import current

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def task_runner() -> TaskRunner[Any]:
    """The runner that `MEDGEN_RUNNER` names. `medgen.step_processes` bounds what it starts on a machine.

    Tasks of a cluster that `MEDGEN_RUNNER_ADDRESS` names see to it that they run for the same installation.
    """
    settings = current()
    if settings.runner == "dask":
        import dask
        from prefect_dask.task_runners import DaskTaskRunner

        # Steps start worker processes of their own, which daemonic Dask workers may not.
        dask.config.set({"distributed.worker.daemon": False, "distributed.worker.profile.enabled": False})
        if settings.runner_address:
            return _submitting(DaskTaskRunner, on_a_cluster=True, ready=stop_profiler)(address=settings.runner_address)
        # One of Dask's own here: several would take turns with them.
        local = {"n_workers": 1, "threads_per_worker": settings.workers + settings.download_workers}
        dask_runner: TaskRunner[Any] = DaskTaskRunner(cluster_kwargs=local)
        return dask_runner
    if settings.runner == "ray":
        from prefect_ray.task_runners import RayTaskRunner

        if settings.runner_address:
            return _submitting(RayTaskRunner, on_a_cluster=True, ready=use_inference_owner)(
                address=settings.runner_address
            )
        return _submitting(RayTaskRunner, on_a_cluster=False, ready=use_inference_owner)(address="local")
    return ThreadPoolTaskRunner(max_workers=settings.workers + settings.download_workers)


def check_cluster() -> None:
    """Raises RunStopped where the machines of the cluster could not work for this run. Names the setting."""
    address = current().runner_address
    if current().runner == "thread" or not address:
        return
    require_shared(current())
    host, server = (urlsplit(url if "//" in url else f"//{url}").hostname for url in (address, PREFECT_API_URL.value()))
    if server in LOOPBACK and host not in LOOPBACK:
        raise RunStopped(
            f"the machines of the cluster at {address} can't reach Prefect's server at {PREFECT_API_URL.value()}\n"
            "Start one that they can reach, and name it in PREFECT_API_URL and its secret in PREFECT_API_AUTH_STRING."
        )


def _submitting(
    runner: type[TaskRunner[Any]], *, on_a_cluster: bool, ready: Callable[[], None]
) -> Callable[..., TaskRunner[Any]]:
    """The class of a runner whose tasks run on the machines of a cluster that is there already, or on this one.

    Args:
        ready: called where a task runs, before it.
    """

    class PreparingTaskRunner(runner):  # type: ignore[valid-type,misc]
        """Each task first looks whether it runs for the installation whose run it belongs to, and makes ready."""

        def submit(self, task: Task[..., Any], *arguments: Any, **named: Any) -> Any:
            """As the runner's own."""
            installation = _installation() if on_a_cluster else None
            prepared = _prepared(task, installation, ready)
            return super().submit(prepared, *arguments, **named)

    return PreparingTaskRunner


@cache
def _installation() -> Installation:
    return this_installation()


def _prepared(task: Task[..., Any], installation: Installation | None, ready: Callable[[], None]) -> Task[..., Any]:
    function = task.fn

    @wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        if installation:
            require_same(installation)
        ready()
        return function(*arguments, **named)

    prepared = copy.copy(task)
    prepared.fn = run
    return prepared
