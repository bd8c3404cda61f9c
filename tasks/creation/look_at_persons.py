"""Look at persons: is a face seen in the video of a simulated patient, and how dark is its skin?

A face is personal where people are real. Here nobody is: the videos were made by a model.
"""

from collections.abc import Sequence
from statistics import median
from typing import TypedDict

from medgen.canonical import digest_of, rounded
from medgen.errors import ItemFailed
from medgen.handover import Handover
from medgen.ledger import Outcome, StepIdentity, Work
from medgen.shard import ShardResult, Step
from medgen.store import Store
from medgen.video.limits import Limits
from medgen.video.pictures import evenly_spaced, pictures
from models.privacy.faces import faces_digest, load_faces
from models.storyboards.skin import SKIN, typology_angle
from tasks.evaluation.measure_video import Video
from tasks.prefect_step import run_in_prefect, step_task

STEP = "look_at_persons"
VERSION = 1
FRAMES = 8
LIMIT_S = 300.0


class PersonsDetail(TypedDict):
    """Detail of a kept record.

    Args:
        looked: frames looked at; `with_face` those of them on which a face was found.
        skin_angle: median of the largest faces' individual typology angles, degrees; None without any.
    """

    looked: int
    with_face: int
    skin_angle: float | None


PERSONS: Handover[PersonsDetail] = Handover(STEP)


def look_at_persons(work: Work, store: Store) -> Outcome:
    """Looks at eight frames of one video.

    Raises:
        ItemFailed: as `medgen.video.pictures.pictures`; undecodable.
    """
    shown = list(pictures(store.path(work.inputs["video"]), Limits()))  # as they are stored: half of what RGB takes
    if not shown:
        raise ItemFailed("undecodable", "not one frame could be decoded")
    looked = [shown[place].rgb() for place in evenly_spaced(len(shown), FRAMES)]
    found = [max(boxes, key=lambda box: box.width * box.height, default=None) for boxes in load_faces().find(looked)]
    angles = [typology_angle(frame, face) for frame, face in zip(looked, found, strict=True) if face]
    known = [angle for angle in angles if angle is not None]
    detail: PersonsDetail = {
        "looked": len(looked),
        "with_face": sum(face is not None for face in found),
        "skin_angle": rounded(median(known), 2) if known else None,
    }
    return Outcome("kept", detail=dict(detail), decodes=1)


def step() -> Step:
    """Look at persons, ready to run. Raises ModelUnavailable."""
    models = {"persons": digest_of([faces_digest(), SKIN, FRAMES])}
    identity = StepIdentity(STEP, VERSION, {}, models)
    return Step(identity, look_at_persons, time_limit_s=LIMIT_S)  # the detector runs on the CPU wherever there are GPUs


@step_task(STEP, "cpu")
def persons_shard(label: str, videos: Sequence[Video], retry_quarantined: bool = False) -> ShardResult:
    """Looks at videos; the records' ids come in their order."""
    return run_in_prefect(step(), [video.work() for video in videos], retry_quarantined=retry_quarantined)
