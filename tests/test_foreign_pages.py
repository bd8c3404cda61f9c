"""No page on the web may read or change anything by way of the servers that medgen starts on this machine.

Prefect's server is tried in `tests.test_prefect`.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from playwright.sync_api import Page
from prometheus_client import make_asgi_app
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from apps.audit.application import create_site
from apps.demo.server import serve as serve_files
from apps.host_check import HostCheck
from apps.label.answers import Answers, files_of
from apps.label.site import label_site
from apps.metrics import registry
from apps.serve import listen
from apps.study.site import study_site
from medgen.catalog import open_catalog
from medgen.ledger import open_ledger
from tests.browser import chromium
from tests.foreign_page import REBOUND, SITE, foreign_page, read_by, try_all


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """URL of an application that listens on loopback."""
    listening, url = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield url
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with chromium(SITE, REBOUND) as browser, foreign_page(browser) as opened:
        yield opened


def _to_label(home: Path) -> ASGIApp:
    (home.parent / "to label").mkdir()
    (home.parent / "to label" / "a.jpg").write_bytes(b"a picture")
    folder = home.parent / "to label"
    return label_site(folder, files_of(folder), "somebody", Answers(folder), None)


SITES: dict[str, tuple[Callable[[Path], ASGIApp], str]] = {
    "audit": (lambda home: create_site(), "/"),
    "study": (lambda home: HostCheck(study_site(open_ledger(), "s"), "127.0.0.1"), "/static/study.css"),
    "label": (lambda home: HostCheck(_to_label(home), "127.0.0.1"), "/file/1"),
    "metrics": (
        lambda home: HostCheck(make_asgi_app(registry(open_catalog(), str(home.parent))), "127.0.0.1"),
        "/metrics",
    ),
}


@pytest.mark.parametrize("site", [*SITES, "demo"])
def test_a_foreign_page_reads_and_changes_nothing(site: str, page: Page, home: Path, tmp_path: Path) -> None:
    films = tmp_path / "films"
    films.mkdir()
    (films / "film.txt").write_text("a film")
    make, path = SITES.get(site, (None, "/film.txt"))
    with served(make(home)) if make else serve_files(films, port=0) as url:
        here = httpx.get(url + path)
        assert here.status_code == 200 and here.text, "it answers who asks it by its own name"
        assert "access-control-allow-origin" not in here.headers
        try_all(page, url + path)
        port = url.rpartition(":")[2]
        assert httpx.get(url + path, headers={"Host": f"{REBOUND}:{port}"}).status_code == 400
        with page.context.new_page() as rebound:
            answer = rebound.goto(f"http://{REBOUND}:{port}{path}")
            assert answer is not None and answer.status == 400
            status, text = read_by(rebound, path)
            assert status == 400 and here.text not in text


def test_a_server_goes_by_its_own_names_alone() -> None:
    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("here"), methods=["GET", "POST"])])

    def asked(listening: str, host: str, *allowed: str, **headers: str) -> int:
        client = TestClient(HostCheck(app, listening, allowed), base_url="http://x")
        return client.post("/", headers={"Host": host, **headers}).status_code

    for host in ("127.0.0.1", "127.0.0.1:80", "localhost:4200", "LOCALHOST", "[::1]:80", "127.1.2.3"):
        assert asked("127.0.0.1", host) == 200, host
    for host in (
        "",
        "evil.test",
        "127.0.0.1.evil.test",
        "localhost.evil.test",
        "localhost@evil.test",
        "192.168.1.5",
        "[::1",
    ):
        assert asked("127.0.0.1", host) == 400, host
    assert asked("127.0.0.1", "medgen.example.org", "medgen.example.org") == 200
    assert asked("0.0.0.0", "192.168.1.5:80") == asked("::", "[fe80::1]") == 200  # a bare address can't be rebound
    assert asked("0.0.0.0", "evil.test") == 400
    assert asked("127.0.0.1", "localhost:80", Origin="http://localhost:80") == 200
    ours = {"Origin": "null", "Sec-Fetch-Site": "same-origin"}  # a form of a page without a referrer
    assert asked("127.0.0.1", "localhost:80", **ours) == 200
    for fetched in ("cross-site", "same-site", "none", ""):
        assert asked("127.0.0.1", "localhost:80", **ours | {"Sec-Fetch-Site": fetched}) == 403, fetched
    for origin in ("http://evil.test", "null", "http://localhost:81", "http://localhost:80.evil.test", "file://"):
        assert asked("127.0.0.1", "localhost:80", Origin=origin) == 403, origin
