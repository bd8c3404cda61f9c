"""Does the picture move? How the camera does, `models.quality.camera_motion` says.

Works on small grey frames, so that noise of the codec is mostly averaged away. Thresholds were measured on
short medical and everyday videos at 4 frames per second and 160 pixels of width.
"""

import itertools
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from medgen.canonical import rounded
from models.quality.camera_motion import CameraMotion, CameraPath, camera_motion

MotionType = Literal["still"] | CameraMotion

MIN_SIDE = 16
# Grey levels, after a 3x3 mean. Held pictures stay below it through H.264; an echocardiogram does not.
NOISE_FLOOR = 8.0
# A picture whose levels span less is quieter, in what moves and in what the codec adds: the floor falls with the span.
FULL_SPAN = 128.0
LEAST_FLOOR = 3.0
# Default for `motion_type`. A held picture measured 0, the calmest live video (an ultrasound phantom) 0.011.
STILL_BELOW = 0.005
# A slow pan or zoom over a photograph ("Ken Burns effect"): a shift, turn and scaling of the whole picture leaves at
# most this share of the change over a second, and does so evenly. Of 56 filmed or rendered clips none is taken for
# one (they leave 0.41 and more); of 112 even pans and zooms made from their frames 102 are, of 56 shaky ones none.
PHOTO_UNEXPLAINED_TO = 0.1
PHOTO_SPEED_CHANGE_TO = 0.5
PHOTO_STEPS = 4


@dataclass(frozen=True)
class Motion:
    """How much a clip moves. All values are rounded to 4 decimals; all are 0 for a single frame.

    Attributes:
        mean_change: mean absolute difference of neighbouring frames, grey levels, 0..255.
        max_change: the largest such difference of one pair of neighbours, 0..255.
        moving_fraction: share of pixels more than `noise_floor` away from the first frame, averaged over
            the later frames, 0..1. Slow drift adds up in it, where neighbours would hardly differ.
        unexplained_change: share of the pixels changed over a second (`PHOTO_STEPS`) that stays changed when the
            best similarity transform of the whole picture is undone, 0..1; 1 when nothing moves or no transform
            was found.
        speed_change: by how much that transform's motion differs from a second to the next, as a fraction of the
            motion itself (median), 0 and up; 1 where fewer than two transforms were found.
    """

    mean_change: float
    max_change: float
    moving_fraction: float
    unexplained_change: float = 1.0
    speed_change: float = 1.0


def measure_motion(gray: np.ndarray) -> Motion:
    """Measure the motion of one clip.

    Args:
        gray: uint8 (T, h, w), T >= 1, frames at even distances in time (4 per second, 160 pixels wide).
            Change is per step, so values compare only between clips sampled alike.

    Raises:
        ValueError: for another dtype or shape, or a side below 16 pixels.
    """
    if gray.dtype != np.uint8 or gray.ndim != 3 or len(gray) == 0 or min(gray.shape[1:]) < MIN_SIDE:
        raise ValueError(f"need uint8 frames (T >= 1, h >= {MIN_SIDE}, w >= {MIN_SIDE}), got {gray.dtype} {gray.shape}")
    if len(gray) == 1:
        return Motion(0.0, 0.0, 0.0)
    # One by one: cv2 would take the frames of a stack for the channels of one picture.
    smooth = np.stack([cv2.blur(frame.astype(np.float32), (3, 3)) for frame in gray])
    changes = [float(cv2.absdiff(a, b).mean()) for a, b in itertools.pairwise(gray)]
    floor = noise_floor(gray[0])
    departed = [float((np.abs(frame - smooth[0]) > floor).mean()) for frame in smooth[1:]]
    unexplained, speed_change = _photograph(gray, smooth, floor)
    return Motion(
        mean_change=rounded(float(np.mean(changes))),
        max_change=rounded(max(changes)),
        moving_fraction=rounded(float(np.mean(departed))),
        unexplained_change=rounded(unexplained),
        speed_change=rounded(speed_change),
    )


def noise_floor(picture: np.ndarray) -> float:
    """Grey levels, after a 3x3 mean, by which a pixel of such a picture, uint8 (h, w), must differ to have changed."""
    low, high = np.percentile(picture, (0.5, 99.5))
    return max(LEAST_FLOOR, NOISE_FLOOR * min(1.0, float(high - low) / FULL_SPAN))


def motion_type(motion: Motion, camera: CameraPath, still_below: float = STILL_BELOW) -> MotionType:
    """Names the motion: "still", the same picture all the time (`moving_fraction` < `still_below`, 0..1), or what the
    camera does. A pan over a photograph is one too (see `is_panned_photograph`)."""
    return "still" if motion.moving_fraction < still_below else camera_motion(camera)


def is_panned_photograph(motion: Motion) -> bool:
    """Whether an even pan or zoom over one picture explains nearly all change. A film of a rigid scene from a camera
    on rails, far from everything, looks the same and counts as one too."""
    return motion.unexplained_change <= PHOTO_UNEXPLAINED_TO and motion.speed_change <= PHOTO_SPEED_CHANGE_TO


def _photograph(gray: np.ndarray, smooth: np.ndarray, floor: float) -> tuple[float, float]:
    """`unexplained_change` and `speed_change`, see `Motion`."""
    gap = min(PHOTO_STEPS, len(gray) - 1)
    height, width = gray.shape[1:]
    # Where the middle of the picture goes, and how much larger it gets at its side.
    middle = np.array([width / 2, height / 2, 1.0])
    changed, left, moves = 0.0, 0.0, []
    for index in range(len(gray) - gap):
        before, after = smooth[index], smooth[index + gap]
        change = float((np.abs(after - before) > floor).mean())
        changed += change
        rest = change
        transform = _similarity(gray[index], gray[index + gap]) if change > 0 else None
        if transform is not None:
            undone = cv2.warpAffine(before, transform, (width, height))
            inside = cv2.warpAffine(np.ones_like(before), transform, (width, height)) > 0.999
            if inside.mean() >= 0.5:
                rest = min(rest, float((np.abs(after - undone)[inside] > floor).mean()))
                growth = (np.hypot(transform[0, 0], transform[1, 0]) - 1) * width / 2
                moves.append([*(transform @ middle - middle[:2]), growth])
        left += rest
    if changed == 0 or len(moves) < 2:
        return 1.0, 1.0
    path = np.array(moves)
    later = path[gap:] - path[:-gap] if len(path) > gap else np.diff(path, axis=0)
    speed = float(np.median(np.linalg.norm(path, axis=1)))
    return left / changed, float(np.median(np.linalg.norm(later, axis=1))) / max(speed, 1e-6)


def _similarity(before: np.ndarray, after: np.ndarray) -> np.ndarray | None:
    """The 2x3 shift, turn and scaling that carries corners of one picture to the other (LK tracking, RANSAC)."""
    corners = cv2.goodFeaturesToTrack(before, 200, 0.01, 5)
    if corners is None or len(corners) < 8:
        return None
    moved, tracked, _ = cv2.calcOpticalFlowPyrLK(
        before, after, corners, np.empty_like(corners), winSize=(15, 15), maxLevel=3
    )
    kept = tracked.ravel() == 1
    if kept.sum() < 8:
        return None
    # OpenCV seeds its sampling with the same number on every call, so the answer is repeatable.
    transform: np.ndarray | None = cv2.estimateAffinePartial2D(
        corners[kept], moved[kept], method=cv2.RANSAC, ransacReprojThreshold=0.5
    )[0]
    return transform
