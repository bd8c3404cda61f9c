"""Trains the linear head of `models.frames` on labelled videos: `python -m models.train_frame_head FOLDER`.

FOLDER holds videos and a MANIFEST.csv with the columns file, source, licence, is_medical (yes, no, anything else is
left out) and kind (the class). Validation leaves out one source at a time: videos that share any source with the one
that is judged (sources joined by " + ") never train the head that judges it.
"""

import argparse
import csv
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from medgen.canonical import rounded
from medgen.errors import ItemFailed
from medgen.media import Limits, pictures
from models.frames import DEFAULT_HEAD, MOBILENET, Encoder, encoder_digest, load_encoder

NON_MEDICAL = "non-medical"
SAMPLE_FPS = 2.0
MAX_FRAMES = 20  # per video, evenly spread, so that long videos don't weigh more
PENALTIES = (0.03, 0.1, 0.3, 1.0)  # L2, chosen by leave-one-source-out log loss


@dataclass(frozen=True)
class LabelledVideo:
    """A training video and its embeddings, float32 (N, D)."""

    file: str
    kind: str
    sources: frozenset[str]
    licence: str
    sha256: str
    embeddings: np.ndarray


def read_videos(folder: Path, encoder: Encoder) -> list[LabelledVideo]:
    """Embeds the labelled videos of a folder; says which are left out and why."""
    videos = []
    with (folder / "MANIFEST.csv").open(encoding="utf-8", newline="") as manifest:
        for row in csv.DictReader(manifest):
            path = folder / row["file"]
            if row["is_medical"] not in ("yes", "no"):
                print(f"left out {row['file']}: labelled {row['is_medical']!r}")
                continue
            try:
                frames = _frames(path)
            except (ItemFailed, OSError) as error:
                print(f"left out {row['file']}: {error}")
                continue
            videos.append(
                LabelledVideo(
                    file=row["file"],
                    kind=row["kind"] if row["is_medical"] == "yes" else NON_MEDICAL,
                    sources=frozenset(part.strip() for part in row["source"].split(" + ")),
                    licence=row["licence"],
                    sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                    embeddings=encoder.embed(frames),
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


def fit(videos: Sequence[LabelledVideo], classes: Sequence[str], penalty: float) -> dict[str, np.ndarray]:
    """Multinomial logistic regression on standardised embeddings, by L-BFGS from zero: the same data, the same head.

    Half the weight is non-medical, half is shared by the medical classes; within a class every video weighs the same.
    """
    import torch

    per_class = Counter(video.kind for video in videos)
    medical = len(per_class) - (NON_MEDICAL in per_class)
    x = np.concatenate([video.embeddings for video in videos])
    y = np.concatenate([np.full(len(v.embeddings), classes.index(v.kind)) for v in videos])
    share = {kind: 0.5 if kind == NON_MEDICAL else 0.5 / medical for kind in per_class}
    weight = np.concatenate(
        [np.full(len(v.embeddings), share[v.kind] / per_class[v.kind] / len(v.embeddings)) for v in videos]
    )
    mean = (weight[:, None] * x).sum(axis=0) / weight.sum()
    std = np.maximum(np.sqrt((weight[:, None] * (x - mean) ** 2).sum(axis=0) / weight.sum()), 1e-3)
    inputs = torch.tensor((x - mean) / std, dtype=torch.float64)
    targets, weights = torch.tensor(y), torch.tensor(weight)
    matrix = torch.zeros(len(classes), x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(classes), dtype=torch.float64, requires_grad=True)
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


def predict(head: dict[str, np.ndarray], embeddings: np.ndarray) -> np.ndarray:
    """Probabilities (N, K)."""
    logits = (embeddings - head["mean"]) / head["std"] @ head["weight"].T + head["bias"]
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def validate(videos: Sequence[LabelledVideo], classes: Sequence[str], penalty: float) -> dict[str, object]:
    """Leave-one-source-out figures: balanced accuracy by video and by frame, log loss, the misjudged videos."""
    other = classes.index(NON_MEDICAL)
    medical: dict[str, np.ndarray] = {}
    right_kind = []
    for sources in dict.fromkeys(video.sources for video in videos):
        head = fit([video for video in videos if not video.sources & sources], classes, penalty)
        for video in (video for video in videos if video.sources == sources):
            found = predict(head, video.embeddings)
            medical[video.file] = 1 - found[:, other]
            if video.kind != NON_MEDICAL:
                means = np.delete(found.mean(axis=0), other)
                right_kind.append([c for c in classes if c != NON_MEDICAL][int(means.argmax())] == video.kind)
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
    videos = read_videos(arguments.folder, load_encoder(arguments.encoder))
    classes = [*sorted({video.kind for video in videos} - {NON_MEDICAL}), NON_MEDICAL]
    trials = [validate(videos, classes, penalty) for penalty in PENALTIES]
    best = min(trials, key=lambda trial: trial["log_loss"])
    head = fit(videos, classes, float(str(best["penalty"])))
    save_file(head, arguments.out)
    card = {
        "encoder": arguments.encoder,
        "encoder_digest": encoder_digest(arguments.encoder),
        "classes": classes,
        "leave_one_source_out": best,
        "trials": [{name: trial[name] for name in ("penalty", "log_loss")} for trial in trials],
        "trained_on": [
            {"file": v.file, "class": v.kind, "source": sorted(v.sources), "licence": v.licence, "sha256": v.sha256}
            for v in videos
        ],
    }
    arguments.out.with_suffix(".json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(best, indent=1))


if __name__ == "__main__":
    main()
