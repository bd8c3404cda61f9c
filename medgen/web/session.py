"""yt-dlp as all steps use it: quiet, without a configuration of its own, and under the guard."""

import logging
from io import StringIO
from typing import Any

from pydantic import Field

from medgen.errors import ItemFailed
from medgen.parameters import MOST_SECONDS, Parameters
from medgen.settings import current
from medgen.web.guard import MAX_PAGE_BYTES, FetchLimits, WebGuard
from medgen.web.host_policy import HostPolicy
from medgen.web.quotas import DownloadQuota
from medgen.web.rate_limits import LONGEST_PAUSE_S, RateLimits, open_rate_limiter


class WebParams(Parameters):
    """Which hosts to ask on the web, and how often. Of these only the hosts belong to a step's identity."""

    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="Hosts to fetch from, with * as wildcard; none listed: any public host. "
        "One that is not public must be listed without a wildcard, or by its address.",
    )
    denied_hosts: tuple[str, ...] = Field((), description="Hosts never to fetch from, with * as wildcard.")
    stall_limit_s: float = Field(
        20.0, gt=0, le=MOST_SECONDS, exclude=True, description="A server silent for longer counts as hanging, seconds."
    )
    per_host_downloads: int = Field(
        2, ge=1, le=1000, exclude=True, description="Requests to a host at once, by all workers together."
    )
    request_interval_s: float = Field(
        0.2,
        ge=0,
        le=LONGEST_PAUSE_S,
        exclude=True,
        description="Between two requests to a host, by all workers together, seconds.",
    )
    host_wait_limit_s: float = Field(
        60.0,
        ge=0,
        le=MOST_SECONDS,
        exclude=True,
        description="What a host that asks for a longer pause has waits for the next run.",
    )

    @property
    def hosts(self) -> HostPolicy:
        """For a guard."""
        return HostPolicy(self.allowed_hosts, self.denied_hosts)

    @property
    def rate_limits(self) -> RateLimits:
        """For a guard."""
        return RateLimits(open_rate_limiter(), self.per_host_downloads, self.request_interval_s, self.host_wait_limit_s)


def page_guard(params: WebParams, deadline_s: float) -> WebGuard:
    """The guard of a session that reads pages and no videos."""
    limits = FetchLimits(MAX_PAGE_BYTES, deadline_s, params.stall_limit_s, min_speed=0.0)
    return WebGuard(params.hosts, limits, params.rate_limits, DownloadQuota())


def options_of(params: WebParams) -> dict[str, Any]:
    """Options of yt-dlp that every session has, for one session. Raises ItemFailed: cookies_unreadable."""
    settings = current()
    logging.getLogger("yt_dlp").setLevel(logging.CRITICAL)  # its errors come back as exceptions
    return {
        "socket_timeout": params.stall_limit_s,
        "extractor_retries": 1,
        "cachedir": False,
        "ignoreconfig": True,
        "quiet": True,
        "no_warnings": True,
        "noprogress": True,
        "logger": logging.getLogger("yt_dlp"),
        "cookiefile": _cookies(),
        "proxy": settings.yt_dlp_proxy.get_secret_value() if settings.yt_dlp_proxy else None,
    }


def _cookies() -> StringIO | None:
    """A copy of the operator's cookies. yt-dlp writes what sites set into it when its session ends, which is forgotten.

    Raises:
        ItemFailed: cookies_unreadable.
    """
    path = current().yt_dlp_cookies
    if path is None:
        return None
    try:
        return StringIO(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise ItemFailed("cookies_unreadable", f"the file of MEDGEN_YT_DLP_COOKIES: {why}", transient=True) from error
