"""Licences: which of the many spellings that sites use name a Creative Commons licence."""

import re
from urllib.parse import urlsplit

# The licences that there are: https://creativecommons.org/licenses/. Words of a name in their order.
_ELEMENTS = {"attribution": "BY", "noncommercial": "NC", "noderivatives": "ND", "noderivs": "ND", "sharealike": "SA"}
_LICENCES = frozenset({"BY", "BY-SA", "BY-NC", "BY-NC-SA", "BY-ND", "BY-NC-ND", "NC", "NC-SA", "ND", "SA", "NC-ND"})
_ORDER = ("BY", "NC", "ND", "SA")
_CODE = re.compile(r"(?:cc[\s_-]*)?((?:by|nc|nd|sa)(?:[\s_-]+(?:nc|nd|sa))*)(?:[\s_-]+v?(\d\.\d)\b)?(?P<rest>.*)", re.S)
_VERSION = re.compile(r"\b(\d\.\d)\b")
# What may follow the code or name of a licence without a version.
_END = re.compile(r"[\s_-]*(?:$|[(,;/]|licen[cs]e|international|unported|generic|deed|igo)")


def creative_commons(licence: str) -> str | None:
    """The Creative Commons licence or public domain tool that `licence` names, as an SPDX-like identifier.

    Reads names, codes and addresses as YouTube ("Creative Commons Attribution license (reuse allowed)",
    "creativeCommon"), Vimeo ("by-nc-sa"), archive.org and schema.org (addresses below creativecommons.org,
    "https://spdx.org/licenses/CC-BY-4.0") give them. A text that only mentions Creative Commons names none.

    Returns:
        "CC-BY-NC-SA-4.0", "CC0-1.0", "PDM-1.0" (public domain mark), without version where none is told; "CC" when it
        is theirs, but not told which; None for anything else.
    """
    text = " ".join(licence.split()).strip(" .").lower()
    if "//" in text:
        return _of_address(text)
    if text == "creativecommon":  # YouTube's interface for programs; it knows only the one
        return "CC-BY"
    text = re.sub(r"^(?:licen[cs]ed? ?:? ?)?(?:under )?(?:the |a )?", "", text)
    named = re.match(r"creative[ _-]?commons?(?![a-z])[ \-_:—–]*(.*)", text)
    words = named.group(1) if named else text
    return _zero(words, named is not None) or _of_code(words, named is not None) or _of_words(words, named is not None)


def _of_address(text: str) -> str | None:
    try:
        parts = urlsplit(text)
        host = (parts.hostname or "").removeprefix("www.")
    except ValueError:
        return None
    path = [part for part in parts.path.split("/") if part]
    if host == "spdx.org" and path[:1] == ["licenses"] and len(path) > 1 and path[1].startswith("cc"):
        return creative_commons(path[1].removesuffix(".html").removesuffix(".json"))
    if host != "creativecommons.org" or len(path) < 2:
        return None
    version = path[2] if len(path) > 2 and _VERSION.fullmatch(path[2]) else None
    match path[:2]:
        case ["publicdomain", "zero"]:
            return _with("CC0", version)
        case ["publicdomain", "mark"]:
            return _with("PDM", version)
        case ["licenses", "publicdomain"]:
            return "CC"  # retired, without a name of its own
        case ["licenses", code] if code.upper() in _LICENCES:
            return _with(f"CC-{code.upper()}", version)
    return None


def _zero(text: str, named: bool) -> str | None:
    if re.match(r"cc[ _-]?0(?!\d)", text) or (named and re.match(r"(?:zero|0)\b", text)):
        version = _VERSION.search(text)
        return _with("CC0", version.group(1) if version else None)
    if re.match(r"(?:cc[ _-])?(?:pdm\b|public domain mark)", text):
        version = _VERSION.search(text)
        return _with("PDM", version.group(1) if version else None)
    return None


def _of_code(text: str, named: bool) -> str | None:
    found = _CODE.match(text)
    if not found or re.match(r"\w", found["rest"]):
        return None
    marked = named or text.startswith("cc")
    if not (_END.match(found["rest"]) or found[2]) if marked else found["rest"]:
        return None
    return _licence(re.split(r"[\s_-]+", found[1].upper()), found[2])


def _of_words(text: str, named: bool) -> str | None:
    words = re.sub(r"no[ -](deriv\w*)", r"no\1", re.sub(r"share[ -]alike", "sharealike", text))
    words = re.sub(r"non[ -]commercial", "noncommercial", words)
    found = re.match(rf"((?:{'|'.join(_ELEMENTS)})(?:[\s,–—-]+(?:{'|'.join(_ELEMENTS)}))*)(?P<rest>.*)", words)
    version = _VERSION.search(words)
    if found and (named or (words.startswith("attribution") and (version or _END.match(found["rest"])))):
        code = _licence([_ELEMENTS[word] for word in re.findall(r"[a-z]+", found[1])], version and version[1])
        if code:
            return code
    return "CC" if named else None


def _licence(elements: list[str], version: str | None) -> str | None:
    code = "-".join(sorted(elements, key=_ORDER.index))
    return _with(f"CC-{code}", version) if code in _LICENCES else None


def _with(code: str, version: str | None) -> str:
    return f"{code}-{version}" if version else code
