"""Trains the linear head of `models.frames` on labelled videos: `python -m models.train_frame_head FOLDER`.

FOLDER holds videos and a MANIFEST.csv with the columns file, source, licence, sha256, is_medical (yes, no, anything
else is left out) and kind. A medical video whose kind is not one of `MEDICAL_KINDS` (one that mixes them) is judged in
validation and trains nothing. Validation leaves out one source at a time: videos that share any source with the one
that is judged (sources joined by " + ") never train the head that judges it. The same folder gives the same head.
"""

import argparse
import csv
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from safetensors.numpy import save

from medgen.canonical import rounded
from medgen.errors import ItemFailed
from medgen.media import Limits, pictures
from models.frames import (
    DEFAULT_HEAD,
    HEAD_CARD,
    MOBILENET,
    Encoder,
    encoder_digest,
    head_probabilities,
    load_encoder,
)

NON_MEDICAL = "non-medical"
MEDICAL_KINDS = ("clinical practice", "medical animation", "medical imaging")
CLASSES = (*MEDICAL_KINDS, NON_MEDICAL)
SAMPLE_FPS = 2.0
MAX_FRAMES = 20  # per video, evenly spread, so that long videos don't weigh more
VARIANTS = 2  # per frame: cropped, mirrored, brightened copies; they took log loss from 0.24 to 0.22
PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3)  # L2, chosen by leave-one-source-out log loss


@dataclass(frozen=True)
class LabelledVideo:
    """A training video: embeddings of its frames, float32 (N, D), and of varied copies, (VARIANTS * N, D)."""

    file: str
    kind: str
    sources: frozenset[str]
    licence: str
    sha256: str
    embeddings: np.ndarray
    varied: np.ndarray


def read_videos(folder: Path, encoder: Encoder) -> list[LabelledVideo]:
    """Embeds the labelled videos of a folder; says which are left out and why.

    Raises ValueError when a file is not the one that the manifest describes.
    """
    videos = []
    with (folder / "MANIFEST.csv").open(encoding="utf-8", newline="") as manifest:
        for row in csv.DictReader(manifest):
            path = folder / row["file"]
            if row["is_medical"] not in ("yes", "no"):
                print(f"left out {row['file']}: labelled {row['is_medical']!r}")
                continue
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            if sha256 != row["sha256"]:
                raise ValueError(f"{path}: sha256 {sha256}, the manifest says {row['sha256']}")
            try:
                frames = _frames(path)
            except (ItemFailed, OSError) as error:
                print(f"left out {row['file']}: {error}")
                continue
            random = np.random.default_rng(int(sha256[:16], 16))
            varied = [_varied(frame, random) for _ in range(VARIANTS) for frame in frames]
            videos.append(
                LabelledVideo(
                    file=row["file"],
                    kind=row["kind"] if row["is_medical"] == "yes" else NON_MEDICAL,
                    sources=frozenset(part.strip() for part in row["source"].split(" + ")),
                    licence=row["licence"],
                    sha256=sha256,
                    embeddings=encoder.embed(frames),
                    varied=encoder.embed(varied),
                )
            )
    return videos


def _frames(path: Path) -> list[np.ndarray]:
    found, next_s = [], None
    for picture in pictures(path, Limits()):
        if next_s is None or picture.time_s >= next_s:
            found.append(picture.rgb(long_side=854))
            next_s = (picture.time_s if next_s is None else next_s) + 1 / SAMPLE_FPS
    keep = np.linspace(0, len(found) - 1, min(len(found), MAX_FRAMES)).round().astype(int)
    return [found[index] for index in keep]


def _varied(frame: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A crop of 70 to 100 % of each side, mirrored half of the time, at 60 to 140 % of the brightness."""
    height, width = (max(1, int(side * random.uniform(0.7, 1))) for side in frame.shape[:2])
    top, left = random.integers(frame.shape[0] - height + 1), random.integers(frame.shape[1] - width + 1)
    crop = frame[top : top + height, left : left + width]
    if random.random() < 0.5:
        crop = crop[:, ::-1]
    return cv2.convertScaleAbs(np.ascontiguousarray(crop), alpha=random.uniform(0.6, 1.4))


def fit(videos: Sequence[LabelledVideo], penalty: float) -> dict[str, np.ndarray]:
    """Multinomial logistic regression on standardised embeddings, by L-BFGS from zero: the same data, the same head.

    Half the weight is non-medical, half is shared by the medical classes; within a class every video weighs the same.
    """
    import torch

    videos = [video for video in videos if video.kind in CLASSES]
    per_class = Counter(video.kind for video in videos)
    medical = len(per_class) - (NON_MEDICAL in per_class)
    views = [np.concatenate([video.embeddings, video.varied]) for video in videos]
    x = np.concatenate(views)
    y = np.concatenate([np.full(len(view), CLASSES.index(v.kind)) for v, view in zip(videos, views, strict=True)])
    share = {kind: 0.5 if kind == NON_MEDICAL else 0.5 / medical for kind in per_class}
    weight = np.concatenate(
        [
            np.full(len(view), share[v.kind] / per_class[v.kind] / len(view))
            for v, view in zip(videos, views, strict=True)
        ]
    )
    mean = (weight[:, None] * x).sum(axis=0) / weight.sum()
    std = np.maximum(np.sqrt((weight[:, None] * (x - mean) ** 2).sum(axis=0) / weight.sum()), 1e-3)
    inputs = torch.tensor((x - mean) / std, dtype=torch.float64)
    targets, weights = torch.tensor(y), torch.tensor(weight)
    matrix = torch.zeros(len(CLASSES), x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(CLASSES), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([matrix, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        each = torch.nn.functional.cross_entropy(inputs @ matrix.T + bias, targets, reduction="none")
        total = (weights * each).sum() + penalty / 2 * matrix.square().sum()
        total.backward()
        return float(total.detach())

    optimizer.step(loss)
    head = {"weight": matrix.detach().numpy(), "bias": bias.detach().numpy(), "mean": mean, "std": std}
    return {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in head.items()}


def validate(videos: Sequence[LabelledVideo], penalty: float) -> dict[str, object]:
    """Leave-one-source-out figures: balanced accuracy by video and by frame, log loss, the misjudged videos.

    By frame, every video weighs the same. Penalty, blocks and picture size were chosen on these same folds, so the
    figures flatter a little.
    """
    other = CLASSES.index(NON_MEDICAL)
    medical: dict[str, np.ndarray] = {}
    right_kind = []
    for sources in dict.fromkeys(video.sources for video in videos):
        head = fit([video for video in videos if not video.sources & sources], penalty)
        for video in (video for video in videos if video.sources == sources):
            found = head_probabilities(head, video.embeddings)
            medical[video.file] = 1 - found[:, other]
            if video.kind in MEDICAL_KINDS:
                means = np.delete(found.mean(axis=0), other)
                right_kind.append(MEDICAL_KINDS[int(means.argmax())] == video.kind)
    truth = {video.file: video.kind != NON_MEDICAL for video in videos}
    wrong = {file: p for file, p in medical.items() if (p.mean() >= 0.5) != truth[file]}
    loss = np.mean([-np.log(np.clip(p if truth[file] else 1 - p, 1e-6, 1)).mean() for file, p in medical.items()])
    return {
        "penalty": penalty,
        "balanced_accuracy_by_video": _balanced(
            {f: float((p.mean() >= 0.5) == truth[f]) for f, p in medical.items()}, truth
        ),
        "balanced_accuracy_by_frame": _balanced(
            {f: float(((p >= 0.5) == truth[f]).mean()) for f, p in medical.items()}, truth
        ),
        "category_accuracy_of_medical_videos": rounded(float(np.mean(right_kind))),
        "log_loss": rounded(float(loss)),
        "misjudged": {file: rounded(float(p.mean())) for file, p in sorted(wrong.items())},
    }


def _balanced(right: dict[str, float], truth: dict[str, bool]) -> float:
    return rounded(
        float(np.mean([np.mean([right[file] for file in right if truth[file] is side]) for side in (True, False)]))
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of labelled videos with a MANIFEST.csv")
    parser.add_argument("--encoder", default=MOBILENET, help="mobilenet_v2, or a CLIP-class hub name or folder")
    parser.add_argument("--out", type=Path, default=DEFAULT_HEAD, help="the head to write, .safetensors")
    arguments = parser.parse_args()
    if arguments.encoder != MOBILENET and arguments.out == DEFAULT_HEAD:
        parser.error("name another --out: the packaged head belongs to the offline encoder")
    videos = read_videos(arguments.folder, load_encoder(arguments.encoder))
    trials = [validate(videos, penalty) for penalty in PENALTIES]
    best = min(trials, key=lambda trial: trial["log_loss"])
    head = fit(videos, float(str(best["penalty"])))
    identity = {
        "encoder": Path(arguments.encoder).name if Path(arguments.encoder).is_dir() else arguments.encoder,
        "encoder_digest": encoder_digest(arguments.encoder),
        "dimension": head["weight"].shape[1],
        "classes": list(CLASSES),
    }
    arguments.out.write_bytes(save(head, metadata={HEAD_CARD: json.dumps(identity, sort_keys=True)}))
    card = {
        **identity,
        "leave_one_source_out": best,
        "trials": [{name: trial[name] for name in ("penalty", "log_loss")} for trial in trials],
        "trained_on": [
            {"file": v.file, "class": v.kind, "source": sorted(v.sources), "licence": v.licence, "sha256": v.sha256}
            for v in videos
            if v.kind in CLASSES
        ],
        "validated_on_only": [v.file for v in videos if v.kind not in CLASSES],
    }
    arguments.out.with_suffix(".json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(best, indent=1))


if __name__ == "__main__":
    main()
