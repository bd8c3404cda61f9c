"""Machines of a cluster: one that misses a setting, or works for another installation, is named with the setting."""

from dataclasses import replace
from pathlib import Path

import cloudpickle
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.runner import check_cluster, task_runner
from medgen.errors import RunStopped
from medgen.installation import NotOfTheInstallation, require_same, require_shared, this_installation
from medgen.settings import current
from medgen.store import open_store
from tests.conftest import S3Server


@pytest.fixture
def machine(home: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of a cluster of Ray elsewhere, with all settings."""
    address = {"MEDGEN_RUNNER": "ray", "MEDGEN_RUNNER_ADDRESS": "192.0.2.77:6379"}
    for name, value in (s3.environment | address).items():
        monkeypatch.setenv(name, value)
    current.cache_clear()
    return home


@pytest.mark.parametrize("missing", ["MEDGEN_DATABASE_URL", "MEDGEN_S3_ENDPOINT"])
def test_a_machine_that_misses_a_setting_is_refused(
    machine: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    require_shared(current())
    monkeypatch.delenv(missing)
    current.cache_clear()
    for look in (this_installation, check_cluster):
        with pytest.raises(NotOfTheInstallation, match=f"but there {missing} is not set"):
            look()
    assert not (machine / "postgres").exists()


def test_a_machine_of_another_installation_is_refused(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = this_installation()
    require_same(ours)
    with pytest.raises(NotOfTheInstallation, match=r"MEDGEN_DATABASE_URL of .* another catalog"):
        require_same(replace(ours, catalog="1/1"))
    monkeypatch.setenv("MEDGEN_S3_BUCKET", "another")
    current.cache_clear()
    open_store.cache_clear()
    with pytest.raises(NotOfTheInstallation, match=r"MEDGEN_S3_BUCKET of .*\(bucket another\)"):
        require_same(replace(ours, machine="the other"))


def test_a_server_of_prefect_that_machines_elsewhere_cant_reach_is_refused(machine: Path) -> None:
    here = temporary_settings({PREFECT_API_URL: "http://127.0.0.1:4200/api"})
    with here, pytest.raises(RunStopped, match="name it in PREFECT_API_URL"):
        check_cluster()
    with temporary_settings({PREFECT_API_URL: "http://prefect-server:4200/api"}):
        check_cluster()


@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_the_runner_of_a_cluster_travels_to_its_machines(
    machine: Path, monkeypatch: pytest.MonkeyPatch, runner: str
) -> None:
    monkeypatch.setenv("MEDGEN_RUNNER", runner)
    current.cache_clear()
    there = cloudpickle.loads(cloudpickle.dumps(task_runner())).duplicate()
    assert there.address == "192.0.2.77:6379"
