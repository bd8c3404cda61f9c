"""A page of another site, in a real browser, that tries what it can with a server on this machine."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from playwright.sync_api import Browser, Page

from tests.browser import new_context

SITE, REBOUND = "attacker.test", "rebound.test"
# Gives what the page could read: the status, and "" where the browser kept the answer from it.
TRY = """async ([url, options]) => {
    try { const answer = await fetch(url, options); return [answer.status, await answer.text()] }
    catch { return [0, ""] }
}"""
SUBMIT = """([url, name, value]) => {
    const form = document.body.appendChild(Object.assign(document.createElement("form"), {
        action: url, method: "post", enctype: "text/plain", target: "elsewhere"}));
    form.appendChild(Object.assign(document.createElement("input"), {name, value}));
    document.body.appendChild(Object.assign(document.createElement("iframe"), {name: "elsewhere"}));
    form.submit();
}"""
SOCKET = """url => new Promise(done => {
    const socket = new WebSocket(url, "prefect");
    socket.onopen = () => done("open"); socket.onerror = () => done("refused");
})"""


class _Empty(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>free videos</title>")

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def foreign_page(browser: Browser) -> Iterator[Page]:
    """A page of `attacker.test`, a site of another origin than any server of medgen.

    Args:
        browser: one that knows `SITE` and `REBOUND`.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Empty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = new_context(browser).new_page()
    page.goto(f"http://{SITE}:{server.server_port}/")
    yield page
    page.context.close()
    server.shutdown()
    server.server_close()


def read_by(page: Page, url: str, **options: Any) -> tuple[int, str]:
    """(status, text) of what the page gets to read of an answer."""
    status, text = page.evaluate(TRY, [url, options])
    return status, text


def attempts(url: str, body: str) -> Sequence[Mapping[str, Any]]:
    """The ways in which a page can ask: some reach the server without a question, some ask beforehand."""
    return [
        {"method": "GET"},
        {"method": "GET", "mode": "no-cors"},
        {"method": "POST", "mode": "no-cors", "headers": {"Content-Type": "text/plain"}, "body": body},
        {"method": "POST", "headers": {"Content-Type": "application/json"}, "body": body},
        {"method": "POST", "headers": {"X-Requested-With": "x"}, "body": body},
        {"method": "DELETE"},
    ]


def try_all(page: Page, url: str, body: str = "{}") -> None:
    """Asserts that a page gets to read nothing, by whatever way it asks."""
    for options in attempts(url, body):
        assert read_by(page, url, **options)[1] == "", options
    page.evaluate(SUBMIT, [url, body[:-1] + ', "x":"', '"}'])  # a form's text/plain body that is JSON
