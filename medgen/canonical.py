"""One spelling of a value, so that equal things have equal digests."""

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys, no spaces, UTF-8. Raises ValueError for NaN and infinities."""
    return _ENCODER.encode(value).encode("utf-8", "surrogatepass")


def canonical_object(members: Mapping[str, Any], known: Mapping[str, bytes]) -> bytes:
    """`canonical_json` of an object, of some of whose members the JSON is known.

    Args:
        members: name → value. Those that `known` has too count by that.
        known: name → canonical JSON of the value.
    """
    parts = []
    for is_known, names in itertools.groupby(sorted({*members, *known}), key=known.__contains__):
        if is_known:
            parts += [canonical_json(name) + b":" + known[name] for name in names]
        else:
            parts.append(canonical_json({name: members[name] for name in names})[1:-1])
    return b"{" + b",".join(parts) + b"}"


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
