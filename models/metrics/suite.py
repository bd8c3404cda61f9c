"""All metrics of one video from one pass over its frames."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from medgen.canonical import digest_of, rounded
from models.encoders import MOBILENET, tokenizer_digest
from models.metrics.backbones import (
    RIM,
    CroppedClip,
    MobileNetViews,
    background_digest,
    clip_digest,
    load_background_features,
    load_subject_features,
    metric_backbone,
    subject_digest,
)
from models.metrics.consistency import consistency, steadiness, text_alignment
from models.metrics.descriptor import (
    DESCRIPTOR,
    DESCRIPTOR_FRAMES,
    GREY_EVERY_S,
    Descriptor,
    compute_descriptor,
    grey_of,
    shrunk,
)
from models.metrics.flow import (
    DIS,
    ONNX_PREFIX,
    Dynamics,
    Smoothness,
    flow_digest,
    interpolator_digest,
    load_flow,
    load_interpolator,
    mean,
)
from models.metrics.imaging import DEFECTS, STAND_IN, imaging_digest, load_imaging, to_unit
from models.quality.aesthetic import OFFLINE_CHOICE as ENTROPY
from models.quality.aesthetic import aesthetic_digest, load_aesthetic

BATCH = 16
LEAST_FRAMES = 3  # smoothness guesses a frame from two neighbours
DESCRIPTOR_SIDE = 224
PLACES = 6  # VBench's values lie close to 1


class TooShort(ValueError):
    """A video has too few frames to say anything about time."""


@dataclass(frozen=True)
class Backbones:
    """Which model stands behind each metric.

    Args:
        subject: mobilenet_v2, or a DINO-class model by hub name (VBench: facebook/dino-vitb16) or folder.
        background: mobilenet_v2, or a CLIP-class model (VBench: openai/clip-vit-base-patch32).
        imaging: a no-reference metric of pyiqa (VBench: musiq-spaq; offline: defects, a stand-in; piqe, niqe).
        aesthetic: entropy, or a metric of pyiqa (VBench: laion_aes).
        flow: dis, raft_large (VBench) or raft_small.
        interpolator: dis, or onnx:FILE, an export of AMT (VBench).
        text: a CLIP-class model for text alignment, or "" for none.
    """

    subject: str = MOBILENET
    background: str = MOBILENET
    imaging: str = DEFECTS
    aesthetic: str = ENTROPY
    flow: str = DIS
    interpolator: str = DIS
    text: str = ""

    def digests(self) -> dict[str, str]:
        """role → sha256 of the model. Loads none. Raises ModelUnavailable, ValueError."""
        digests = {
            "subject": subject_digest(self.subject),
            "background": background_digest(self.background),
            "imaging": digest_of({"metric": imaging_digest(self.imaging), "scaled": "to 0..1"}),
            "aesthetic": digest_of({"metric": aesthetic_digest(self.aesthetic), "scaled": "to 0..1"}),
            "flow": flow_digest(self.flow),
            "interpolator": interpolator_digest(self.interpolator),
            "trace": digest_of({"trace": DESCRIPTOR, "encoder": subject_digest(MOBILENET), "side": DESCRIPTOR_SIDE}),
        }
        if self.text:
            digests["text"] = digest_of([clip_digest(self.text), tokenizer_digest(self.text)])
        return digests

    def names(self) -> dict[str, str]:
        """role → name of the metric that it gives, backbone in brackets. Raises as `digests`."""
        digests = self.digests()

        def named(metric: str, role: str, stand_in: str) -> str:
            name = getattr(self, role)
            return f"{metric}[{stand_in if name in (MOBILENET, DIS) else metric_backbone(name, digests[role])}]"

        onnx = Path(self.interpolator.removeprefix(ONNX_PREFIX)).stem
        names = {
            "subject": named("subject_consistency", "subject", MOBILENET),
            "background": named("background_consistency", "background", RIM),
            "imaging": f"imaging_quality[{STAND_IN if self.imaging == DEFECTS else self.imaging}]",
            "aesthetic": f"aesthetic_quality[{'entropy_stand_in' if self.aesthetic == ENTROPY else self.aesthetic}]",
            "flow": named("dynamic_degree", "flow", "dis_flow"),
            "speed": named("motion_speed", "flow", "dis_flow"),
            "interpolator": "motion_smoothness[dis_flow]"
            if self.interpolator == DIS
            else f"motion_smoothness[{onnx}@{digests['interpolator'][:8]}]",
            "flicker": "temporal_flickering",
        }
        if self.text:
            names["text"] = named("text_alignment", "text", "")
        return names


@dataclass(frozen=True)
class VideoScores:
    """What was measured of one video.

    Args:
        scores: metric's name → value, higher is better; see `describe` for ranges.
        models: metric's name → digest of the model behind it.
        width, height: pixels; `frames` decoded.
        descriptor: for finding what it resembles.
        picture: its middle frame, uint8 RGB (h, w, 3), long side at most 320.
    """

    scores: dict[str, float]
    models: dict[str, str]
    frames: int
    width: int
    height: int
    descriptor: Descriptor
    picture: np.ndarray


def describe(name: str) -> str:
    """What a metric means, in a sentence."""
    texts = {
        "subject_consistency": "how alike every frame is to the first and to the one before, by features; 0 to 1",
        "background_consistency": "the same by features of the whole picture (CLIP) or of its rim (stand-in); 0 to 1",
        "motion_smoothness": "how well every second frame is guessed from its neighbours; 0 to 1, 1 also for a freeze",
        "temporal_flickering": "1 minus the mean difference of neighbouring frames; 0 to 1, 1 also for a freeze",
        "dynamic_degree": "1 when much moves by optical flow, else 0: says how much, not how well",
        "motion_speed": "speed of the fastest 5 % of pixels, short sides per 1/8 s: says how much, not how well",
        "imaging_quality": "sharp, free of noise and blocks; mean over frames, scaled to 0 to 1",
        "aesthetic_quality": "pleasing by LAION's predictor; by the stand-in only: not empty; scaled to 0 to 1",
        "text_alignment": "mean cosine of frames and prompt; -1 to 1",
        "medical_accuracy": "1 when the judge's votes find no clear medical or physical error, else 0",
        "videoscore": "VideoScore, mostly 1 to 4",
    }
    return texts.get(name.split("[")[0].split(":")[0].split("/")[0], "")


class Suite:
    """The models behind the metrics, loaded once."""

    def __init__(self, backbones: Backbones, device: str = "cpu") -> None:
        """On a device of PyTorch. Raises ModelUnavailable, ValueError."""
        self.names = backbones.names()
        self.digests = backbones.digests()
        self.views = MobileNetViews(device)
        self.subject = None if backbones.subject == MOBILENET else load_subject_features(backbones.subject, device)
        self.background = (
            None if backbones.background == MOBILENET else load_background_features(backbones.background, device)
        )
        self.imaging = load_imaging(backbones.imaging, device)
        self.aesthetic = load_aesthetic(backbones.aesthetic, device=device)
        self.flow = load_flow(backbones.flow, device)
        self.interpolate = load_interpolator(backbones.interpolator, device)
        self.text = CroppedClip(backbones.text, device) if backbones.text else None

    def measure(self, frames: Iterable[np.ndarray], fps: float, prompt: str = "") -> VideoScores:
        """Measures a video.

        Args:
            frames: all of it, uint8 RGB (H, W, 3) of one size, in order; kept in memory are few.
            fps: frames per second.
            prompt: what the video should show; text alignment is left out when it is empty.

        Raises:
            TooShort: fewer than LEAST_FRAMES frames.
            ValueError: frames of different size.
        """
        run = _Run(self, fps)
        batch: list[np.ndarray] = []
        for frame in frames:
            run.process_frame(frame)
            batch.append(frame)
            if len(batch) == BATCH:
                run.process_batch(batch)
                batch = []
        if batch:
            run.process_batch(batch)
        return run.result(prompt)


@cache
def load_suite(backbones: Backbones, device: str = "cpu") -> Suite:
    """The suite with these backbones, one per process. Raises ModelUnavailable, ValueError."""
    return Suite(backbones, device)


class _Run:
    """One pass over a video."""

    def __init__(self, suite: Suite, fps: float) -> None:
        self.suite = suite
        self.fps = fps if fps > 0 else 25.0
        self.dynamics = Dynamics(suite.flow, self.fps)
        self.smoothness = Smoothness(suite.interpolate)
        self.grey_every = max(1, round(self.fps * GREY_EVERY_S))
        self.count = 0
        self.size: tuple[int, ...] = ()
        self.last: np.ndarray | None = None
        self.changes: list[float] = []
        self.grey: list[np.ndarray] = []
        self.small: list[np.ndarray] = []
        self.features: dict[str, list[np.ndarray]] = {
            "whole": [],
            "rim": [],
            "subject": [],
            "background": [],
            "text": [],
        }
        self.frame_scores: dict[str, list[float]] = {"imaging": [], "aesthetic": []}

    def process_frame(self, frame: np.ndarray) -> None:
        if self.last is None:
            self.size = frame.shape
        elif frame.shape != self.size:
            raise ValueError(
                f"a frame of {frame.shape[1]}x{frame.shape[0]} in a video of {self.size[1]}x{self.size[0]}"
            )
        else:
            self.changes.append(float(cv2.absdiff(self.last, frame).mean()))
        self.dynamics.process_frame(self.count, frame)
        self.smoothness.process_frame(self.count, frame)
        if self.count % self.grey_every == 0:
            self.grey.append(grey_of(frame))
        self.small.append(shrunk(frame, DESCRIPTOR_SIDE))
        self.last = frame
        self.count += 1

    def process_batch(self, frames: list[np.ndarray]) -> None:
        suite = self.suite
        if suite.subject is None or suite.background is None:
            whole, rim = suite.views.views(frames)
            self.features["whole"].append(whole)
            self.features["rim"].append(rim)
        for role, model in (("subject", suite.subject), ("background", suite.background)):
            if model is not None:
                self.features[role].append(model.embed(frames))
        if suite.text is not None:
            self.features["text"].append(suite.text.embed(frames))
        for role, metric in (("imaging", suite.imaging), ("aesthetic", suite.aesthetic)):
            self.frame_scores[role] += [to_unit(metric, score) for score in metric.scores(frames)]

    def result(self, prompt: str) -> VideoScores:
        if self.count < LEAST_FRAMES:
            raise TooShort(f"{self.count} frames; a video needs at least {LEAST_FRAMES}")
        suite, gathered = self.suite, {k: np.concatenate(v) for k, v in self.features.items() if v}
        values = {
            "subject": consistency(gathered["whole" if suite.subject is None else "subject"]),
            "background": consistency(gathered["rim" if suite.background is None else "background"]),
            "imaging": mean(self.frame_scores["imaging"]),
            "aesthetic": mean(self.frame_scores["aesthetic"]),
            "flow": self.dynamics.dynamic,
            "speed": self.dynamics.speed,
            "interpolator": steadiness(mean(self.smoothness.errors)),
            "flicker": steadiness(mean(self.changes)),
        }
        if suite.text is not None and prompt:
            values["text"] = text_alignment(gathered["text"], suite.text.embed_texts([prompt])[0])
        digests = suite.digests | {"speed": suite.digests["flow"], "flicker": _FLICKER}
        places = [(2 * i + 1) * self.count // (2 * DESCRIPTOR_FRAMES) for i in range(DESCRIPTOR_FRAMES)]
        chosen = [self.small[place] for place in sorted(set(places))]
        return VideoScores(
            scores={suite.names[role]: rounded(value, PLACES) for role, value in values.items()},
            models={suite.names[role]: digests[role] for role in values},
            frames=self.count,
            width=self.size[1],
            height=self.size[0],
            descriptor=compute_descriptor(chosen, self.grey, self.grey_every / self.fps, suite.views),
            picture=self.small[self.count // 2],
        )


_FLICKER = digest_of({"name": "temporal flickering", "formula": "(255 - mean absolute difference) / 255"})


def jpeg(picture: np.ndarray) -> bytes:
    """A picture uint8 RGB (H, W, 3) as JPEG."""
    encoded, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    if not encoded:
        raise ValueError(f"a picture of shape {picture.shape} could not be encoded as JPEG")
    return data.tobytes()
