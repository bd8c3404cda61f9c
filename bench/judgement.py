"""Writes docs/judgement.md: per question the methods tried, how often they are right, what they cost, the choice.

    python -m bench.judgement FOLDER [--out docs/judgement.md] [--only captions]

FOLDER holds labelled videos, see `medgen judge --help`; labelled pictures in a folder `frames` beside it are judged
with them where frames are. One thread; costs are processor time where a method runs alone.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector, ContentDetector

from apps.judge.folder import measure_all
from apps.judge.labels import Label, read_labels
from apps.judge.measure import JudgeParameters, measure_file
from apps.judge.score import Answer, score
from bench import (
    judge_borders_text,
    judge_captions,
    judge_duplicates,
    judge_frames,
    judge_listings,
    judge_privacy,
    judge_quality,
    judge_shots,
)
from bench.curate import make_video
from bench.smallest import labelled_folder
from medgen.errors import ItemFailed
from medgen.video.limits import Limits
from medgen.video.pictures import pictures
from models.segmentation.shots import ShotDetector

WIDTH = 256
CLIP_S = 10.0
NEAR_S = 0.25  # a cut found this near to a labelled one is that one

Method = Callable[[Sequence[np.ndarray], float], list[int]]


@dataclass(frozen=True)
class Section:
    """A part of the page: its heading, and its paragraphs for (labelled videos, seconds of the clip to time)."""

    heading: str
    paragraphs: Callable[[Path, float], Iterable[str]]


def main(
    folder: Annotated[Path | None, typer.Argument(help="Folder of videos with a MANIFEST.csv of labels.")] = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("docs/judgement.md"),
    only: Annotated[list[str] | None, typer.Option(help="Measure this section alone; the others stay.")] = None,
    smoke: Annotated[bool, typer.Option(help="Only see whether it runs, on the smallest input.")] = False,
) -> None:
    """Measures all questions, or some, and writes the tables."""
    os.environ["OMP_NUM_THREADS"] = os.environ["OMP_THREAD_LIMIT"] = os.environ["MEDGEN_WORKERS"] = "1"
    cv2.setNumThreads(1)
    if unknown := set(only or ()) - set(SECTIONS):
        raise typer.BadParameter(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    if smoke:
        with tempfile.TemporaryDirectory(prefix="medgen-judgement-") as scratch:
            smallest = labelled_folder(Path(scratch))
            for name in only or SECTIONS:
                typer.echo("\n\n".join(SECTIONS[name].paragraphs(smallest, 1.0)))
        return
    if folder is None:
        raise typer.BadParameter("name a folder of labelled videos, or --smoke")
    page = sections_of(out.read_text(encoding="utf-8")) if only and out.exists() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    for name in only or SECTIONS:
        section = SECTIONS[name]
        page[section.heading] = "\n\n".join(section.paragraphs(folder, CLIP_S))
        out.write_text(page_of(page), encoding="utf-8")  # a section takes minutes, all of them an hour
        typer.echo(f"written: {section.heading}, in {out}")


def sections_of(page: str) -> dict[str, str]:
    """Heading → text of each section of a written page."""
    parts = ("\n" + page).split("\n## ")[1:]
    return {heading: text.strip() for heading, _, text in (part.partition("\n") for part in parts)}


def page_of(sections: Mapping[str, str]) -> str:
    """The page, its sections in their order; those that are no longer measured are left out."""
    headings = [section.heading for section in SECTIONS.values() if section.heading in sections]
    return "\n\n".join([TOP, *(f"## {heading}\n\n{sections[heading]}" for heading in headings)]) + "\n"


def _product(folder: Path, clip_s: float) -> list[str]:
    labels = read_labels(folder)
    verdicts, _ = measure_all(folder, labels, JudgeParameters(), lambda: None)
    seconds = sum(verdict.duration_s for verdict in verdicts.values())
    spent: dict[str, float] = {}
    for verdict in verdicts.values():
        for name, value in verdict.seconds.items():
            spent[name] = spent.get(name, 0.0) + value
    return [
        "\n".join(_answers(score(labels, verdicts))),
        f"Processor seconds per 10 s of video (one thread, {seconds:.0f} s of video, all sizes): "
        + ", ".join(f"{name} {10 * value / seconds:.2f}" for name, value in spent.items())
        + f"; together {10 * sum(spent.values()) / seconds:.2f}.",
        _clip_cost(clip_s),
    ]


def _borders_text(folder: Path, _: float) -> list[str]:
    videos = judge_borders_text.load_videos(folder)
    rows = [judge_borders_text.HEAD]
    rows += [
        row.markdown()
        for method in (judge_borders_text.border_rows, judge_borders_text.text_rows)
        for row in method(videos)
    ]
    return ["\n".join(rows), "The choice is the product's own method of each question: it is right most often."]


def _clip_cost(seconds: float) -> str:
    """What all judgements of one clip cost, models loaded."""
    with tempfile.TemporaryDirectory(prefix="medgen-judgement-") as scratch:
        clip = Path(scratch) / "clip.mp4"
        make_video(clip, seconds)
        measure_file(clip, JudgeParameters())  # loads the models
        started = time.process_time()
        measure_file(clip, JudgeParameters())
        return (
            f"A clip of {seconds:.0f} s at 1280x720 costs {time.process_time() - started:.1f} processor seconds in all."
        )


def _answers(answers: Iterable[Answer]) -> Iterator[str]:
    yield "| question | precision | recall | F1 | balanced accuracy | misjudged |"
    yield "|---|---|---|---|---|---|"
    for answer in answers:
        names = ", ".join(sorted({mistake.file for mistake in answer.mistakes}))
        figures = (answer.precision, answer.recall, answer.f1, answer.balanced_accuracy)
        cells = ["–" if value is None else f"{value:.3f}" for value in figures]
        yield "| " + " | ".join([answer.question, *cells, names]) + " |"


def _shots(folder: Path, labels: Sequence[Label]) -> Iterator[str]:
    """Hard cuts of the videos whose every cut is labelled with its time."""
    methods: dict[str, Method] = {
        "PySceneDetect content, its defaults": _detector(lambda: ContentDetector(min_scene_len=1)),
        "PySceneDetect adaptive, its defaults": _detector(lambda: AdaptiveDetector(min_scene_len=1)),
        "structure under the adaptive rule": lambda frames, fps: _ours(frames, fps, gradual=False),
        "the same, with TransNetV2 for dissolves": lambda frames, fps: _ours(frames, fps, gradual=True),
    }
    found = dict.fromkeys(methods, (0, 0, 0))
    cost, total = dict.fromkeys(methods, 0.0), 0
    for label in labels:
        if label.cuts is None or not label.cuts.complete or label.cuts.spans:
            continue
        try:
            frames, times = _frames(folder / label.file)
        except ItemFailed:
            continue
        total += len(frames)
        fps = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else 25.0
        for name, method in methods.items():
            started = time.process_time()
            cuts = [times[frame] - times[0] for frame in method(frames, fps)]
            cost[name] += time.process_time() - started
            spans = [(begin - NEAR_S, end + NEAR_S) for begin, end in label.cuts.gradual]
            cuts = [cut for cut in cuts if not any(begin <= cut <= end for begin, end in spans)]
            right = sum(any(abs(cut - known) <= NEAR_S for cut in cuts) for known in label.cuts.moments)
            wrong = sum(all(abs(cut - known) > NEAR_S for known in label.cuts.moments) for cut in cuts)
            before = found[name]
            found[name] = (before[0] + right, before[1] + wrong, before[2] + len(label.cuts.moments) - right)
    yield "| method | right | wrongly found | missed | precision | recall | CPU ms a frame |"
    yield "|---|---|---|---|---|---|---|"
    for name, (right, wrong, missed) in found.items():
        precision, recall = right / max(1, right + wrong), right / max(1, right + missed)
        yield (
            f"| {name} | {right} | {wrong} | {missed} | {precision:.2f} | {recall:.2f} "
            f"| {1000 * cost[name] / max(1, total):.2f} |"
        )


def _frames(path: Path) -> tuple[list[np.ndarray], list[float]]:
    """uint8 BGR (h, 256, 3) frames and their times, seconds. Raises ItemFailed."""
    frames, times = [], []
    for picture in pictures(path, Limits()):
        height = max(2, round(picture.frame.height * WIDTH / picture.frame.width))
        frames.append(picture.frame.to_ndarray(format="bgr24", width=WIDTH, height=height))
        times.append(picture.time_s)
    return frames, times


def _made(folder: Path) -> Iterator[str]:
    """On clips made from the pictures in a folder `frames` beside the videos.

    Half of their sources were in view when thresholds were chosen, the other half was kept aside. More fonts are looked
    for in a folder `fonts` beside.
    """
    beside = folder.parent / "frames"
    if not (beside / "MANIFEST.csv").is_file():
        yield "Not measured: no folder of pictures beside the videos."
        return
    yield "Shots. Sources of the tuning part were in view when thresholds were chosen, those held out were not."
    yield from judge_shots.tables(beside, folder)
    yield "Borders."
    yield from judge_borders_text.made_border_tables(beside)
    yield "Overlay text."
    yield judge_borders_text.made_text_table(beside, folder.parent / "fonts")
    yield "Faces, on pictures that were looked at; detectors and scores were chosen with them in view."
    yield "\n".join(judge_privacy.labelled_faces(beside))


def _detector(make: Callable[[], ContentDetector]) -> Method:
    def run(frames: Sequence[np.ndarray], fps: float) -> list[int]:
        detector, cuts = make(), []
        shape = frames[0].shape
        for index, frame in enumerate(frames):
            same = frame if frame.shape == shape else cv2.resize(frame, shape[1::-1])
            cuts += [cut.frame_num for cut in detector.process_frame(FrameTimecode(index, float(fps)), same)]
        return cuts

    return run


def _ours(frames: Sequence[np.ndarray], fps: float, *, gradual: bool) -> list[int]:
    detector = ShotDetector(fps, gradual=gradual)
    for index, frame in enumerate(frames):
        detector.process_frame(index, frame)
    return [boundary.frame for boundary in detector.boundaries() if boundary.kind == "cut"]


TOP = """# How right the verdicts are

Written by `python -m bench.judgement` from a folder of hand-labelled videos; nothing here is typed.
The figures are for that folder: thresholds were chosen with it in view, so expect less elsewhere.
The frame judge alone is measured on sources that its head never saw."""
SECTIONS = {
    "product": Section("The product as it is", _product),
    "shots": Section(
        "Shots: methods",
        lambda folder, _: (
            "\n".join(_shots(folder, read_labels(folder))),
            "The last one is the choice: what it finds beyond the labels are real changes of picture, and it\n"
            "alone finds dissolves.",
        ),
    ),
    "frames": Section(
        "Medical frames and categories",
        lambda folder, _: judge_frames.paragraphs(folder, judge_frames.pictures_beside(folder)),
    ),
    "borders-text": Section("Borders and overlay text: methods", _borders_text),
    "made": Section("Made clips: shots, borders, overlay text, faces", lambda folder, _: _made(folder)),
    "quality": Section("Quality: measures", lambda folder, _: (judge_quality.table(folder),)),
    "duplicates": Section(
        "Duplicates: methods",
        lambda folder, _: (
            "\n".join(judge_duplicates.table(folder)),
            "Copies of the labelled videos, made for this. The last one is the choice.",
            "Which of two copies is the better one? Told is how often the original beats a copy of it; where it is as\n"
            "good either may stay. Both went through the encoding of clips. The last one is the choice.",
            "\n".join(judge_duplicates.best_copies(folder)),
            "Text that somebody laid over a copy counts against it before any detail does. Added noise and sharpening\n"
            "pass for detail.",
        ),
    ),
    "privacy": Section(
        "Privacy: methods",
        lambda folder, _: (
            *judge_privacy.tables(folder),
            "Lines and a face were drawn into the middle picture of each video; people in the videos\n"
            "themselves are not labelled. The choices are rapidocr with rules, and the higher score.",
        ),
    ),
    "listings": Section("Listings: languages", lambda *_: judge_listings.paragraphs()),
    "captions": Section("Captions: checks", lambda *_: judge_captions.paragraphs()),
}

if __name__ == "__main__":
    typer.run(main)
