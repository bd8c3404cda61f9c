"""Which source videos are held out of training. By the source video, never by the clip: clips of one video are kin."""

import hashlib
import math
from collections.abc import Iterable, Iterator

SET_APART = ("val", "dev", "test", "eval")


def held_out(video_ids: Iterable[str], share: float, seed: int) -> frozenset[str]:
    """The ids of the videos that no training may see.

    A video is held out when the hash of seed and id falls into the lowest `share` of all hashes; so what becomes of
    a video does not depend on the others, and a video that is added moves none. Only where that would leave one side
    empty does the video with the lowest (or highest) hash change sides.

    Args:
        video_ids: ids of source videos, in any order; repeated ids count once. Read once; only those held out are kept.
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
    chosen: set[str] = set()
    lowest = highest = (math.inf, "")
    all_chosen, known = True, False
    for video_id in video_ids:
        place = (_place(video_id, seed), video_id)
        if place[0] < share:
            chosen.add(video_id)
        else:
            all_chosen = False
        lowest, highest = (min(lowest, place), max(highest, place)) if known else (place, place)
        known = True
    if share == 0 or lowest == highest:  # none, or a single one
        return frozenset()
    if all_chosen:
        chosen.discard(highest[1])
    return frozenset(chosen or {lowest[1]})


def held_out_videos(clips: Iterable[tuple[str, str]], share: float, seed: int) -> frozenset[str]:
    """The ids of the videos that no training may see, of (video id, split) of clips.

    Where a publisher set clips apart, in a split whose name begins with one of SET_APART, their videos are held out,
    and no others. Elsewhere as `held_out`.

    Args:
        clips: in any order, read once; a split is empty where none is known.

    Raises:
        ValueError: as `held_out`.
    """
    set_apart: set[str] = set()

    def videos() -> Iterator[str]:
        for video, split in clips:
            if split.lower().startswith(SET_APART):
                set_apart.add(video)
            yield video

    by_hash = held_out(videos(), share, seed)
    return frozenset(set_apart) or by_hash


def _place(video_id: str, seed: int) -> float:
    """0 ≤ place < 1, evenly spread."""
    digest = hashlib.sha256(f"{seed}\0{video_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
