"""One spelling of a value, so that equal things have equal digests."""

import hashlib
import json
import math
from typing import Any

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys, no spaces, UTF-8. Raises ValueError for NaN and infinities."""
    return _ENCODER.encode(value).encode("utf-8", "surrogatepass")


def digest_of(value: Any) -> str:
    """sha256 (64 hex digits) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def rounded(value: float, places: int = 4) -> float:
    """A score as it goes on record: rounded, so that last-bit differences of CPUs don't change a digest.

    Raises:
        ValueError: for NaN and infinities: a score that isn't a number is an error, not a score.
    """
    if not math.isfinite(value):
        raise ValueError(f"score is not finite: {value}")
    return round(float(value), places) + 0.0
