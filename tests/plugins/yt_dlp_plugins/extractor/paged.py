"""A plugin for yt-dlp, as its users write them: it lists the channel of `tests.site` page by page.

yt-dlp finds it when `tests/plugins` is on PYTHONPATH.
"""

from collections.abc import Iterator
from typing import Any

from yt_dlp.extractor.common import InfoExtractor


class PagedChannelIE(InfoExtractor):
    """Asks for a page when its entries are wanted, as extractors of channels do."""

    _VALID_URL = r"http://127\.0\.0\.1:\d+/channel$"

    def _real_extract(self, url: str) -> dict[str, Any]:
        return self.playlist_result(self._all(url), "channel", "Surgery channel")

    def _all(self, url: str) -> Iterator[dict[str, Any]]:
        number = 0
        while items := self._download_json(url.replace("/channel", f"/page-of-channel?page={number}"), "channel"):
            for item in items:
                yield {"_type": "url", **item, "channel": "Surgery channel"}
            number += 1
