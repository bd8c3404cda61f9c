"""What was done to a video's pictures and times, in words: of segment's record."""

from collections.abc import Mapping, Sequence
from typing import Any

CONVERSIONS = {
    "none": "as they are",
    "matrix": "converted to BT.709, limited range",
    "gamut": "wide gamut, converted to BT.709",
    "tone_mapped": "high dynamic range, tone-mapped to BT.709",
}
MOST_BREAKS = 10


def colours_in_words(colour: Mapping[str, Any]) -> str:
    """What a source says of its colours, what is assumed, and what is done to them."""
    said = ", ".join(
        f"{name} {colour[name]}{' (assumed)' if name in colour['assumed'] else ''}"
        for name in ("matrix", "primaries", "transfer", "range")
    )
    return f"{said}: {CONVERSIONS[colour['conversion']]}"


def breaks_in_words(changes: Sequence[tuple[str, str]]) -> str:
    """The first breaks, each (what changed, where)."""
    shown = "; ".join(f"{change.replace('_', ' ')} {where}" for change, where in changes[:MOST_BREAKS])
    return shown + (f" and {len(changes) - MOST_BREAKS} more" if len(changes) > MOST_BREAKS else "")


def pictures_in_words(detail: Mapping[str, Any]) -> list[str]:
    """Lines on what segment put on record; none of earlier versions, nor of a video that was taken down."""
    video = detail.get("video")
    if not (video and video["chosen_for"]):  # words of what was taken down are gone
        return []
    lines = [f"colours: {colours_in_words(video['stored_as'][0]['colour'])}"]
    if video["repaired"] or video["dropped"]:
        lines.append(f"of {video['decoded']} frames {video['repaired']} with rebuilt times, {video['dropped']} lost")
    if detail["breaks"]:
        changes = [(entry["change"], f"at frame {entry['frame']}") for entry in detail["breaks"]]
        lines.append(f"breaks: {breaks_in_words(changes)}")
    if subtitles := detail.get("subtitles"):
        lines.append(f"subtitles inside: {subtitles['cues']} cues, {subtitles['language'] or 'no language told'}")
    return lines
