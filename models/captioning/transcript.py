"""Which words were spoken in a stretch of a video, by its WebVTT subtitles?"""

import html
import math

import webvtt

MAX_CHARS = 4_000


def transcript_between(vtt: str, start_s: float, end_s: float) -> str:
    """The words of all cues that overlap [start_s, end_s) seconds, on one line, at most 4,000 characters.

    Automatic subtitles roll: each cue repeats the lines of the one before it, or the start of its own line.
    A line counts once, in the cue where it first appears, so words spoken before the window stay out even
    when they still stand on screen. Cues that cannot be read are passed over. The cut falls between words.
    Raises ValueError for text that is not WebVTT and for a window that is empty or not finite.
    """
    if not (math.isfinite(start_s) and math.isfinite(end_s) and 0 <= start_s < end_s):
        raise ValueError(f"not a stretch of time: {start_s} to {end_s} s")
    try:
        cues = webvtt.from_string(vtt).captions
    except (webvtt.errors.MalformedFileError, webvtt.errors.MalformedCaptionError) as error:
        raise ValueError(f"not WebVTT: {error or type(error).__name__}") from error

    spoken: list[str] = []
    on_screen: list[str] = []
    for cue in cues:
        inside = cue.start_time.in_milliseconds() < 1000 * end_s and cue.end_time.in_milliseconds() > 1000 * start_s
        lines = [line for raw in cue.text.splitlines() if (line := " ".join(html.unescape(raw).split()))]
        for line in lines:
            if line in on_screen:
                continue
            grown = bool(on_screen) and line.startswith(f"{on_screen[-1]} ")
            new = line[len(on_screen[-1]) :].lstrip() if grown else line
            if inside:
                spoken.append(new)
        on_screen = lines or on_screen
    return cut_between_words(" ".join(spoken))


def cut_between_words(text: str) -> str:
    if len(text) <= MAX_CHARS:
        return text
    head, _, _ = text[: MAX_CHARS + 1].rpartition(" ")
    return head or text[:MAX_CHARS]
