"""Trains the linear head of `models.segmentation.frames` on labelled videos, with leave-one-source-out validation.

A folder holds videos and a MANIFEST.csv with the columns file, source and is_medical, and if it likes kind, licence
and sha256. is_medical is yes or no (true/false and 1/0 too); rows with anything else are left out. A medical video
whose kind is not one of `PICTURE_CATEGORIES` trains P(medical) and no kind. Validation leaves out one source at a
time: videos that share any source with the judged one (sources joined by " + ") train nothing that judges it, and
choose neither its penalty nor its temperature. The same folder gives the same head.
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from safetensors.numpy import save

from medgen.canonical import rounded
from medgen.errors import ItemFailed, SourceUnreadable
from medgen.media import Limits, pictures
from models.encoders import MOBILENET, Encoder, encoder_digest, load_encoder, shown_name
from models.hub_files import file_digest
from models.segmentation.category import PICTURE_CATEGORIES
from models.segmentation.frames import HEAD_CARD, NON_MEDICAL, head_logits, softmax

MANIFEST = "MANIFEST.csv"
MEDICAL = "medical"  # the one medical class where no video's kind is known
SAMPLE_FPS = 2.0
MAX_FRAMES = 20  # per video, evenly spread, so that long videos don't weigh more
LONG_SIDE = 854  # as `segment` keeps frames, pixels
# Copies of each frame with other framing, colour, sharpness and compression. With 4 of these instead of 2 with other
# framing and brightness alone, leave-one-source-out log loss by frame fell from 0.202 to 0.187.
VARIANTS = 4
DIMENSIONS = 256  # principal components that the head is fitted in: as good as all, and quicker
PENALTIES = (0.1, 0.03, 0.01, 0.003)  # L2; from strong to weak, each fit starts where the last ended
TEMPERATURES = np.geomspace(0.25, 4.0, 81)
CALIBRATION_BINS = 10

# Whatever changes the head that a folder gives; raise `varied` when `_varied` changes.
RECIPE = {
    "sample_fps": SAMPLE_FPS,
    "max_frames": MAX_FRAMES,
    "long_side": LONG_SIDE,
    "variants": VARIANTS,
    "varied": 1,
    "dimensions": DIMENSIONS,
    "penalties": list(PENALTIES),
}

_YES, _NO = ("yes", "true", "1"), ("no", "false", "0")


@dataclass(frozen=True)
class LabelledFile:
    """A row of the manifest. `kind` is None where a medical video's kind is none that a head knows."""

    file: str
    medical: bool
    kind: str | None
    sources: frozenset[str]
    licence: str
    sha256: str

    def row(self) -> dict[str, Any]:
        """As it stands in a data list."""
        label = self.kind or MEDICAL
        return {
            "file": self.file,
            "class": label,
            "source": sorted(self.sources),
            "licence": self.licence,
            "sha256": self.sha256,
        }


@dataclass(frozen=True)
class LabelledVideo:
    """A training video: float32 embeddings of its frames (N, D), and of varied copies (VARIANTS * N, D)."""

    label: LabelledFile
    embeddings: np.ndarray
    varied: np.ndarray


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
    """What leave-one-source-out validation found: all videos, and the penalty and temperature for the final head."""

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


def read_manifest(folder: Path) -> tuple[list[LabelledFile], dict[str, str]]:
    """The labelled videos of a folder, and file → reason for those left out.

    Raises:
        SourceUnreadable: no_manifest, column_missing, file_missing, file_changed (its sha256 is not the manifest's),
            file_outside, file_twice, too_few_sources.
    """
    path = folder / MANIFEST
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), set(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceUnreadable("no_manifest", f"{path} cannot be read: {error}") from error
    if missing := [name for name in ("file", "source", "is_medical") if name not in columns]:
        raise SourceUnreadable(
            "column_missing", f"{path} lacks the column {', '.join(missing)}; it has {', '.join(sorted(columns))}"
        )
    found: dict[str, LabelledFile] = {}
    left_out: dict[str, str] = {}
    for row in rows:
        name, answer = row["file"] or "", (row["is_medical"] or "").strip().lower()
        if answer not in (*_YES, *_NO):
            left_out[name] = f"is_medical is {answer!r}, neither yes nor no"
            continue
        if name in found:
            raise SourceUnreadable("file_twice", f"{path} lists {name!r} twice")
        found[name] = _labelled(folder, name, answer in _YES, row)
    check_sources(list(found.values()))
    return list(found.values()), left_out


def _labelled(folder: Path, name: str, medical: bool, row: dict[str, str | None]) -> LabelledFile:
    video = (folder / name).resolve()
    if not video.is_relative_to(folder.resolve()):
        raise SourceUnreadable("file_outside", f"{name!r} lies outside {folder}")
    if not video.is_file():
        raise SourceUnreadable("file_missing", f"{MANIFEST} lists {name!r}, which is not in {folder}")
    sha256, promised = file_digest(video), (row.get("sha256") or "").strip().lower()
    if promised and promised != sha256:
        raise SourceUnreadable("file_changed", f"{name!r} has sha256 {sha256}, {MANIFEST} says {promised}")
    kind = (row.get("kind") or "").strip().lower()
    sources = frozenset(part.strip() for part in (row["source"] or "").split(" + ")) - {""}
    return LabelledFile(
        file=name,
        medical=medical,
        kind=(kind if kind in PICTURE_CATEGORIES else None) if medical else NON_MEDICAL,
        sources=sources or frozenset({name}),  # a file without a source is its own
        licence=(row.get("licence") or "").strip(),
        sha256=sha256,
    )


def check_sources(files: Sequence[LabelledFile]) -> None:
    """Raises SourceUnreadable (too_few_sources) unless both sides are left whichever source is left out."""
    for sources in {file.sources for file in files} or {frozenset[str]()}:
        sides = {file.medical for file in files if not file.sources & sources}
        if len(sides) < 2:
            counts = {side: len({file.sources for file in files if file.medical is side}) for side in (True, False)}
            raise SourceUnreadable(
                "too_few_sources",
                f"{counts[True]} medical and {counts[False]} non-medical sources: validation leaves out one source "
                "at a time, and needs medical and non-medical videos of others each time; two sources each at least",
            )


def embed_videos(
    folder: Path,
    files: Sequence[LabelledFile],
    encoder: Encoder,
    progress: Callable[[int, int, str], None] = lambda done, total, file: None,
) -> tuple[list[LabelledVideo], dict[str, str]]:
    """Embeds the sampled frames of the videos, and varied copies; file → reason for those that cannot be decoded.

    Args:
        progress: called with (videos done, videos in all, file) before each video and at the end.
    """
    videos, left_out = [], {}
    for done, label in enumerate(files):
        progress(done, len(files), label.file)
        try:
            frames = sampled_frames(folder / label.file)
        except (ItemFailed, OSError) as error:
            left_out[label.file] = str(error)
            continue
        random = np.random.default_rng(int(label.sha256[:16], 16))
        varied = encoder.embed([_varied(frame, random) for _ in range(VARIANTS) for frame in frames])
        videos.append(LabelledVideo(label, encoder.embed(frames), varied))
    progress(len(files), len(files), "")
    return videos, left_out


def sampled_frames(path: Path) -> list[np.ndarray]:
    """At most `MAX_FRAMES` frames, uint8 RGB (H, W, 3), evenly spread over a video. Raises ItemFailed."""
    found, next_s = [], None
    for picture in pictures(path, Limits()):
        if next_s is None or picture.time_s >= next_s:
            found.append(picture.rgb(long_side=LONG_SIDE))
            next_s = (picture.time_s if next_s is None else next_s) + 1 / SAMPLE_FPS
    if not found:
        raise ItemFailed("undecodable", "not one frame could be decoded")
    keep = np.linspace(0, len(found) - 1, min(len(found), MAX_FRAMES)).round().astype(int)
    return [found[index] for index in keep]


def _varied(frame: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """As another camera, screen or upload would show it: framing, colour, brightness, sharpness, compression, bars.

    A fifth is grey, on both sides alike, so that the want of colour alone does not mean X-ray or ultrasound.
    """
    height, width = (max(1, int(side * random.uniform(0.6, 1))) for side in frame.shape[:2])
    top, left = random.integers(frame.shape[0] - height + 1), random.integers(frame.shape[1] - width + 1)
    view = frame[top : top + height, left : left + width]
    view = np.ascontiguousarray(view[:, ::-1] if random.random() < 0.5 else view)
    if random.random() < 0.8:
        hsv = cv2.cvtColor(view, cv2.COLOR_RGB2HSV).astype(np.int16)  # hue in half degrees
        hsv[..., 0] = (hsv[..., 0] + random.integers(-10, 11)) % 180
        hsv[..., 1] = np.clip(hsv[..., 1] * random.uniform(0.5, 1.4), 0, 255)
        view = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
    if random.random() < 0.2:
        view = cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    view = cv2.convertScaleAbs(view, alpha=random.uniform(0.6, 1.4))
    if random.random() < 0.3:
        scale = random.uniform(0.15, 0.6)
        small = (max(1, int(view.shape[1] * scale)), max(1, int(view.shape[0] * scale)))
        view = cv2.resize(cv2.resize(view, small, interpolation=cv2.INTER_AREA), (view.shape[1], view.shape[0]))
    if random.random() < 0.5:
        _, jpeg = cv2.imencode(".jpg", view, [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(20, 90))])
        decoded = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)  # both ways as if BGR: the order of channels comes back
        assert decoded is not None  # it was encoded just now
        view = decoded
    if random.random() < 0.2:
        bar = int(random.uniform(0.05, 0.2) * min(view.shape[:2]))
        sides = (bar, bar, 0, 0) if random.random() < 0.5 else (0, 0, bar, bar)
        view = cv2.copyMakeBorder(view, *sides, cv2.BORDER_CONSTANT, value=0)
    return view


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
        found = logits[PENALTIES[penalty]][index]
        plain.append(1 - softmax(found)[:, other])
        calibrated = softmax(found / TEMPERATURES[temperature])
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
    """Expected calibration error of P(medical) by frame, every video weighing the same: the mean distance between
    what was promised and what was true over 10 equal bins (Guo et al. 2017, "On Calibration of Modern Neural
    Networks"). 0 to 1."""
    p = np.concatenate(probabilities)
    counts = [len(one) for one in probabilities]
    weight = np.repeat(1 / (len(counts) * np.array(counts)), counts)
    true = np.repeat(truth, counts)
    bins = np.minimum((p * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    return float(sum(abs((weight * (p - true))[bins == index].sum()) for index in range(CALIBRATION_BINS)))


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
    found = validate(videos, lambda done, total, source: progress("validating", done, total, source))
    classes = classes_of(videos)
    head = fit(videos, classes, PENALTIES[: PENALTIES.index(found.penalty) + 1])[found.penalty]
    card = {
        "encoder": shown_name(encoder),
        "encoder_digest": digest,
        "dimension": head["weight"].shape[1],
        "classes": list(classes),
        "temperature": found.temperature,
    }
    scores = card | {"penalty": found.penalty, "leave_one_source_out": found.scores}
    judged = [{name: value for name, value in vars(j).items() if name != "frames"} for j in found.judged]
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
