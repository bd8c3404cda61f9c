"""Subtitles as WebVTT, at a pace at which they can be read."""

import html
import re
from collections.abc import Sequence

import webvtt

# Characters a second that a subtitle is given. Netflix's timed text style guides allow adults 17 to 20 in alphabets, 9
# in Chinese, 4 in Japanese; learners and patients get more time.
READING = {"ja": 4.0, "zh": 7.0}
READING_ELSE = 14.0
LEAST_S = 2.0
LINE_CHARS = {"ja": 16, "zh": 16}
LINE_CHARS_ELSE = 42
CUE_LINES = 2


def reading_s(text: str, language: str) -> float:
    """Seconds that reading a text takes, at least `LEAST_S`."""
    return max(LEAST_S, 0.5 + len(text) / READING.get(language, READING_ELSE))


def written_subtitles(texts: Sequence[str], lengths: Sequence[float], language: str) -> tuple[str, int]:
    """(WebVTT, number of cues) of texts that last so many seconds each, one after another."""
    captions = webvtt.WebVTT()
    start = 0.0
    for text, length in zip(texts, lengths, strict=True):
        pieces = cue_texts(text, language)
        whole, at = sum(len("".join(lines)) for lines in pieces), start
        for lines in pieces:
            end = at + length * len("".join(lines)) / whole
            shown = [html.escape(line, quote=False) for line in lines]
            captions.captions.append(webvtt.Caption(_clock(at), _clock(end), shown))
            at = end
        start += length
    return captions.content, len(captions.captions)


def cue_texts(text: str, language: str) -> list[list[str]]:
    """A text in cues of at most two lines each, of at most 42 signs (16 in Chinese and Japanese).

    Sentences that fit together share a cue; one that needs several is cut into even ones.
    """
    room = LINE_CHARS.get(language, LINE_CHARS_ELSE)
    cues: list[list[str]] = []
    waiting = ""
    for sentence in filter(None, re.split(r"(?<=[.!?])\s+|(?<=[。！？।])\s*", text)):
        together = f"{waiting} {sentence}".strip()
        if len(_lines(together, room, language)) > CUE_LINES and waiting:
            cues += _even(waiting, room, language)
            together = sentence
        waiting = together
    return cues + _even(waiting, room, language)


def _even(text: str, room: int, language: str) -> list[list[str]]:
    """A text in as few cues as it needs, about as long each."""
    needed = len(_lines(text, room, language))
    most = needed if needed <= CUE_LINES else -(-needed // CUE_LINES) * CUE_LINES
    widths = range(max(1, len(text) // most), room + 1)
    lines = _lines(text, next((w for w in widths if len(_lines(text, w, language)) <= most), room), language)
    return [lines[at : at + CUE_LINES] for at in range(0, len(lines), CUE_LINES)]


def _lines(text: str, room: int, language: str) -> list[str]:
    """A text in lines of at most `room` signs; a longer word is cut."""
    lines = [""]
    for word in re.findall(r"\S+", text):
        for at in range(0, len(word), room):
            piece = word[at : at + room]
            # A script without spaces is one long word: its pieces follow each other without any.
            joint = " " if lines[-1] and at == 0 and language not in LINE_CHARS else ""
            if len(lines[-1]) + len(joint) + len(piece) <= room:
                lines[-1] += joint + piece
            else:
                lines.append(piece)
    return [line for line in lines if line] or [" "]


def _clock(seconds: float) -> str:
    thousandths = round(seconds * 1000)
    hours, rest = divmod(thousandths, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}.{rest % 1000:03}"
