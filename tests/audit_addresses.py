"""Made-up addresses for the audit site: traversal, injection, nonsense. What a site on a network has to live with."""

import random
from collections.abc import Iterator
from urllib.parse import quote

PLACES = (
    "/", "/items", "/items.csv", "/clips/{}", "/clips/{}/prov.json", "/clips/{}/openlineage.json", "/videos/{}",
    "/releases/{}", "/releases/{}/croissant.json", "/releases/{}/{}", "/models/{}",
    "/creations", "/creations/{}", "/runs/{}", "/steps/{}",
    "/lineage/{}/{}", "/lineage/clip/{}", "/lineage/evaluation/{}", "/lineage/source/{}", "/takedowns/{}",
    "/takedowns/{}.json", "/media/clips/{}.mp4", "/media/outputs/{}/video.mp4", "/posters/clips/{}.jpg",
    "/posters/videos/{}.jpg", "/static/{}", "/suggest/{}", "/compare", "/leaderboard", "/listed", "/similar",
    "/sources", "/{}", "/{}/{}",
)  # fmt: skip
NAMES = (
    "..", "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/", "....//", "\\..\\", "/etc/passwd", "a" * 190,
    "a" * 3000, "'; DROP TABLE clip; --", "1' OR '1'='1", "<script>alert(1)</script>", "\u202egnp.exe", "\x00", "%00",
    "\ud7ff\ue000", "é" * 40, "0", "-1", "1e9", "99999999999999999999", "9223372036854775807", "NaN", "${7*7}",
    "{{7*7}}", "%", "%zz", "%ff%fe", "c0ffee", "v0000000000000000", "null", "undefined", "CON", ".git/config", "😀",
)  # fmt: skip
QUERIES = (
    "q", "kind", "step", "status", "reason", "category", "licence", "channel", "source", "release", "model", "metric",
    "low", "high", "since", "until", "after", "seed", "a", "b", "name", "before", "token", "x", "clip", "words",
)  # fmt: skip
VALUES = (
    *NAMES, "", " ", "&", "| | |", "!!", ":*", "a:*b", '"', "((", "2024-01-01", "0001-01-01", "9999-12-31",
    "2024-99-99", "inf", "-inf", "nan", "1e400", "W10", "bnVsbA", "WyIyMDI0LTAxLTAxVDAwOjAwOjAwKzAwOjAwIiwgImEiXQ",
)  # fmt: skip


def hostile_addresses(count: int, seed: int) -> Iterator[str]:
    """Addresses by chance, the same for the same seed; sendable as they are."""
    chosen = random.Random(seed)
    for _ in range(count):
        place = chosen.choice(PLACES)
        for _ in range(place.count("{}")):
            place = place.replace("{}", _written(chosen, chosen.choice(NAMES)), 1)
        asked = [
            f"{chosen.choice(QUERIES)}={_written(chosen, chosen.choice(VALUES))}" for _ in range(chosen.randrange(4))
        ]
        yield place + ("?" + "&".join(asked) if asked else "")


def _written(chosen: random.Random, value: str) -> str:
    """Escaped, half escaped (traversal in the open), or twice."""
    if chosen.random() < 0.3:
        return quote(value, safe="/.%{}$'();:*\\-")
    escaped = quote(value, safe="", errors="surrogatepass")
    return quote(escaped, safe="") if chosen.random() < 0.1 else escaped
