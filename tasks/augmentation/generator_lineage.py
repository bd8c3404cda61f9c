"""What a generator was trained on, as far as it is on record: whether its videos may stand in a test's training set.

A synthetic video carries something of the videos that trained its generator. When one of these is tested, the test is
no longer of new material. Here that is looked up; what to do about it is the experiment's choice.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from medgen.among import among, pages
from medgen.catalog import Clip, ModelVersion, ReleaseClip, StepInput, StepOutput, StepRun, Video
from medgen.ledger import Ledger
from medgen.video_file import read_foreign_comment
from tasks.augmentation.labelled_videos import LabelledVideo

MOST_COMMENT = 100_000  # characters of an MP4's comment
DEEPEST = 32  # fine-tunes of fine-tunes


@dataclass(frozen=True)
class Leakage:
    """What is known of the generators of synthetic videos.

    Args:
        leaked: real sources, as the experiment names them, that some generator was trained on.
        checked: synthetic videos whose generator's training is known.
        unknown: synthetic videos of which nothing on record says what trained their generator.
        models: digest → release of the generators on record.
    """

    leaked: frozenset[str]
    checked: int
    unknown: int
    models: dict[str, str]

    def notes(self, tested: int) -> list[str]:
        """Sentences for people; `tested` is the number of real sources."""
        sentences = []
        if self.leaked:
            sentences.append(
                f"leakage: generators of the synthetic videos were trained on {len(self.leaked)} of {tested} real "
                "sources"
            )
        if self.unknown:
            sentences.append(
                f"lineage unknown: nothing on record says what trained the generator of {self.unknown} synthetic "
                "videos; if it saw tested sources, the figures of synthetic arms are too good"
            )
        return sentences


def training_sources(ledger: Ledger, model: str) -> frozenset[str] | None:
    """Ids of the source videos of every release that a model, or a model that it was tuned from, was trained on.

    Held-out videos count too: they chose the checkpoint. A model that was given a base from elsewhere (a hub) is known
    only by what was added here.

    Args:
        model: digest of a model on record.

    Returns:
        None when the model is not on record or no release stands by it or its bases.
    """
    sources: set[str] = set()
    known = False
    with Session(ledger.engine) as session:
        todo, seen = [model], set[str]()
        while todo and len(seen) < DEEPEST:
            digest = todo.pop()
            seen.add(digest)
            version = session.get(ModelVersion, digest)
            if version is None:
                continue
            if version.release_name:
                known = True
                members = select(Clip.video_id).distinct().join(ReleaseClip, ReleaseClip.clip_id == Clip.id)
                sources |= set(session.scalars(members.where(ReleaseClip.release_name == version.release_name)))
            if version.step_run_id:
                bases = select(StepInput.artifact_sha256).where(
                    StepInput.step_run_id == version.step_run_id, StepInput.role == "base"
                )
                todo += [base for base in session.scalars(bases) if base and base not in seen]
    return frozenset(sources) if known else None


def source_videos(ledger: Ledger, digests: Iterable[str]) -> dict[str, frozenset[str]]:
    """sha256 of a file → ids of the videos on record that it is, or is a clip of. Unknown files are left out."""
    videos: dict[str, set[str]] = {}
    with Session(ledger.engine) as session:
        for some in pages(sorted(set(digests))):
            clips = select(Clip.digest, Clip.video_id).where(among(Clip.digest, some))
            made = (
                select(StepOutput.artifact_sha256, Video.id)
                .join(StepRun, StepRun.id == StepOutput.step_run_id)
                .join(Video, Video.id == StepRun.subject)
                .where(among(StepOutput.artifact_sha256, some))
            )
            for digest, video_id in [*session.execute(clips), *session.execute(made)]:
                videos.setdefault(digest, set()).add(video_id)
    return {digest: frozenset(ids) for digest, ids in videos.items()}


def with_lineage(ledger: Ledger, videos: Sequence[LabelledVideo]) -> tuple[list[LabelledVideo], Leakage]:
    """The videos, with the experiment's own sources that each synthetic one's generator saw; and what came of it.

    A generator is known by the video's record, by what is embedded in the file (the record that generating writes
    into an MP4's comment), or by the ``trained_on`` of a CSV. Real files are matched with videos on record by source
    name and by their bytes.
    """
    real = [video for video in videos if not video.synthetic]
    on_record = source_videos(ledger, [video.sha256 for video in real])
    names: dict[str, set[str]] = {}  # id of a video on record, or the name itself → the experiment's source
    for video in real:
        for known in {video.source, *on_record.get(video.sha256, ())}:
            names.setdefault(known, set()).add(video.source)
    sources_of: dict[str, frozenset[str] | None] = {}
    releases: dict[str, str] = {}
    result, checked, unknown = [], 0, 0
    for video in videos:
        if not video.synthetic:
            result.append(video)
            continue
        model = video.model or (embedded_model(Path(video.path)) if video.path else "")
        if model and model not in sources_of:
            sources_of[model] = training_sources(ledger, model)
            with Session(ledger.engine) as session:
                version = session.get(ModelVersion, model)
                if version:
                    releases[model] = version.release_name or ""
        seen = sources_of.get(model) if model else None
        by_hand = video.trained_on
        if seen is None and not by_hand:
            unknown += 1
        else:
            checked += 1
        mine = {name for known in {*(seen or ()), *by_hand} for name in names.get(known, ())}
        result.append(replace(video, trained_on=frozenset(mine), model=model))
    leaked = frozenset(name for video in result if video.synthetic for name in video.trained_on)
    return result, Leakage(leaked, checked, unknown, dict(sorted(releases.items())))


def embedded_model(path: Path) -> str:
    """Digest of the model that an MP4's embedded record names; "" where there is none."""
    comment = read_foreign_comment(path)  # whether the file can be read at all shows when its frames are read
    if len(comment) > MOST_COMMENT:
        return ""
    try:
        embedded: Any = json.loads(comment)
    except ValueError:
        return ""
    model = embedded.get("model") if isinstance(embedded, dict) else None
    return model if isinstance(model, str) and len(model) == 64 and model.isalnum() else ""
