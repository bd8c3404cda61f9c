"""Quality: measures a clip. It decides nothing: thresholds are decide's.

Each clip is decoded once; overlay text, faces, technical and aesthetic scores share five frames (the paper's number).
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast

import cv2
import numpy as np
from av.video.frame import VideoFrame
from pydantic import Field

from medgen.canonical import digest_of, rounded
from medgen.errors import ItemFailed
from medgen.handover import Handover
from medgen.ledger import Outcome, StepIdentity, Work
from medgen.parameters import MOST_PIXELS, MOST_SECONDS, Parameters
from medgen.shard import Item, Past, Step
from medgen.store import Store, open_store
from medgen.video.limits import Limits
from medgen.video.pictures import Picture, evenly_spaced, pictures
from models import ModelUnavailable
from models.duplicates.fingerprint import FINGERPRINT, fingerprint
from models.privacy.faces import faces_digest, load_faces
from models.privacy.identifiers import IDENTIFIERS, identifiers
from models.quality.aesthetic import OFFLINE_CHOICE as ENTROPY
from models.quality.aesthetic import aesthetic_digest, served_aesthetic
from models.quality.camera_motion import measure_camera
from models.quality.defects import defects_digest, measure_defects
from models.quality.dover import ServedDover, dover_digest
from models.quality.motion import measure_motion
from models.quality.overlay_text import judge_overlay, overlay_rules_digest
from models.quality.pyiqa_metric import CLASSICAL
from models.quality.spatial_detail import SPATIAL_DETAIL, measure_spatial_detail
from models.quality.technical import served_technical, technical_digest
from models.quality.text_reader import served_text_reader, text_reader_digest
from tasks.curation.curation_step import CurationStep
from tasks.curation.cut import CUT

log = logging.getLogger(__name__)

FRAMES = 5
MOST_ON_RECORD = 50  # lines of text in the record
MOTION_FPS = 4.0
SMALL_WIDTH = 160
DOVER = "dover"


class QualityParams(Parameters):
    """Parameters of quality."""

    text_model: Literal["rapidocr", "tesseract"] = Field("rapidocr", description="Reader of overlay text.")
    face_model: Literal["centerface", "none"] = Field(
        "centerface", description="Detector of faces; with none, faces can only be kept."
    )
    technical_model: str = Field("piqe", description="pyiqa metric of technical quality, or dover (with dover_onnx).")
    aesthetic_model: str = Field(
        "entropy", description="pyiqa metric of aesthetics, or dover; entropy is an offline stand-in."
    )
    dover_onnx: str = Field(
        "", exclude=True, description="DOVER's ONNX export: a file, or store:SHA256 of one in the store."
    )
    max_pixels: int = Field(
        4096 * 2304, gt=0, le=MOST_PIXELS, description="Clips with larger pictures are refused, pixels."
    )
    quality_limit_s: float = Field(
        600.0, gt=0, le=MOST_SECONDS, exclude=True, description="Slower measuring is stopped, seconds."
    )


class MotionFacts(TypedDict):
    """The fields of `models.quality.motion.Motion`."""

    mean_change: float
    max_change: float
    moving_fraction: float
    unexplained_change: float
    speed_change: float


class CameraFacts(TypedDict):
    """The fields of `models.quality.camera_motion.CameraPath`."""

    pan: float
    tilt: float
    zoom: float
    roll: float
    shake: float
    following: float


class TextFacts(TypedDict):
    """The fields of `models.quality.overlay_text.TextLine`."""

    text: str
    kind: str
    box: tuple[int, int, int, int]
    frames: int


class IdentifierFacts(TypedDict):
    """The fields of `models.privacy.identifiers.Identifier`."""

    kind: str
    x: int
    y: int
    width: int
    height: int


class QualityDetail(TypedDict):
    """What quality puts on record: facts behind the scores. Faces are per frame; None when none were looked for."""

    motion: MotionFacts
    camera: CameraFacts
    text: list[TextFacts]
    identifiers: list[IdentifierFacts]
    faces: list[list[dict[str, Any]]] | None
    fingerprint: str
    technical_model: str
    technical_lower_is_better: bool
    aesthetic_model: str
    aesthetic_lower_is_better: bool


class QualityScores(TypedDict):
    """What quality measures, see `QualityAnalyzer`."""

    words: float
    overlay_words: float
    imaging_words: float
    scene_words: float
    overlay_share: float
    motion_change: float
    motion_moving_fraction: float
    short_side: float
    detail: float
    identifiers: float
    sharpness: float
    freeze_share: float
    black_share: float
    flashes_per_s: float
    combing: float
    blockiness: float
    noise: float
    technical: float
    aesthetic: float
    dover_overall: NotRequired[float]
    dover_technical: NotRequired[float]
    dover_aesthetic: NotRequired[float]
    faces: NotRequired[float]
    face_frames: NotRequired[float]


QUALITY: Handover[QualityDetail, Mapping[str, str], QualityScores] = Handover("quality")


@dataclass(frozen=True)
class Measured:
    """Scores of a clip with the digest of the model behind each, and the facts that explain them."""

    scores: QualityScores
    models: dict[str, str]
    detail: QualityDetail


def quality(work: Work, store: Store, params: QualityParams) -> Outcome:
    """Measures one clip: see `QualityAnalyzer`.

    Raises:
        ItemFailed: as `medgen.video.pictures.pictures`; undecodable, when there is no frame at all.
    """
    analyzer = QualityAnalyzer(work.context["frames"], work.context["fps"], params)
    for picture in pictures(store.path(work.inputs["clip"]), Limits(max_pixels=params.max_pixels)):
        analyzer.process_frame(picture.index, picture)
    measured = analyzer.measured()
    return Outcome(
        "kept",
        detail=measured.detail,
        scores=cast(Mapping[str, float], measured.scores),
        score_models=measured.models,
        clip_id=work.subject,
        decodes=1,
    )


class QualityAnalyzer:
    """Takes the pictures of a clip in order, keeps what the measures need, and measures.

    Scores: words (the paper's count), overlay_words, imaging_words, scene_words (over five frames), overlay_share (of
    the picture's area, 0..1), technical, aesthetic (means of five frames, or DOVER's, on the scale of their model,
    which the detail names), dover_overall, dover_technical, dover_aesthetic (0..1, where DOVER is asked), motion_change
    (0..255), motion_moving_fraction (0..1), the fields of
    `models.quality.defects.Defects`, detail (see `models.quality.spatial_detail`), short_side (pixels), identifiers
    (text boxes that name a patient, over five frames), faces (most on one frame), face_frames (of five).
    """

    def __init__(self, frames: int, fps: float, params: QualityParams) -> None:
        self.fps = fps if fps > 0 else 25.0
        self.params = params
        self.wanted = set(evenly_spaced(frames, FRAMES))
        dover = _dover(params.dover_onnx) if DOVER in (params.technical_model, params.aesthetic_model) else None
        self.dover, self.views = dover, dover.views(frames) if dover else None
        self.sharp: list[np.ndarray] = []
        self.small: list[np.ndarray] = []

    def process_frame(self, place: int, picture: Picture) -> None:
        """Takes the picture at `place` (from 0) of the clip."""
        if place in self.wanted:
            self.sharp.append(picture.rgb())
        if self.views is not None and place in self.views.wanted:
            self.views.add(place, picture.rgb())
        self.small.append(small_grey(picture.frame))

    def measured(self) -> Measured:
        """All scores.

        Raises:
            ItemFailed: undecodable, when there was no picture.
        """
        if not self.sharp:
            raise ItemFailed("undecodable", "not one frame of the clip could be decoded")
        reader, technical, aesthetic = _models(*_names(self.params))
        small = np.stack(self.small)
        every = max(1, round(self.fps / MOTION_FPS))
        boxes = reader.read(self.sharp)
        text = judge_overlay(boxes, self.sharp)
        named = [identifier for frame in boxes for identifier in identifiers(frame)]
        motion = measure_motion(small[::every])
        defects = measure_defects(self.sharp, small, self.fps)
        scores = {
            "words": float(text.words),
            "overlay_words": float(text.overlay_words),
            "imaging_words": float(text.imaging_words),
            "scene_words": float(text.scene_words),
            "overlay_share": text.overlay_share,
            "motion_change": rounded(motion.mean_change),
            "motion_moving_fraction": rounded(motion.moving_fraction),
            "short_side": float(min(self.sharp[0].shape[:2])),
            "detail": measure_spatial_detail(self.sharp),
            "identifiers": float(sum(identifier.strong for identifier in named)),
            **asdict(defects),
        }
        read_by = digest_of([reader.digest, overlay_rules_digest()])
        models = dict.fromkeys(("words", "overlay_words", "imaging_words", "scene_words", "overlay_share"), read_by)
        models |= {"identifiers": digest_of([reader.digest, IDENTIFIERS])}
        models |= dict.fromkeys(asdict(defects), defects_digest()) | {"detail": SPATIAL_DETAIL}
        detail: dict[str, Any] = {
            "motion": asdict(motion),
            "camera": asdict(measure_camera(small[::every], self.fps / every)),
            "text": [asdict(line) for line in text.lines[:MOST_ON_RECORD]],
            "identifiers": [asdict(identifier) for identifier in dict.fromkeys(named)],
            "faces": None,
            "fingerprint": fingerprint(small[::every], every / self.fps).text(),
        }
        by_dover = self.dover.scores(self.views) if self.dover and self.views else None
        if self.dover and by_dover:
            rated = {f"dover_{kind}": score for kind, score in asdict(by_dover).items()}
            scores |= rated
            models |= dict.fromkeys(rated, self.dover.digest)
        for kind, metric in (("technical", technical), ("aesthetic", aesthetic)):
            if metric is None:
                assert by_dover is not None
                assert self.dover is not None
                scores[kind], models[kind] = rounded(getattr(by_dover, kind)), self.dover.digest
                detail[f"{kind}_model"], detail[f"{kind}_lower_is_better"] = DOVER, False
                continue
            scores[kind] = rounded(float(np.mean(metric.scores(self.sharp))))
            models[kind] = metric.digest
            detail[f"{kind}_model"], detail[f"{kind}_lower_is_better"] = metric.name, metric.lower_is_better
        if self.params.face_model != "none":
            detector = load_faces()
            faces = detector.find(self.sharp)
            scores["faces"] = float(max(map(len, faces)))
            scores["face_frames"] = float(sum(map(bool, faces)))
            models |= dict.fromkeys(("faces", "face_frames"), detector.digest)
            detail["faces"] = [[asdict(face) for face in frame] for frame in faces]
        return Measured(cast(QualityScores, scores), models, cast(QualityDetail, detail))


def small_grey(frame: VideoFrame) -> np.ndarray:
    """uint8 (h, 160), full range: what motion, defects and fingerprints are measured on. The frame is a `Picture`'s."""
    height = max(32, round(frame.height * SMALL_WIDTH / frame.width))
    # The luma plane as it is, which is two and a half times as fast as a conversion.
    plane = frame.planes[0]
    luma = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
    small = cv2.resize(luma, (SMALL_WIDTH, height), interpolation=cv2.INTER_AREA)
    return cv2.convertScaleAbs(cv2.subtract(small, np.full_like(small, 16)), alpha=255 / 219)


def _names(params: QualityParams) -> tuple[Literal["rapidocr", "tesseract"], str, str]:
    return params.text_model, params.technical_model, params.aesthetic_model


@cache
def _models(text: Literal["rapidocr", "tesseract"], technical: str, aesthetic: str) -> tuple[Any, Any, Any]:
    """Reader and the two metrics; None for a metric that DOVER gives."""
    return (
        served_text_reader(text),
        None if technical == DOVER else served_technical(technical),
        None if aesthetic == DOVER else served_aesthetic(aesthetic),
    )


@cache
def _dover(where: str) -> ServedDover:
    return ServedDover(_dover_file(where))


def _dover_file(where: str) -> Path:
    """The ONNX file that `dover_onnx` names. Raises ModelUnavailable."""
    if not where:
        raise ModelUnavailable(
            "dover needs its ONNX export: name it by dover_onnx (a file, or store:SHA256); "
            "without one choose technical_model=piqe and aesthetic_model=entropy"
        )
    if not where.startswith("store:"):
        return Path(where)
    try:
        return open_store().path(where.removeprefix("store:"))
    except ItemFailed as error:
        raise ModelUnavailable(f"dover_onnx={where}: {error}") from error


def step(params: QualityParams) -> Step:
    """Quality, ready to run. Raises ModelUnavailable and ValueError when a model can't be had."""
    models = {
        "text": text_reader_digest(params.text_model),
        "overlay": overlay_rules_digest(),
        "identifiers": IDENTIFIERS,
        "fingerprint": FINGERPRINT,
        "defects": defects_digest(),
        "detail": SPATIAL_DETAIL,
    }
    for kind, name, digest in (
        ("technical", params.technical_model, technical_digest),
        ("aesthetic", params.aesthetic_model, aesthetic_digest),
    ):
        models[kind] = dover_digest(_dover_file(params.dover_onnx)) if name == DOVER else digest(name)
    if params.face_model != "none":
        models["faces"] = faces_digest()
    if params.aesthetic_model == ENTROPY:
        _tell_of_the_stand_in()
    return Step(
        StepIdentity("quality", 4, params.model_dump(mode="json"), models),
        partial(quality, params=params),
        work_of=work_of,
        time_limit_s=params.quality_limit_s,
    )


@cache
def _tell_of_the_stand_in() -> None:
    """Once, by the process that runs steps: not by each of those that measure."""
    log.warning("aesthetic scores come from an offline stand-in (entropy): it only catches empty pictures")


def load_models(params: QualityParams) -> None:
    """Loads the learned metrics and DOVER. Raises ModelUnavailable and ValueError."""
    if params.technical_model not in (*CLASSICAL, DOVER):
        served_technical(params.technical_model)
    if params.aesthetic_model not in (ENTROPY, DOVER):
        served_aesthetic(params.aesthetic_model)
    if DOVER in (params.technical_model, params.aesthetic_model):
        _dover(params.dover_onnx)


def work_of(item: Item, past: Past) -> Work:
    """A clip, its number of frames and its frame rate."""
    clip = CUT.detail(past)["clip"]
    context = {"frames": clip["end_frame"] - clip["start_frame"], "fps": clip["fps"]}
    return Work(item.subject, inputs={"clip": clip["digest"]}, context=context)


STEP = CurationStep("quality", QualityParams, step, load_models)
