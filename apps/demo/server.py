"""The server of the demo's videos: files of one folder, with byte ranges."""

import errno
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal

from apps.host_check import host_of, is_loopback


@contextmanager
def serve(folder: Path, port: int = 8791) -> Iterator[str]:
    """Serves the files of `folder` on 127.0.0.1 and yields the base URL, without a trailing slash.

    Answers byte ranges, lists no folders and logs nothing. When `port` is taken, any free one is used.
    """
    handler = partial(_Handler, directory=os.fspath(folder))
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(SimpleHTTPRequestHandler):
    """Files with byte ranges (RFC 9110, section 14; one range a request, others get the whole file)."""

    extensions_map: dict[str, str] = {  # noqa: RUF012 (as declared by the parent)
        "": "application/octet-stream",
        ".mp4": "video/mp4",
        ".vtt": "text/vtt",
        ".jsonl": "application/jsonl",
    }

    def send_head(self) -> BytesIO | BinaryIO | None:
        if not is_loopback(host_of(self.headers.get("Host", ""))):
            self.send_error(HTTPStatus.BAD_REQUEST, "asked under a foreign name")
            return None
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        size = path.stat().st_size
        span = _range(self.headers.get("Range"), size)
        if span == "unsatisfiable":
            self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        first, last = span or (0, size - 1)
        self.send_response(HTTPStatus.PARTIAL_CONTENT if span else HTTPStatus.OK)
        if span:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", self.guess_type(path))
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Last-Modified", self.date_time_string(int(path.stat().st_mtime)))
        self.end_headers()
        if self.command == "HEAD":
            return None
        return BytesIO(path.read_bytes()[first : last + 1])

    def copyfile(self, source: Any, outputfile: Any) -> None:
        with suppress(ConnectionError):  # downloaders often ask for a header and then hang up
            shutil.copyfileobj(source, outputfile)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the pipeline says what it fetched."""


def _range(header: str | None, size: int) -> tuple[int, int] | Literal["unsatisfiable"] | None:
    """(first, last) byte that a Range header asks for; None for the whole file."""
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", (header or "").strip())
    if not asked or asked.groups() == ("", ""):
        return None
    start, end = asked.groups()
    first = int(start) if start else max(size - int(end), 0)
    last = min(int(end), size - 1) if start and end else size - 1
    if start and end and int(end) < first:
        return None  # not a valid range: to be ignored
    return (first, last) if first < size and first <= last else "unsatisfiable"
