"""Which source videos are held out of training. By the source video, never by the clip: clips of one video are kin."""

import hashlib
import math
from collections.abc import Sequence


def held_out(video_ids: Sequence[str], share: float, seed: int) -> frozenset[str]:
    """The ids of the videos that no training may see.

    A video is held out when the hash of seed and id falls into the lowest `share` of all hashes; so what becomes of
    a video does not depend on the others, and a video that is added moves none. Only where that would leave one side
    empty does the video with the lowest (or highest) hash change sides.

    Args:
        video_ids: ids of source videos, in any order; repeated ids count once.
        share: of the videos to hold out, at least 0 (none) and less than 1.
        seed: another seed makes another split.

    Returns:
        With two videos or more and a `share` above 0: at least one video, and not all of them. A single video is
        trained on.

    Raises:
        ValueError: `share` is out of range.
    """
    if not 0 <= share < 1 or not math.isfinite(share):
        raise ValueError(f"the share to hold out must be at least 0 and less than 1, not {share}")
    places = {video_id: _place(video_id, seed) for video_id in video_ids}
    if share == 0 or len(places) < 2:
        return frozenset()
    order = sorted(places, key=lambda video_id: (places[video_id], video_id))
    chosen = [video_id for video_id in order if places[video_id] < share]
    return frozenset(chosen[: len(order) - 1] or order[:1])


def _place(video_id: str, seed: int) -> float:
    """0 ≤ place < 1, evenly spread."""
    digest = hashlib.sha256(f"{seed}\0{video_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
