"""Study: videos of several systems, chosen and laid out for blind rating, on record; of two kinds.

Pairs, as in MedGen (arXiv 2507.05675, section on human evaluation): physicians see two videos of one prompt without
knowing whose they are, and say for text alignment, medical accuracy and visual quality which is better, or that both
lose. All raters rate all pairs, each in an order and with sides of their own. Some pairs are attention checks: a video
beside itself, plainly broken. Errors: single videos on four levels, see `tasks.evaluation.study_errors`.
"""

import hashlib
import random
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypedDict

from pydantic import ConfigDict, Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from medgen.canonical import canonical_json, digest_of
from medgen.catalog import Evaluation, StepRun, Study, StudyPair, StudyRater, now
from medgen.errors import RunStopped
from medgen.ledger import Ledger, Outcome, Record, StepIdentity, Work
from medgen.store import Artifact
from tasks.evaluation import anonymise
from tasks.evaluation.anonymise import AnonymiseParams
from tasks.evaluation.study_errors import design_errors
from tasks.evaluation.study_pairs import MAX_PAIRS, AnonymousCopies, Design, design_pairs
from tasks.evaluation.system_videos import SystemVideos

AXES = ("text_alignment", "medical_accuracy", "visual_quality")
CHOICES = ("first", "second", "neither", "both")  # neither: both lose; both: they are equally good
LEVEL = "error_level"  # the one question of a study of errors
LEVELS = 4
PAIRS: Literal["pairs"] = "pairs"
ERRORS: Literal["errors"] = "errors"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
TOKEN_BYTES = 24
MAX_RATERS = 100


class StudyParams(AnonymiseParams):
    """How a study is laid out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["pairs", "errors"] = Field(
        PAIRS,
        description="pairs: two videos side by side, which is better; errors: one at a time, how bad its worst error.",
    )
    raters: int = Field(3, ge=1, le=MAX_RATERS, description="People who rate; each rates all.")
    pairs: int = Field(
        0, ge=0, le=MAX_PAIRS, description="Pairs (or videos) to rate, spread over systems; 0: all there are."
    )
    checks: int = Field(-1, ge=-1, le=50, description="Attention checks; -1: one for every ten pairs, two at least.")
    study_seed: int = Field(0, ge=0, lt=2**62, description="Of the choice of pairs, and of orders and sides.")


class StudyDetail(TypedDict):
    """Detail of the record of a study: how many pairs (or videos), checks and raters; name of a video → why it is left
    out."""

    pairs: int
    checks: int
    raters: int
    left_out: dict[str, str]


@dataclass(frozen=True)
class NewStudy:
    """A study that was just made.

    Args:
        tokens: rater → what their link ends in. Shown once: only its sha256 is on record.
        left_out: name of a video → why it is in no pair.
        looks: system → what its videos look like that no copy can hide, such as "832x480, 16 fps".
    """

    name: str
    record: Record
    tokens: Mapping[int, str]
    pairs: int
    checks: int
    left_out: Mapping[str, str]
    looks: Mapping[str, Sequence[str]]


def new_study(
    ledger: Ledger,
    name: str,
    systems: Sequence[SystemVideos],
    params: StudyParams,
    consent: str,
    progress: Callable[[int, int], None] | None = None,
) -> NewStudy:
    """Makes a study: anonymous copies into the store, then design and raters in one transaction.

    Killed before that it leaves no study; what was copied is not copied again.

    Raises:
        RunStopped: the name is taken or no name; fewer than two systems (for errors: none); no prompt that two
            systems (for errors: all) share; no videos that can be read.
    """
    if not NAME.fullmatch(name):
        raise RunStopped(f"{name[:80]!r} is no name: up to 64 small letters, digits, dots, dashes and underscores")
    with Session(ledger.engine) as session:
        if session.get(Study, name):
            raise RunStopped(
                f"there is a study {name!r} already: choose another name, or see `medgen study invite {name}` for links"
            )
    by_label = {system.label: system for system in systems}
    if len(by_label) < (1 if params.kind == ERRORS else 2) or len(by_label) != len(systems):
        raise RunStopped("a study compares two or more systems under names of their own: --videos NAME=FOLDER twice")
    left_out = {f"{s.label}: {video}": why for s in systems for video, why in s.left_out.items()}
    copies = AnonymousCopies(ledger, by_label, params, progress)
    lay_out = design_errors if params.kind == ERRORS else design_pairs
    design = lay_out(name, by_label, params.pairs, params.checks, params.study_seed, copies, left_out)
    tokens = {rater: new_token() for rater in range(1, params.raters + 1)}
    detail: StudyDetail = {
        "pairs": design.rated,
        "checks": design.checks,
        "raters": params.raters,
        "left_out": left_out,
    }
    record = _write(ledger, name, systems, params, consent, design, tokens, detail)
    looks = {
        label: sorted({_look(copies.record(label, text)) for system, text in design.shown if system == label})
        for label in by_label
    }
    return NewStudy(name, record, tokens, design.rated, design.checks, left_out, looks)


def _write(
    ledger: Ledger,
    name: str,
    systems: Sequence[SystemVideos],
    params: StudyParams,
    consent: str,
    design: Design,
    tokens: Mapping[int, str],
    detail: StudyDetail,
) -> Record:
    """Puts the design and the raters on record, in one transaction.

    Raises RunStopped: another process made a study of that name meanwhile.
    """
    raters = [
        StudyRater(
            study_name=name, number=rater, token_sha256=token_digest(token),
            showing=showing([row.number for row in design.rows], params.study_seed, rater),
        )
        for rater, token in tokens.items()
    ]  # fmt: skip
    pairs = [
        {c.name: getattr(row, c.name) for c in StudyPair.__table__.columns if c.name != "study_name"}
        for row in design.rows
    ]
    identity = StepIdentity("study", 1, params.model_dump(), {})
    work = Work(
        f"study-{name}",
        inputs={role: record.outputs["video"] for role, record in design.used},
        context={
            "systems": [{"label": s.label, "source": _shown(s.source), "model": s.model} for s in systems],
            "pairs": pairs,
            "consent": consent,
        },
        parents={role: record.id for role, record in design.used},
    )
    started = now()
    content = {"study": name, "pairs": pairs, "showings": {str(r.number): r.showing for r in raters}}
    outcome = Outcome(
        "kept",
        detail=dict(detail),
        outputs={"design": ledger.store.put_bytes(canonical_json(content), "application/json")},
        rows=[
            Study(
                name=name,
                kind=params.kind,
                systems=[s.label for s in systems],
                seed=params.study_seed,
                consent=consent,
            ),
            *design.rows,
            *raters,
        ],
    )
    ours = {rater.token_sha256 for rater in raters}
    record = ledger.write(identity, work, outcome, started_at=started, flow_run_id=None)
    with Session(ledger.engine) as session:
        on_record = set(session.scalars(select(StudyRater.token_sha256).where(StudyRater.study_name == name)))
    if ours != on_record:
        raise RunStopped(f"another process made a study {name!r} meanwhile: choose another name")
    return record


def _look(record: Record) -> str:
    """What a video looks like that no copy can hide, such as "832x480, 16 fps, 81 frames"."""
    detail = anonymise.ANONYMISED.detail(record)
    return f"{detail['width']}x{detail['height']}, {detail['fps']:g} fps, {detail['frames']} frames"


def new_token() -> str:
    """What an invitation link ends in: 192 random bits in letters, digits, dashes and underscores."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def token_digest(token: str) -> str:
    """sha256 by which a token is known. A plain hash will do: a token is random and long, no password."""
    return hashlib.sha256(token.encode()).hexdigest()


def showing(pairs: Sequence[int], seed: int, rater: int) -> dict[str, Any]:
    """A rater's order of the pairs, and for each whether the second video stands on the left: in half of them."""
    order = list(pairs)
    swapped = [index % 2 == 0 for index in range(len(order))]
    draw = random.Random(f"{seed}/{rater}")
    if draw.random() < 0.5:
        swapped = [not flag for flag in swapped]  # of an odd number neither side gets one more than the other each time
    draw.shuffle(order)
    draw.shuffle(swapped)
    return {"pairs": order, "swapped": swapped}


def invite(ledger: Ledger, name: str, rater: int | None) -> tuple[int, str]:
    """A new link: for one more rater, or instead of the one that `rater` had. Returns (rater, token).

    Raises RunStopped: no such study or rater, or one who withdrew.
    """
    token = new_token()
    with Session(ledger.engine) as session, session.begin():
        study = _study(session, name)
        if rater is not None:
            row = session.get(StudyRater, (name, rater))
            if row is None or row.withdrawn_at is not None:
                raise RunStopped(f"study {name!r} has no rater {rater}" + (", who withdrew" if row else ""))
            row.token_sha256 = token_digest(token)
            return rater, token
        session.execute(select(Study).where(Study.name == name).with_for_update())
        last = session.scalar(select(func.max(StudyRater.number)).where(StudyRater.study_name == name)) or 0
        if last >= MAX_RATERS:
            raise RunStopped(f"study {name!r} has {last} raters; more are not taken")
        numbers = session.scalars(
            select(StudyPair.number).where(StudyPair.study_name == name).order_by(StudyPair.number)
        ).all()
        session.add(
            StudyRater(
                study_name=name, number=last + 1, token_sha256=token_digest(token),
                showing=showing(numbers, study.seed, last + 1),
            )
        )  # fmt: skip
        return last + 1, token


def record_results(ledger: Ledger, name: str, results: Mapping[str, Any]) -> dict[str, Record]:
    """Puts results on record, system → record: for lineage from a model to what people said of it.

    The same results are recorded once. Output `results`: the JSON. Evaluation rows, by the raters who passed the
    attention checks: `study/NAME/AXIS/win_rate` with its interval; of errors `study/NAME/error_share`.

    Raises RunStopped: no such study, or nothing rated yet.
    """
    with Session(ledger.engine) as session:
        made_by = _study(session, name).step_run_id
        context = session.get_one(StepRun, made_by).context
    block = results["attentive_raters"] or results["all_raters"]
    if not (block["votes"] if LEVEL in block else any(axis["votes"] for axis in block["axes"].values())):
        raise RunStopped(f"no attentive rater of {name!r} has rated a pair yet: there is nothing to put on record")
    artifact = ledger.store.put_bytes(canonical_json(dict(results)), "application/json")
    identity = StepIdentity("rate", 1, {}, {})
    records = {}
    for system in context["systems"]:
        label = system["label"]
        work = Work(
            f"rating-{digest_of([name, label, artifact.sha256])[:32]}",
            context={"study": name, "system": label, "results": artifact.sha256},
            parents={"study": made_by},
        )
        records[label], _ = ledger.once(identity, work, partial(_rating, name, system, block, artifact))
    return records


def _rating(name: str, system: Mapping[str, Any], block: Mapping[str, Any], results: Artifact) -> Outcome:
    """What raters said of one system."""
    label = system["label"]
    figures: dict[str, tuple[float | None, Mapping[str, Any]]]
    if LEVEL in block:
        row = next(row for row in block["systems"] if row["system"] == label)
        figures = {"error_share": (row["error_share"]["value"], row)}
    else:
        rates = {
            axis: next(row for row in facts["systems"] if row["system"] == label)
            for axis, facts in block["axes"].items()
        }
        figures = {f"{axis}/win_rate": (row["win_rate"]["value"], row) for axis, row in rates.items()}
    rows: list[Any] = [
        Evaluation(
            model_digest=system["model"], metric=f"study/{name}/{figure}", value=value,
            detail={**row, "study": name, "system": label, "raters": block["raters"]},
        )
        for figure, (value, row) in figures.items()
        if value is not None
    ]  # fmt: skip
    return Outcome(
        "kept",
        detail={"study": name, "system": label, "model": system["model"], "raters": block["raters"]},
        scores={row.metric: row.value for row in rows},
        outputs={"results": results},
        rows=rows,
    )


def _study(session: Session, name: str) -> Study:
    study = session.get(Study, name)
    if study is None:
        known = ", ".join(session.scalars(select(Study.name).order_by(Study.created_at.desc()).limit(10)))
        raise RunStopped(
            f"no study goes by {name[:80]!r}; "
            + (f"there are {known}" if known else "there is none yet: `medgen study new`")
        )
    return study


def _shown(source: str) -> str:
    """A source without the folders above it, which may name people."""
    return source.rstrip("/").rpartition("/")[2]
