"""Create: a storyboard and the videos chosen for its shots become a creation on record, with what is to be checked.

A creation is known by what it holds: its name ends with the beginning of its digest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from medgen.canonical import canonical_json, rounded
from medgen.catalog import Clip, Release, ReleaseClip, Video
from medgen.errors import RunStopped
from medgen.ledger import Ledger, Outcome, Record, StepIdentity, Work
from models.metrics.mllm_judge import ERROR_FROM
from models.storyboards.personas import ATTRIBUTES, balance_of
from models.storyboards.storyboard import Persona, Storyboard
from models.storyboards.template import TEMPLATE_NAME
from tasks.creation.look_at_persons import PersonsDetail
from tasks.creation.on_record import (
    CREATE_STEP,
    BalanceReport,
    CandidateRow,
    Content,
    CreateDetail,
    LevelRow,
    ShotRow,
    SourceRow,
    StatementRow,
)
from tasks.creation.shots import Candidate, ShotParams
from tasks.evaluation.generate import Plan
from tasks.evaluation.resemblance import NearCopies

VERSION = 1


def content_of(
    ledger: Ledger,
    storyboard: Storyboard,
    plan: Plan,
    candidates: Sequence[Candidate],
    chosen: Mapping[int, Candidate],
    params: ShotParams,
    releases: Sequence[str],
    copies: Sequence[NearCopies],
    judged: bool,
    persons: Mapping[str, PersonsDetail],
) -> Content:
    """What a creation holds.

    Args:
        chosen: place of a shot → its video.
        releases: that the shots were compared with; `copies`: how near copies were told, for each of them.
        judged: whether a medical judge looked at the videos.
        persons: subject of a chosen video → what was seen of a person, where the use has personas.

    Raises:
        RunStopped: no shot has a video, or one has none where the use has no personas.
    """
    shots = [
        ShotRow(
            place=place, title=shot.title, narration=shot.narration, prompt=shot.prompt,
            persona=shot.persona.model_dump() if shot.persona else None,
            chosen=_row(chosen[place]) if place in chosen else None,
            candidates=[_row(one) for one in candidates if one.shot == place],
        )
        for place, shot in enumerate(storyboard.shots, 1)
    ]  # fmt: skip
    _check_made(shots)
    personas = any(shot["persona"] for shot in shots)
    findings = _findings(storyboard, plan, shots, releases, judged, persons)
    return {
        "format": 1,
        "storyboard": storyboard.model_dump(mode="json"),
        "model": {
            "name": plan.shown, "digest": plan.digest, "on_record": plan.version is not None,
            "settings": {**plan.settings, **plan.options.pixel_settings()},
        },
        "policy": params.model_dump(mode="json"),
        "near_copies": list(copies),
        "sources": [_source(ledger, name) for name in releases],
        "shots": shots,
        "statements": [
            *(StatementRow(text=text, of="storyboard") for text in storyboard.statements),
            *(StatementRow(text=text, of="making") for text in findings),
        ],
        "balance": _balance(shots, persons) if personas else None,
    }  # fmt: skip


def put_on_record(
    ledger: Ledger, content: Content, parents: Mapping[str, int], model: str | None, *, flow_run_id: str | None
) -> tuple[Record, bool]:
    """The record of a creation, and whether it stood already. Output `content`: the JSON.

    Args:
        parents: role → id of a record behind it.
        model: digest of the model when it is on record: the creation then shows with it.
    """
    artifact = ledger.store.put_bytes(canonical_json(content), "application/json")
    board = content["storyboard"]
    detail: CreateDetail = {
        "use": board["use"], "topic": board["topic"], "language": board["language"],
        "patient_facing": board["patient_facing"], "model": content["model"]["digest"],
        "model_name": content["model"]["name"], "releases": [source["name"] for source in content["sources"]],
        "writer": board["writer"], "shots": len(content["shots"]),
        "made": sum(shot["chosen"] is not None for shot in content["shots"]),
        "weak": sum(bool(shot["chosen"] and shot["chosen"]["faults"]) for shot in content["shots"]),
        "videos": sum(len(shot["candidates"]) for shot in content["shots"]),
        "statements": [statement["text"] for statement in content["statements"]],
    }  # fmt: skip
    outcome = Outcome("kept", detail=dict(detail), outputs={"content": artifact})
    work = Work(
        f"{board['use']}-{artifact.sha256[:10]}",
        inputs={"model": model} if model else {},
        context={"content": artifact.sha256},
        parents=parents,
    )
    return ledger.once(StepIdentity(CREATE_STEP, VERSION, {}, {}), work, lambda: outcome, flow_run_id=flow_run_id)


def _row(one: Candidate) -> CandidateRow:
    measured = one.measured
    return {
        "subject": measured.video.subject, "sha256": measured.video.sha256, "seed": one.seed, "score": one.score,
        "scores": dict(sorted(measured.scores.items())), "faults": list(one.faults),
        "nearest": asdict(measured.nearest) if measured.nearest else None, "votes": list(measured.votes),
        "error": measured.error,
    }  # fmt: skip


def _check_made(shots: Sequence[ShotRow]) -> None:
    without = [shot for shot in shots if shot["chosen"] is None]
    if not without or (len(without) < len(shots) and all(shot["persona"] for shot in shots)):
        return
    shot = without[0]
    copies = [one for one in shot["candidates"] if "near_copy" in one["faults"]]
    why = (
        f"all of its {len(copies)} videos are near copies of clips that the model learned from, such as "
        f"{copies[0]['nearest']['clip'] if copies[0]['nearest'] else ''}"
        if copies
        else "no video of it could be made"
    )
    raise RunStopped(
        f"shot {shot['place']} ({shot['title']}): {why}; nothing was put together. Raise shot_attempts, change the "
        "seed or take another model"
    )


def _findings(
    storyboard: Storyboard,
    plan: Plan,
    shots: Sequence[ShotRow],
    releases: Sequence[str],
    judged: bool,
    persons: Mapping[str, PersonsDetail],
) -> list[str]:
    """What a person has to look at because of how the video was made, in English."""
    told = []
    if storyboard.writer == TEMPLATE_NAME:
        told.append(f"The words are a template's, which knows nothing of “{storyboard.topic}”: they are right for it.")
    else:
        told.append(f"The words are those of the language model {storyboard.writer}: each of them was read.")
    if not storyboard.topic.isascii() and any(storyboard.topic in shot["prompt"] for shot in shots):
        told.append("The video model was given the topic in another language than English: the pictures fit it.")
    if not judged:
        told.append("No medical judge looked at the pictures: each of them is medically right.")
    if not releases:
        told.append("The clips that the model learned from are not on record here: no shot copies one of them.")
    if plan.taken_down:
        told.append(f"The model learned from {len(plan.taken_down)} videos that were taken down since: it may be used.")
    faceless = [shot["place"] for shot in shots if shot["chosen"] and _shows_no_face(shot["chosen"], persons)]
    if faceless:
        told.append(f"No face was found in shot {', '.join(map(str, faceless))}: each shows the person asked for.")
    for shot in shots:
        one = shot["chosen"]
        if one is None:
            told.append(
                f"Shot {shot['place']} is left out: no video of it could be used. Nothing is missing without it."
            )
        elif one["faults"]:
            told.append(f"Shot {shot['place']} is good enough although {_fault(one, len(shot['candidates']))}.")
    return told


def _fault(one: CandidateRow, videos: int) -> str:
    if "judged_wrong" in one["faults"]:
        reason = next((vote["reason"] for vote in one["votes"] if vote["level"] >= ERROR_FROM and vote["reason"]), "")
        return "the medical judge found it wrong" + (f": {reason.rstrip('.')}" if reason else "")
    if "not_measured" in one["faults"]:
        return f"it could not be measured ({one['error']})"
    return (
        f"it scores {one['score']:g} only, the best of {videos} videos" if videos > 1 else f"it scores {one['score']:g}"
    )


def _source(ledger: Ledger, name: str) -> SourceRow:
    licence = func.coalesce(Video.licence, "")
    counted = (
        select(licence, func.count(Video.id.distinct()))
        .select_from(ReleaseClip)
        .join(Clip, Clip.id == ReleaseClip.clip_id)
        .join(Video, Video.id == Clip.video_id)
        .where(ReleaseClip.release_name == name)
        .group_by(licence)
        .order_by(licence)
    )
    with Session(ledger.engine) as session:
        release = session.get_one(Release, name)
        licences = {str(text): int(count) for text, count in session.execute(counted)}
        return {"name": name, "digest": release.digest, "clips": release.clips, "licences": licences}


def _shows_no_face(one: CandidateRow, persons: Mapping[str, PersonsDetail]) -> bool:
    seen = persons.get(one["subject"])
    return seen is not None and 2 * seen["with_face"] < seen["looked"]


def _balance(shots: Sequence[ShotRow], persons: Mapping[str, PersonsDetail]) -> BalanceReport:
    personas = {shot["place"]: Persona(**shot["persona"]) for shot in shots if shot["persona"]}
    made = {shot["place"]: shot["chosen"] for shot in shots if shot["chosen"]}
    levels: list[LevelRow] = []
    for attribute in ATTRIBUTES:
        for level in dict.fromkeys(getattr(persona, attribute) for persona in personas.values()):
            mine = [place for place, persona in personas.items() if getattr(persona, attribute) == level]
            videos = [one for place in mine if (one := made.get(place))]
            scores = [one["score"] for one in videos if one["score"] is not None]
            seen = [persons[one["subject"]] for one in videos if one["subject"] in persons]
            faces = [person for person in seen if 2 * person["with_face"] >= person["looked"]]
            angles = [angle for person in faces if (angle := person["skin_angle"]) is not None]
            levels.append(
                {
                    "attribute": attribute, "level": level, "asked": len(mine), "made": len(videos),
                    "score": rounded(sum(scores) / len(scores)) if scores else None, "face": len(faces),
                    "skin_angle": rounded(sum(angles) / len(angles), 2) if angles else None,
                }
            )  # fmt: skip
    return {
        "asked": balance_of(list(personas.values())),
        "made": balance_of([persona for place, persona in personas.items() if place in made]),
        "levels": levels,
    }
