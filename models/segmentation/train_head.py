"""Trains the linear head of `models.segmentation.frames` on labelled videos, with leave-one-source-out validation.

A medical video whose kind is not one of `PICTURE_CATEGORIES` trains P(medical) and no kind. Validation leaves out one
source at a time: videos that share any source with the judged one train nothing that judges it, and choose neither its
penalty nor its temperature. The same folder gives the same head.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from medgen.canonical import rounded
from models.calibration import expected_calibration_error
from models.encoders import MOBILENET, encoder_digest, load_encoder, shown_name
from models.segmentation.category import PICTURE_CATEGORIES
from models.segmentation.frames import HEAD_CARD, NON_MEDICAL, head_logits, softmax
from models.segmentation.manifest import MEDICAL, LabelledFile, check_sources, read_manifest
from models.segmentation.similarity import calibrated_similarity
from models.segmentation.training_frames import LONG_SIDE, MAX_FRAMES, SAMPLE_FPS, VARIANTS, LabelledVideo, embed_videos

DIMENSIONS = 256  # principal components that the head is fitted in: as good as all, and quicker
PENALTIES = (0.1, 0.03, 0.01, 0.003)  # L2; from strong to weak, each fit starts where the last ended
TEMPERATURES = np.geomspace(0.25, 4.0, 81)

# Whatever changes the head that a folder gives; raise `varied` when `training_frames` varies frames otherwise.
RECIPE = {
    "sample_fps": SAMPLE_FPS,
    "max_frames": MAX_FRAMES,
    "long_side": LONG_SIDE,
    "variants": VARIANTS,
    "varied": 1,
    "dimensions": DIMENSIONS,
    "penalties": list(PENALTIES),
}


@dataclass(frozen=True)
class Judged:
    """A video judged by a head that saw none of its sources. `frames`: P(medical) of its sampled frames."""

    file: str
    medical: bool
    probability: float
    frames: tuple[float, ...]
    kind: str | None
    kind_found: str


@dataclass(frozen=True)
class Validation:
    """The result of leave-one-source-out validation: all videos, and the penalty and temperature for the final head."""

    judged: tuple[Judged, ...]
    penalty: float
    temperature: float
    scores: dict[str, Any]


@dataclass(frozen=True)
class TrainedHead:
    """A head file's bytes and all there is to say of it (JSON)."""

    head: bytes
    scores: dict[str, Any]
    data_list: dict[str, Any]


def classes_of(videos: Sequence[LabelledVideo]) -> tuple[str, ...]:
    """The classes that the videos can train: the known kinds among them, and non-medical."""
    kinds = {video.label.kind for video in videos}
    return (*([kind for kind in PICTURE_CATEGORIES if kind in kinds] or [MEDICAL]), NON_MEDICAL)


def fit(
    videos: Sequence[LabelledVideo], classes: Sequence[str], penalties: Sequence[float] = PENALTIES
) -> dict[float, dict[str, np.ndarray]]:
    """penalty → head: multinomial logistic regression on standardised embeddings, by L-BFGS.

    A medical video of unknown kind counts by the summed probability of the medical classes. Half the weight is
    non-medical. The medical half is shared evenly by the known kinds, but for the part of the videos of unknown kind;
    within a class every video weighs the same. The fit is done in the leading principal components, and given in the
    embeddings' own dimensions. From zero and in one order: the same data, the same heads.
    """
    import torch

    torch.set_num_threads(1)
    views = [np.concatenate([video.embeddings, video.varied]) for video in videos]
    counts = [len(view) for view in views]
    allowed = np.repeat([[_allows(video.label, name) for name in classes] for video in videos], counts, axis=0)
    weight = np.repeat(_weights([video.label for video in videos]) / counts, counts)
    x = np.concatenate(views).astype(np.float64)
    mean = weight @ x
    std = np.maximum(np.sqrt(weight @ (x - mean) ** 2), 1e-3)
    x = (x - mean) / std
    _, axes = np.linalg.eigh((x * weight[:, None]).T @ x)
    axes = axes[:, -DIMENSIONS:]
    inputs, weights = torch.tensor(x @ axes), torch.tensor(weight)
    barred = torch.tensor(np.where(allowed, 0.0, -np.inf))
    matrix = torch.zeros(len(classes), axes.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(classes), dtype=torch.float64, requires_grad=True)
    heads = {}
    for penalty in sorted(penalties, reverse=True):
        optimizer = torch.optim.LBFGS([matrix, bias], max_iter=100, line_search_fn="strong_wolfe")

        def loss(optimizer: torch.optim.LBFGS = optimizer, penalty: float = penalty) -> float:
            optimizer.zero_grad()
            logits = inputs @ matrix.T + bias
            each = torch.logsumexp(logits, dim=1) - torch.logsumexp(logits + barred, dim=1)
            total = (weights * each).sum() + penalty / 2 * matrix.square().sum()
            total.backward()  # type: ignore[no-untyped-call]  # by torch
            return float(total.detach())

        optimizer.step(loss)  # type: ignore[no-untyped-call]  # by torch
        arrays = {"weight": matrix.detach().numpy() @ axes.T, "bias": bias.detach().numpy(), "mean": mean, "std": std}
        heads[penalty] = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()}
    return heads


def _allows(label: LabelledFile, name: str) -> bool:
    if label.kind is None:
        return name != NON_MEDICAL
    return name == label.kind


def _weights(labels: Sequence[LabelledFile]) -> np.ndarray:
    """float64 (videos,), adding up to 1; see `fit`."""
    count = Counter(label.kind for label in labels)
    kinds = [kind for kind in count if kind not in (None, NON_MEDICAL)]
    medical = sum(label.medical for label in labels)
    known = 0.5 * (medical - count[None]) / medical
    share = {NON_MEDICAL: 0.5, None: 0.5 * count[None] / medical} | {kind: known / len(kinds) for kind in kinds}
    return np.array([share[label.kind] / count[label.kind] for label in labels])


def validate(
    videos: Sequence[LabelledVideo], progress: Callable[[int, int, str], None] = lambda done, total, source: None
) -> Validation:
    """Leave-one-source-out validation: every video judged by a head that saw none of its sources.

    Penalty and temperature of the final head are those with the lowest log loss over all sources. The judgement of a
    source uses the penalty and the temperature that are best for the others: what is judged chose nothing.

    Args:
        progress: called with (sources done, sources in all, the next source).
    """
    classes = classes_of(videos)
    other = classes.index(NON_MEDICAL)
    truth = np.array([video.label.medical for video in videos])
    folds = list(dict.fromkeys(video.label.sources for video in videos))
    logits: dict[float, list[np.ndarray]] = {penalty: [np.zeros((0, 0))] * len(videos) for penalty in PENALTIES}
    for done, sources in enumerate(folds):
        progress(done, len(folds), " + ".join(sorted(sources)))
        heads = fit([video for video in videos if not video.label.sources & sources], classes)
        for index, video in enumerate(videos):
            if video.label.sources == sources:
                for penalty, head in heads.items():
                    logits[penalty][index] = head_logits(head, video.embeddings)
    progress(len(folds), len(folds), "")
    # Mean log loss of the frames of each video: penalties x temperatures x videos.
    loss = np.array([[_log_losses(logits[p], t, other, truth) for t in TEMPERATURES] for p in PENALTIES])
    neutral = int(np.abs(TEMPERATURES - 1).argmin())

    def choose(among: np.ndarray) -> tuple[int, int]:
        penalty = int(loss[:, neutral, among].mean(axis=1).argmin())
        return penalty, int(loss[penalty][:, among].mean(axis=1).argmin())

    judged, plain = [], []
    for index, video in enumerate(videos):
        penalty, temperature = choose(np.array([not v.label.sources & video.label.sources for v in videos]))
        own = logits[PENALTIES[penalty]][index]
        plain.append(1 - softmax(own)[:, other])
        calibrated = softmax(own / TEMPERATURES[temperature])
        medical = 1 - calibrated[:, other]
        judged.append(
            Judged(
                file=video.label.file,
                medical=video.label.medical,
                probability=rounded(medical.mean()),
                frames=tuple(rounded(p) for p in medical),
                kind=video.label.kind,
                kind_found=classes[int(np.delete(calibrated.mean(axis=0), other).argmax())],
            )
        )
    penalty, temperature = choose(np.ones(len(videos), bool))
    scores = validation_scores(judged) | {
        "calibration_error_before": rounded(calibration_error(plain, truth)),
        "calibration_error": rounded(calibration_error([np.array(j.frames) for j in judged], truth)),
        "log_loss_of_penalties": {str(p): rounded(loss[i, neutral].mean()) for i, p in enumerate(PENALTIES)},
    }
    return Validation(tuple(judged), PENALTIES[penalty], rounded(TEMPERATURES[temperature]), scores)


def _log_losses(logits: Sequence[np.ndarray], temperature: float, other: int, truth: np.ndarray) -> list[float]:
    losses = []
    for own, medical in zip(logits, truth, strict=True):
        non_medical = softmax(own / temperature)[:, other]
        losses.append(float(-np.log(np.clip(1 - non_medical if medical else non_medical, 1e-6, 1)).mean()))
    return losses


def calibration_error(probabilities: Sequence[np.ndarray], truth: np.ndarray) -> float:
    """Expected calibration error of P(medical) by frame, every video weighing the same: 0 to 1."""
    counts = [len(frames) for frames in probabilities]
    weight = np.repeat(1 / (len(counts) * np.array(counts)), counts)
    return expected_calibration_error(np.concatenate(probabilities), np.repeat(truth, counts), weight)


def validation_scores(judged: Sequence[Judged]) -> dict[str, Any]:
    """Balanced accuracy by video and by frame (every video weighing the same), log loss, misjudged videos."""

    def balanced(right: Sequence[float]) -> float:
        sides = [[r for r, j in zip(right, judged, strict=True) if j.medical is side] for side in (True, False)]
        return rounded(float(np.mean([np.mean(side) for side in sides])))

    kinds = [j.kind_found == j.kind for j in judged if j.medical and j.kind]
    # P(the truth) of every frame
    true = [np.array(j.frames) if j.medical else 1 - np.array(j.frames) for j in judged]
    losses = [-np.log(np.clip(p, 1e-6, 1)).mean() for p in true]
    return {
        "videos": len(judged),
        "medical_videos": sum(j.medical for j in judged),
        "balanced_accuracy_by_video": balanced([(j.probability >= 0.5) == j.medical for j in judged]),
        "balanced_accuracy_by_frame": balanced([float((p >= 0.5).mean()) for p in true]),
        "category_accuracy_of_medical_videos": rounded(float(np.mean(kinds))) if kinds else None,
        "log_loss": rounded(float(np.mean(losses))),
        "misjudged": {j.file: j.probability for j in judged if (j.probability >= 0.5) != j.medical},
    }


def train(
    folder: Path,
    encoder: str = MOBILENET,
    progress: Callable[[str, int, int, str], None] = lambda stage, done, total, item: None,
) -> TrainedHead:
    """A calibrated head for `encoder` from a labelled folder.

    Args:
        progress: called with (stage, done, total, file or source); stages are "embedding" and "validating".

    Raises:
        SourceUnreadable: as `read_manifest`.
        ModelUnavailable: the encoder can't be had.
    """
    digest = encoder_digest(encoder)
    videos, left_out = _videos(folder, encoder, progress)
    validation = validate(videos, lambda done, total, source: progress("validating", done, total, source))
    classes = classes_of(videos)
    head = fit(videos, classes, PENALTIES[: PENALTIES.index(validation.penalty) + 1])[validation.penalty]
    card = {
        "encoder": shown_name(encoder),
        "encoder_digest": digest,
        "dimension": head["weight"].shape[1],
        "classes": list(classes),
        "temperature": validation.temperature,
    }
    scores = card | {"penalty": validation.penalty, "leave_one_source_out": validation.scores}
    scores |= {"similarity": calibrated_similarity(videos)}
    judged = [{name: value for name, value in vars(j).items() if name != "frames"} for j in validation.judged]
    return TrainedHead(
        head=save(head, metadata={HEAD_CARD: json.dumps(card, sort_keys=True)}),
        scores=scores | {"judged": judged},
        data_list={"videos": [video.label.row() for video in videos], "left_out": left_out},
    )


def judge_videos_leave_one_source_out(folder: Path, encoder: str = MOBILENET) -> list[Judged]:
    """Every labelled video of a folder, judged by a head that saw none of its sources. Raises as `train`."""
    videos, _ = _videos(folder, encoder, lambda stage, done, total, item: None)
    return list(validate(videos).judged)


def _videos(
    folder: Path, encoder: str, progress: Callable[[str, int, int, str], None]
) -> tuple[list[LabelledVideo], dict[str, str]]:
    files, left_out = read_manifest(folder)
    videos, undecodable = embed_videos(
        folder, files, load_encoder(encoder), lambda done, total, file: progress("embedding", done, total, file)
    )
    check_sources([video.label for video in videos])
    return videos, left_out | undecodable
