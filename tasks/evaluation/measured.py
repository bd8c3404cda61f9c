"""A system's video and all that is on record of it: scores, votes and what it looks like."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from sqlalchemy import select
from sqlalchemy.orm import Session

from medgen.among import among, pages
from medgen.catalog import Score
from medgen.ledger import Ledger, Record
from models.metrics.descriptor import Descriptor, Nearest
from tasks.evaluation import generate, measure_video, mllm_judge
from tasks.evaluation.measure_video import MeasureDetail, Video, unpacked
from tasks.evaluation.mllm_judge import VoteRow


@dataclass(frozen=True)
class System:
    """What made videos: a model, or a folder of videos.

    Args:
        digest: of the model; None for a folder.
        on_record: whether the model is in the catalog.
    """

    name: str
    digest: str | None = None
    on_record: bool = False


@dataclass(frozen=True)
class Measured:
    """One video and all that is on record of it.

    Args:
        scores: metric's name → value; empty when it could not be measured.
        models: metric's name → digest of the model behind it.
        error: reason and message when it could not be measured.
        detail: frames, fps, width, height of a measured video; None when it could not be measured.
        votes: the multimodal LLM judge's votes.
        picture: sha256 of its middle frame.
        runs: ids of the records behind this.
    """

    video: Video
    scores: Mapping[str, float]
    models: Mapping[str, str]
    error: str | None
    detail: MeasureDetail | None
    votes: Sequence[VoteRow]
    picture: str | None
    descriptor: Descriptor | None
    runs: tuple[int, ...]
    nearest: Nearest | None = None


class NotGenerated(TypedDict):
    """A video that a model failed to make; `subject` is its record's."""

    system: str
    subject: str
    why: str


def generated_videos(system: str, records: Iterable[Record]) -> tuple[list[Video], list[NotGenerated]]:
    """The videos of records of generate, and those that could not be generated, with the reason."""
    videos: list[Video] = []
    failures: list[NotGenerated] = []
    for record in records:
        if record.status != "kept":
            why = str(record.detail.get("message") or record.reason)
            failures.append({"system": system, "subject": record.subject, "why": why})
            continue
        detail = generate.GENERATE.detail(record)
        videos.append(
            Video(
                system,
                record.subject,
                f"{detail['prompt_id']}-seed{detail['seed']}.mp4",
                generate.GENERATE.outputs(record)["video"],
                detail["prompt_id"],
                detail["prompt"],
                detail["category"],
                detail["procedure"],
                run_id=record.id,
            )
        )
    return videos, failures


def frame_counts(ledger: Ledger, records: Sequence[int]) -> dict[int, int]:
    """Place in `records` → number of frames, of the videos that could be measured.

    Args:
        records: ids of records of measure_video.
    """
    loaded = ledger.load(records)
    return {
        place: measure_video.MEASURE.detail(loaded[run_id])["frames"]
        for place, run_id in enumerate(records)
        if loaded[run_id].status == "kept"
    }


def measured_videos(
    ledger: Ledger, videos: Sequence[Video], runs: Mapping[str, Sequence[int | None]]
) -> list[Measured]:
    """Videos with what is on record of them.

    Args:
        runs: step → id of the record of each video in order, None where the step didn't run on it. measure_video
            comes first and ran on all.
    """
    records = ledger.load({run_id for ids in runs.values() for run_id in ids if run_id is not None})
    models = _score_models(ledger, list(records))
    measured = []
    for place, video in enumerate(videos):
        mine = [records[run_id] for ids in runs.values() if (run_id := ids[place]) is not None]
        measured.append(_measured(ledger, video, mine, models))
    return measured


def _measured(
    ledger: Ledger, video: Video, records: Sequence[Record], models: Mapping[int, Mapping[str, str]]
) -> Measured:
    """One video with its records, that of measure_video first."""
    first = records[0]
    kept = first.status == "kept"
    votes = (
        mllm_judge.MLLM_JUDGE.detail(r)["votes"] for r in records if r.step == mllm_judge.STEP and r.status == "kept"
    )
    outputs = measure_video.MEASURE.outputs(first)
    return Measured(
        video=video,
        scores={metric: value for record in records for metric, value in record.scores.items()} if kept else {},
        models={metric: digest for record in records for metric, digest in models.get(record.id, {}).items()},
        error="; ".join(_error(record) for record in records if record.status != "kept") or None,
        detail=measure_video.MEASURE.detail(first) if kept else None,
        votes=next(votes, []),
        picture=outputs.get("picture"),
        descriptor=unpacked(ledger.store.path(measure_video.MEASURE.outputs(first)["trace"]))
        if "trace" in first.outputs
        else None,
        runs=tuple(record.id for record in records),
    )


def _error(record: Record) -> str:
    message = str(record.detail.get("message", ""))
    return f"{record.step}: {record.reason}" + (f" ({message})" if message else "")


def _score_models(ledger: Ledger, ids: Sequence[int]) -> dict[int, dict[str, str]]:
    """Record → metric → digest of the model that measured it."""
    models: dict[int, dict[str, str]] = {}
    with Session(ledger.engine) as session:
        for page in pages(ids):
            query = select(Score.step_run_id, Score.metric, Score.model_digest).where(among(Score.step_run_id, page))
            for run_id, metric, digest in session.execute(query):
                models.setdefault(run_id, {})[metric] = digest or ""
    return models
