"""Bad listings, servers and files: one verdict each, and nothing written where it does not belong."""

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from apps.verdicts import newest, verdicts
from medgen.ledger import open_ledger
from medgen.shard import ShardResult
from medgen.verify import verify
from tasks.curation.discover import video_id
from tasks.curation.download import STEP as DOWNLOAD_STEP
from tasks.curation.download_policy import DownloadParams
from tasks.curation.segment import STEP as SEGMENT_STEP
from tasks.curation.segment import SegmentParams
from tests.conftest import changing_video, discover_source, numbered_video, wide_pixels_video

PARAMS = DownloadParams(
    allowed_hosts=("127.0.0.1",),
    stall_limit_s=0.5,
    max_bytes=4 << 20,
    min_duration_s=1.0,
    request_interval_s=0.0,
    per_host_downloads=4,
)
KEPT = ("segment", "kept", None, False)


def final(step: str, reason: str) -> tuple[str, str, str, bool]:
    """The verdict on an item that failed for good."""
    return step, "failed", reason, False


def transient(reason: str) -> tuple[str, str, str, bool]:
    """The verdict on a download that may succeed later."""
    return "download", "failed", reason, True


@dataclass(frozen=True)
class Answer:
    """What the server says to one path."""

    body: bytes = b""
    status: int = 200
    type: str = "video/mp4"
    location: str | None = None
    promised: int | None = None  # Content-Length, where it is a lie
    endless: bool = False
    hangs: bool = False


class Server(ThreadingHTTPServer):
    """Answers each path by table; `{port}` in a location or playlist is its own port."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, Answer] = {}
        self.otherwise = Answer(status=404)
        self.closing = threading.Event()
        self.asked: list[tuple[str, str]] = []

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.headers["Host"], self.path))
        answer = self.server.answers.get(self.path.split("?")[0], self.server.otherwise)
        if answer.hangs:
            self.server.closing.wait(60)
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.type)
        if answer.location:
            self.send_header("Location", answer.location.format(port=self.server.port))
        if answer.endless:
            self.end_headers()
            while not self.server.closing.is_set():
                self.wfile.write(answer.body)
            return
        self.send_header("Content-Length", str(len(answer.body) if answer.promised is None else answer.promised))
        self.end_headers()
        self.wfile.write(answer.body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Further attempts follow at once; one worker process is enough."""
    monkeypatch.setattr("medgen.shard.BACKOFF_S", 0.01)
    monkeypatch.setattr("tasks.curation.fetch.BACKOFF_S", 0.01)
    monkeypatch.setenv("MEDGEN_WORKERS", "1")


@pytest.fixture
def server() -> Iterator[Server]:
    """A running server."""
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.closing.set()
        running.shutdown()


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files good and bad."""
    folder = tmp_path_factory.mktemp("bad-media")
    good = numbered_video(folder / "good.mp4", 50).read_bytes()
    assert good.index(b"moov") > good.index(b"mdat")
    return {
        "good": good,
        "cut_off": good[: len(good) // 2],
        "cut_off_with_index": _with_index_first(folder, good)[: len(good) // 2],
        "text": b"Laparoscopy notes, by no means a video.\n" * 50,
        "sound": _sound(folder / "sound.mp4"),
        "8k": _huge(folder / "8k.mp4"),
        "wide_pixels": wide_pixels_video(folder / "wide.mp4", 4000, 600, Fraction(100)).read_bytes(),
        "growing": changing_video(folder / "grows.ts", ((640, 480), (6000, 4000)), 26).read_bytes(),
        "page": b"<!doctype html><html><body><p>Nothing to see.</p></body></html>",
        "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:7\n#EXTINF:7,\n%s\n#EXT-X-ENDLIST\n"
        % os.fsencode(folder / "good.mp4"),
        "concat": b"ffconcat version 1.0\nfile '%s'\n" % os.fsencode(folder / "good.mp4"),
    }


def _with_index_first(folder: Path, good: bytes) -> bytes:
    target = folder / "index-first.mp4"
    with (
        av.open(str(folder / "good.mp4")) as source,
        av.open(str(target), "w", container_options={"movflags": "faststart"}) as out,
    ):
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    return target.read_bytes()


def _sound(path: Path) -> bytes:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=8000, layout="mono")
        for start in range(0, 8 * 8000, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 8000, start, Fraction(1, 8000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path.read_bytes()


def _huge(path: Path) -> bytes:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 7680, 4320, "yuv420p"
        black = np.zeros((4320 * 3 // 2, 7680), np.uint8)  # a new frame holds whatever the memory held
        out.mux(stream.encode(av.VideoFrame.from_ndarray(black, format="yuv420p")))
        out.mux(stream.encode(None))
    return path.read_bytes()


@contextmanager
def nothing_written_outside(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails when a file beside `home` (the working, home and temporary folders included) changes."""
    beside = home.parent / "beside"
    beside.mkdir()
    monkeypatch.chdir(beside)
    monkeypatch.setenv("HOME", str(beside))
    monkeypatch.setenv("TMPDIR", str(beside))
    monkeypatch.setattr("tempfile.tempdir", None)

    def files() -> dict[str, tuple[int, int]]:
        found = {}
        for root, _, names in os.walk(home.parent):
            # But for the compiled dictionary, which all installations of a user share.
            if not Path(root).is_relative_to(home) and not root.endswith("/.cache/medgen"):
                found |= {os.path.join(root, n): os.lstat(os.path.join(root, n)) for n in names}  # noqa: PTH118
        return {name: (status.st_size, status.st_mtime_ns) for name, status in found.items()}

    before = files()
    yield
    assert files() == before
    assert not [p for p in home.rglob("*") if p.name.endswith((".part", ".ytdl")) or p.parent.name == "tmp"]
    assert not [p for p in (home / "store").glob("??/*") if p.read_bytes().startswith(b"root:")]
    assert verify(open_ledger(), home / "releases") == []


def run(source: Path, params: DownloadParams = PARAMS) -> list[ShardResult]:
    """Discover, download and segment, as the flow does."""
    found = discover_source(str(source))
    fetched = DOWNLOAD_STEP.run(found, params)
    return [found, fetched, SEGMENT_STEP.run(fetched, SegmentParams())]


def verdicts_by(name: str) -> dict[Any, tuple[str, str, str | None, bool]]:
    """`name` of each row → (step, status, reason, may pass) as `medgen status` tells it."""
    waiting = {record.subject for record in newest(open_ledger()) if record.transient}
    return {
        entry[name]: (entry["step"], entry["status"], entry["reason"], video_id(entry["url"] or "") in waiting)
        for entry in verdicts(open_ledger())
    }


SOURCES: dict[str, tuple[bytes | None, str]] = {
    "notes.txt": (b"Laparoscopy\n", "unknown_source_type"),
    "video.mp4": (b"Laparoscopy\n", "unknown_source_type"),
    "missing.jsonl": (None, "source_not_found"),
    "gone/missing.csv": (None, "source_not_found"),
    "text.parquet": (b"url,title\nhttp://127.0.0.1/x.mp4,Laparoscopy\n", "source_unreadable"),
    "empty.parquet": (b"", "source_unreadable"),
    "no-url.csv": (b"title,address\nLaparoscopy,http://127.0.0.1/x.mp4\n", "source_unreadable"),
    "empty.csv": (b"", "source_unreadable"),
    "a\0b.jsonl": (None, "source_unreadable"),
    "caf\udce9.jsonl": (b"", "source_unreadable"),
    "n" * 300 + ".jsonl": (None, "source_unreadable"),
    "http://127.0.0.1/listing.jsonl": (None, "unknown_source_type"),
}


def test_sources_that_cannot_be_read(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    texts = {"loop.jsonl": str(tmp_path / "loop.jsonl")}
    for name, (content, _) in SOURCES.items():
        texts[name] = name if "://" in name else str(tmp_path / name)
        if content is not None:
            (tmp_path / name).write_bytes(content)
    with nothing_written_outside(home, monkeypatch):
        results = {name: discover_source(text) for name, text in texts.items()}
        ends = {name: result.dropped[0]["discover"] for name, result in results.items()}
        records = open_ledger().load(ends.values())
        found = {name: (records[i].status, records[i].reason, records[i].transient) for name, i in ends.items()}
        wanted = {name: ("failed", reason, False) for name, (_, reason) in SOURCES.items()}
        assert found == wanted | {"loop.jsonl": ("failed", "source_unreadable", False)}
        again = [discover_source(text) for text in texts.values()]
        assert [(result.executed, result.reused) for result in again] == [(0, 1)] * len(texts)


# Lines of a listing that are no usable rows → reason.
LINES: list[tuple[bytes, str]] = [
    (b'{"url": "http://127.0.0.1/x.mp4", "title"', "bad_row"),
    (b"\xff\xfe\x00\x80", "bad_row"),
    (b"42", "bad_row"),
    (b"null", "bad_row"),
    (b'"http://127.0.0.1/x.mp4"', "bad_row"),
    (b"[" * 100_000, "bad_row"),
    (b'{"url": "http://127.0.0.1/x.mp4", "title": "' + b"Laparoscopy " * 180_000 + b'"}', "bad_row"),
    (b'{"title": "Laparoscopy"}', "missing_url"),
    (b'{"url": "  ", "title": "Laparoscopy"}', "missing_url"),
    (b'{"url": "ftp://127.0.0.1/x.mp4", "title": "Laparoscopy"}', "unsupported_url"),
    (b'{"url": "file:///etc/passwd", "title": "Laparoscopy"}', "unsupported_url"),
    (b'{"url": "/etc/passwd", "title": "Laparoscopy"}', "unsupported_url"),
    (b'{"url": {"a": 1}, "title": "Laparoscopy"}', "unsupported_url"),
    (b'{"url": "http://127.0.0.1/1.mp4", "title": "Laparoscopy", "duration": "long"}', "bad_row"),
    (b'{"url": "http://127.0.0.1/2.mp4", "title": "Laparoscopy", "duration": NaN}', "bad_row"),
    (b'{"url": "http://127.0.0.1/3.mp4", "title": "Laparoscopy", "duration": 1e999}', "bad_row"),
    (b'{"url": "http://127.0.0.1/4.mp4", "title": "Laparoscopy", "duration": 1' + b"0" * 400 + b"}", "bad_row"),
    (b'{"url": "http://127.0.0.1/5.mp4", "title": "Laparoscopy", "tags": 7}', "bad_row"),
]

# What the server says to a path → the verdict on its row. Bodies are named in `media`.
SERVED: dict[str, tuple[Answer | str, tuple[str, str, str | None, bool]]] = {
    "good": ("good", KEPT),
    "404": (Answer(status=404), final("download", "http_404")),
    "410": (Answer(status=410), final("download", "http_410")),
    "403": (Answer(status=403), final("download", "http_403")),
    "500": (Answer(status=500), transient("http_500")),
    "silent": (Answer(hangs=True), transient("network_error")),
    "cut-short": (Answer(b"\0" * 1000, promised=5000), transient("cut_short")),
    "endless": (Answer(b"\0" * 65536, endless=True), final("download", "file_too_large")),
    "endless-page": (Answer(b"<html><p>" + b"." * 65536, type="text/html", endless=True),
                     final("download", "file_too_large")),
    "huge": (Answer(b"\0", promised=1 << 40), final("download", "file_too_large")),
    "to-file": (Answer(status=302, location="file:///etc/passwd"), final("download", "redirect_refused")),
    "to-ftp": (Answer(status=302, location="ftp://127.0.0.1/x.mp4"), final("download", "host_refused")),
    "to-itself": (Answer(status=302, location="/to-itself.mp4"), final("download", "redirect_refused")),
    "to-another-host": (Answer(status=302, location="http://localhost:{port}/good.mp4"),
                        final("download", "host_refused")),
    "empty": (Answer(), final("download", "empty_file")),
    "page": ("page", final("download", "no_video_found")),
    "text": ("text", final("download", "not_a_video")),
    "sound": ("sound", final("download", "no_video_stream")),
    "8k": ("8k", final("download", "resolution_above_limit")),
    "cut_off": ("cut_off", final("download", "truncated_file")),
    "cut_off_with_index": ("cut_off_with_index", final("download", "truncated_file")),
    "playlist": ("playlist", final("download", "not_a_video")),
    "concat": ("concat", final("download", "not_a_video")),
}  # fmt: skip

# Good videos with odd words: part of the URL's path, title, id.
ODD = [
    ("odd/../../../../etc/passwd.mp4", "Laparoscopy ../../../etc/passwd", "../../../etc/passwd"),
    ("odd/%2e%2e%2f%2e%2e%2fpasswd.mp4", "Laparoscopy %2e%2e%2f", "..%2f.."),
    ("odd/a'b\"c`d$(e);f.mp4", "Laparoscopy '\"; DROP TABLE video; --", "'; DROP TABLE video; --"),
    ("odd/two words.mp4", "Laparoscopy   with\nlines\tand %(title)s {braces}", " "),
    ("odd/腹腔鏡-é.mp4", "Laparoscopy 腹腔鏡 é e\u0301 🫀", "🫀"),
    ("odd/\u202egpm.4pm.mp4", "Laparoscopy \u202e4pm.exe", "\u202eid"),
    ("odd/nul\u0000.mp4", "Laparoscopy \u0000 nul", "nul\u0000"),
    ("odd/lone.mp4?q=\ud800", "Laparoscopy \ud800 lone", "\ud800"),
]
# URLs that no server can be asked for.
NOWHERE: dict[str, tuple[str, str, str | None, bool]] = {
    "http://": final("discover", "unsupported_url"),
    "http://[::1/x.mp4": final("discover", "unsupported_url"),
    "http://127.0.0.1:99999/x.mp4": final("discover", "unsupported_url"),
    "http://127.0.0.1:1\r\nHost: localhost/x.mp4": final("discover", "unsupported_url"),
    "http://127.0.0.1:1/x.mp4": transient("network_error"),
    "http://127.0.0.1.nip.invalid/x.mp4": final("download", "host_refused"),
    "http://user:word@localhost/x.mp4": final("discover", "credentials_in_url"),
    "http://127.0.0.1@localhost/x.mp4": final("discover", "credentials_in_url"),
}


def test_every_row_of_a_bad_listing_has_its_verdict(
    home: Path, tmp_path: Path, server: Server, media: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = f"http://127.0.0.1:{server.port}"
    lines, wanted = [line for line, _ in LINES], {}
    for row, (_, reason) in enumerate(LINES, start=1):
        wanted[row] = final("discover", reason)
    rows = []
    for name, (answer, verdict) in SERVED.items():
        body = answer if isinstance(answer, Answer) else Answer(media[answer])
        kind = "text/html" if name == "page" else body.type
        server.answers[f"/{name}.mp4"] = Answer(**{**vars(body), "type": kind})
        rows.append(({"url": f"{base}/{name}.mp4", "title": f"Laparoscopy {name}"}, verdict))
    server.otherwise = Answer(media["good"])
    rows += [({"url": f"{base}/{path}", "title": title, "id": name}, KEPT) for path, title, name in ODD]
    rows += [({"url": url, "title": "Laparoscopy"}, verdict) for url, verdict in NOWHERE.items()]
    for row, verdict in rows:
        lines.append(json.dumps(row).encode())
        wanted[len(lines)] = verdict
    listing = tmp_path / "listing.jsonl"
    listing.write_bytes(b"\n".join(lines))
    with nothing_written_outside(home, monkeypatch):
        first = run(listing)
        found = verdicts_by("row")
        assert found.keys() == wanted.keys()
        different = [f"{lines[r - 1][:90]!r}: {v}, not {wanted[r]}" for r, v in found.items() if v != wanted[r]]
        assert not different, "\n".join(different)
        assert all(host == f"127.0.0.1:{server.port}" for host, _ in server.asked)
        waits = sum(verdict[3] for verdict in wanted.values())
        again = run(listing)
        assert [result.executed for result in again] == [0, waits, 0]
        assert [result.kept for result in again] == [result.kept for result in first]
        assert verdicts_by("row") == found


def test_no_private_address_unless_it_is_listed(home: Path, tmp_path: Path, server: Server) -> None:
    server.otherwise = Answer(b"secret")
    listing = tmp_path / "listing.csv"
    hosts = ("127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]")
    urls = [f"http://{host}:{server.port}/x.mp4" for host in (*hosts, "169.254.169.254")]
    listing.write_text("url,title\n" + "".join(f"{url},Laparoscopy\n" for url in urls))
    run(listing, DownloadParams(stall_limit_s=1.0))
    assert verdicts_by("url") == dict.fromkeys(urls, final("download", "host_refused"))
    assert server.asked == []


# File name in a folder → what it holds (a key of `media`), and the verdict on it.
FILES: dict[bytes, tuple[str, tuple[str, str, str | None, bool]]] = {
    b"good.mp4": ("good", KEPT),
    b"notes.txt": ("text", ("discover", "rejected", "not_a_video_name", False)),
    b"renamed.mp4": ("text", final("download", "not_a_video")),
    b"sound.mp4": ("sound", final("download", "no_video_stream")),
    b"8k.mp4": ("8k", final("download", "resolution_above_limit")),
    b"wide.mp4": ("wide_pixels", final("download", "pixel_aspect_above_limit")),
    b"grows.ts": ("growing", final("segment", "resolution_above_limit")),
    b"cut off.mp4": ("cut_off", final("download", "not_a_video")),
    b"playlist.mp4": ("playlist", final("download", "not_a_video")),
    b"concat.mp4": ("concat", final("download", "not_a_video")),
    b"caf\xe9-\xff.mp4": ("good", KEPT),
    "腹腔鏡 é \u202e4pm.MP4".encode(): ("good", KEPT),
    b"'quotes\" and $(spaces);.mp4": ("good", KEPT),
    b"two\nlines.mp4": ("good", KEPT),
    b"-i.mp4": ("good", KEPT),
    b"%2e%2e%2fup.mp4": ("good", KEPT),
    b"file:good?x=1#y.mp4": ("good", KEPT),
    b"deep/er/good.mp4": ("good", KEPT),
}


# Link in a folder → its target, and the verdict on it; links to folders are not followed.
LINKS: dict[str, tuple[str, tuple[str, str, str | None, bool] | None]] = {
    "inside.mp4": ("good.mp4", KEPT),
    "out.mp4": ("../outside/good.mp4", final("discover", "outside_folder")),
    "passwd.mp4": ("/etc/passwd", final("discover", "outside_folder")),
    "device.mp4": ("/dev/zero", final("discover", "outside_folder")),
    "loop.mp4": ("loop.mp4", final("discover", "outside_folder")),
    "dangling.mp4": ("nothing.mp4", transient("file_unreadable")),
    "outside-folder": ("../outside", None),
}


def test_every_file_of_a_bad_folder_has_its_verdict(
    home: Path, tmp_path: Path, media: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    # No file is opened in this process, where a crash would hurt all.
    monkeypatch.setattr("av.open", lambda *_, **__: pytest.fail("decoded in the main process"))
    folder = tmp_path / "videos"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "folder.mp4").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "good.mp4").write_bytes(media["good"])
    for name, (content, _) in FILES.items():
        (folder / os.fsdecode(name)).write_bytes(media[content])
    (folder / "empty.mp4").touch()
    os.mkfifo(folder / "pipe.mp4")
    for link, (target, _) in LINKS.items():
        (folder / link).symlink_to(target)
    # Rows are told apart by number: names that are not text have no faithful title.
    verdict_of = {name: verdict for name, (_, verdict) in FILES.items()}
    verdict_of |= {os.fsencode(link): verdict for link, (_, verdict) in LINKS.items() if verdict}
    verdict_of |= {b"empty.mp4": final("download", "empty_file"), b"pipe.mp4": final("discover", "not_a_file")}
    wanted = dict(enumerate((verdict_of[name] for name in sorted(verdict_of)), start=1))
    with nothing_written_outside(home, monkeypatch):
        first = run(folder)
        assert verdicts_by("row") == wanted
        again = run(folder)
        assert [result.executed for result in again] == [0, 1, 0]
        assert [result.kept for result in again] == [result.kept for result in first]
