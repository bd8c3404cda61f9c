"""Privacy: what becomes of clips with faces or burned-in identifiers of patients: keep, blur or reject.

What was found is quality's measurement; here the policy of the release is applied. A blurred clip is a new file and a
new clip, whose record leads back to the one that it replaces. It is encoded from the source video, not from the clip,
so that no picture is encoded twice.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from medgen.catalog import Clip
from medgen.errors import ItemFailed
from medgen.ledger import Outcome, Record, StepIdentity, Work
from medgen.media import Limits, pictures
from medgen.shard import Item, ShardResult, Step
from medgen.store import Store
from models.privacy.faces import LEAST_SCORE_AMONG_FACES, faces_digest, load_faces
from models.privacy.identifiers import STRONG
from models.privacy.redaction import Region, redact, regions_over_time
from tasks.curation.cut import Encoding, encode_clip
from tasks.prefect_step import run_in_prefect, step_task

COVER_S = 0.5  # a face is covered this long before it is found and after it was

Policy = Literal["keep", "blur", "reject"]


class PrivacyParams(BaseModel):
    """Parameters of privacy."""

    model_config = ConfigDict(frozen=True)

    faces: Policy = Field("keep", description="Clips with faces: keep, blur the faces, or reject.")
    identifiers: Policy = Field("blur", description="Clips with a patient's name, number or birth date on the picture.")
    privacy_limit_s: float = Field(600.0, gt=0, exclude=True, description="Slower work is stopped, seconds.")


def privacy(work: Work, store: Store, params: PrivacyParams) -> Outcome:
    """Applies the policy to one clip.

    Outputs:
        clip: the clip that goes on: the same file, or a blurred one.

    Raises:
        ItemFailed: as `tasks.curation.cut.encode_clip` and `medgen.media.pictures`.
    """
    faces, named = work.context["faces"], work.context["identifiers"]
    found = {"faces": bool(faces), "identifiers": sorted({box["kind"] for box in named})}
    for what, there, policy in (("faces", bool(faces), params.faces), ("identifiers", bool(named), params.identifiers)):
        if there and policy == "reject":
            count = float(faces if what == "faces" else len(named))
            detail = {"found": found, "metric": what, "score": count, "threshold": 0.0}
            return Outcome("rejected", f"{what}_found", detail)
    hidden = [what for what, there in _to_blur(work.context, params).items() if there]
    made = {name: work.context[name] for name in ("clip", "bytes", "bit_rate")}
    if not hidden:
        return Outcome("kept", detail={"found": found, "blurred": [], **made})
    count = work.context["clip"]["end_frame"] - work.context["clip"]["start_frame"]
    regions: list[list[Region]] = [[] for _ in range(count)]
    decodes = 1
    if "faces" in hidden:
        seen = _faces_of(store, work.inputs["clip"], count)
        regions = regions_over_time(seen, max(1, round(COVER_S * work.context["clip"]["fps"])))
        decodes += 1
    if "identifiers" in hidden:
        boxes = [Region(b["x"], b["y"], b["width"], b["height"]).widened() for b in named]
        regions = [[*frame, *boxes] for frame in regions]
    encoding = Encoding(**work.context["encoding"])
    clip, made = encode_clip(store, work.inputs, encoding, edit=lambda index, frame: redact(frame, regions[index]))
    return Outcome(
        "kept",
        detail={"found": found, "blurred": hidden, "replaces": work.subject, **made},
        outputs={"clip": clip},
        rows=[Clip(**made["clip"])],
        decodes=decodes,
    )


def _faces_of(store: Store, clip: str, count: int) -> list[list[Region]]:
    """Widened boxes of faces on every frame of a clip that has some."""
    detector = load_faces()
    found = []
    for picture in pictures(store.path(clip), Limits()):
        (boxes,) = detector.find([picture.rgb()], LEAST_SCORE_AMONG_FACES)
        found.append([Region(box.x, box.y, box.width, box.height).widened() for box in boxes])
    if len(found) != count:
        raise ItemFailed("frames_missing", f"{len(found)} frames where {count} were promised")
    return found


def _to_blur(context: Mapping[str, Any], params: PrivacyParams) -> dict[str, bool]:
    return {
        "faces": bool(context["faces"]) and params.faces == "blur",
        "identifiers": bool(context["identifiers"]) and params.identifiers == "blur",
    }


def step(params: PrivacyParams) -> Step:
    """Privacy, ready to run."""
    models = {"faces": faces_digest()} if params.faces == "blur" else {}
    identity = StepIdentity("privacy", 1, params.model_dump(mode="json"), models)
    return Step(identity, partial(privacy, params=params), "processes", params.privacy_limit_s)


def _work(item: Item, past: Mapping[str, Record], params: PrivacyParams) -> Work:
    measured, cut = past["quality"], past["cut"]
    context = {
        **{name: cut.detail[name] for name in ("clip", "bytes", "bit_rate")},
        "faces": int(measured.scores.get("faces", 0)),
        "identifiers": [box for box in measured.detail["identifiers"] if box["kind"] in STRONG],
    }
    inputs = {"clip": cut.outputs["clip"]}
    if any(_to_blur(context, params).values()):
        inputs |= {"video": past["download"].outputs["video"], "frames": past["segment"].outputs["frames"]}
        context["encoding"] = cut.detail["encoding"]
    return Work(item.subject, inputs=inputs, context=context)


def _clip(item: Item, record: Record) -> Iterable[Item]:
    return [Item(record.detail["clip"]["id"], {**item.trail, "privacy": record.id})]


@step_task("privacy", "cpu")
def privacy_shard(
    label: str, upstream: ShardResult, params: PrivacyParams, retry_quarantined: bool = False
) -> ShardResult:
    """Applies the policy to a shard of clips."""
    work_of = partial(_work, params=params)
    return run_in_prefect(step(params), upstream.kept, work_of, follow=_clip, retry_quarantined=retry_quarantined)
