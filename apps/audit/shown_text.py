"""How words of strangers and numbers of ours are shown: escaped, isolated, and with nothing hidden in them."""

import re
import unicodedata
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup, escape

LONGEST = 600  # characters shown before the rest is folded away
MOST = 20_000  # characters of one text that a page ever carries

# Characters that reorder, hide or imitate: bidi controls, zero-width ones, tags, other controls.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)


def words(value: Any, limit: int = 0) -> Markup:
    """A stranger's text: escaped, in its own direction (`bdi`), control characters made visible.

    Args:
        limit: characters after which it is cut off with an ellipsis; 0: folded after `LONGEST`.
    """
    text = "" if value is None else str(value)
    if limit:
        shown = text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
        return Markup("<bdi>{}</bdi>").format(_visible(shown))
    if len(text) <= LONGEST:
        return Markup("<bdi>{}</bdi>").format(_visible(text))
    rest = text[LONGEST:MOST]
    more = f" … and {len(text) - MOST:,} more characters, left out here" if len(text) > MOST else ""
    return Markup(
        '<bdi>{}</bdi><details class="rest"><summary>the other {} characters</summary><bdi>{}</bdi>{}</details>'
    ).format(_visible(text[:LONGEST]), f"{len(text) - LONGEST:,}", _visible(rest), more)


def address(value: Any, limit: int = 0) -> Markup:
    """A URL that a stranger wrote, as a link where it is one of the web's; else as `words`. The page that it leads to
    learns nothing of this one."""
    text = "" if value is None else str(value)
    if not text.lower().startswith(("http://", "https://")) or UNSEEN.search(text) or '"' in text:
        return words(text, limit or LONGEST)
    return Markup('<a href="{}" rel="noopener noreferrer nofollow external">{}</a>').format(
        text, words(text, limit or LONGEST)
    )


def plain(value: Any, limit: int = 200) -> str:
    """A stranger's text where no markup can stand (a page's title, an image's description): nothing unseen in it."""
    text = UNSEEN.sub("\ufffd", "" if value is None else str(value))
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def _visible(text: str) -> Markup:
    parts, at = [], 0
    for match in UNSEEN.finditer(text):
        code = ord(match[0])
        name = unicodedata.name(match[0], "control character").lower()
        parts += [
            escape(text[at : match.start()]),
            Markup('<span class="unseen" title="{}">U+{}</span>').format(name, f"{code:04X}"),
        ]
        at = match.end()
    return Markup("").join([*parts, escape(text[at:])])


def number(value: Any) -> str:
    """A score as people read it: four significant digits, thousands set apart."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return plain(value, 40)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def moment(value: Any) -> Markup:
    """A time, to the second, in UTC."""
    if value is None:
        return Markup("–")
    when = datetime.fromisoformat(value) if isinstance(value, str) else value
    when = when.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(when.isoformat(), when.strftime("%Y-%m-%d %H:%M:%S"))


def size(value: int | None) -> str:
    """A number of bytes as people read it."""
    amount = float(value or 0)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def clock(seconds: float | None) -> str:
    """A time within a video: minutes and seconds."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}:{rest:04.1f}"
