"""Clips with and without text laid over them: subtitles in many scripts, paragraphs, large words, watermarks, tickers;
small marks, text of devices and text that moves with the scene.

Letters need fonts: Noto's (Debian: fonts-noto-core and fonts-noto-cjk), installed or unpacked in a folder; without them
only the scripts of the machine's own fonts are drawn.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from matplotlib.font_manager import findSystemFonts
from PIL import Image, ImageDraw, ImageFont

from bench.made_borders import moved
from bench.picture_pool import Pool

Random = np.random.Generator
WIDTH, HEIGHT, FRAMES = 854, 480, 5
SENTENCES = {
    "en": "here the artery is clipped before the duct is divided and the gallbladder can be lifted from its bed",
    "de": "hier wird die Arterie geklippt bevor der Gang durchtrennt und die Gallenblase aus ihrem Bett gelöst wird",
    "fr": "ici on place un clip sur l'artère avant de couper le canal et de décoller la vésicule de son lit",
    "es": "aquí se coloca un clip en la arteria antes de cortar el conducto y separar la vesícula de su lecho",
    "pt": "aqui colocamos um clipe na artéria antes de cortar o ducto e soltar a vesícula do seu leito",
    "ru": "здесь артерию клипируют прежде чем пересечь проток и отделить желчный пузырь от его ложа",
    "ar": "هنا يتم وضع مشبك على الشريان قبل قطع القناة ثم يتم فصل المرارة عن سرير الكبد بعناية",
    "hi": "यहाँ धमनी पर क्लिप लगाई जाती है फिर नली को काटा जाता है और पित्ताशय को अलग किया जाता है",
    "th": "ตรงนี้ หนีบ หลอดเลือดแดง ก่อน ตัด ท่อน้ำดี แล้ว เลาะ ถุงน้ำดี ออกจาก ตับ อย่าง ระมัดระวัง",
    "zh": "这里先夹闭动脉 然后切断胆囊管 再将胆囊从肝床上分离出来 注意保护胆总管",
    "ja": "ここで動脈にクリップをかけ 次に胆嚢管を切離し 胆嚢を肝床から剥離します",
}
FILES = {
    "ar": ("NotoSansArabic-Bold.ttf", "NotoSansArabic-Regular.ttf"),
    "hi": ("NotoSansDevanagari-Bold.ttf", "NotoSansDevanagari-Regular.ttf"),
    "th": ("NotoSansThai-Bold.ttf", "NotoSansThai-Regular.ttf"),
    "zh": ("NotoSansCJK-Bold.ttc", "NotoSansCJK-Regular.ttc"),
    "ja": ("NotoSansCJK-Bold.ttc", "NotoSansCJK-Regular.ttc"),
}
LATIN = ("NotoSans-Bold.ttf", "NotoSans-Regular.ttf", "DejaVuSans-Bold.ttf", "DejaVuSans.ttf")
GROUNDS = ("photo", "people", "scan", "endoscopy")


@dataclass(frozen=True)
class MadeText:
    """Five frames of a clip, uint8 RGB (480, 854, 3), and whether it has so much text that it is to be dropped."""

    kind: str
    frames: list[np.ndarray]
    heavy: bool


@dataclass(frozen=True)
class Writer:
    """Draws words with font files, by their names."""

    fonts: Mapping[str, Path]
    random: Random

    def languages(self) -> list[str]:
        """Those that can be written."""
        return [language for language in SENTENCES if self._files(language)]

    def words(self, language: str, count: int) -> str:
        """So many words in a row of the language's sentence."""
        words = SENTENCES[language].split()
        start = int(self.random.integers(max(1, len(words) - count + 1)))
        return " ".join(words[start : start + count])

    def font(self, language: str, size: int) -> ImageFont.FreeTypeFont:
        """One of the language's fonts."""
        files = self._files(language)
        return ImageFont.truetype(str(files[int(self.random.integers(len(files)))]), size)

    def _files(self, language: str) -> list[Path]:
        return [self.fonts[name] for name in FILES.get(language, LATIN) if name in self.fonts]


def font_files(folder: Path) -> dict[str, Path]:
    """Font files by name: those of the machine, and those below a folder, which need not exist."""
    files = [*map(Path, findSystemFonts()), *(path for path in folder.rglob("*.tt[fc]"))]
    return {path.name: path for path in sorted(files)}


def made_texts(pool: Pool, fonts: Path, count: int, seed: int) -> Iterator[MadeText]:
    """So many clips of each kind; the same for the same pool, fonts and seed. `fonts` is as in `font_files`."""
    files = font_files(fonts)
    for kind, (make, heavy) in _kinds(Writer(files, np.random.default_rng(0)).languages()).items():
        for number in range(count):
            random = np.random.default_rng([seed, sum(kind.encode()), number])
            frames = make(pool, Writer(files, random))
            quality = int(random.integers(70, 92))
            yield MadeText(kind, [_compressed(frame, quality) for frame in frames], heavy)


def _compressed(frame: np.ndarray, quality: int) -> np.ndarray:
    decoded = cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded


def _ground(pool: Pool, random: Random) -> list[np.ndarray]:
    """A clip without text, RGB: what was found as a picture moves under a camera."""
    drift = float(random.choice([4.0, 20.0]))
    frames = moved(pool.picture(random, *GROUNDS), (WIDTH, HEIGHT), random, drift)
    return [cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) for frame in frames[:FRAMES]]


def _drawn(
    frame: np.ndarray, text: str, font: ImageFont.FreeTypeFont, place: tuple[float, float], opacity: float = 1.0,
    colour: tuple[int, int, int] = (255, 255, 255), edge: int = 2, panel: bool = False,
) -> np.ndarray:  # fmt: skip
    """The frame with a line whose middle is at the place (share of the width and height)."""
    layer = Image.new("RGBA", (frame.shape[1], frame.shape[0]))
    draw = ImageDraw.Draw(layer)
    middle = (place[0] * frame.shape[1], place[1] * frame.shape[0])
    alpha = round(255 * opacity)
    if panel:
        left, top, right, bottom = draw.textbbox(middle, text, font=font, anchor="mm")
        draw.rectangle((left - 8, top - 6, right + 8, bottom + 6), fill=(0, 0, 0, 190))
    ink, outline = (*colour, alpha), (0, 0, 0, alpha)
    draw.text(middle, text, font=font, anchor="mm", fill=ink, stroke_width=edge, stroke_fill=outline)
    return np.asarray(Image.alpha_composite(Image.fromarray(frame).convert("RGBA"), layer).convert("RGB"))


def _subtitles(language: str) -> Callable[[Pool, Writer], list[np.ndarray]]:
    def make(pool: Pool, writer: Writer) -> list[np.ndarray]:
        random = writer.random
        size, panel = int(random.integers(20, 34)), bool(random.random() < 0.4)
        font, colour = writer.font(language, size), tuple(random.choice([(255, 255, 255), (255, 235, 60)]))
        frames, line = [], ""
        for number, frame in enumerate(_ground(pool, random)):
            if number == 0 or random.random() < 0.6:
                line = writer.words(language, {"zh": 2, "ja": 2}.get(language, 7))
            frames.append(_drawn(frame, line, font, (0.5, 0.9), colour=colour, panel=panel))
        return frames

    return make


def _paragraph(language: str) -> Callable[[Pool, Writer], list[np.ndarray]]:
    def make(pool: Pool, writer: Writer) -> list[np.ndarray]:
        frames, font = _ground(pool, writer.random), writer.font(language, int(writer.random.integers(20, 30)))
        for line in range(4):
            text = writer.words(language, {"zh": 2, "ja": 2}.get(language, 5))
            frames = [_drawn(frame, text, font, (0.5, 0.3 + 0.11 * line), panel=True) for frame in frames]
        return frames

    return make


def _large_word(pool: Pool, writer: Writer) -> list[np.ndarray]:
    """One or two words that fill a good part of the picture."""
    random = writer.random
    words = ["Anatomy", "SUTURE", "Herz", "Knee", "ECG", "Lunge", "STEP 1", "Day 2", "Chirurgie", "Corazón", "INTRO"]
    text = words[int(random.integers(len(words)))]
    frames, size = _ground(pool, random), int(random.integers(110, 240))
    font = writer.font("en", min(size, int(1.5 * 0.85 * WIDTH / len(text))))
    colour = tuple(int(v) for v in random.choice([(255, 255, 255), (250, 220, 40), (20, 20, 20), (200, 30, 40)]))
    edge, place = int(random.choice([0, 4])), (0.5, float(random.uniform(0.35, 0.65)))
    return [_drawn(frame, text, font, place, colour=colour, edge=edge) for frame in frames]  # type: ignore[arg-type]


def _watermark(pool: Pool, writer: Writer) -> list[np.ndarray]:
    """Translucent, across the picture or all over it."""
    random = writer.random
    frames, opacity = _ground(pool, random), float(random.uniform(0.2, 0.5))
    text = str(random.choice(["www.medvideo.example", "SAMPLE COPY", "© Atlas Images", "PREVIEW"]))
    colour = (255, 255, 255)
    if random.random() < 0.5:
        font = writer.font("en", int(random.integers(60, 95)) if len(text) < 14 else 55)
        return [_drawn(frame, text, font, (0.5, 0.5), opacity, colour, 0) for frame in frames]
    font = writer.font("en", int(random.integers(24, 32)))
    for row in range(4):
        for column in range(2):
            place = (0.27 + 0.46 * column, 0.14 + 0.24 * row)
            frames = [_drawn(frame, text, font, place, opacity, colour, 0) for frame in frames]
    return frames


def _ticker(language: str) -> Callable[[Pool, Writer], list[np.ndarray]]:
    def make(pool: Pool, writer: Writer) -> list[np.ndarray]:
        random, text = writer.random, SENTENCES[language] + "  +++  " + SENTENCES[language]
        font, speed = writer.font(language, int(random.integers(18, 28))), float(random.uniform(0.1, 0.35))
        frames = []
        for number, frame in enumerate(_ground(pool, random)):
            band = frame.copy()
            band[int(0.92 * HEIGHT) :] = (20, 20, 110)
            frames.append(_drawn(band, text, font, (1.1 - speed * number, 0.96), edge=0))
        return frames

    return make


def _plain(pool: Pool, writer: Writer) -> list[np.ndarray]:
    return _ground(pool, writer.random)


def _corner_mark(pool: Pool, writer: Writer) -> list[np.ndarray]:
    """A small name in a corner."""
    font, text = (
        writer.font("en", int(writer.random.integers(14, 22))),
        str(writer.random.choice(["MedTV", "CC BY", "NHS"])),
    )
    return [_drawn(frame, text, font, (0.93, 0.06), 0.8, edge=0) for frame in _ground(pool, writer.random)]


def _scene_words(pool: Pool, writer: Writer) -> list[np.ndarray]:
    """Words on something that is filmed: tilted, soft, moving with the picture."""
    random = writer.random
    picture = pool.picture(random, "photo", "people")
    large = cv2.resize(picture, (WIDTH, HEIGHT))
    for _ in range(3):
        text = writer.words("en", 3)
        place = tuple(random.uniform(0.3, 0.7, 2))
        large = _drawn(large, text, writer.font("en", int(random.integers(16, 30))), place, edge=0)
    turned = cv2.warpAffine(
        large, cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), float(random.uniform(8, 20)), 1.3), (WIDTH, HEIGHT)
    )
    frames = moved(cv2.GaussianBlur(turned, (0, 0), 1.2), (WIDTH, HEIGHT), random, 40.0)
    return [cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) for frame in frames[:FRAMES]]


def _device(pool: Pool, writer: Writer) -> list[np.ndarray]:
    """A scan whose device writes at its margins."""
    random, frames = writer.random, []
    font = writer.font("en", 15)
    for inner in moved(pool.picture(random, "scan"), (460, 400), random, 6.0)[:FRAMES]:
        frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        frame[40:440, 200:660] = inner
        lines = ("Gain 52 dB", "Depth 16.0 cm", "FR 32 Hz", "MI 1.1  TIS 0.6", "HR 72 bpm", "12:41:07", "C 60", "P Low")
        for number, line in enumerate(lines):
            frame = _drawn(frame, line, font, (0.1 if number < 5 else 0.9, 0.15 + 0.07 * (number % 5)), edge=0)
        frames.append(frame)
    return frames


Kind = tuple[Callable[[Pool, Writer], list[np.ndarray]], bool]


def _kinds(languages: list[str]) -> dict[str, Kind]:
    kinds: dict[str, Kind] = {f"subtitles, {language}": (_subtitles(language), True) for language in languages}
    kinds |= {f"paragraph, {one}": (_paragraph(one), True) for one in ("en", "ar", "hi", "th") if one in languages}
    kinds |= {f"ticker, {one}": (_ticker(one), True) for one in ("en", "hi", "ru") if one in languages}
    return kinds | {
        "large word": (_large_word, True),
        "watermark": (_watermark, True),
        "no text": (_plain, False),
        "mark in a corner": (_corner_mark, False),
        "words in the scene": (_scene_words, False),
        "device": (_device, False),
    }
