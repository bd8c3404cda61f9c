"""Errors of the web: those that the guard raises inside yt-dlp, and those of yt-dlp as failures of an item."""

import http.client
import re
from collections.abc import Iterator
from http import HTTPStatus

from yt_dlp.networking.exceptions import HTTPError, IncompleteRead, RequestError, TransportError
from yt_dlp.utils import DownloadCancelled, ExtractorError, GeoRestrictedError, UnsupportedError

from medgen.errors import ItemFailed

TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})  # HTTP status codes


class Refused(RequestError):
    """A request that may not be sent, or whose answer may not be read; raised while it is opened."""

    def __init__(self, failure: ItemFailed) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Stopped(DownloadCancelled):
    """A limit of ours ended a download; raised while a body is read."""

    def __init__(self, failure: ItemFailed) -> None:
        super().__init__(failure.message)
        self.failure = failure


def without_credentials(text: str) -> str:
    """`text` with user names and passwords of the URLs in it left out."""
    return re.sub(r"(?<=://)[^\s/?#'\"]*@", "", text)


def failure_of(error: BaseException, last_error: Exception | None) -> ItemFailed:
    """The failure of an item for an error of yt-dlp: its reason, and whether it is transient.

    Args:
        last_error: the last one of a connection; where yt-dlp gives up after several tries, its own error names none.
    """
    message = without_credentials(str(error).removeprefix("ERROR: ").split("; please report", 1)[0][:500])
    causes = list(_causes(error))
    if failure := next((failure for cause in causes if (failure := _of_cause(cause, message))), None):
        return failure
    if any(isinstance(cause, ExtractorError) and cause.expected for cause in causes):
        return ItemFailed("unavailable", message)
    if message.startswith("Did not get any data blocks"):
        return ItemFailed("empty_file", "the server sent 0 bytes")
    earlier = (_of_cause(cause, message) for cause in _causes(last_error))
    return next((failure for failure in earlier if failure), ItemFailed("download_error", message, transient=True))


def _of_cause(cause: BaseException, message: str) -> ItemFailed | None:
    match cause:
        case Stopped() | Refused():
            return cause.failure
        case HTTPError() if 300 <= cause.status < 400:
            return ItemFailed("redirect_refused", f"{message} (redirect loop, or to another protocol)")
        case HTTPError():
            phrase = HTTPStatus(cause.status).phrase if cause.status in set(HTTPStatus) else "unknown status"
            transient = cause.status in TRANSIENT
            return ItemFailed(f"http_{cause.status}", f"the server answered {phrase}", transient=transient)
        case UnsupportedError():
            return ItemFailed("no_video_found", message)
        case GeoRestrictedError():
            return ItemFailed("geo_restricted", message)
        case IncompleteRead() | http.client.IncompleteRead():
            return ItemFailed("cut_short", f"the connection ended too early: {message}", transient=True)
        case TransportError() | TimeoutError() | ConnectionError():
            return ItemFailed("network_error", message, transient=True)
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and all that it names as its causes, nearest first."""
    seen: set[int] = set()
    queue = [error]
    while queue:
        cause = queue.pop(0)
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        info = getattr(cause, "exc_info", None)
        queue += [info[1] if info else None, getattr(cause, "cause", None), cause.__cause__, cause.__context__]
