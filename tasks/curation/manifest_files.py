"""The files that a release's manifest lists, one after the other: a manifest of a million clips has 200 MB."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

BEGINNING = '{"files":['  # canonical JSON has its keys in order
CHUNK = 1 << 20  # characters


class ManifestFile(TypedDict):
    """A file of a release: its place in the folder, its sha256, its bytes."""

    path: str
    sha256: str
    bytes: int


def manifest_files(manifest: Path) -> Iterator[ManifestFile]:
    """The files in the order of their paths.

    Raises:
        ValueError: it is no manifest of a release.
    """
    decoder = json.JSONDecoder()
    with manifest.open(encoding="utf-8") as file:
        if file.read(len(BEGINNING)) != BEGINNING:
            raise ValueError(f"{manifest} is no manifest of a release")
        text, at = file.read(CHUNK), 0
        while not text.startswith("]", at):
            try:
                entry, end = decoder.raw_decode(text, at)
                at = end + (text[end] == ",")  # a look at what follows: an entry may be cut off
            except (ValueError, IndexError):
                more = file.read(CHUNK)
                if not more:
                    raise ValueError(f"{manifest} ends in the midst of its files") from None
                text, at = text[at:] + more, 0
                continue
            yield entry
            if at == len(text):
                text, at = file.read(CHUNK), 0
