"""Colour: every picture is brought to BT.709, limited range, 4:2:0, 8 bits, and says so.

What a source says of its colours (matrix, primaries, transfer, range: ITU-T H.273) is honoured, whether its pictures
or only its container say it. Where nothing does, the usual defaults hold.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from medgen.errors import ItemFailed

# Code points of ITU-T H.273 (tables 2, 3 and 4) by FFmpeg's names (libavutil/pixdesc.c).
PRIMARIES = {
    1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "film", 9: "bt2020", 10: "smpte428",
    11: "smpte431", 12: "smpte432", 22: "ebu3213",
}  # fmt: skip
TRANSFERS = {
    1: "bt709", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 7: "smpte240m", 8: "linear", 9: "log100", 10: "log316",
    11: "iec61966-2-4", 12: "bt1361e", 13: "iec61966-2-1", 14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084",
    17: "smpte428", 18: "arib-std-b67",
}  # fmt: skip
MATRICES = {
    0: "gbr", 1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "ycgco", 9: "bt2020nc",
    10: "bt2020c", 11: "smpte2085", 12: "chroma-derived-nc", 13: "chroma-derived-c", 14: "ictcp", 15: "ipt-c2",
    16: "ycgco-re", 17: "ycgco-ro",
}  # fmt: skip
RANGES = {1: "tv", 2: "pc"}
BT709, LIMITED, UNSPECIFIED = 1, 1, 2  # code points of what all pictures become, and of "not said"

HDR = ("smpte2084", "arib-std-b67")  # PQ and HLG
# Their colours lie well beyond BT.709's. Those of SD (170M, 470BG, 240M) do not: like all common players and
# converters, we take them for BT.709's.
WIDE = ("bt2020", "smpte431", "smpte432")
CONVERTIBLE = ("gbr", "bt709", "fcc", "bt470bg", "smpte170m", "smpte240m", "bt2020nc")
# What FFmpeg's `colorspace` reads and the filter's own names.
_PLANAR = frozenset(
    f"yuv{chroma}p{depth}" for chroma in ("420", "422", "444") for depth in ("", "10le", "12le")
) | {"yuvj420p", "yuvj422p", "yuvj444p"}  # fmt: skip
_EXACT = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"

Conversion = Literal["none", "matrix", "gamut", "tone_mapped"]


@dataclass(frozen=True)
class Colour:
    """The colours of a source, by FFmpeg's names, and what is done to them.

    Args:
        assumed: which of the four the file doesn't say.
        conversion: "none"; "matrix", to BT.709's matrix or limited range; "gamut", from wide primaries too;
            "tone_mapped", from high dynamic range too.
    """

    matrix: str
    primaries: str
    transfer: str
    range: str
    assumed: tuple[str, ...] = field(compare=False)  # the same colours, said or assumed, are no change
    conversion: Conversion


def declared_colours(codec: VideoCodecContext) -> dict[str, int]:
    """What the container says, as code points of H.273. Decoding may replace it: ask before."""
    return {
        "matrix": codec.colorspace, "primaries": codec.color_primaries, "transfer": codec.color_trc,
        "range": codec.color_range,
    }  # fmt: skip


def colour_of(frame: VideoFrame, declared: Mapping[str, int]) -> Colour:
    """The colours of a decoded frame.

    Where neither the picture nor the container says them: what wide or HDR companions ask for, else BT.709's matrix
    from HD on (more than 576 rows or from 1280 columns on), BT.601's below, as in mpv (video/csputils.c); limited
    range for YUV, full for RGB and grey.

    Raises:
        ItemFailed: colour_unsupported.
    """
    said = {
        "matrix": _known(MATRICES, frame.colorspace, declared["matrix"]),
        "primaries": _known(PRIMARIES, frame.color_primaries, declared["primaries"]),
        "transfer": _known(TRANSFERS, frame.color_trc, declared["transfer"]),
        "range": _known(RANGES, frame.color_range, declared["range"]),
    }
    is_yuv = not (frame.format.is_rgb or frame.format.has_palette or len(frame.format.components) < 3)
    if frame.format.name.startswith("yuvj"):
        said["range"] = "pc"
    if is_yuv and said["matrix"] == "gbr":
        said["matrix"] = None  # a picture that is no RGB can't have its matrix
    if not is_yuv:
        said["matrix"] = "gbr"
    wide = said["matrix"] in ("bt2020nc", "bt2020c") or said["primaries"] == "bt2020" or said["transfer"] in HDR
    high = frame.height > 576 or frame.width >= 1280
    usual = {
        "matrix": "bt2020nc" if wide else "bt709" if high else "smpte170m",
        "primaries": "bt2020" if wide else "bt709",
        "transfer": "bt709",
        "range": "tv" if is_yuv else "pc",
    }
    colour = {name: value or usual[name] for name, value in said.items()}
    if colour["matrix"] not in CONVERTIBLE or colour["primaries"] == "smpte428":
        raise ItemFailed("colour_unsupported", f"pictures in {colour['matrix']}, primaries {colour['primaries']}")
    plain = (colour["matrix"], colour["range"]) == ("bt709", "tv") and frame.format.name == "yuv420p"
    conversion: Conversion = (
        "tone_mapped" if colour["transfer"] in HDR
        else "gamut" if colour["primaries"] in WIDE
        else "none" if plain else "matrix"
    )  # fmt: skip
    assumed = tuple(name for name, value in said.items() if value is None)
    return Colour(**colour, assumed=assumed, conversion=conversion)


def filters_to_bt709(
    colour: Colour, pixel_format: str, size: tuple[int, int], lut: str | None = None
) -> list[tuple[str, str]]:
    """FFmpeg's filters, name and arguments, from a colour to BT.709; the last gives yuv420p.

    Args:
        size: width and height of the pictures that go in.
        lut: path of the file of `medgen.video.colour_lut`, for a wide gamut and HDR.
    """
    if colour.conversion == "none":
        return []
    matrix = {} if colour.matrix == "gbr" else {"in_color_matrix": _SCALE_NAMES[colour.matrix]}
    source = "".join(f"{name}={value}:" for name, value in matrix.items()) + f"in_range={colour.range}"
    target = "out_color_matrix=bt709:out_range=tv"
    if lut is not None:
        return [
            ("scale", f"{source}:out_range=pc:{_EXACT}"), ("format", "gbrp12le"),
            ("lut3d", f"file={lut}:interp=tetrahedral"),
            ("scale", f"in_range=pc:{target}:{_EXACT}"), ("format", "yuv420p"),
        ]  # fmt: skip
    if colour.matrix == "gbr":
        return [("scale", f"{source}:{target}:{_EXACT}"), ("format", "yuv420p")]
    # Faster and nearer to the source than `scale` (54 against 40 to 49 dB on the patches of test pictures). "fast"
    # leaves gamma and primaries alone. It takes planar formats and even sizes.
    arguments = (
        f"ispace={_COLORSPACE_NAMES[colour.matrix]}:irange={colour.range}:iprimaries=bt709:itrc=bt709:"
        "space=bt709:range=tv:primaries=bt709:trc=bt709:format=yuv420p:fast=1"
    )
    chain = [("colorspace", arguments)]
    if pixel_format not in _PLANAR:
        chain = [("format", "|".join(sorted(_PLANAR))), *chain]
    width, height = size
    if width % 2 or height % 2:
        chain = [
            ("pad", f"{width + width % 2}:{height + height % 2}"), *chain, ("crop", f"{width}:{height}:0:0:exact=1"),
        ]  # fmt: skip
    return chain


def mark_bt709(frame: VideoFrame) -> None:
    """Writes on a frame what it is, for whoever converts or encodes it."""
    frame.colorspace = frame.color_primaries = frame.color_trc = BT709
    frame.color_range = LIMITED


_SCALE_NAMES = {
    "bt709": "bt709", "fcc": "fcc", "bt470bg": "bt470bg", "smpte170m": "smpte170m", "smpte240m": "smpte240m",
    "bt2020nc": "bt2020",
}  # fmt: skip
_COLORSPACE_NAMES = {
    "bt709": "bt709", "fcc": "fcc", "bt470bg": "bt470bg", "smpte170m": "smpte170m", "smpte240m": "smpte240m",
    "bt2020nc": "bt2020ncl",
}  # fmt: skip


def _known(names: Mapping[int, str], *code_points: int) -> str | None:
    return next((names[int(point)] for point in code_points if int(point) in names), None)
