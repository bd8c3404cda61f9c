"""Privacy: what becomes of clips with faces or burned-in identifiers of patients: keep, blur or reject.

What was found is quality's measurement, or what a DICOM source says of itself; here the policy of the release is
applied. A blurred clip is a new file and a new clip, whose record leads back to the one that it replaces. It is encoded
from the source video, not from the clip, so that no picture is encoded twice.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal, NotRequired, TypedDict

from pydantic import Field

from medgen.catalog import Clip
from medgen.errors import ItemFailed
from medgen.handover import Handover
from medgen.ledger import Outcome, Record, StepIdentity, Work
from medgen.parameters import MOST_SECONDS, Parameters
from medgen.shard import Item, Past, Step
from medgen.store import Store
from medgen.video.limits import Limits
from medgen.video.pictures import pictures
from models.privacy.faces import LEAST_SCORE_AMONG_FACES, faces_digest, load_faces
from models.privacy.identifiers import STRONG
from models.privacy.redaction import Region, redact, regions_over_time, tracked
from tasks.curation.curation_step import CurationStep
from tasks.curation.cut import CUT, EncodedClip, Encoding, encode_clip
from tasks.curation.download import DOWNLOAD
from tasks.curation.quality import QUALITY
from tasks.curation.segment import SEGMENT

BURNED_IN = "burned-in annotation"  # a DICOM file says that its pictures identify the patient; not where
LOST_S = 1.5  # a face that comes back within this was there in between, on its way
COVER_S = 0.5  # a face is covered this long before it is found and after it was

Policy = Literal["keep", "blur", "reject"]


class PrivacyParams(Parameters):
    """Parameters of privacy."""

    faces: Policy = Field("keep", description="Clips with faces: keep, blur the faces, or reject.")
    identifiers: Policy = Field(
        "blur",
        description="Clips with a patient's name, number or birth date on the picture, as read or as DICOM says.",
    )
    privacy_limit_s: float = Field(
        600.0, gt=0, le=MOST_SECONDS, exclude=True, description="Slower work is stopped, seconds."
    )


class PrivacyFindings(TypedDict):
    """Whether there are faces, and which kinds of identifiers: those read, and BURNED_IN by the source's word."""

    faces: bool
    identifiers: list[str]


class PrivacyDetail(EncodedClip):
    """What privacy puts on record of a clip that goes on: what was found, what was blurred, the clip it replaces."""

    found: PrivacyFindings
    blurred: list[str]
    replaces: NotRequired[str]


class PrivacyOutputs(TypedDict):
    """The blurred clip, MP4, where one was made."""

    clip: NotRequired[str]


PRIVACY: Handover[PrivacyDetail, PrivacyOutputs] = Handover("privacy")


def privacy(work: Work, store: Store, params: PrivacyParams) -> Outcome:
    """Applies the policy to one clip.

    Outputs:
        clip: the clip that goes on: the same file, or a blurred one.

    Raises:
        ItemFailed: as `tasks.curation.cut.encode_clip` and `medgen.video.pictures.pictures`.
    """
    faces, named = work.context["faces"], work.context["identifiers"]
    declared = [BURNED_IN] if work.context.get("burned_in") else []
    findings: PrivacyFindings = {
        "faces": bool(faces),
        "identifiers": sorted({box["kind"] for box in named}) + declared,
    }
    for what, count, policy in (
        ("faces", faces, params.faces),
        ("identifiers", len(named) + len(declared), params.identifiers),
    ):
        if count and policy == "reject":
            why = {"found": findings, "metric": what, "score": float(count), "threshold": 0.0}
            return Outcome("rejected", f"{what}_found", why)
    hidden = [what for what, there in _to_blur(work.context, params).items() if there]
    detail: PrivacyDetail
    if not hidden:
        detail = {
            "clip": work.context["clip"],
            "bytes": work.context["bytes"],
            "bit_rate": work.context["bit_rate"],
            "found": findings,
            "blurred": [],
        }
        return Outcome("kept", detail=detail)
    count = work.context["clip"]["end_frame"] - work.context["clip"]["start_frame"]
    regions: list[list[Region]] = [[] for _ in range(count)]
    decodes = 1
    if "faces" in hidden:
        faces_of = _faces_of(store, work.inputs["clip"], count)
        fps = work.context["clip"]["fps"]
        regions = regions_over_time(tracked(faces_of, round(LOST_S * fps)), max(1, round(COVER_S * fps)))
        decodes += 1
    if "identifiers" in hidden:
        boxes = [Region(b["x"], b["y"], b["width"], b["height"]).widened() for b in named]
        regions = [[*frame, *boxes] for frame in regions]
    encoding = Encoding(**work.context["encoding"])
    clip, made = encode_clip(store, work.inputs, encoding, edit=lambda index, frame: redact(frame, regions[index]))
    detail = {**made, "found": findings, "blurred": hidden, "replaces": work.subject}
    return Outcome(
        "kept",
        detail=detail,
        outputs={"clip": clip},
        rows=[Clip(**made["clip"])],
        decodes=decodes,
    )


def _faces_of(store: Store, clip: str, count: int) -> list[list[Region]]:
    """Widened boxes of faces on every frame of a clip that has some."""
    detector = load_faces()
    regions = []
    for picture in pictures(store.path(clip), Limits()):
        (boxes,) = detector.find([picture.rgb()], LEAST_SCORE_AMONG_FACES)
        regions.append([Region(box.x, box.y, box.width, box.height).widened() for box in boxes])
    if len(regions) != count:
        raise ItemFailed("frames_missing", f"{len(regions)} frames where {count} were promised")
    return regions


def _to_blur(context: Mapping[str, Any], params: PrivacyParams) -> dict[str, bool]:
    return {
        "faces": bool(context["faces"]) and params.faces == "blur",
        "identifiers": bool(context["identifiers"]) and params.identifiers == "blur",
    }


def step(params: PrivacyParams) -> Step:
    """Privacy, ready to run."""
    models = {"faces": faces_digest()} if params.faces == "blur" else {}
    return Step(
        StepIdentity("privacy", 3, params.model_dump(mode="json"), models),
        partial(privacy, params=params),
        work_of=partial(work_of, params=params),
        fan_out=clip_of,
        time_limit_s=params.privacy_limit_s,
    )


def work_of(item: Item, past: Past, params: PrivacyParams) -> Work:
    """A clip and what quality found on it; where something is to be blurred also its source."""
    cut, scores = CUT.detail(past), QUALITY.scores(past)
    named = [box for box in QUALITY.detail(past)["identifiers"] if box["kind"] in STRONG]
    context = {
        "clip": cut["clip"],
        "bytes": cut["bytes"],
        "bit_rate": cut["bit_rate"],
        "faces": int(scores.get("faces", 0)),
        "identifiers": named,
    }
    dicom = DOWNLOAD.detail(past).get("dicom")
    if dicom and dicom["burned_in_annotation"] == "yes":
        context["burned_in"] = True
    inputs = {"clip": CUT.outputs(past)["clip"]}
    if any(_to_blur(context, params).values()):
        inputs |= {"video": DOWNLOAD.outputs(past)["video"], "frames": SEGMENT.outputs(past)["frames"]}
        context["encoding"] = cut["encoding"]
    return Work(item.subject, inputs=inputs, context=context)


def clip_of(item: Item, record: Record) -> Iterable[Item]:
    """The clip that goes on: the same, or the blurred one in its place."""
    return [Item(PRIVACY.detail(record)["clip"]["id"], item.lineage)]


STEP = CurationStep("privacy", PrivacyParams, step)
