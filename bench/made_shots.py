"""Sequences with known shot boundaries, of the kinds that shot detectors get wrong: screen recordings, slides, glare in
endoscopy, decoder errors, fades, low frame rates, plots."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame

from bench.picture_pool import HEIGHT, WIDTH, Pool
from medgen.errors import ItemFailed
from medgen.video.limits import Limits
from medgen.video.pictures import pictures

Random = np.random.Generator
Frames = np.ndarray  # uint8 BGR (N, 144, 256, 3)
Span = tuple[int, int]  # frames [start, end) that mix two shots; start == end: a cut before that frame
FILMED = ("photo", "photo", "people", "scan", "endoscopy")  # kinds of pictures that shots are made of
LARGE = (2 * WIDTH, 2 * HEIGHT)  # screens and slides are drawn at this size, for the sake of their letters
CODED = (640, 360)  # decoder errors come to videos of this size
FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True)
class MadeSequence:
    """Frames, their rate, and where shots change; a boundary in `ignored` stretches is neither right nor wrong."""

    kind: str
    frames: Frames
    fps: float
    boundaries: tuple[Span, ...]
    ignored: tuple[Span, ...] = ()


def made_sequences(pool: Pool, count: int, seed: int) -> Iterator[MadeSequence]:
    """So many sequences of each kind; the same for the same pool and seed."""
    for kind, make in KINDS.items():
        for number in range(count):
            yield make(pool, np.random.default_rng([seed, sum(kind.encode()), number]))


def filmed(pool: Pool, random: Random, counts: Sequence[int], kinds: Sequence[str] = FILMED) -> list[Frames]:
    """Shots of so many frames: stretches of moving scenes, no scene twice, or pictures before a moving camera."""
    shots = []
    scenes = list(random.permutation(len(pool.scenes)))
    for count in counts:
        moving = random.random() < 0.4
        scene = next((s for s in scenes if moving and len(pool.scenes[s]) >= count), None)
        if scene is None:
            shots.append(noisy(camera(pool.picture(random, *kinds), random, count), random))
            continue
        scenes.remove(scene)
        start = int(random.integers(len(pool.scenes[scene]) - count + 1))
        shots.append(pool.scenes[scene][start : start + count].copy())
    return shots


def camera(picture: np.ndarray, random: Random, count: int, zoom: float | None = None) -> Frames:
    """The picture before a camera that pans, zooms and shakes."""
    height, width = picture.shape[:2]
    cover = max(WIDTH / width, HEIGHT / height) * 1.15
    zoom = float(random.uniform(1.0, 1.5)) if zoom is None else zoom
    zooms = zoom * np.exp(np.linspace(0, random.normal(0, 0.15), count))
    shaking = np.cumsum(random.normal(0, random.choice([0.0, 0.6, 1.5]), (count, 2)), axis=0)
    way = np.linspace(0, 1, count)[:, None] * random.normal(0, 25, 2) + shaking - shaking.mean(axis=0)
    frames = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
    for i in range(count):
        scale = cover * max(1.0, zooms[i])
        reach = np.array([width * scale - WIDTH, height * scale - HEIGHT]) / 2
        shift = np.clip(way[i], -reach, reach)
        matrix = np.array([[scale, 0, WIDTH / 2 - scale * width / 2 + shift[0]], [0, scale, 0]])
        matrix[1, 2] = HEIGHT / 2 - scale * height / 2 + shift[1]
        flags = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        cv2.warpAffine(picture, matrix, (WIDTH, HEIGHT), frames[i], flags, cv2.BORDER_REPLICATE)
    return frames


def noisy(frames: Frames, random: Random) -> Frames:
    """With the noise of a camera, up to 4 grey levels."""
    level = float(random.uniform(0, 4))
    tile = random.normal(0, level, (8, *frames.shape[1:]))
    return np.stack([np.clip(f + tile[int(random.integers(8))], 0, 255).astype(np.uint8) for f in frames])


def joined(kind: str, shots: Sequence[Frames], fps: float = 25.0, ignored: Sequence[Span] = ()) -> MadeSequence:
    """Shots one after another."""
    cuts = np.cumsum([len(shot) for shot in shots])[:-1]
    return MadeSequence(kind, np.concatenate(shots), fps, tuple((int(c), int(c)) for c in cuts), tuple(ignored))


def _cuts(pool: Pool, random: Random) -> MadeSequence:
    """Four shots; the third is a closer look at the second."""
    shots = filmed(pool, random, [int(random.integers(20, 70)) for _ in range(2)])
    picture = pool.picture(random, *FILMED)
    shots.append(noisy(camera(picture, random, 40, 1.0), random))
    shots.append(noisy(camera(picture[: len(picture) * 2 // 3], random, 40, 2.2), random))
    return joined("cuts", shots)


def _dissolves(pool: Pool, random: Random) -> MadeSequence:
    frames, *others = filmed(pool, random, (90, 100, 100))
    spans = []
    for after in others:
        length = int(random.integers(10, 45))
        share = (np.arange(1, length + 1) / (length + 1))[:, None, None, None]
        mixed = (frames[-length:] * (1 - share) + after[:length] * share).round().astype(np.uint8)
        spans.append((len(frames) - length, len(frames)))
        frames = np.concatenate([frames[:-length], mixed, after[length:]])
    return MadeSequence("dissolves", frames, 25.0, tuple(spans))


def _fades(pool: Pool, random: Random) -> MadeSequence:
    """From black at the start, through black or white in the middle, to black at the end."""
    parts: list[Frames] = []
    spans: list[Span] = []
    place = ground_before = 0
    shots = filmed(pool, random, [int(random.integers(70, 110)) for _ in range(2)])
    for taken, (ground_in, ground_out) in zip(shots, ((0, int(random.choice([0, 0, 255]))), (-1, 0)), strict=True):
        shot = taken.astype(np.float32)
        ground = ground_in if ground_in >= 0 else ground_before  # what the first shot faded to
        ramps = [int(random.integers(6, 35)) for _ in range(2)]
        holds = [int(random.integers(0, 30)) if ground_in >= 0 else 0, int(random.integers(2, 30))]
        for ramp, colour, side in ((ramps[0], ground, slice(None)), (ramps[1], ground_out, slice(None, None, -1))):
            share = (np.arange(ramp) / ramp)[:, None, None, None]
            shot[side][:ramp] = colour + (shot[side][:ramp] - colour) * share
        still = [
            np.full((hold, HEIGHT, WIDTH, 3), c, np.float32)
            for hold, c in zip(holds, (ground, ground_out), strict=True)
        ]
        start = place + holds[0]
        if ground_in >= 0:
            spans.append((start, start + ramps[0]))
        else:
            spans[-1] = (spans[-1][0], start + ramps[0])
        end = start + len(shot)
        spans.append((end - ramps[1], end + holds[1]))
        place = end + holds[1]
        ground_before = ground_out
        parts += [still[0], shot, still[1]]
    return MadeSequence("fades", np.concatenate(parts).round().astype(np.uint8), 25.0, tuple(spans))


def _covering(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The picture's middle, as large as fills the size (width, height)."""
    height, width = picture.shape[:2]
    scale = max(size[0] / width, size[1] / height)
    large = cv2.resize(picture, (max(size[0], round(width * scale)), max(size[1], round(height * scale))))
    x, y = (large.shape[1] - size[0]) // 2, (large.shape[0] - size[1]) // 2
    return large[y : y + size[1], x : x + size[0]].copy()


def _words(random: Random, most: int = 6) -> str:
    letters = np.array(list("abcdefghijklmnoprstuvwy"))
    return " ".join(
        "".join(random.choice(letters, int(random.integers(2, 9)))) for _ in range(int(random.integers(1, most + 1)))
    )


def _screen_event(screen: np.ndarray, pool: Pool, random: Random) -> list[np.ndarray]:
    """The screens that follow when something on it, and not all of it, changes."""
    wide, high = LARGE
    what = random.choice(["popup", "menu", "scroll", "pane", "typing"])
    after = screen.copy()
    if what in ("popup", "pane"):
        size = (int(wide * random.uniform(0.3, 0.7)), int(high * random.uniform(0.3, 0.7)))
        x, y = int(random.integers(0, wide - size[0])), int(random.integers(0, high - size[1]))
        after[y : y + size[1], x : x + size[0]] = _covering(pool.picture(random, "screen", "page", "scan"), size)
        return [after]
    if what == "menu":
        w, h = int(random.integers(80, 180)), int(random.integers(80, 200))
        x, y = int(random.integers(0, wide - w)), int(random.integers(0, high - h))
        after[y : y + h, x : x + w] = 245
        for line in range(y + 14, y + h - 4, 14):
            cv2.putText(after, _words(random, 2), (x + 6, line), FONT, 0.35, (30, 30, 30), 1, cv2.LINE_AA)
        return [after]
    x, y = int(wide * random.uniform(0.1, 0.4)), int(high * random.uniform(0.1, 0.3))
    pane = (slice(y, y + int(0.65 * high)), slice(x, x + int(0.55 * wide)))
    if what == "scroll":
        screens, total, steps = [], int(random.integers(20, 160)), int(random.choice([1, 4, 8]))
        for step in range(1, steps + 1):
            after = screen.copy()
            after[pane] = np.roll(screen[pane], -total * step // steps, axis=0)
            screens.append(after)
        return screens
    screens = []
    for line in range(y + 20, min(y + 120, high - 4), 16):
        after = after.copy()
        cv2.putText(after, _words(random), (x + 6, line), FONT, 0.4, (20, 20, 20), 1, cv2.LINE_AA)
        screens += [after] * int(random.integers(1, 4))
    return screens


def _bare(random: Random) -> np.ndarray:
    """A terminal or a page with a few lines."""
    dark = random.random() < 0.5
    screen = np.full((LARGE[1], LARGE[0], 3), 12 if dark else 250, np.uint8)
    for line in range(24, int(random.integers(60, LARGE[1])), 18):
        cv2.putText(
            screen, _words(random), (10, line), FONT, 0.4, (200, 220, 200) if dark else (40, 40, 40), 1, cv2.LINE_AA
        )
    return screen


def _small(screens: Sequence[np.ndarray], random: Random) -> Frames:
    """Screens with a pointer that moves about, at the size of detection."""
    place, frames = random.uniform(0.2, 0.8, 2) * LARGE, []
    for screen in screens:
        place = np.clip(place + random.normal(0, 4, 2), 5, np.array(LARGE) - 15)
        x, y = (int(v) for v in place)
        shown = screen.copy()
        cv2.fillPoly(shown, [np.array([[x, y], [x + 9, y + 9], [x, y + 13]], np.int32)], (255, 255, 255))
        frames.append(cv2.resize(shown, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA))
    return np.stack(frames)


def _screen_recording(pool: Pool, random: Random) -> MadeSequence:
    screens: list[np.ndarray] = []
    boundaries: list[Span] = []
    for application in range(3):
        screen = _covering(pool.picture(random, "screen"), LARGE) if random.random() < 0.7 else _bare(random)
        if application:
            boundaries.append((len(screens), len(screens)))
        screens += [screen] * int(random.integers(15, 40))
        for _ in range(int(random.integers(2, 6))):
            screens += _screen_event(screens[-1], pool, random)
            screens += [screens[-1]] * int(random.integers(12, 40))
    return MadeSequence("screen recordings", _small(screens, random), 25.0, tuple(boundaries))


def _slide(pool: Pool, random: Random) -> list[np.ndarray]:
    """A slide as it is built up."""
    wide, high = LARGE
    dark = random.random() < 0.3
    ground = random.integers(0, 60, 3) if dark else random.integers(235, 256, 3)
    ink = tuple(int(v) for v in (random.integers(200, 256, 3) if dark else random.integers(0, 90, 3)))
    slide = np.empty((high, wide, 3), np.uint8)
    slide[:] = ground
    if random.random() < 0.5:
        slide[: int(0.16 * high)] = random.integers(0, 256, 3)
    cv2.putText(slide, _words(random, 4), (24, 36), FONT, 0.9, ink, 2, cv2.LINE_AA)
    built = [slide]
    left = bool(random.random() < 0.5)
    for line in range(int(random.integers(2, 6))):
        slide = slide.copy()
        cv2.putText(
            slide,
            "- " + _words(random, 5),
            (24 if left else wide // 2, 90 + 34 * line),
            FONT,
            0.55,
            ink,
            1,
            cv2.LINE_AA,
        )
        built.append(slide)
    if random.random() < 0.7:
        size = (int(wide * random.uniform(0.3, 0.45)), int(high * random.uniform(0.4, 0.65)))
        slide = slide.copy()
        x, y = (wide - size[0] - 16 if left else 16), high - size[1] - 14
        slide[y : y + size[1], x : x + size[0]] = _covering(pool.picture(random, "page", "scan", "photo"), size)
        built.append(slide)
    return built if random.random() < 0.6 else [built[-1]]


def _slides(pool: Pool, random: Random) -> MadeSequence:
    """Slides of different layouts, built up, with full pictures among them."""
    screens: list[np.ndarray] = []
    boundaries: list[Span] = []
    for number in range(5):
        if number:
            boundaries.append((len(screens), len(screens)))
        if number % 2 and random.random() < 0.6:
            screens += [_covering(pool.picture(random, "photo", "scan", "page"), LARGE)] * int(random.integers(25, 60))
            continue
        for slide in _slide(pool, random):
            screens += [slide] * int(random.integers(12, 40))
    return MadeSequence("slides", _small(screens, random), 25.0, tuple(boundaries))


def _glare(pool: Pool, random: Random) -> MadeSequence:
    """Endoscopy with glare, exposure, smoke, a lens against tissue, jerks; then another scene."""
    count = 180
    scope = camera(pool.picture(random, "endoscopy"), random, count, float(random.uniform(1.3, 2))).astype(np.float32)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    if random.random() < 0.4:
        scope *= (np.hypot(x - WIDTH / 2, y - HEIGHT / 2) < 0.52 * HEIGHT)[None, :, :, None]
    for start in (20, 70, 120):
        length, begin = int(random.integers(3, 35)), start + int(random.integers(0, 10))
        strength = np.minimum(
            1, np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1)) / random.choice([1, 2, 6])
        )
        what = random.choice(["glare", "exposure", "smoke", "tissue", "jerk"])
        middle = random.uniform(0.2, 0.8, 2) * (WIDTH, HEIGHT)
        blob = np.exp(-(((x - middle[0]) / 70) ** 2 + ((y - middle[1]) / 50) ** 2) * random.uniform(0.5, 2))[..., None]
        gain, shift = float(random.choice([0.45, 1.7, 2.5])), random.normal(0, 60, 2)
        for step in range(length):
            frame, much = scope[begin + step], strength[step]
            if what == "glare":
                frame += 400 * much * blob
            elif what == "exposure":
                frame *= 1 + (gain - 1) * much
            elif what == "smoke":
                frame += 0.85 * much * (cv2.GaussianBlur(blob, (0, 0), 9)[..., None] * 0.6 + 0.4) * (190 - frame)
            elif what == "tissue":
                near = cv2.GaussianBlur(frame, (0, 0), 1 + 25 * much)
                frame[:] = near * (1 - 0.4 * much) + 0.4 * much * np.array([60, 60, 190])
        if what == "jerk":  # the camera turns elsewhere, blurred
            steps = int(random.integers(3, 7))
            for step in range(begin, count):
                share = min(1.0, (step - begin + 1) / steps)
                matrix = np.array([[1, 0, shift[0] * share], [0, 1, shift[1] * share]])
                moved = cv2.warpAffine(scope[step], matrix, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT_101)
                scope[step] = cv2.blur(moved, (15, 3)) if share < 1 else moved
    scope = noisy(np.clip(scope, 0, 255).astype(np.uint8), random)
    return joined("glare in endoscopy", [scope, *filmed(pool, random, [50], ("photo", "people", "scan", "page"))])


def _decoder_errors(pool: Pool, random: Random) -> MadeSequence:
    """Cuts in a stream whose packets are damaged between them."""
    made = joined("decoder errors", filmed(pool, random, (75, 75, 75)))
    with tempfile.TemporaryDirectory(prefix="medgen-shots-") as scratch:
        path = Path(scratch) / "damaged.mkv"
        _write_damaged(path, made.frames, random)
        frames, times = [], []
        try:
            for picture in pictures(path, Limits()):
                frames.append(picture.frame.to_ndarray(format="bgr24", width=WIDTH, height=HEIGHT))
                times.append(picture.time_s)
        except ItemFailed:  # too much is broken: nothing is looked for in such a file
            return made
    cuts = [int(np.searchsorted(times, start / 25 - 0.02)) for start, _ in made.boundaries]
    return MadeSequence(made.kind, np.stack(frames), 25.0, tuple((cut, cut) for cut in cuts))


def _write_damaged(path: Path, frames: Frames, random: Random) -> None:
    """As H.264 with a key frame every three seconds and at cuts; a few stretches of its packets are overwritten."""
    hurt = {int(s) + i for s in (30, 105, 180) if random.random() < 0.8 for i in range(int(random.integers(1, 9)))}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", Fraction(25), options={"crf": "26", "preset": "veryfast", "g": "75", "bf": "0"}
        )
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = *CODED, "yuv420p"
        large = (cv2.resize(frame, CODED, interpolation=cv2.INTER_CUBIC) for frame in frames)
        packets = [
            p for f in large for p in stream.encode(VideoFrame.from_ndarray(f, format="bgr24"))
        ] + stream.encode()
        for number, packet in enumerate(packets):
            payload = bytearray(bytes(packet))
            if number in hurt and not packet.is_keyframe and len(payload) > 40:
                start = int(random.integers(12, max(13, len(payload) // 2)))
                payload[start:] = random.integers(0, 256, len(payload) - start, np.uint8).tobytes()
            copy = av.Packet(bytes(payload))
            copy.pts, copy.dts, copy.time_base, copy.stream = packet.pts, packet.dts, packet.time_base, stream
            copy.is_keyframe = packet.is_keyframe
            container.mux(copy)


def _low_frame_rate(pool: Pool, random: Random) -> MadeSequence:
    """As animated GIFs have: every fourth to sixth frame."""
    step = int(random.integers(4, 7))
    shots = [shot[::step] for shot in filmed(pool, random, (90, 90, 90))]
    return joined("low frame rates", shots, 25.0 / step)


def _plots(pool: Pool, random: Random) -> MadeSequence:
    """Curves, bars and maps that are drawn anew on the same axes; then another page."""
    wide, high = LARGE
    fps, kind = float(random.choice([10.0, 25.0])), random.choice(["curves", "bars", "map", "trace"])
    ground = np.full((high, wide, 3), int(random.choice([255, 255, 20])), np.uint8)
    ink = (30, 30, 30) if ground[0, 0, 0] else (220, 220, 220)
    cv2.rectangle(ground, (50, 25), (wide - 25, high - 35), ink, 1)
    for tick in range(6):
        cv2.putText(ground, f"{tick * 0.2:.1f}", (14, high - 40 - tick * 42), FONT, 0.35, ink, 1, cv2.LINE_AA)
        cv2.putText(ground, str(tick * 10), (50 + tick * 80, high - 16), FONT, 0.35, ink, 1, cv2.LINE_AA)
    phases, held = random.uniform(0, 6, 3), int(random.choice([1, 3, 8]))
    screens: list[np.ndarray] = []
    grid = random.uniform(0, 1, (9, 16))
    level, colours = random.uniform(0.2, 0.9, 12), random.integers(40, 220, (3, 3)).tolist()
    for step in range(100):
        if step % held:
            screens.append(screens[-1])
            continue
        shown = ground.copy()
        if kind == "curves":
            for curve, colour in enumerate(colours):
                at = np.arange(52, wide - 27)
                up = high / 2 + 80 * np.sin(at / 40 * (curve + 1) / 2 + phases[curve] + step * 0.15) * level[curve]
                cv2.polylines(shown, [np.stack([at, up], 1).astype(np.int32)], False, colour, 2, cv2.LINE_AA)
        elif kind == "bars":
            level = np.clip(level + random.normal(0, 0.05 * held, 12), 0.05, 1)
            for bar in range(12):
                x = 56 + bar * 36
                cv2.rectangle(shown, (x, int(high - 36 - 220 * level[bar])), (x + 26, high - 36), colours[bar % 3], -1)
        elif kind == "map":
            grid = np.clip(grid + random.normal(0, 0.12, grid.shape), 0, 1)
            large = cv2.resize((grid * 255).astype(np.uint8), (wide - 76, high - 61), interpolation=cv2.INTER_CUBIC)
            shown[26 : 26 + large.shape[0], 51 : 51 + large.shape[1]] = cv2.applyColorMap(large, cv2.COLORMAP_VIRIDIS)
        else:  # a monitor's trace that runs through
            at = np.arange(52, wide - 27)
            beat = ((at + 8 * step) % 90) / 90
            up = high / 2 - 90 * np.exp(-(((beat - 0.4) / 0.03) ** 2)) - 15 * np.exp(-(((beat - 0.65) / 0.07) ** 2))
            cv2.polylines(shown, [np.stack([at, up], 1).astype(np.int32)], False, (60, 200, 60), 2, cv2.LINE_AA)
        screens.append(shown)
    boundary = (len(screens), len(screens))
    screens += [_covering(pool.picture(random, "page", "screen", "photo"), LARGE)] * 30
    return MadeSequence("plots", _small(screens, random), fps, (boundary,))


KINDS: dict[str, Callable[[Pool, Random], MadeSequence]] = {
    "cuts": _cuts,
    "dissolves": _dissolves,
    "fades": _fades,
    "screen recordings": _screen_recording,
    "slides": _slides,
    "glare in endoscopy": _glare,
    "decoder errors": _decoder_errors,
    "low frame rates": _low_frame_rate,
    "plots": _plots,
}
