"""Video files of the kinds that players, curators and decoders get wrong, made on the spot, with a known truth.

Every frame carries ten patches of colour (top sixth) and its number in twelve blocks (bottom tenth), around a picture
that moves.
"""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import imageio_ffmpeg
import numpy as np

PATCHES = np.array(
    [
        (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255),
        (255, 0, 255), (255, 255, 255), (128, 128, 128), (200, 120, 100), (16, 16, 16),
    ]
)  # fmt: skip
SIZE, FPS = (640, 480), 25


def numbered_picture(number: int, width: int, height: int) -> np.ndarray:
    """uint8 RGB (height, width, 3)."""
    across = np.linspace(0, 6 * np.pi, width) + number / 8
    down = np.linspace(0, 4 * np.pi, height)[:, None]
    waves = 128 + 60 * np.sin(across)[None] * np.cos(down)
    picture = np.stack([waves, np.roll(waves, width // 5, 1), np.roll(waves, width // 3, 1)], -1).astype(np.uint8)
    for k, colour in enumerate(PATCHES):
        picture[: height // 6, k * width // 10 : (k + 1) * width // 10] = colour
    tall, wide = height // 10, width // 16
    picture[height - tall :] = 60
    for bit in range(12):
        left = (bit + 2) * wide
        picture[height - tall :, left : left + wide] = 255 if number >> bit & 1 else 0
    return picture


def number_of(rgb: np.ndarray) -> int:
    """The number that a picture carries."""
    height, width = rgb.shape[:2]
    tall, wide = height // 10, width // 16
    rows = rgb[height - tall + tall // 3 : height - tall // 3]
    blocks = (rows[:, (b + 2) * wide + wide // 3 : (b + 3) * wide - wide // 3] for b in range(12))
    return sum(int(block.mean() > 127) << bit for bit, block in enumerate(blocks))


def patches_of(rgb: np.ndarray) -> np.ndarray:
    """float (10, 3): the mean colours of a picture's patches."""
    height, width = rgb.shape[:2]
    rows = rgb[height // 18 : height // 9]
    columns = (rows[:, k * width // 10 + width // 40 : (k + 1) * width // 10 - width // 40] for k in range(10))
    return np.array([block.reshape(-1, 3).mean(0) for block in columns])


def ffmpeg(*arguments: object, stdin: bytes = b"") -> bytes:
    """Runs FFmpeg's own program, which knows nothing of medgen."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, input=stdin, stdout=subprocess.PIPE, check=True).stdout


@cache
def raw(count: int, width: int, height: int) -> bytes:
    """So many pictures as raw rgb24."""
    return b"".join(numbered_picture(n, width, height).tobytes() for n in range(count))


H264 = ("-c:v", "libx264", "-crf", 10, "-preset", "veryfast", "-g", 25, "-pix_fmt", "yuv420p")
BT709 = ("-vf", "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int")
BT601 = ("-vf", "scale=out_color_matrix=smpte170m:out_range=tv:flags=accurate_rnd+full_chroma_int")
FULL = ("-vf", "scale=out_color_matrix=bt709:out_range=pc:flags=accurate_rnd+full_chroma_int")
# Light of the sRGB pictures carried over; HDR's white is at 203 cd/m².
WIDE = "zscale=min=gbr:rin=full:pin=bt709:tin={t}:npl=203:p=bt2020:m=bt2020nc:r=limited:t={to},format=yuv420p10le"
VP9 = ("-c:v", "libvpx-vp9", "-cpu-used", 8, "-b:v", "4M")
H265 = ("-c:v", "libx265", "-x265-params", "log-level=error", "-crf", 8, "-preset", "ultrafast")
TAGS_2020 = ("-colorspace", "bt2020nc", "-color_primaries", "bt2020", "-color_range", "tv")


def video(path: Path, *options: object, count: int = 50, size: tuple[int, int] = SIZE, fps: int = FPS) -> Path:
    """A video of numbered pictures; `options` are those of FFmpeg for its output."""
    pictures = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}", "-r", fps, "-i", "-")
    ffmpeg(*pictures, *options, path, stdin=raw(count, *size))
    return path


@dataclass(frozen=True)
class Kind:
    """A kind of file and what is right of it.

    Args:
        make: writes it to a path.
        numbers: of the pictures, in order.
        breaks: frame → what changed there.
        patches: by how many levels a patch may be off; None: colours are not what this is about.
        close: decibels to what FFmpeg's own reader sees (None: it reads such files differently).
        white: the least level of the white patch, where colours were mapped.
        repaired: some times are not the file's own.
        undo: brings a picture back to how it is stored.
    """

    name: str
    suffix: str
    make: Callable[[Path], object]
    numbers: list[int] = field(default_factory=lambda: list(range(50)))
    size: tuple[int, int] = SIZE
    fps: float = FPS
    breaks: dict[int, str] = field(default_factory=dict)
    patches: float | None = 3.0
    close: float | None = None
    white: int | None = None
    repaired: bool = False
    undo: Callable[[np.ndarray], np.ndarray] = lambda rgb: rgb


def untagged(scale: tuple[str, str]) -> tuple[str, str]:
    """The same conversion, of which the file says nothing."""
    return scale[0], f"{scale[1]},format=yuv420p,setparams=colorspace=unknown:range=unknown"


def made(*options: object, **facts: object) -> Callable[[Path], object]:
    """Makes `video` with these options."""
    return lambda path: video(path, *options, **facts)  # type: ignore[arg-type]


def copied(before: tuple[object, ...], *options: object) -> Callable[[Path], object]:
    """Copies the stream of a plain video with other marks: options of FFmpeg for its input and output."""

    def make(path: Path) -> None:
        plain = video(path.with_name(f"plain-{path.stem}.mp4"), *BT601, *H264)
        ffmpeg(*before, "-i", plain, "-c", "copy", *options, path)

    return make


def joined(*pieces: tuple[object, ...], **facts: dict[int, dict[str, object]]) -> Callable[[Path], object]:
    """Transport streams, one after the other, as the bytes they are."""
    of_piece = facts.get("facts", {})

    def make(path: Path) -> None:
        parts = [
            video(path.with_name(f"{path.stem}-{n}.ts"), *options, **{"count": 50, **of_piece.get(n, {})})  # type: ignore[arg-type]
            for n, options in enumerate(pieces)
        ]
        path.write_bytes(b"".join(part.read_bytes() for part in parts))

    return make


TS = (*BT601, *H264, "-bf", 2, "-muxdelay", 0)
AGAIN = [*range(50), *range(50)]


def uneven(path: Path) -> None:
    """25 frames a second, then 8: as phones record in the dark."""
    times = "settb=1/1000,setpts='if(lt(N,25),40*N,1000+120*(N-25))'"
    video(path, "-vf", f"{BT601[1]},{times}", *H264, "-fps_mode", "passthrough", "-enc_time_base", "1/1000")


def into_pipe(container: str, *options: object) -> Callable[[Path], object]:
    """Written as a stream: the header can't tell how long it is."""

    def make(path: Path) -> None:
        pictures = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{SIZE[0]}x{SIZE[1]}", "-r", FPS, "-i", "-")
        path.write_bytes(ffmpeg(*pictures, *options, "-f", container, "-", stdin=raw(50, *SIZE)))

    return make


def thumbnail_first(path: Path) -> None:
    """A small track before the main one, both moving."""
    small = video(path.with_name("small.mkv"), *BT601, *H264, size=(160, 120))
    main = video(path.with_name("main.mkv"), *BT601, *H264)
    ffmpeg("-i", small, "-i", main, "-map", "0:v", "-map", "1:v", "-c", "copy", "-disposition:v:0", "0", path)


def cover_first(path: Path) -> None:
    """A still picture before the main stream, without a mark."""
    cover = video(path.with_name("cover.mp4"), "-c:v", "mjpeg", "-pix_fmt", "yuvj420p", count=1, size=(320, 320))
    main = video(path.with_name("main.mp4"), *BT601, *H264)
    ffmpeg("-i", cover, "-i", main, "-map", "0:v", "-map", "1:v", "-c", "copy", "-disposition:v", "0", path)


def late_picture(path: Path) -> None:
    """Sound from the start, the picture two seconds later."""
    plain = video(path.with_name("plain.mkv"), *BT601, *H264)
    sound = ("-f", "lavfi", "-t", 4, "-i", "sine=frequency=440")
    ffmpeg(*sound, "-itsoffset", 2, "-i", plain, "-map", "1:v", "-map", "0:a", "-c:v", "copy", "-c:a", "aac", path)


KINDS = [
    Kind("bt709_tagged", "mp4", made(*BT709, *H264, "-colorspace", "bt709", "-color_range", "tv"), close=41),
    Kind("bt601_tagged", "mp4", made(*BT601, *H264, "-colorspace", "smpte170m", "-color_range", "tv"), close=41),
    Kind("bt601_in_hd", "mp4", made(*BT601, *H264, "-colorspace", "bt470bg", size=(1280, 720)), size=(1280, 720),
         close=41),
    Kind("untagged_sd", "mp4", made(*untagged(BT601), *H264)),
    Kind("untagged_hd", "mp4", made(*untagged(BT709), *H264, size=(1280, 720)), size=(1280, 720)),
    Kind("container_alone_says_bt709", "mkv", made(
        *BT709, *H264, "-x264-params", "colormatrix=undef", "-colorspace", "bt709", "-color_range", "tv"), close=41),
    Kind("full_range_mjpeg", "avi", made("-c:v", "mjpeg", "-q:v", 2, "-pix_fmt", "yuvj420p"), patches=4),
    Kind("full_range_h264", "mp4", made(*FULL, *H264, "-colorspace", "bt709", "-color_range", "pc"), close=41),
    Kind("ten_bits", "mp4", made(*BT709, *H265, "-pix_fmt", "yuv420p10le", "-colorspace", "bt709"), close=41),
    Kind("four_four_four", "mp4", made(*BT709, *H264[:-1], "yuv444p", "-colorspace", "bt709")),
    Kind("rgb", "mp4", made("-c:v", "libx264rgb", "-crf", 4, "-preset", "veryfast")),
    Kind("alpha", "webm", made(*untagged(BT601), *VP9, "-pix_fmt", "yuva420p")),
    Kind("pq", "mp4", made("-vf", WIDE.format(t="iec61966-2-1", to="smpte2084"), *H265, *TAGS_2020, "-color_trc",
                           "smpte2084"), patches=None, white=245),
    Kind("hlg", "mp4", made("-vf", WIDE.format(t="iec61966-2-1", to="arib-std-b67"), *H265, *TAGS_2020, "-color_trc",
                            "arib-std-b67"), patches=None, white=240),
    Kind("wide_gamut", "mp4", made("-vf", WIDE.format(t="bt709", to="bt709"), *H265, *TAGS_2020, "-color_trc", "bt709"),
         patches=None, white=250),
    Kind("one_a_second", "mp4", made(*BT601, *H264, count=12, fps=1), list(range(12)), fps=1),
    Kind("three_hundred_a_second", "mp4", made(*BT601, *H264, fps=200), fps=200),
    Kind("uneven", "mp4", uneven, fps=50 / 4.0),
    Kind("b_frames_in_avi", "avi", made(*BT601, *H264, "-bf", 3), repaired=True),
    Kind("mpeg4_avi", "avi", made(*BT601, "-c:v", "mpeg4", "-q:v", 2), patches=4),
    Kind("times_start_again", "ts", joined(TS, TS), AGAIN, breaks={50: "time_jump"}, repaired=True),
    Kind("an_hour_later", "ts", joined(TS, (*TS, "-output_ts_offset", 3600)), AGAIN, breaks={50: "time_jump"},
         repaired=True),
    Kind("a_clock_that_wraps", "ts", made(*TS, "-output_ts_offset", 95442)),
    Kind("dv", "dv", made("-vf", "scale=720:576", "-c:v", "dvvideo", "-pix_fmt", "yuv420p", "-aspect", "4:3"),
         size=(768, 576), patches=6),
    Kind("live_webm", "webm", into_pipe("webm", *untagged(BT601), *VP9, "-pix_fmt", "yuv420p", "-live", 1)),
    Kind("live_flv", "flv", into_pipe("flv", *BT601, *H264)),
    Kind("late_picture", "mkv", late_picture),
    Kind("aspect_in_the_container", "mkv", copied((), "-aspect", "16:9"), size=(853, 480)),
    Kind("odd_size", "mp4", made(*BT601, *H264[:-1], "yuv444p", size=(641, 479)), size=(641, 479)),
    Kind("mirrored", "mp4", copied(("-display_hflip",)), undo=lambda rgb: rgb[:, ::-1]),
    Kind("upside_down", "mp4", copied(("-display_vflip",)), undo=lambda rgb: rgb[::-1]),
    Kind("turned", "mp4", copied(("-display_rotation", 90)), size=(480, 640), undo=lambda rgb: np.rot90(rgb, -1)),
    Kind("turned_and_mirrored", "mp4", copied(("-display_rotation", 90, "-display_hflip")), size=(480, 640),
         undo=lambda rgb: np.rot90(rgb[:, ::-1], -1)),
    Kind("other_size", "ts", joined((*BT709, *H264), TS, facts={0: {"size": (1280, 720)}}), AGAIN, size=(1280, 720),
         breaks={50: "size_change"}, repaired=True),
    Kind("other_aspect", "ts", joined((*TS, "-aspect", "4:3"), (*TS, "-aspect", "16:9")), AGAIN,
         breaks={50: "aspect_change"}, repaired=True),
    Kind("becomes_interlaced", "ts", joined(TS, (*TS, "-flags", "+ilme+ildct", "-x264-params", "tff=1")), AGAIN,
         breaks={50: "interlacing_change"}, repaired=True),
    Kind("thumbnail_first", "mkv", thumbnail_first),
    Kind("cover_first", "mp4", cover_first),
]  # fmt: skip
