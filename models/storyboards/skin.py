"""How dark is the skin of a face? By colour, without any word for it: the individual typology angle.

ITA = arctan((L* - 50) / b*) in degrees, of CIELAB under D65 (Chardon, Cretois and Hourseau 1991): lighter skin has the
larger angle, about 55 for very light and -30 for dark skin. It was made for measuring devices. Of a picture it follows
the light of the scene as well, so that it orders pictures of one kind and puts no single person into a class.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from medgen.canonical import digest_of, rounded
from models.privacy.faces import FaceBox

# Cheeks, as shares of a face's box: left, top, right, bottom.
CHEEKS = ((0.15, 0.45, 0.4, 0.7), (0.6, 0.45, 0.85, 0.7))
LEAST_PIXELS = 16
SKIN = digest_of({"angle": "individual typology angle", "cheeks": CHEEKS, "least": LEAST_PIXELS, "version": 1})


def typology_angle(frame: np.ndarray, face: FaceBox) -> float | None:
    """The angle of a face's cheeks, degrees, -90 to 90; None of too few pixels or where the light is blue.

    Args:
        frame: uint8 RGB (H, W, 3), in sRGB.
    """
    pixels = np.concatenate([_part(frame, face, cheek) for cheek in CHEEKS])
    if len(pixels) < LEAST_PIXELS:
        return None
    lab = cv2.cvtColor(pixels[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    lightness, _, yellow = np.median(lab, axis=0)
    if yellow <= 0:  # the formula is for skin in white light, which is always yellower than grey
        return None
    return rounded(math.degrees(math.atan2(float(lightness) - 50, float(yellow))), 2)


def _part(frame: np.ndarray, face: FaceBox, part: Sequence[float]) -> np.ndarray:
    """Pixels (N, 3) of a part of a face."""
    left, top, right, bottom = part
    rows = slice(face.y + round(top * face.height), face.y + round(bottom * face.height))
    columns = slice(face.x + round(left * face.width), face.x + round(right * face.width))
    return frame[rows, columns].reshape(-1, 3)
