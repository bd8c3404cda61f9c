"""`medgen metrics`: figures of the installation for Prometheus, read from the catalog at each scrape."""

import shutil
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer
from prometheus_client import CollectorRegistry, make_asgi_app
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection, Engine, text

from apps.console import out, report_expected_errors
from apps.host_check import AllowHost, HostCheck

if TYPE_CHECKING:  # loaded when the command needs it
    from tasks.operations.time_left import Forecast

# Counts over all that stands. Superseded attempts are left out.
_STEP_RUNS = "SELECT step, status, count(*) FROM step_run WHERE NOT superseded GROUP BY step, status"
_FAILURES = """SELECT step, coalesce(reason, ''), transient, count(*) FROM step_run
WHERE NOT superseded AND status = 'failed' GROUP BY step, reason, transient"""
_RELEASES = """SELECT DISTINCT ON (prefix) left(name, -13) AS prefix, clips, extract(epoch FROM created_at)
FROM release ORDER BY prefix, created_at DESC"""
_MODELS = "SELECT kind, count(*) FROM model_version GROUP BY kind"
_ARTIFACTS = "SELECT count(*), coalesce(sum(bytes), 0) FROM artifact"
# The last run of each flow that has ended, and how long it took; those of killed runs never end.
_RUNS = """SELECT DISTINCT ON (flow) flow, outcome = 'completed', extract(epoch FROM ended_at),
extract(epoch FROM ended_at - started_at) FROM flow_run WHERE ended_at IS NOT NULL ORDER BY flow, started_at DESC"""
_OPEN = "SELECT flow, extract(epoch FROM max(started_at)) FROM flow_run WHERE ended_at IS NULL GROUP BY flow"
# Of the last hour, among the newest records only: there may be millions.
_HOUR = """SELECT step, count(*), coalesce(sum(extract(epoch FROM finished_at - started_at)), 0) FROM step_run
WHERE id > (SELECT coalesce(max(id), 0) - 100000 FROM step_run) AND finished_at > now() - interval '1 hour'
GROUP BY step"""
_LAST = "SELECT coalesce(extract(epoch FROM max(finished_at)), 0) FROM step_run"


class InstallationCollector(Collector):
    """Figures of the catalog and of the disk; one query each, at each scrape."""

    def __init__(self, engine: Engine, home: str) -> None:
        self.engine = engine
        self.home = home
        self.forecast: Forecast | None = None

    def collect(self) -> Iterable[Metric]:
        """See the help texts."""
        with self.engine.connect() as connection:
            runs = GaugeMetricFamily("medgen_step_runs", "Step runs that stand", labels=["step", "status"])
            for step, status, count in connection.execute(text(_STEP_RUNS)):
                runs.add_metric([step, status], count)
            failures = GaugeMetricFamily(
                "medgen_failures", "Items that failed, by reason", labels=["step", "reason", "tried_again"]
            )
            for step, reason, transient, count in connection.execute(text(_FAILURES)):
                failures.add_metric([step, reason, str(transient).lower()], count)
            clips = GaugeMetricFamily("medgen_release_clips", "Clips of the newest release of a name", labels=["name"])
            made = GaugeMetricFamily(
                "medgen_release_timestamp_seconds", "When the newest release of a name was made", labels=["name"]
            )
            for prefix, count, when in connection.execute(text(_RELEASES)):
                clips.add_metric([prefix], count)
                made.add_metric([prefix], float(when))
            models = GaugeMetricFamily("medgen_models", "Models on record", labels=["kind"])
            for kind, count in connection.execute(text(_MODELS)):
                models.add_metric([kind], count)
            objects, size = connection.execute(text(_ARTIFACTS)).one()
            last = connection.scalar(text(_LAST))
            flows = list(_flows(connection))
        yield from (runs, failures, clips, made, models, *flows)
        yield GaugeMetricFamily("medgen_artifacts", "Artifacts on record", value=objects)
        yield GaugeMetricFamily("medgen_artifact_bytes", "Bytes of the artifacts on record", value=float(size))
        yield GaugeMetricFamily("medgen_last_step_timestamp_seconds", "When the last step run ended", value=float(last))
        yield from self._left()
        free = shutil.disk_usage(self.home).free
        yield GaugeMetricFamily("medgen_disk_free_bytes", "Free bytes on the data folder's disk", value=free)

    def _left(self) -> Iterable[Metric]:
        """What waits for the steps. Its modules are imported at the first scrape."""
        from medgen.settings import current
        from tasks.operations.time_left import Forecast

        if self.forecast is None:
            self.forecast = Forecast(self.engine, current().workers, current().download_workers)
        waiting = GaugeMetricFamily("medgen_items_waiting", "Items that a step has to decide on", labels=["step"])
        seconds = GaugeMetricFamily(
            "medgen_seconds_left",
            "Of the clock, for what waits and what earlier steps will pass on, with this machine's workers",
            labels=["step", "rates"],
        )
        for one in self.forecast.left():
            waiting.add_metric([one.step], one.waiting)
            if one.seconds is not None:
                seconds.add_metric([one.step, "measured" if one.here else "shipped"], one.seconds)
        yield from (waiting, seconds)


def _flows(connection: Connection) -> Iterable[Metric]:
    """How the last run of each flow went, what is under way, and what the last hour did."""
    ok = GaugeMetricFamily("medgen_run_ok", "1 if the last run of a flow that ended completed, else 0", labels=["flow"])
    ended = GaugeMetricFamily("medgen_run_ended_timestamp_seconds", "When that run ended", labels=["flow"])
    took = GaugeMetricFamily("medgen_run_duration_seconds", "How long that run took", labels=["flow"])
    for flow, completed, when, seconds in connection.execute(text(_RUNS)):
        ok.add_metric([flow], float(completed))
        ended.add_metric([flow], float(when))
        took.add_metric([flow], float(seconds))
    began = GaugeMetricFamily(
        "medgen_run_open_timestamp_seconds", "When the newest run of a flow that has no end began", labels=["flow"]
    )
    for flow, when in connection.execute(text(_OPEN)):
        began.add_metric([flow], float(when))
    done = GaugeMetricFamily("medgen_step_runs_last_hour", "Step runs that ended in the last hour", labels=["step"])
    seconds_of = GaugeMetricFamily(
        "medgen_step_seconds_last_hour", "Seconds that these took, added up", labels=["step"]
    )
    for step, count, seconds in connection.execute(text(_HOUR)):
        done.add_metric([step], count)
        seconds_of.add_metric([step], float(seconds))
    return (ok, ended, took, began, done, seconds_of)


def registry(engine: Engine, home: str) -> CollectorRegistry:
    """A registry with the installation's figures alone."""
    figures = CollectorRegistry()
    figures.register(InstallationCollector(engine, home))
    return figures


def metrics(
    port: Annotated[int, typer.Option(help="Port of the endpoint.")] = 9464,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    allow_host: AllowHost = None,
) -> None:
    """Serve figures of the installation to Prometheus, at /metrics. Ctrl-C stops."""
    from apps.serve import listen, serve
    from medgen.catalog import open_catalog
    from medgen.settings import current

    with report_expected_errors():
        figures = make_asgi_app(registry(open_catalog(), str(current().home)))
        listening, url = listen(host, port)
        out.print(f"{url}/metrics   (Ctrl-C stops)", soft_wrap=True)
        serve(HostCheck(figures, host, allow_host or ()), listening)
