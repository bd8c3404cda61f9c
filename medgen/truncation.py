"""Tells files that end before their own structure does: what a cut connection or a lying server leaves."""

from pathlib import Path
from typing import BinaryIO

# Boxes at the top level of a file: what else is there may be padding or junk, which ends where the file does.
_BOXES = frozenset(
    b"ftyp moov mdat free skip wide moof mfra meta udta uuid sidx ssix styp emsg prft pdin pnot idat".split()
)
_HEADER = 8  # bytes of a box's length and name
_INDEXES = frozenset((b"moov", b"moof"))
MOST_BOXES = 1_000_000  # of four hours in fragments of 30 ms
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def missing_bytes(path: Path) -> int:
    """How many bytes of a video file are missing by what its container says of its size; 0 where it says nothing.

    Known are the boxes of MP4 and QuickTime (ISO/IEC 14496-12, 4.2), Matroska and WebM (RFC 8794, 6) and RIFF (AVI).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(12)
        if start.startswith(_EBML):
            end = _matroska_end(file)
        elif start.startswith(b"RIFF") and len(start) == 12:
            length = int.from_bytes(start[4:8], "little")
            end = 8 + length if length < 0xFFFFFFF0 else 0  # the largest stand for an unknown size
        elif start[4:8] in _BOXES:
            end = _boxes_end(file, size)
        else:
            return 0
    return max(0, end - size)


def _boxes_end(file: BinaryIO, size: int) -> int:
    position, seen = 0, set[bytes]()
    for _ in range(MOST_BOXES):
        if size - position < _HEADER:
            # Pictures without an index: it would come last, and less than its header is there.
            without_index = position <= size and b"mdat" in seen and not seen & _INDEXES
            return position + _HEADER if without_index else max(position, size)
        file.seek(position)
        header = file.read(16)
        length = int.from_bytes(header[:4])
        if header[4:8] not in _BOXES:
            return size
        if length == 0:  # to the end of the file, wherever that is
            return size
        if length == 1:
            if len(header) < 16:
                return position + 16
            length = int.from_bytes(header[8:])
        if length < _HEADER:
            return size  # broken, which is for the decoder to tell
        seen.add(header[4:8])
        position += length
    return size  # an endless row of small boxes is not worth the time


def _matroska_end(file: BinaryIO) -> int:
    file.seek(4)
    length = _ebml_size(file)
    if length is None:
        return 0
    file.seek(length, 1)
    if file.read(4) != _SEGMENT or (length := _ebml_size(file)) is None:
        return 0
    return file.tell() + length


def _ebml_size(file: BinaryIO) -> int | None:
    """A size of one to eight bytes; None when it is unknown, as of streams."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    rest = file.read(length - 1)
    value = int.from_bytes(bytes([first[0] & (0xFF >> length)]) + rest)
    return None if len(rest) < length - 1 or value == (1 << 7 * length) - 1 else value
