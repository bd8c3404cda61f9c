"""Trains the kernel head of `models.segmentation.frames` on labelled videos and pictures, and leaves out sources.

A medical item whose kind is none of the paper's five trains P(medical) and no kind. Validation leaves out one source
(repository, channel, hospital) at a time: items that share any source with the judged one train nothing that judges it,
and choose neither its penalty nor its calibration. Only the projection of the features, which sees no label, is common.
Pictures that are marked as made train and are never judged. The same folders give the same head.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from medgen.canonical import rounded
from models.encoders import MOBILENET, encoder_digest, feature_parts, load_encoder, shown_name
from models.segmentation.category import CATEGORIES
from models.segmentation.heads import HEAD_CARD, NON_MEDICAL, KernelHead, calibrated, kernel_arrays
from models.segmentation.kernel_machine import COMPONENTS, GAMMA, Fitted, fit, fit_projection
from models.segmentation.manifest import MEDICAL, LabelledFile, check_sources, read_manifests
from models.segmentation.similarity import calibrated_similarity
from models.segmentation.training_frames import LONG_SIDE, MAX_FRAMES, SAMPLE_FPS, VARIANTS, LabelledVideo, embed_videos
from models.segmentation.validation import DOUBT_SHARE, Judged, bounds_of_doubt, validation_scores

PENALTIES = (0.1, 0.25, 0.6)  # beyond, log loss falls a little, and accuracy with it
SHARPNESS = np.geomspace(0.5, 16.0, 41)
# A source with n items of a class weighs as the square root of n: large ones count more, but do not drown the others.
SOURCE_POWER = 0.5
MOST_VECTORS = 9000  # frames that a head compares with; of long folders fewer frames of each video are taken
FOLDS = 10  # of sources, by which a calibration sees none of what it is used on

# Whatever changes the head that a folder gives; raise `varied` when `training_frames` varies frames otherwise.
RECIPE = {
    "sample_fps": SAMPLE_FPS,
    "max_frames": MAX_FRAMES,
    "long_side": LONG_SIDE,
    "variants": VARIANTS,
    "varied": 2,
    "components": COMPONENTS,
    "gamma": GAMMA,
    "penalties": list(PENALTIES),
    "source_power": SOURCE_POWER,
    "most_vectors": MOST_VECTORS,
    "doubt_share": DOUBT_SHARE,
}


@dataclass(frozen=True)
class Calibration:
    """Slope and offset of P(medical), and sharpness of the kinds: see `KernelHead`."""

    slope: float
    offset: float
    sharpness: float


@dataclass(frozen=True)
class Validation:
    """The result of leaving out sources: all judged items, and what the final head takes from it."""

    judged: tuple[Judged, ...]
    penalty: float
    calibration: Calibration
    unsure: tuple[float, float]
    scores: dict[str, Any]


@dataclass(frozen=True)
class TrainedHead:
    """A head file's bytes and all there is to say of it (JSON)."""

    head: bytes
    scores: dict[str, Any]
    data_list: dict[str, Any]


def classes_of(videos: Sequence[LabelledVideo]) -> tuple[str, ...]:
    """The classes that the items can train: the known kinds among them, and non-medical."""
    kinds = {video.label.kind for video in videos}
    return (*([kind for kind in CATEGORIES if kind in kinds] or [MEDICAL]), NON_MEDICAL)


def item_weights(labels: Sequence[LabelledFile]) -> np.ndarray:
    """float64 (items,), adding up to 1.

    Half the weight is non-medical. The medical half is shared evenly by the known kinds, but for the part of the items
    of unknown kind; within a class it is shared by sources: see `SOURCE_POWER`.
    """
    medical = sum(label.medical for label in labels)
    unknown = sum(label.medical and label.kind is None for label in labels)
    kinds = {label.kind for label in labels} - {None, NON_MEDICAL}
    share = {NON_MEDICAL: 0.5, None: 0.5 * unknown / medical}
    share |= {kind: 0.5 * (medical - unknown) / medical / len(kinds) for kind in kinds if kind}
    count = Counter((label.kind, label.sources) for label in labels)
    raw = np.array([count[label.kind, label.sources] ** (SOURCE_POWER - 1) for label in labels])
    total: dict[str | None, float] = defaultdict(float)
    for label, value in zip(labels, raw, strict=True):
        total[label.kind] += value
    return np.array([share[label.kind] * v / total[label.kind] for label, v in zip(labels, raw, strict=True)])


class _Rows:
    """All frames of all items, one a row: the frames themselves, then their varied copies, item by item."""

    def __init__(self, videos: Sequence[LabelledVideo], classes: Sequence[str], parts: Sequence[int]) -> None:
        self.videos = videos
        views = [np.concatenate([video.features, video.varied]) for video in videos]
        counts = [len(view) for view in views]
        self.features = np.concatenate(views)
        self.item = np.repeat(np.arange(len(videos)), counts)
        self.weight = np.repeat(item_weights([video.label for video in videos]) / counts, counts)
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        kinds = [name for name in classes if name != NON_MEDICAL]
        self.targets = np.repeat(np.array([_targets(video.label, kinds) for video in videos]), counts, axis=0)
        self.projection = fit_projection(self.features, self.weight, parts)
        self.vectors = self.projection(self.features)

    def of(self, items: Sequence[int], *, own: bool = False) -> np.ndarray:
        """The rows of some items; with `own` without their varied copies."""
        ends = [self.starts[i] + len(self.videos[i].features) if own else self.starts[i + 1] for i in items]
        return np.concatenate([np.arange(self.starts[i], end) for i, end in zip(items, ends, strict=True)])


def _targets(label: LabelledFile, kinds: Sequence[str]) -> list[float]:
    """1 and -1 for medical and each kind; 0 where nobody knows."""
    if label.medical and label.kind is None:
        return [1.0] + [0.0] * len(kinds)
    return [1.0 if label.medical else -1.0] + [1.0 if label.kind == kind else -1.0 for kind in kinds]


def validate(
    videos: Sequence[LabelledVideo],
    progress: Callable[[int, int, str], None] = lambda done, total, source: None,
    parts: Sequence[int] = (),
) -> Validation:
    """Every item judged by a head that saw none of its sources: see the module.

    Args:
        progress: called with (steps done, steps in all, what is done next).
        parts: numbers of each part of the features; all are one part by default.
    """
    classes = classes_of(videos)
    return _validated(_Rows(videos, classes, parts or (videos[0].features.shape[1],)), classes, progress)[0]


def _validated(
    rows: _Rows, classes: tuple[str, ...], progress: Callable[[int, int, str], None]
) -> tuple[Validation, dict[float, Fitted]]:
    """The validation, and the machine of its penalty."""
    scores: dict[float, list[np.ndarray]] = {}
    fitted: dict[float, Fitted] = {}
    for done, penalty in enumerate(PENALTIES):
        progress(done, len(PENALTIES), f"penalty {penalty}")
        fitted[penalty] = fit(rows.vectors, rows.weight, rows.targets, penalty)
        scores[penalty] = _left_out(rows, fitted[penalty])
    progress(len(PENALTIES), len(PENALTIES), "")
    shown = [place for place, video in enumerate(rows.videos) if not video.label.made]
    labels = [rows.videos[place].label for place in shown]
    weights = item_weights(labels)
    folds = _folds(labels)
    judged: dict[float, list[np.ndarray]] = {}
    losses = np.zeros((len(PENALTIES), len(shown)))
    for place, penalty in enumerate(PENALTIES):
        own = [scores[penalty][item] for item in shown]
        judged[penalty] = [np.zeros(0)] * len(shown)
        for fold in range(FOLDS):
            others = [k for k in range(len(shown)) if folds[k] != fold]
            chosen = _calibrate([own[k] for k in others], [labels[k] for k in others], weights[others], classes)
            for k in np.flatnonzero(folds == fold):
                judged[penalty][k] = _probabilities(own[k], chosen, classes)
        losses[place] = [
            _log_loss(p, label, classes) for p, label in zip(judged[penalty], labels, strict=True)
        ]  # fmt: skip
    best = [PENALTIES[int((losses[:, folds != fold] @ weights[folds != fold]).argmin())] for fold in range(FOLDS)]
    final = PENALTIES[int((losses @ weights).argmin())]
    found = [judged[best[folds[k]]][k] for k in range(len(shown))]
    items = tuple(_judgement(label, p, classes) for label, p in zip(labels, found, strict=True))
    calibration = _calibrate([scores[final][item] for item in shown], labels, weights, classes)
    unsure = bounds_of_doubt(items, weights)
    figures = validation_scores(items) | {
        "log_loss_of_penalties": {str(p): rounded(losses[i] @ weights) for i, p in enumerate(PENALTIES)}
    }
    return Validation(items, final, calibration, unsure, figures), {final: fitted[final]}


def _left_out(rows: _Rows, fitted: Fitted) -> list[np.ndarray]:
    """Scores of every item's frames by a machine that saw no item with any of its sources."""
    by_source: dict[str, set[int]] = defaultdict(set)
    by_sources: dict[frozenset[str], list[int]] = defaultdict(list)
    for place, video in enumerate(rows.videos):
        by_sources[video.label.sources].append(place)
        for source in video.label.sources:
            by_source[source].add(place)
    found: list[np.ndarray] = [np.zeros(0)] * len(rows.videos)
    for sources, items in by_sources.items():
        group = rows.of(sorted(set().union(*(by_source[source] for source in sources))))
        scores = fitted.left_out(rows.of(items, own=True), group)
        ends = np.cumsum([len(rows.videos[item].features) for item in items])[:-1]
        for item, own in zip(items, np.split(scores, ends), strict=True):
            found[item] = own
    return found


def _folds(labels: Sequence[LabelledFile]) -> np.ndarray:
    """int (items,): a fold for each, the same for all that share a source."""
    root: dict[str, str] = {}

    def find(source: str) -> str:
        while root.setdefault(source, source) != source:
            source = root[source]
        return source

    for label in labels:
        first, *rest = sorted(label.sources)
        for other in rest:
            root[find(other)] = find(first)
    groups = [find(min(label.sources)) for label in labels]
    sizes = [0] * FOLDS
    fold: dict[str, int] = {}
    for group, size in sorted(Counter(groups).items(), key=lambda pair: (-pair[1], pair[0])):
        fold[group] = int(np.argmin(sizes))
        sizes[fold[group]] += size
    return np.array([fold[group] for group in groups])


def _calibrate(
    scores: Sequence[np.ndarray], labels: Sequence[LabelledFile], weights: np.ndarray, classes: Sequence[str]
) -> Calibration:
    """Platt's curve, and the sharpness with the least log loss of the kinds, on scores of what was left out."""
    from sklearn.linear_model import LogisticRegression

    counts = [len(own) for own in scores]
    weight = np.repeat(weights / counts, counts)
    medical = np.repeat([label.medical for label in labels], counts)
    if len(set(medical.tolist())) < 2:
        return Calibration(2.0, 0.0, 2.0)
    stacked = np.concatenate(list(scores))
    # A weak penalty, so that scores without an error give no infinite slope.
    curve = LogisticRegression(C=100.0).fit(stacked[:, :1], medical, sample_weight=weight * len(weight))
    slope, offset = float(curve.coef_[0, 0]), float(curve.intercept_[0])
    kinds = [name for name in classes if name != NON_MEDICAL]
    known = np.repeat([label.kind in kinds for label in labels], counts)
    sharpness = 2.0
    if known.any() and len(kinds) > 1:
        truth = np.repeat([kinds.index(k.kind) if k.kind in kinds else 0 for k in labels], counts)[known]
        logits = SHARPNESS[:, None, None] * stacked[known, 1:][None]
        logits -= logits.max(axis=2, keepdims=True)
        loss = np.log(np.exp(logits).sum(axis=2)) - np.take_along_axis(logits, truth[None, :, None], axis=2)[..., 0]
        sharpness = float(SHARPNESS[int((loss @ weight[known]).argmin())])
    return Calibration(max(slope, 1e-3), offset, sharpness)


def _probabilities(scores: np.ndarray, calibration: Calibration, classes: Sequence[str]) -> np.ndarray:
    other = list(classes).index(NON_MEDICAL)
    return calibrated(scores, calibration.slope, calibration.offset, calibration.sharpness, other)


def _log_loss(probabilities: np.ndarray, label: LabelledFile, classes: Sequence[str]) -> float:
    """Of medical or not, mean over an item's frames."""
    medical = 1 - probabilities[:, list(classes).index(NON_MEDICAL)]
    return float(-np.log(np.clip(medical if label.medical else 1 - medical, 1e-6, 1)).mean())


def _judgement(label: LabelledFile, probabilities: np.ndarray, classes: Sequence[str]) -> Judged:
    mean, other = probabilities.mean(axis=0), list(classes).index(NON_MEDICAL)
    kinds = {name: rounded(p) for name, p in zip(classes, mean, strict=True) if name != NON_MEDICAL}
    return Judged(
        file=label.file,
        sha256=label.sha256,
        medical=label.medical,
        probability=rounded(1 - mean[other]),
        frames=tuple(rounded(1 - p) for p in probabilities[:, other]),
        kind=label.kind,
        kinds=kinds,
        sources=label.sources,
    )


def train(
    folders: Sequence[Path],
    encoder: str = MOBILENET,
    progress: Callable[[str, int, int, str], None] = lambda stage, done, total, item: None,
) -> TrainedHead:
    """A calibrated head for `encoder` from labelled folders.

    Args:
        progress: called with (stage, done, total, file or step); stages are "embedding" and "validating".

    Raises:
        SourceUnreadable: as `read_manifests`.
        ModelUnavailable: the encoder can't be had.
    """
    digest, parts = encoder_digest(encoder), feature_parts(encoder)
    videos, left_out = _videos(folders, encoder, progress)
    parts = parts or (videos[0].features.shape[1],)
    classes = classes_of(videos)
    rows = _Rows(videos, classes, parts)
    validation, fitted = _validated(rows, classes, lambda done, total, item: progress("validating", done, total, item))
    machine, calibration = fitted[validation.penalty], validation.calibration
    head = KernelHead(
        rows.projection,
        rows.vectors,
        machine.duals.astype(np.float32),
        machine.bias.astype(np.float32),
        gamma=GAMMA,
        **vars(calibration),
        other=list(classes).index(NON_MEDICAL),
    )
    card = {
        "encoder": shown_name(encoder),
        "encoder_digest": digest,
        "dimension": sum(parts),
        "parts": list(parts),
        "classes": list(classes),
        "gamma": GAMMA,
        "unsure": list(validation.unsure),
        **{name: rounded(value, 6) for name, value in vars(calibration).items()},
    }
    scores = card | {
        "penalty": validation.penalty,
        "vectors": len(rows.item),
        "leave_one_source_out": validation.scores,
    }
    scores |= {"similarity": calibrated_similarity(videos)}
    return TrainedHead(
        head=save(kernel_arrays(head), metadata={HEAD_CARD: json.dumps(card, sort_keys=True)}),
        scores=scores | {"judged": [judged.row() for judged in validation.judged]},
        data_list={"videos": [video.label.row() for video in videos], "left_out": left_out},
    )


def judge_videos_leave_one_source_out(folder: Path, encoder: str = MOBILENET) -> list[Judged]:
    """Every labelled item of a folder, judged by a head that saw none of its sources. Raises as `train`."""
    videos, _ = _videos([folder], encoder, lambda stage, done, total, item: None)
    return list(validate(videos, parts=feature_parts(encoder)).judged)


def _videos(
    folders: Sequence[Path], encoder: str, progress: Callable[[str, int, int, str], None]
) -> tuple[list[LabelledVideo], dict[str, str]]:
    files, left_out = read_manifests(folders)
    videos, undecodable = embed_videos(
        files, load_encoder(encoder), lambda done, total, file: progress("embedding", done, total, file)
    )
    check_sources([video.label for video in videos])
    return _thinned(videos), left_out | undecodable


def _thinned(videos: list[LabelledVideo]) -> list[LabelledVideo]:
    """The same with so few frames of each, evenly spread, that `MOST_VECTORS` suffice; first without varied copies."""
    most = MAX_FRAMES
    while sum(min(len(v.features), most) + len(v.varied) for v in videos) > MOST_VECTORS and most > 1:
        if any(len(v.varied) for v in videos):
            videos = [v.thinned(most, varied=False) for v in videos]
            continue
        most -= 1
    return [v.thinned(most, varied=True) for v in videos]
