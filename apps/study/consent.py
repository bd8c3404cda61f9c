"""The text that raters agree to: one that comes with medgen, or a file."""

from pathlib import Path

from medgen.errors import RunStopped

MAX_CONSENT = 20_000  # characters
CONSENT = """\
This study compares videos that were made for written descriptions, most of them by computers. Taking part means \
watching short videos and saying which is better, or what is wrong in them. It is voluntary: you may stop at any time \
without giving a reason, by closing the page, and you may have your answers removed by telling the person who invited \
you.

What is kept: your answers, your comments, how long each answer took, and when you agreed to this. They are kept under \
a number, not under your name; please write no names into comments. The answers may be published together with the \
videos, in a form that does not name you.

Some videos may show surgery, blood or wounds. What they show may be wrong: nothing in them is to be learned from or \
followed in treatment."""


def consent_text(path: Path | None) -> str:
    """The text of a file (UTF-8), or the plain one without a file. Raises RunStopped."""
    if path is None:
        return CONSENT
    try:
        text = path.read_text("utf-8-sig").replace("\x00", "").replace("\r\n", "\n").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RunStopped(f"the consent text {path} can't be read: {error}") from error
    if not 0 < len(text) <= MAX_CONSENT:
        raise RunStopped(f"the consent text {path} must have 1 to {MAX_CONSENT} characters, not {len(text)}")
    return text
