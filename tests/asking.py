"""Asks a host again and again, from four threads, as politely as it is told to. Quick to start as a process."""

import urllib.request
from concurrent.futures import ThreadPoolExecutor

from medgen.web.rate_limits import open_rate_limiter


def ask(url: str, host: str, times: int, interval_s: float) -> None:
    """Four threads ask `times` times each, at most two at once."""

    def one(_: int) -> None:
        slot = open_rate_limiter().enter(
            host, simultaneous=2, interval_s=interval_s, slot_wait_s=60, interval_wait_s=60
        )
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                answer.read()
        finally:
            slot.release()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(4 * times)))
