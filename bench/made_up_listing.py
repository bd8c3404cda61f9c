"""Listings made up by rule: rows whose titles the dictionary and the text classifier take for medical, and others.

Of a file's rows every k-th is a video that discover keeps; the rest name no medical term, or too weak ones, or are
about something else by their meaning.
"""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

PROCEDURES = (
    "laparoscopic cholecystectomy", "transthoracic echocardiography", "phacoemulsification cataract surgery",
    "colonoscopic polypectomy", "ultrasound guided nerve block", "knee arthroscopy", "coronary angiography",
    "total thyroidectomy", "diagnostic hysteroscopy", "craniotomy for meningioma", "mitral valve repair surgery",
    "endotracheal intubation",
)  # fmt: skip
VIEWS = ("step by step", "in real time", "with commentary", "for residents", "live from theatre", "narrated")
OTHERS = (
    "sourdough bread for beginners", "ten best goals of the season", "fixing a bicycle chain", "a week in Lisbon",
    "guitar lesson: blues in E", "heart broken by my team", "trauma center gameplay walkthrough",
    "pneumonia hardcore band live concert",
)  # fmt: skip
LICENCES = ("Creative Commons Attribution", "CC0", "YouTube", "All rights reserved")
LICENCE_SHARES = (0.3, 0.08, 0.6, 0.02)
ALLOWED_LICENCES = ("Creative Commons*", "CC0", "YouTube")
TOO_SHORT, TOO_LONG = 0.005, 0.002  # shares of videos by their duration
CHANNEL_VIDEOS = 14  # of a channel in the mean: the paper's 140,000 videos are of some 10,000 channels
DESCRIPTION_WORDS = 40
WORDS = (
    "the", "patient", "is", "placed", "under", "anaesthesia", "and", "camera", "enters", "through", "a", "small",
    "port", "we", "see", "tissue", "which", "surgeon", "holds", "with", "forceps", "then", "cuts", "closes", "wound",
    "after", "team", "checks", "for", "bleeding",
)  # fmt: skip


def video_url(number: int) -> str:
    """The address of a video that discover keeps."""
    return f"https://videos.example/watch/{number}"


def write_listing(path: Path, first: int, videos: int, *, rows_per_video: int, seed: int) -> None:
    """Writes a Parquet file with the rows of videos `first` .. `first + videos`, and the others between them.

    Args:
        rows_per_video: rows of the file for each video that discover keeps, at least 1.
    """
    rows = []
    for number in range(first, first + videos):
        chance = random.Random(f"{seed} listing {number}")
        rows.append(_video(number, chance))
        rows += [_other(number, other, chance) for other in range(1, rows_per_video)]
    path.parent.mkdir(parents=True, exist_ok=True)
    making = path.with_name(f".{path.name}.making")
    pq.write_table(pa.Table.from_pylist(rows), making, compression="zstd")
    making.rename(path)


def _video(number: int, chance: random.Random) -> dict[str, object]:
    procedure, view = chance.choice(PROCEDURES), chance.choice(VIEWS)
    words = " ".join(chance.choices(WORDS, k=DESCRIPTION_WORDS))
    kind = chance.random()
    seconds = chance.uniform(20, 900)
    if kind < TOO_SHORT:
        seconds = chance.uniform(1, 5)
    elif kind < TOO_SHORT + TOO_LONG:
        seconds = chance.uniform(5, 9) * 3600
    return _row(
        video_url(number),
        f"{procedure.capitalize()} {view}, case {number}",
        f"A surgeon shows {procedure} {view}: {words}.",
        seconds,
        chance,
    )


def _other(number: int, other: int, chance: random.Random) -> dict[str, object]:
    title = f"{chance.choice(OTHERS)}, part {number}"
    return _row(f"https://videos.example/other/{number}-{other}", title, "", chance.uniform(20, 900), chance)


def _row(url: str, title: str, description: str, seconds: float, chance: random.Random) -> dict[str, object]:
    channel = int(url.rpartition("/")[2].partition("-")[0]) // CHANNEL_VIDEOS
    return {
        "url": url,
        "title": title,
        "description": description,
        "tags": title.split(" ")[:2],
        "channel": f"channel {channel}",
        "channel_url": f"https://videos.example/channel/{channel}",
        "licence": chance.choices(LICENCES, LICENCE_SHARES)[0],
        "published": f"20{chance.randrange(10, 25)}-{chance.randrange(1, 13):02}-{chance.randrange(1, 29):02}",
        "duration": round(seconds, 1),
        "id": url.rpartition("/")[2],
    }
