"""How does the camera move: not at all, does it pan, tilt, zoom, roll, shake in a hand, or follow somebody?

From step to step the shift, turn and scaling that carries the background of a picture to the next is estimated from
tracked corners, spread evenly so that a thing full of detail does not speak for the scene. What moves otherwise is the
scene.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from medgen.canonical import rounded

CameraMotion = Literal["static", "pan", "tilt", "zoom_in", "zoom_out", "roll", "handheld", "tracking"]

CELLS = (9, 16)  # rows, columns in which corners are looked for
CORNERS_A_CELL = 3
LEAST_CELLS = 6  # with corners, else nothing tells
TRACK_BACK_TO = 0.5  # pixels: a corner that isn't found again on the way back was lost
RANSAC_PX = 0.75
INLIERS_FROM = 0.45  # share of the corners that must go the camera's way; slices of a scanner have less in common
TOLD_FROM = 0.5  # share of the steps that must tell something, else the camera is taken to stand
HELD_PX = 0.35  # a corner that stays in place
FAR_PX = 1.0  # a camera that moves a corner by more does not leave it in place
STANDING_SHARE = 0.33  # of the cells: where so many stay in place, the camera does, whatever crosses the picture
FOLLOWS_TO = 0.5  # of the camera's move: what goes less far stays in the picture, as what is followed does
# Mean distance of a pixel from the middle, as a fraction of the width: what a zoom or a turn moves by on average.
ARM = 0.3
# By these 217 and 218 of 224 made sequences were told rightly: eight kinds, half of them with things that move, the
# slowest by 2 % of the width, 2 % of scaling or 2 degrees a second. Fixed cameras measured up to 0.0035.
MOVES_FROM = 0.005  # widths a second
SHAKE_FROM = 0.015  # widths a second
SHAKE_OF_MOTION = 0.6  # of the smooth part: a steady move with a little of the hand in it stays what it is
FOLLOWING_FROM = 0.15


@dataclass(frozen=True)
class CameraPath:
    """How the camera moved over a clip. Rounded to 4 decimals; speeds a second, lengths as fractions of the width.

    Attributes:
        pan, tilt: mean speed of the smooth part of its motion across and up or down, 0 and up.
        zoom: mean speed of smooth scaling, natural logarithm of the scale a second; in is positive.
        roll: mean speed of smooth turning, radians, 0 and up.
        shake: mean speed of what is left when the smooth part is taken away, lengths, 0 and up.
        following: share of the middle of the picture that stays in place while the camera moves, 0..1.
    """

    pan: float = 0.0
    tilt: float = 0.0
    zoom: float = 0.0
    roll: float = 0.0
    shake: float = 0.0
    following: float = 0.0


def measure_camera(gray: np.ndarray, fps: float) -> CameraPath:
    """Measures how the camera moves over one clip.

    Args:
        gray: uint8 (T, h, w), T >= 1, frames at even distances in time (4 a second, 160 pixels wide).
        fps: of these frames.
    """
    steps = [_step(before, after) for before, after in itertools.pairwise(gray)]
    moves = np.array([step.move for step in steps if step is not None])
    if len(moves) <= TOLD_FROM * len(steps):
        return CameraPath()
    speeds = moves * fps
    smooth = _smooth(speeds, round(fps))
    rest = speeds - smooth
    # What is left of a turn or of scaling moves pixels by the length of their arm.
    shake = np.sqrt((rest[:, 0] ** 2 + rest[:, 1] ** 2) + (ARM * rest[:, 2]) ** 2 + (ARM * rest[:, 3]) ** 2)
    pan, tilt, _, roll = np.abs(smooth).mean(axis=0)
    return CameraPath(
        pan=rounded(float(pan)),
        tilt=rounded(float(tilt)),
        zoom=rounded(float(smooth[:, 2].mean())),
        roll=rounded(float(roll)),
        shake=rounded(float(shake.mean())),
        following=rounded(float(np.mean([step.following for step in steps if step is not None]))),
    )


@dataclass(frozen=True)
class _Step:
    """move: shift to the right and down (widths), scaling (log), turn (radians) of the camera's view."""

    move: Sequence[float]
    following: float


def _smooth(speeds: np.ndarray, window: int) -> np.ndarray:
    """Mean over about a second around each step."""
    window = min(2 * (window // 2) + 1, len(speeds))
    kernel = np.ones(window)
    weight = np.convolve(np.ones(len(speeds)), kernel, "same")
    return np.stack([np.convolve(column, kernel, "same") / weight for column in speeds.T], axis=1)


def _corners(picture: np.ndarray) -> np.ndarray:
    """float32 (N, 2), the best corners of each cell of the picture."""
    found = cv2.goodFeaturesToTrack(picture, 600, 0.003, 3)
    if found is None:
        return np.empty((0, 2), np.float32)
    points = found[:, 0]
    cell = _cells(points, picture)
    order = np.argsort(cell, kind="stable")  # they come best first
    cell = cell[order]
    rank = np.arange(len(cell)) - np.searchsorted(cell, cell)
    chosen: np.ndarray = points[order][rank < CORNERS_A_CELL]
    return chosen


def _tracked(before: np.ndarray, after: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where points (N, 1, 2) are in the next frame, and whether each was found."""
    moved, found, _ = cv2.calcOpticalFlowPyrLK(
        before, after, points, np.empty_like(points), winSize=(15, 15), maxLevel=3
    )
    return np.asarray(moved), np.asarray(found)


def _cells(points: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """int (N,), in which cell of the picture each point lies."""
    height, width = picture.shape
    rows, columns = (points[:, 1] * CELLS[0] / height).astype(int), (points[:, 0] * CELLS[1] / width).astype(int)
    cells: np.ndarray = rows * CELLS[1] + columns
    return cells


def _step(before: np.ndarray, after: np.ndarray) -> _Step | None:
    """The camera's move from a frame to the next; None where nothing tells."""
    height, width = before.shape
    corners = _corners(before)
    if len(corners) < LEAST_CELLS:
        return None
    moved, there = _tracked(before, after, corners[:, None])
    back, again = _tracked(after, before, moved)
    lost = np.linalg.norm(back[:, 0] - corners, axis=1) > TRACK_BACK_TO
    kept = (there.ravel() == 1) & (again.ravel() == 1) & ~lost
    corners, moved = corners[kept], moved[kept, 0]
    cell = _cells(corners, before)
    cells = len(np.unique(cell))
    if cells < LEAST_CELLS:
        return None
    moved_px = np.linalg.norm(moved - corners, axis=1)
    held = moved_px < HELD_PX
    transform, inliers = cv2.estimateAffinePartial2D(
        corners, moved, method=cv2.RANSAC, ransacReprojThreshold=RANSAC_PX, maxIters=500
    )
    if transform is None:
        return None
    explained = corners @ transform[:, :2].T + transform[:, 2]
    camera_px = np.linalg.norm(explained - corners, axis=1)
    far = camera_px > FAR_PX
    standing = len(np.unique(cell[held & far])) / cells
    if standing >= STANDING_SHARE:
        return _Step((0.0, 0.0, 0.0, 0.0), 0.0)
    if inliers.mean() < INLIERS_FROM:
        return None
    middle = (np.abs(corners[:, 0] / width - 0.5) < 0.2) & (np.abs(corners[:, 1] / height - 0.5) < 0.3)
    along = far & (moved_px < FOLLOWS_TO * camera_px) & (inliers.ravel() == 0)
    following = float(along[middle].mean()) if middle.any() else 0.0
    scale = float(np.hypot(transform[0, 0], transform[1, 0]))
    centre = np.array([width / 2, height / 2])
    shift = transform[:, :2] @ centre + transform[:, 2] - centre
    turn = float(np.arctan2(transform[1, 0], transform[0, 0]))
    return _Step((float(-shift[0]) / width, float(-shift[1]) / width, float(np.log(scale)), turn), following)


def camera_motion(path: CameraPath) -> CameraMotion:
    """Names it, by what moves the picture most."""
    speeds: dict[CameraMotion, float] = {
        "pan": path.pan,
        "tilt": path.tilt,
        "zoom_in" if path.zoom > 0 else "zoom_out": ARM * abs(path.zoom),
        "roll": ARM * path.roll,
    }
    name = max(speeds, key=lambda kind: speeds[kind])
    if path.shake >= SHAKE_FROM and path.shake > SHAKE_OF_MOTION * speeds[name]:
        return "handheld"
    if speeds[name] < MOVES_FROM:
        return "static"
    return "tracking" if name in ("pan", "tilt") and path.following >= FOLLOWING_FROM else name
