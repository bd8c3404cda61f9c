"""Compose: the chosen shots become one video with titles, the mark that it is synthetic, and subtitles.

Each shot is shown as it was made; its last frame stands until the narration can be read. What no person approved
says so in the picture, all the time.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TypedDict

import cv2
import numpy as np
from pydantic import Field

from medgen import __version__
from medgen.canonical import canonical_json, rounded
from medgen.errors import ItemFailed
from medgen.handover import Handover
from medgen.ledger import Outcome, StepIdentity, Work
from medgen.parameters import Parameters
from medgen.shard import ShardResult, Step
from medgen.store import Store
from medgen.video.encoding import bt709_frames, h264_file
from medgen.video.lettering import blended, fonts_digest
from medgen.video.limits import Limits
from medgen.video.pictures import pictures
from models.storyboards.storyboard import Storyboard
from tasks.creation.cards import Cards, Segment
from tasks.creation.on_record import Content, Creation
from tasks.creation.subtitles import written_subtitles
from tasks.prefect_step import run_in_prefect, step_task

STEP = "compose"
VERSION = 1
CRF, PRESET = 18, "medium"
LIMIT_S = 1800.0


class ComposeParams(Parameters):
    """Parameters of the composed video."""

    least_height: int = Field(
        480, ge=64, le=4320, description="Height in pixels up to which smaller shots are enlarged, for the words' sake."
    )


class ComposeDetail(TypedDict):
    """Detail of a kept record.

    Args:
        seconds: length; `fps`, `width`, `height` of the file.
        unwritten: words that no font had the letters of, so that they stand in the subtitles only.
    """

    approved: bool
    seconds: float
    fps: float
    width: int
    height: int
    cues: int
    unwritten: list[str]


class ComposeOutputs(TypedDict):
    """Outputs of a kept record, role → sha256."""

    video: str
    subtitles: str


COMPOSE: Handover[ComposeDetail, ComposeOutputs] = Handover(STEP)


def compose_work(creation: Creation, approved: bool, parents: Mapping[str, int]) -> Work:
    """What compose sees of a creation.

    Args:
        approved: whether a person approved it; the draft of one that nobody did says so.
        parents: role → id of a record behind it.
    """
    shots = {f"shot-{row['place']:04}": row["chosen"]["sha256"] for row in creation.content["shots"] if row["chosen"]}
    inputs = {"content": creation.record.outputs["content"], **shots}
    return Work(creation.name, inputs, {"approved": approved}, {"create": creation.record.id, **parents})


def compose(work: Work, store: Store, params: ComposeParams) -> Outcome:
    """Puts a creation together. Outputs: `video` (MP4, H.264, no sound) and `subtitles` (WebVTT).

    Raises:
        ItemFailed: no_font when the mark can't be written; as `medgen.video.pictures.pictures`.
    """
    content = _content(store, work.inputs["content"])
    board = Storyboard.model_validate(content["storyboard"])
    shots = {
        row["place"]: store.path(work.inputs[f"shot-{row['place']:04}"]) for row in content["shots"] if row["chosen"]
    }
    size, fps = _format(list(shots.values()), params.least_height)
    marks = [board.synthetic] if work.context["approved"] else [board.synthetic, board.draft]
    drawn = Cards(board, size, marks)
    segments = [drawn.opening(), *(drawn.shot(place, path) for place, path in shots.items()), drawn.closing()]
    path, lengths = store.scratch(".mp4"), list[float]()
    record = {
        "generator": "medgen", "medgen": __version__, "synthetic": True, "model": content["model"]["digest"],
        "model_name": content["model"]["name"], "use": board.use, "topic": board.topic, "creation": work.subject,
        "approved": work.context["approved"],
    }  # fmt: skip
    with h264_file(path, size, 1 / Fraction(fps).limit_denominator(1001), crf=CRF, preset=PRESET) as file:
        file.container.metadata["comment"] = canonical_json(record).decode()
        count = 0
        for frame in bt709_frames(_frames(segments, size, fps, lengths)):
            file.add(frame, count)
            count += 1
        file.end(count)
    subtitles, cues = written_subtitles([segment.text for segment in segments], lengths, board.language)
    detail: ComposeDetail = {
        "approved": work.context["approved"], "seconds": rounded(count / fps, 3), "fps": fps, "width": size[0],
        "height": size[1], "cues": cues, "unwritten": drawn.unwritten,
    }  # fmt: skip
    return Outcome(
        "kept",
        detail=dict(detail),
        outputs={
            "video": store.put_file(path, "video/mp4"),
            "subtitles": store.put_bytes(subtitles.encode(), "text/vtt"),
        },
        decodes=len(shots),
    )


def _content(store: Store, sha256: str) -> Content:
    content: Content = json.loads(store.read(sha256))
    return content


def _format(shots: Sequence[Path], least_height: int) -> tuple[tuple[int, int], float]:
    """(width, height), both even, and frames per second of the whole: those of the largest and the fastest shot."""
    width = height = 0
    fps = 0.0
    for path in shots:
        first, second = _first_two(path)
        if first.shape[0] * first.shape[1] > width * height:
            height, width = first.shape[:2]
        fps = max(fps, second)
    scale = max(1.0, least_height / height)
    return (2 * round(width * scale / 2), 2 * round(height * scale / 2)), fps


def _first_two(path: Path) -> tuple[np.ndarray, float]:
    """The first frame of a video and its frames per second; 8 of one that has a single frame."""
    times, frame = [], None
    for picture in pictures(path, Limits()):
        frame = picture.rgb() if frame is None else frame
        times.append(picture.time_s)
        if len(times) == 9:
            break
    if frame is None:
        raise ItemFailed("undecodable", f"{path.name}: not one frame could be decoded")
    return frame, rounded((len(times) - 1) / times[-1], 3) if len(times) > 1 else 8.0


def _frames(
    segments: Sequence[Segment], size: tuple[int, int], fps: float, lengths: list[float]
) -> Iterator[np.ndarray]:
    """All frames, uint8 RGB; the seconds of each segment join `lengths`."""
    for segment in segments:
        least, count = round(segment.least_s * fps), 0
        frame = np.asarray(segment.over.convert("RGB"))
        if segment.shot is not None:
            for shown in _paced(segment.shot, size, fps):
                frame = blended(shown, segment.over)
                count += 1
                yield frame
        for _ in range(least - count):
            count += 1
            yield frame
        lengths.append(count / fps)


def _paced(path: Path, size: tuple[int, int], fps: float) -> Iterator[np.ndarray]:
    """A shot's frames at a rate and size: enlarged evenly, with bars where its shape is another one."""
    count, held = 0, None
    for picture in pictures(path, Limits()):
        while held is not None and count / fps < picture.time_s - 1e-6:
            count += 1
            yield held
        held = _fitted(picture.rgb(), size)
    if held is not None:
        yield held


def _fitted(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = frame.shape[:2]
    scale = min(size[0] / width, size[1] / height)
    inner = (round(width * scale), round(height * scale))
    grown = cv2.resize(frame, inner, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)
    if inner == size:
        return grown
    whole = np.zeros((size[1], size[0], 3), np.uint8)
    left, top = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    whole[top : top + inner[1], left : left + inner[0]] = grown
    return whole


def step(params: ComposeParams) -> Step:
    """Compose, ready to run."""
    identity = StepIdentity(STEP, VERSION, params.model_dump(mode="json"), {"fonts": fonts_digest()})
    return Step(identity, partial(compose, params=params), time_limit_s=LIMIT_S)


@step_task(STEP, "cpu")
def compose_shard(
    label: str, works: Sequence[Work], params: ComposeParams, retry_quarantined: bool = False
) -> ShardResult:
    """Puts creations together."""
    return run_in_prefect(step(params), works, retry_quarantined=retry_quarantined)
