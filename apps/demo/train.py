"""The second half of `medgen demo --train`: from a release of scans to a small model, and what the model is worth.

The training part of the demo's corpus knows of each video which class of scans it shows. The classes name the prompts,
so that the evaluation can ask whether a generated video looks like the class that was asked for, and the augmentation
experiment has labels.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.demo.training_part import TRAINING_CLASSES, training_titles
from medgen.ledger import open_ledger
from tasks.training.released import ReleasedClip, released_clips

SEEDS = 5
FOLDS = 3
RATIOS = [0.5, 1.0]
TRAIN_STEPS, VAE_STEPS = 300, 200


@dataclass(frozen=True)
class Files:
    """What the demo hands to evaluation and augmentation.

    Args:
        prompts: CSV of id, text, category: a prompt for each clip, which is its brief caption, with its class.
        labels: CSV of clip_id, label.
        labelled: CSV of path, label, source: the clips themselves.
    """

    prompts: Path
    labels: Path
    labelled: Path


def classes() -> dict[str, str]:
    """Title of a training video → its class."""
    titles = training_titles()
    return {titles[video]: name for name, videos in TRAINING_CLASSES.items() for video in videos}


def write_files(release: str, release_folder: Path, folder: Path) -> Files:
    """Writes the files for a release of the training part."""
    known = classes()
    clips = [(clip, known[clip.title]) for clip in released_clips(open_ledger(), release)[0] if clip.title in known]
    files = Files(folder / "prompts.csv", folder / "labels.csv", folder / "labelled.csv")
    _write(files.prompts, ("id", "text", "category"), [(c.clip_id, c.brief, name) for c, name in clips])
    _write(files.labels, ("clip_id", "label"), [(c.clip_id, name) for c, name in clips])
    _write(
        files.labelled,
        ("path", "label", "source"),
        [(str(_clip_file(release_folder, c)), name, c.video_id) for c, name in clips],
    )
    return files


def training_arguments(release: str) -> dict[str, Any]:
    """Of the flow `train`: half of what the preset would take, so that a first hour holds all of it."""
    return {"release": release, "preset": "nano", "max_train_steps": TRAIN_STEPS, "vae_steps": VAE_STEPS}


def evaluation_arguments(trained: Mapping[str, Any], files: Files, report: Path) -> dict[str, Any]:
    """Of the flow `evaluate`: the model beside its untrained twin, which is its base."""
    return {
        "models": [f"medgen:{trained['model']}"],
        "baseline": f"medgen:{trained['base']}",
        "prompts": str(files.prompts),
        "against": trained["release"],
        "against_labels": str(files.labels),
        "report": str(report),
    }


def augmentation_arguments(trained: Mapping[str, Any], files: Files) -> dict[str, Any]:
    """Of the flow `augment`: the videos of the evaluation as synthetic ones."""
    return {
        "labelled": str(files.labelled),
        "model": f"medgen:{trained['model']}",
        "prompts": str(files.prompts),
        "ratios": RATIOS,
        "seeds": SEEDS,
        "folds": FOLDS,
    }


def _clip_file(release_folder: Path, clip: ReleasedClip) -> Path:
    return release_folder / "clips" / f"{clip.clip_id}.mp4"


def _write(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
