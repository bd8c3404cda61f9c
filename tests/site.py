"""A site of about 300 videos that does what sites do: most are good, some vanish, stall, lie, break or loop.

with Site(folder) as site:
    site.listing()     # rows of a listing
    site.channel       # address of a channel in pages, listed by the plugin for yt-dlp in `tests/plugins`
    site.expected()    # URL → (status, reason) of its download under `site.parameters`
    site.log           # every request, with the number of requests to the same host at that moment
"""

import gzip
import json
import re
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av
import numpy as np

from tests.conftest import numbered_video

HOSTS = ("127.0.0.1", "127.0.0.2", "localhost")
DISTINCT = 3  # videos that are really made; the others are copies of them with bytes of their own
FPS = 25
KEPT = ("kept", None)
MIN_DURATION_S = 1.0
LONG_FRAMES = 170  # enough for a clip
# Path → which long video it is.
LONG = {"/copy-one.mp4": 0, "/copy-two.mp4": 0, "/reset.mp4": 1, "/channel-30.mp4": 2}
CHANNEL, PAGE = 30, 10  # videos of the channel at first, and on a page of it
HUGE = 24 << 20  # bytes of a good file that a small quota can't hold


@dataclass
class Request:
    """One request: times in seconds (monotonic), and how many requests its host had under way when it came."""

    host: str
    path: str
    span: str | None  # the Range header
    cookie: str | None  # the Cookie header
    started: float
    at_once: int
    ended: float | None = None


@dataclass(frozen=True)
class Video:
    """One listed item: its path and host, who answers, and the verdict that its download must get."""

    path: str
    host: str
    answer: Callable[["_Handler"], None]
    verdict: tuple[str, str | None]


class Site:
    """The server, on the ports of two loopback addresses; it runs in threads of this process.

    Args:
        folder: for the videos that are made.
        good: number of ordinary videos, besides some thirty with a way of their own.
        frames: of each ordinary video and of those of the channel, at 25 a second. The others have 50, or are `LONG`.
    """

    def __init__(self, folder: Path, good: int = 266, frames: int = 50) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._originals = _made(folder, 50)
        self._ordinary = self._originals if frames == 50 else _made(folder, frames)
        self._long = [
            _once(folder / f"long-{n}.mp4", lambda path, n=n: numbered_video(path, LONG_FRAMES, cuts=(0,) * n))
            for n in range(DISTINCT)
        ]
        self._ending = KEPT if frames / FPS >= MIN_DURATION_S else ("rejected", "too_short")
        self.published = CHANNEL  # videos of the channel
        self._small = _once(folder / "small.mp4", lambda path: _small(path, 50))
        self._segments = _segments(folder / "stream.ts", self._originals[0])
        self.log: list[Request] = []
        self.delay_s = 0.02  # before each answer, so that requests meet
        self.slow_s = 0.0  # before each fifth of the ordinary videos, besides
        self._lock = threading.Lock()
        self._active: dict[int, tuple[Request, socket.socket]] = {}
        self._asked: Counter[str] = Counter()
        self.closing = threading.Event()
        self._good = good

    def __enter__(self) -> "Site":
        self._servers = _servers(self)
        self.port = self._servers[0].server_address[1]
        self._videos = {video.path: video for video in self._all()}
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    # --- what a test needs to know

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters of download under which the verdicts are those of `expected`, and quick."""
        return {
            "allowed_hosts": ("*", *HOSTS),  # any public host, and these, which are not public
            "min_duration_s": MIN_DURATION_S,
            "max_bytes": 8 << 20,
            "stall_limit_s": 1.0,
            "min_speed": 500.0,
            "request_interval_s": 0.0,
        }

    def url(self, path: str, host: str | None = None) -> str:
        """The address of a path of this site."""
        return f"http://{host or self._videos[path].host}:{self.port}{path}"

    def listing(self) -> list[dict[str, Any]]:
        """A row for every video."""
        return [
            {"url": self.url(path), "title": f"Laparoscopy {number}", "id": path, "channel": f"channel {number % 7}"}
            for number, path in enumerate(self._videos)
        ]

    def expected(self) -> dict[str, tuple[str, str | None]]:
        """URL → (status, reason) of its download."""
        return {self.url(path): video.verdict for path, video in self._videos.items()}

    @property
    def channel(self) -> str:
        """Address of the channel, which lists its newest video first."""
        return f"http://{HOSTS[0]}:{self.port}/channel"

    def in_channel(self) -> list[str]:
        """URLs of the videos that the channel lists, oldest first. None of them is in the listing."""
        return [self.url(f"/channel-{n}.mp4", HOSTS[n % len(HOSTS)]) for n in range(self.published)]

    def expected_in_channel(self) -> dict[str, tuple[str, str | None]]:
        """As `expected`, of the channel's videos."""
        return {url: KEPT if urlsplit(url).path in LONG else self._ending for url in self.in_channel()}

    def body(self, path: str) -> bytes:
        """The bytes of an ordinary video. No two have the same."""
        number = int(re.sub(r"\D", "", path) or 0)
        if path in LONG:
            return _tagged(self._long[LONG[path]], "copies" if path.startswith("/copy-") else path)
        originals = self._ordinary if path.startswith(("/good-", "/channel-")) else self._originals
        return _tagged(originals[number % DISTINCT], path)

    # --- its content

    def _all(self) -> list[Video]:
        """Everything that is listed, the special ones spread among the ordinary."""
        special = [
            Video(f"/{name}", HOSTS[n % len(HOSTS)], answer, verdict)
            for n, (name, (answer, verdict)) in enumerate(self._special().items())
        ]
        ordinary = [Video(f"/good-{n}.mp4", HOSTS[n % len(HOSTS)], _ordinary, self._ending) for n in range(self._good)]
        step = max(1, len(ordinary) // len(special))
        mixed: list[Video] = []
        for number, video in enumerate(special):
            mixed += [*ordinary[number * step : (number + 1) * step], video]
        return mixed + ordinary[len(special) * step :]

    def _special(self) -> dict[str, tuple[Callable[["_Handler"], None], tuple[str, str | None]]]:
        base = f"http://{HOSTS[0]}:{self.port}"
        page = (
            '<!doctype html><html><head><title>Laparoscopy</title><script type="application/ld+json">'
            + json.dumps(
                {
                    "@context": "https://schema.org",
                    "@type": "VideoObject",
                    "name": "Laparoscopy on a page",
                    "contentUrl": f"{base}/embedded-1.mp4",
                    "uploadDate": "2024-05-06",
                    "thumbnailUrl": f"{base}/thumbnail.jpg",
                }
            )
            + "</script></head><body>Text.</body></html>"
        )
        html5 = f'<html><body><video src="{base}/embedded-2.mp4" type="video/mp4"></video></body></html>'
        nothing = "<html><body>Nothing to see.</body></html>"
        bomb = gzip.compress(bytes(64 << 20))
        heights = (240, 480, 720, 1080)
        ladder = "#EXTM3U\n" + "".join(
            f'#EXT-X-STREAM-INF:BANDWIDTH={h * 1000},RESOLUTION={h * 4 // 3}x{h},CODECS="avc1.64001f"\n/hls/{h}.m3u8\n'
            for h in heights
        )
        low = ladder[: ladder.index("#EXT-X-STREAM-INF:BANDWIDTH=480000")]
        failed = "failed"
        return {
            "gone-404.mp4": (_status(404), (failed, "http_404")),
            "gone-410.mp4": (_status(410), (failed, "http_410")),
            "locked-403.mp4": (_status(403), (failed, "http_403")),
            "busy-once.mp4": (_first(1, _status(429, {"Retry-After": "1"}), _ordinary), KEPT),
            "busy-always.mp4": (_status(429), (failed, "http_429")),
            "down-twice.mp4": (_first(2, _status(503), _ordinary), KEPT),
            "down-always.mp4": (_status(503), (failed, "http_503")),
            "reset.mp4": (_resets, KEPT),
            "reset-no-range.mp4": (_first(2, _reset_midway, _whole), KEPT),
            "changes.mp4": (_changes, KEPT),
            "bomb-404.mp4": (_text(bomb, "text/html", {"Content-Encoding": "gzip"}, 404), (failed, "file_too_large")),
            "wrong-range.mp4": (_wrong_range, (failed, "network_error")),
            "drip.mp4": (_drip, (failed, "too_slow")),
            "promised-too-long.mp4": (_promised(+1000), (failed, "cut_short")),
            "promised-too-short.mp4": (_promised(-5000), (failed, "truncated_file")),
            "promised-2-gb.mp4": (_promised(2 << 30), (failed, "file_too_large")),
            "huge.mp4": (_huge, (failed, "file_too_large")),
            "redirect-loop.mp4": (_redirect("/redirect-loop.mp4"), (failed, "redirect_refused")),
            "redirect-private.mp4": (_redirect("http://10.0.0.1/good-1.mp4"), (failed, "host_refused")),
            "redirect-mapped.mp4": (_redirect("http://[::ffff:7f00:9]/good-1.mp4"), (failed, "host_refused")),
            "redirect-decimal.mp4": (_redirect("http://2130706441/good-1.mp4"), (failed, "host_refused")),
            "redirect-file.mp4": (_redirect("file:///etc/passwd"), (failed, "redirect_refused")),
            "redirect-secret.mp4": (
                _redirect(f"http://user:secret-word@{HOSTS[0]}:{self.port}/target-7.mp4"),
                (failed, "credentials_in_url"),
            ),
            "redirect.mp4": (_redirect(f"http://{HOSTS[1]}:{self.port}/target-8.mp4"), KEPT),
            "stream.m3u8": (_text(_media_playlist(len(self._segments), "a"), "application/vnd.apple.mpegurl"), KEPT),
            "stream-with-hole.m3u8": (
                _text(_media_playlist(len(self._segments) + 1, "hole"), "application/vnd.apple.mpegurl"),
                (failed, "http_404"),
            ),
            "ladder.m3u8": (_text(ladder, "application/vnd.apple.mpegurl"), KEPT),
            "ladder-low.m3u8": (
                _text(low, "application/vnd.apple.mpegurl"),
                ("rejected", "height_below_minimum"),
            ),
            "page": (_text(page, "text/html"), KEPT),
            "page-html5": (_text(html5, "text/html"), KEPT),
            "page-without": (_text(nothing, "text/html"), (failed, "no_video_found")),
            "page-bomb": (_text(bomb, "text/html", {"Content-Encoding": "gzip"}), (failed, "file_too_large")),
            "copy-one.mp4": (_ordinary, KEPT),
            "copy-two.mp4": (_ordinary, KEPT),
            "small.mp4": (lambda handler: handler.body(self._small), ("rejected", "height_below_minimum")),
            "text.mp4": (_text("By no means a video.\n" * 99, "video/mp4"), (failed, "not_a_video")),
            "empty.mp4": (_text("", "video/mp4"), (failed, "empty_file")),
        }  # fmt: skip

    def _answer(self, handler: "_Handler", path: str) -> None:
        if video := self._videos.get(path):
            video.answer(handler)
        elif re.fullmatch(r"/(?:embedded|target)-\d\.mp4", path):
            _ordinary(handler)
        elif found := re.fullmatch(r"/hls/(\d+)\.m3u8", path):
            handler.text(_media_playlist(len(self._segments), found[1]), "application/vnd.apple.mpegurl")
        elif (found := re.fullmatch(r"/hls/\w+-(\d+)\.ts", path)) and int(found[1]) < len(self._segments):
            handler.body(self._segments[int(found[1])], type="video/mp2t")
        elif path == "/page-of-channel":
            handler.text(self._page(int(handler.path.partition("=")[2])), "application/json")
        elif (found := re.fullmatch(r"/channel-(\d+)\.mp4", path)) and int(found[1]) < self.published:
            _ordinary(handler)
        else:
            handler.status(404)

    def _page(self, number: int) -> str:
        newest_first = [*enumerate(self.in_channel())][::-1]
        return json.dumps(
            [
                {"url": url, "title": f"Laparoscopy {n}", "id": f"channel-{n}"}
                for n, url in newest_first[number * PAGE : (number + 1) * PAGE]
            ]
        )

    # --- what it notes

    def _begin(self, host: str, path: str, headers: Message, connection: socket.socket) -> Request:
        with self._lock:
            for key, (_, other) in list(self._active.items()):
                if _hung_up(other):  # its handler will see that in a moment
                    del self._active[key]
            here = sum(request.host == host for request, _ in self._active.values())
            request = Request(host, path, headers["Range"], headers["Cookie"], time.monotonic(), here + 1)
            self._active[id(request)] = request, connection
            self.log.append(request)
            self._asked[path] += 1
            return request

    def _end(self, request: Request) -> None:
        with self._lock:
            self._active.pop(id(request), None)
            request.ended = request.ended or time.monotonic()

    def asked(self, path: str) -> int:
        """How often a path was asked for."""
        return self._asked[path]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], site: Site) -> None:
        self.site = site
        super().__init__(address, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up; that is what this site is for."""


def _servers(site: Site) -> list[_Server]:
    """One server for each loopback address, on one port."""
    for _ in range(50):
        first = _Server((HOSTS[0], 0), site)
        try:
            return [first, _Server((HOSTS[1], first.server_address[1]), site)]
        except OSError:
            first.server_close()
    raise OSError("no port is free on both loopback addresses")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self.site = self.server.site
        self.close_connection = True
        host = self.headers.get("Host", "").rpartition(":")[0]
        self.where = self.path.split("?")[0]
        self.note = self.site._begin(host, self.where, self.headers, self.connection)
        try:
            slow = re.fullmatch(r"/good-\d*[05]\.mp4", self.where) is not None
            self.site.closing.wait(self.site.delay_s + slow * self.site.slow_s)
            self.site._answer(self, self.where)
        finally:
            self.site._end(self.note)

    do_HEAD = do_GET

    def status(self, code: int, headers: dict[str, str] | None = None) -> None:
        """An answer without a body."""
        self.head(code, {"Content-Length": "0"} | (headers or {}))
        self.last(b"")

    def text(self, text: str | bytes, type: str, headers: dict[str, str] | None = None, code: int = 200) -> None:
        """A small body at once."""
        data = text if isinstance(text, bytes) else text.encode()
        self.head(code, {"Content-Type": type, "Content-Length": str(len(data))} | (headers or {}))
        self.last(data)

    def body(self, data: bytes, *, type: str = "video/mp4", ranges: bool = True) -> None:
        """A file, or the part of it that is asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if ranges else None
        headers = {"Content-Type": type, "ETag": f'"{len(data)}"'}
        if asked:
            first, last = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data = data[first : last + 1]
        self.head(206 if asked else 200, headers | {"Content-Length": str(len(data))})
        self.last(data)

    def head(self, code: int, headers: dict[str, str]) -> None:
        """Status and headers, which are sent with what follows."""
        self.send_response(code)
        for name, value in ({"Connection": "close", "Set-Cookie": "visitor=1; Max-Age=9999"} | headers).items():
            self.send_header(name, value)
        self._headers_buffer.append(b"\r\n")  # type: ignore[attr-defined]

    def first(self, data: bytes) -> None:
        """A part of a body."""
        self.flush_headers()
        self.wfile.write(data)

    def last(self, data: bytes) -> None:
        """The rest of a body. The request ends before its client can know, so that none is counted too long."""
        rest = b"".join(self._headers_buffer) + data  # type: ignore[attr-defined]
        self._headers_buffer = []
        if len(rest) > 1 << 16:
            self.wfile.write(rest[: -(1 << 16)])
            rest = rest[-(1 << 16) :]
        self.site._end(self.note)
        self.wfile.write(rest)

    def reset(self) -> None:
        """Breaks the connection with a RST."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.site._end(self.note)
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """Silent."""


Answer = Callable[[_Handler], None]


def _ordinary(handler: _Handler) -> None:
    handler.body(handler.site.body(handler.where))


def _whole(handler: _Handler) -> None:
    handler.body(handler.site.body(handler.where), ranges=False)


def _status(code: int, headers: dict[str, str] | None = None) -> Answer:
    return lambda handler: handler.status(code, headers)


def _text(text: str | bytes, type: str, headers: dict[str, str] | None = None, code: int = 200) -> Answer:
    return lambda handler: handler.text(text, type, headers, code)


def _redirect(target: str) -> Answer:
    return _status(302, {"Location": target})


def _first(times: int, early: Answer, then: Answer) -> Answer:
    """One answer to the first requests for a path, and another to all later ones."""
    return lambda handler: (early if handler.site.asked(handler.where) <= times else then)(handler)


def _resets(handler: _Handler) -> None:
    """Breaks off in mid-body unless it is asked to go on from there."""
    _ordinary(handler) if handler.headers.get("Range") else _reset_midway(handler)


def _reset_midway(handler: _Handler) -> None:
    data = handler.site.body(handler.where)
    handler.head(200, {"Content-Type": "video/mp4", "Content-Length": str(len(data)), "ETag": f'"{len(data)}"'})
    handler.first(data[: len(data) // 2])
    time.sleep(0.05)  # a RST makes the other side forget what it has not read yet
    handler.reset()


def _changes(handler: _Handler) -> None:
    """Breaks off; when asked to go on, it has another file by then, and says so to who asks (RFC 9110, If-Range)."""
    if not handler.headers.get("Range"):
        _reset_midway(handler)
    elif handler.headers.get("If-Range"):
        handler.body(handler.site.body("/changed-9.mp4"), ranges=False)
    else:
        handler.body(handler.site.body("/changed-9.mp4"))


def _wrong_range(handler: _Handler) -> None:
    """Breaks off, and when asked to go on sends other bytes than those asked for."""
    if not handler.headers.get("Range"):
        _reset_midway(handler)
        return
    data = handler.site.body(handler.where)[:1000]
    handler.head(206, {"Content-Type": "video/mp4", "Content-Range": "bytes 0-999/1000", "Content-Length": "1000"})
    handler.last(data)


def _drip(handler: _Handler) -> None:
    """A byte a second."""
    data = handler.site.body(handler.where)
    handler.head(200, {"Content-Type": "video/mp4", "Content-Length": str(len(data))})
    with suppress(OSError):
        for position in range(len(data)):
            handler.first(data[position : position + 1])
            if handler.site.closing.wait(0.25 if position else 0.0):
                return


def _huge(handler: _Handler) -> None:
    """A good video in a file that is mostly padding."""
    data = handler.site.body(handler.where)
    handler.body(data + struct.pack(">I4s", HUGE, b"free") + bytes(HUGE - 8))


def _promised(more: int) -> Answer:
    """A Content-Length that is wrong by `more` bytes."""

    def answer(handler: _Handler) -> None:
        data = handler.site.body(handler.where)
        handler.head(200, {"Content-Type": "video/mp4", "Content-Length": str(len(data) + more)})
        handler.last(data)

    return answer


def _hung_up(connection: socket.socket) -> bool:
    """Whether the other side has closed a connection."""
    if connection.fileno() < 0:
        return True
    poll = select.poll()
    with suppress(OSError, ValueError):
        poll.register(connection, select.POLLRDHUP)
        return bool(poll.poll(0))
    return True


def _media_playlist(segments: int, name: str) -> str:
    lines = [f"#EXTINF:1.0,\n/hls/{name}-{n}.ts\n" for n in range(segments)]
    return "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n" + "".join(lines) + "#EXT-X-ENDLIST\n"


def _tagged(video: bytes, tag: str) -> bytes:
    """An MP4 with a box that no player reads, so that its bytes are its own."""
    data = tag.encode()
    return video + struct.pack(">I4s", 8 + len(data), b"free") + data


def _made(folder: Path, frames: int) -> list[bytes]:
    return [
        _once(folder / f"{frames}-{n}.mp4", lambda path, n=n: numbered_video(path, frames, cuts=(frames // (n + 2),)))
        for n in range(DISTINCT)
    ]


def _once(path: Path, make: Callable[[Path], object]) -> bytes:
    """The bytes of a file, which is made unless another site in the same folder made it."""
    if not path.exists():
        make(path)
    return path.read_bytes()


def _small(path: Path, frames: int) -> bytes:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for index in range(frames):
            picture = np.full((240, 320, 3), index % 256, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    return path.read_bytes()


def _segments(path: Path, video: bytes, count: int = 3) -> list[bytes]:
    """The video as pieces of an MPEG transport stream, each a multiple of its packets."""
    source_path = path.with_suffix(".source.mp4")
    source_path.write_bytes(video)
    with av.open(str(source_path)) as source, av.open(str(path), "w", format="mpegts") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    data = path.read_bytes()
    size = -(-len(data) // 188 // count) * 188
    return [data[start : start + size] for start in range(0, len(data), size)]
