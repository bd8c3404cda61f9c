"""The guard against names that resolve to something else each time, and against ways out that do not pass it."""

import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from yt_dlp.extractor.common import InfoExtractor
from yt_dlp.extractor.openload import PhantomJSwrapper
from yt_dlp.networking import Request
from yt_dlp.networking.common import _REQUEST_HANDLERS
from yt_dlp.utils import YoutubeDLError

from medgen.catalog import open_catalog
from medgen.errors import ItemFailed
from medgen.web.egress import confined, each_confined
from medgen.web.failures import Refused, failure_of
from medgen.web.guard import FetchLimits, WebGuard
from medgen.web.guarded_youtube_dl import GuardedYoutubeDL
from medgen.web.host_policy import HostPolicy
from medgen.web.quotas import DownloadQuota, SharedQuota
from medgen.web.rate_limits import HostRateLimiter, RateLimits, open_rate_limiter
from medgen.web.session import WebParams, options_of
from tasks.curation.download_policy import DownloadParams
from tasks.curation.fetch import fetch

PUBLIC = "93.184.216.34"
ADDRESSES = [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
    "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1",
    "fec0::1", "192.0.0.8", "64:ff9b:1::7f00:1", "::7f00:1", "::ffff:0:7f00:1",
    "::ffff:127.0.0.1", "::ffff:a00:1", "2002:7f00:1::", "2002:a00:1::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
]  # fmt: skip


class Internet(ThreadingHTTPServer):
    """All public addresses: connections to them end here. `dialled` holds where connections were wanted to.

    Attributes:
        names: host → what it resolves to at each look-up; the last answer stays.
        redirects: path → where it leads.
        pages: path → HTML.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.names: dict[str, list[list[str]]] = {}
        self.redirects: dict[str, str] = {}
        self.pages: dict[str, str] = {}
        self.asked: list[str] = []
        self.dialled: list[str] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up."""


class _Handler(BaseHTTPRequestHandler):
    server: Internet

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if target := self.server.redirects.get(self.path):
            self.send_response(302)
            self.send_header("Location", target)
        else:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
        body = self.server.pages.get(self.path, "").encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def internet(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Internet]:
    """Resolver and network of this process are those of a test."""
    open_rate_limiter()
    with Internet() as running:
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        here = running.server_address
        resolve, plain = socket.getaddrinfo, socket.socket

        def resolved(host: Any, port: Any, *rest: Any, **more: Any) -> list[Any]:
            answers = running.names.get(str(host))
            if answers is None:
                return resolve(host, port, *rest, **more)
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            return [found for address in answer for found in resolve(address, port, *rest, **more)]

        class Dialling(plain):
            def connect(self, address: Any) -> None:
                running.dialled.append(address[0])
                plain.connect(self, here if address[0] == PUBLIC else address)

        monkeypatch.setattr(socket, "getaddrinfo", resolved)
        monkeypatch.setattr(socket, "socket", Dialling)
        yield running
        running.shutdown()


@pytest.fixture
def inside() -> Iterator[socket.socket]:
    """A service of the network that the pipeline runs in: a listener on loopback that nobody may reach."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)
    yield listener
    listener.close()


def reached(listener: socket.socket) -> bool:
    """Whether anybody has connected."""
    try:
        listener.accept()[0].close()
    except TimeoutError:
        return False
    return True


def session(allowed: tuple[str, ...] = (), **options: Any) -> GuardedYoutubeDL:
    """A session of yt-dlp under the guard, as the steps have them."""
    params = WebParams(stall_limit_s=2.0, request_interval_s=0.0)
    limits = FetchLimits(1 << 20, 20.0, 2.0, 0.0)
    rate = RateLimits(open_rate_limiter(), 2, 0.0, 5.0)
    return GuardedYoutubeDL(
        options_of(params) | {"retries": 0, "extractor_retries": 0} | options,
        WebGuard(HostPolicy(allowed), limits, rate, DownloadQuota()),
    )


def reason(ask: Callable[[], object]) -> str:
    """Why it failed."""
    with pytest.raises((YoutubeDLError, ItemFailed)) as raised:
        ask()
    error = raised.value
    return error.reason if isinstance(error, ItemFailed) else failure_of(error, None).reason


def test_addresses_that_are_not_public_must_be_listed() -> None:
    for address in ADDRESSES:
        for policy in (HostPolicy(), HostPolicy(allowed=("*",)), HostPolicy(allowed=("*.example",))):
            with pytest.raises(Refused, match="no public address"):
                policy.check_address("a.example", ip_address(address))
        HostPolicy(allowed=(address,)).check_address("a.example", ip_address(address))
        HostPolicy(allowed=("A.example",)).check_address("a.example", ip_address(address))
    for address in ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"):
        HostPolicy().check_address("a.example", ip_address(address))
        with pytest.raises(Refused, match="denied"):
            HostPolicy(allowed=("a.example",), denied=(address,)).check_address("a.example", ip_address(address))
    HostPolicy(allowed=("10.1.*",)).check_address("a.example", ip_address("10.1.2.3"))
    with pytest.raises(Refused, match="denied"):
        HostPolicy(denied=("8.8.8.*",)).check_address("a.example", ip_address("::ffff:8.8.8.8"))
    with pytest.raises(Refused, match="denied"):
        HostPolicy(allowed=("*.example",), denied=("bad.*",)).check_name("bad.example")


def test_a_name_that_resolves_anew_never_leads_inside(internet: Internet) -> None:
    with session(allowed=("*",)) as downloader:
        for number, address in enumerate(ADDRESSES):
            turns, mixed, target = (f"{what}-{number}.example" for what in ("turns", "mixed", "target"))
            internet.names |= {
                turns: [[PUBLIC], [address]],
                mixed: [[PUBLIC, address]],
                target: [[address], [PUBLIC]],
                "leads.example": [[PUBLIC]],
            }
            internet.redirects[f"/to-{number}"] = f"http://{target}/inside"
            downloader.urlopen(f"http://{turns}/page").read()  # its first answer is public
            for url in (f"http://{turns}/page", f"http://{mixed}/page", f"http://leads.example/to-{number}"):
                assert reason(lambda url=url: downloader.urlopen(url)) == "host_refused", (address, url)
    assert set(internet.dialled) == {PUBLIC}
    assert len(internet.dialled) == len(internet.asked) == 2 * len(ADDRESSES)
    assert "/inside" not in internet.asked


def test_each_connection_goes_to_an_address_that_was_looked_up_once(
    internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    resolve = socket.getaddrinfo

    def counted(host: Any, *rest: Any, **more: Any) -> Any:
        looks.append(str(host))
        return resolve(host, *rest, **more)

    internet.names |= {"a.example": [[PUBLIC]], "b.example": [[PUBLIC]]}
    internet.redirects["/a"] = "http://b.example/b"
    monkeypatch.setattr(socket, "getaddrinfo", counted)
    with session() as downloader:
        downloader.urlopen("http://a.example/a").read()
    assert looks == ["a.example", "b.example"]


def raw(port: int) -> None:
    socket.create_connection(("127.0.0.1", port), 2).close()


def datagram(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"hello", ("127.0.0.1", port))


def program(port: int) -> None:
    code = f"import socket; socket.create_connection(('127.0.0.1', {port}))"
    subprocess.run([sys.executable, "-c", code], check=False, timeout=20)


def client(name: str, scheme: str) -> Callable[[int], object]:
    """A client that yt-dlp registers for itself wherever it is installed."""
    handler = _REQUEST_HANDLERS[name]
    return lambda port: handler(logger=None, timeout=2.0).send(Request(f"{scheme}://127.0.0.1:{port}/"))


WAYS: dict[str, Callable[[int], object]] = {
    "a socket": raw,
    "a datagram": datagram,
    "urllib": lambda port: urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2),
    "yt-dlp's requests": client("Requests", "http"),
    "yt-dlp's websockets": client("Websockets", "ws"),
    "a program": program,
}


@pytest.mark.parametrize("way", WAYS)
def test_an_extractor_has_no_way_out_but_the_guard(internet: Internet, inside: socket.socket, way: str) -> None:
    class OddIE(InfoExtractor):
        _VALID_URL = r"http://odd\.example/(?P<list>list)?"

        def _real_extract(self, url: str) -> dict[str, Any]:
            if self._match_valid_url(url)["list"]:
                return self.playlist_result(self._entries(), "odd")
            self._go()
            return {"id": "1", "title": "t", "url": "http://odd.example/v.mp4"}

        def _entries(self) -> Iterator[dict[str, Any]]:
            self._go()
            yield {"_type": "url", "url": "http://odd.example/v.mp4"}

        def _go(self) -> None:
            WAYS[way](inside.getsockname()[1])

    internet.names["odd.example"] = [[PUBLIC]]
    with session(simulate=True) as downloader:
        downloader._ies = {}
        downloader.add_info_extractor(OddIE())
        with pytest.raises((YoutubeDLError, OSError)):
            downloader.extract_info("http://odd.example/")
        listed = downloader.extract_info("http://odd.example/list", download=False, process=False)
        entries = each_confined(listed["entries"])
        with pytest.raises((YoutubeDLError, OSError)):
            next(entries)
    assert not reached(inside)
    WAYS[way](inside.getsockname()[1]) if way == "a socket" else None  # outside of a session nothing is refused


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Programs that yt-dlp knows and that fetch by themselves. Gives those that were started."""
    folder, log = tmp_path / "bin", tmp_path / "started"
    folder.mkdir()
    log.touch()
    for name in ("rtmpdump", "phantomjs", "ffmpeg", "ffprobe", "curl", "aria2c", "deno"):
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\necho {name} 3.0.0\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return lambda: log.read_text().splitlines()


def test_a_page_starts_no_program_that_fetches_by_itself(
    internet: Internet, inside: socket.socket, programs: Callable[[], list[str]], tmp_path: Path
) -> None:
    port = inside.getsockname()[1]
    internet.names["odd.example"] = [[PUBLIC]]
    internet.pages |= {
        "/page": "<html><head><title>Laparoscopy</title></head><body>"
        '<video src="http://odd.example/v.mp4" type="video/mp4">'
        f'<track kind="subtitles" srclang="en" src="rtmp://127.0.0.1:{port}/app/x.vtt"></video></body></html>',
        "/v.mp4": "what is no video",
    }
    row = {"url": "http://odd.example/page", "licence": None, "subtitles_url": f"rtmp://127.0.0.1:{port}/app/x.vtt"}
    params = DownloadParams(request_interval_s=0.0, stall_limit_s=2.0)
    reason(lambda: fetch(row, tmp_path, params, DownloadQuota()))
    assert programs() == [] and not reached(inside)
    assert internet.asked.count("/page") == 1


def test_no_script_of_a_page_runs_in_a_browser(
    internet: Internet, inside: socket.socket, programs: Callable[[], list[str]]
) -> None:
    class ScriptIE(InfoExtractor):
        _VALID_URL = r"http://odd\.example/"

        def _real_extract(self, url: str) -> dict[str, Any]:
            page = f'<script src="http://127.0.0.1:{inside.getsockname()[1]}/"></script>'
            PhantomJSwrapper(self).get(url, html=page, video_id="1", jscode="saveAndExit();")
            return {"id": "1", "title": "t", "url": "http://odd.example/v.mp4"}

    with session(simulate=True) as downloader:
        downloader._ies = {}
        downloader.add_info_extractor(ScriptIE())
        assert reason(lambda: downloader.extract_info("http://odd.example/")) == "unavailable"
    assert programs() == []


def test_only_scripts_without_permissions_run(internet: Internet, programs: Callable[[], list[str]]) -> None:
    with confined():
        subprocess.run(["deno", "--version"], check=True, capture_output=True)
        subprocess.run(["deno", "run", "--ext=js", "--no-remote", "-"], check=True, capture_output=True, input=b"")
        for more in ("--allow-net", "-A", "-N", "--permission-set", "http://odd.example/x.js"):
            with pytest.raises(PermissionError):
                subprocess.run(["deno", "run", more, "-"], check=False)
        for command in (["curl"], "deno --version"):
            with pytest.raises(PermissionError):
                subprocess.run(command, shell=isinstance(command, str), check=False)
    assert programs() == ["deno --version", "deno run --ext=js --no-remote -"]


def test_the_guard_reaches_the_catalog_anew_while_a_site_is_read(home: Path) -> None:
    engine = open_catalog()
    quota = SharedQuota(engine, "test", "byte_budget_night", 100)
    engine.dispose()

    def start_server(*_: object) -> None:
        subprocess.run(["true"], check=True)

    event.listen(engine, "do_connect", start_server)
    with confined():
        assert (quota.acquire(60), quota.left()) == (60, 40)
        engine.dispose()
        limiter = HostRateLimiter(engine)
        limiter.back_off("a.example", 0.0)
        assert quota.acquire(60) == 40
    limiter.close()


@pytest.mark.parametrize("how", ["proxies", "header"])
@pytest.mark.parametrize("scheme", ["http", "socks5h", "socks4"])
def test_only_the_operator_chooses_a_proxy(internet: Internet, inside: socket.socket, scheme: str, how: str) -> None:
    proxy = f"{scheme}://127.0.0.1:{inside.getsockname()[1]}"
    internet.names["odd.example"] = [[PUBLIC]]
    chosen: dict[str, Any] = (
        {"proxies": {"all": proxy}} if how == "proxies" else {"headers": {"Ytdl-Request-Proxy": proxy}}
    )
    with session() as downloader:
        downloader.urlopen(Request("http://odd.example/page", **chosen)).read()
        assert not reached(inside) and internet.asked == ["/page"]
    accepted = threading.Thread(target=lambda: inside.accept()[0].close(), daemon=True)
    inside.settimeout(20)
    accepted.start()
    with session(proxy=proxy) as downloader:
        assert reason(lambda: downloader.urlopen("http://odd.example/page")) in ("network_error", "download_error")
    accepted.join(20)
    assert not accepted.is_alive() and internet.asked == ["/page"]
