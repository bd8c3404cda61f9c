"""Where Prefect runs the tasks."""

from typing import Any

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from medgen.settings import current


def task_runner() -> TaskRunner[Any]:
    """The runner that `MEDGEN_RUNNER` names. `medgen.step_processes` bounds what it starts on a machine."""
    settings = current()
    if settings.runner == "dask":
        import dask
        from prefect_dask import DaskTaskRunner

        # Steps start worker processes of their own, which daemonic Dask workers may not.
        dask.config.set({"distributed.worker.daemon": False})
        # One of Dask's own here: several would take turns with them.
        local = {"n_workers": 1, "threads_per_worker": settings.workers + settings.download_workers}
        dask_runner: TaskRunner[Any] = DaskTaskRunner(
            address=settings.runner_address, cluster_kwargs=None if settings.runner_address else local
        )
        return dask_runner
    if settings.runner == "ray":
        from prefect_ray import RayTaskRunner

        ray_runner: TaskRunner[Any] = RayTaskRunner(address=settings.runner_address or "local")
        return ray_runner
    return ThreadPoolTaskRunner(max_workers=settings.workers + settings.download_workers)
