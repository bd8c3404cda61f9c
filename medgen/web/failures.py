"""Our words for yt-dlp's errors: what happened, and is it final or worth another try?"""

import http.client
from collections.abc import Iterator
from http import HTTPStatus

from yt_dlp.networking.exceptions import HTTPError, IncompleteRead, TransportError
from yt_dlp.utils import ExtractorError, GeoRestrictedError, UnsupportedError

from medgen.errors import ItemFailed
from medgen.web.guard import Refused, Stopped, without_credentials

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


def failure_of(error: BaseException, trouble: Exception | None) -> ItemFailed:
    """Our words for yt-dlp's errors: final, or worth another try?

    Args:
        trouble: the last that a connection had; where yt-dlp gives up after several tries, it forgets to say.
    """
    message = without_credentials(str(error).removeprefix("ERROR: ").split("; please report", 1)[0][:500])
    causes = list(_causes(error))
    if found := next((failure for cause in causes if (failure := _of_cause(cause, message))), None):
        return found
    if any(isinstance(cause, ExtractorError) and cause.expected for cause in causes):
        return ItemFailed("unavailable", message)
    if message.startswith("Did not get any data blocks"):
        return ItemFailed("empty_file", "the server sent 0 bytes")
    told = (_of_cause(cause, message) for cause in _causes(trouble))
    return next((failure for failure in told if failure), ItemFailed("download_error", message, transient=True))


def _of_cause(cause: BaseException, message: str) -> ItemFailed | None:
    match cause:
        case Stopped() | Refused():
            return cause.failure
        case HTTPError() if 300 <= cause.status < 400:
            return ItemFailed("redirect_refused", f"{message} (redirect loop, or to another protocol)")
        case HTTPError():
            phrase = HTTPStatus(cause.status).phrase if cause.status in set(HTTPStatus) else "unknown status"
            passing = cause.status in PASSING
            return ItemFailed(f"http_{cause.status}", f"the server answered {phrase}", transient=passing)
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
    seen: set[int] = set()
    queue = [error]
    while queue:
        one = queue.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        info = getattr(one, "exc_info", None)
        queue += [info[1] if info else None, getattr(one, "cause", None), one.__cause__, one.__context__]
