"""Near-copies: clips of other videos that show the same as a video that is to be taken down.

Three things tell of them: fingerprints, compared just as deduplicate compares what comes in, so that what is found here
is what the takedown block stops; records of deduplicate, which has found copies before; and downloaded files of the
same bytes. Fingerprints come from this machine's index; only those that it does not hold yet are read from the records.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session, aliased

from medgen.among import among
from medgen.canonical import rounded
from medgen.catalog import Clip, ItemStatus, ReleaseClip, StepOutput, StepRun, Tombstone, Video
from medgen.takedown import IMPORT, NearCopy
from models.duplicates.index import FingerprintIndex
from models.duplicates.near_duplicates import SAME_COURSE
from models.duplicates.search import copies_of
from tasks.curation.fingerprints import QUALITY, fill, index_folder, measured_clip, newest, read_entries, searched

BATCH = 5000  # rows that are read at once


def near_copies(engine: Engine, video_ids: Iterable[str]) -> dict[str, list[NearCopy]]:
    """Video id → its near-copies in videos that are neither among `video_ids` nor taken down, by video and clip.

    A clip that copies several clips stands once, with the one that it shares most with.
    """
    wanted = sorted(set(video_ids))
    with Session(engine) as session:
        clips = session.execute(select(Clip.id, Clip.video_id).where(among(Clip.video_id, wanted)))
        owner = {clip: video_id for clip, video_id in clips}
        found = _described(session, _recorded(session, owner) | _compared(engine, owner), wanted)
        copies = {video_id: [copy for copy in found if owner[copy.copy_of] == video_id] for video_id in wanted}
        for video_id, copy in _same_files(session, wanted, besides={copy.video_id for copy in found}):
            copies[video_id].append(copy)
    return {video_id: sorted(of, key=lambda copy: (copy.video_id, copy.clip)) for video_id, of in copies.items()}


def _compared(engine: Engine, owner: Mapping[str, str]) -> dict[str, NearCopy]:
    """clip → what it copies, by the fingerprints of all clips on record."""
    if not owner:
        return {}
    ids, clips = newest(_measured(engine))
    read = partial(read_entries, engine)

    def search(index: FingerprintIndex) -> dict[str, NearCopy]:
        held = fill(index, ids, clips, read)
        ours = np.isin(clips, np.array([clip.encode() for clip in owner]))
        found = copies_of(index, index.places(ids[held & ours]), index.places(ids[held & ~ours]))
        return {
            index.clip(place): NearCopy(
                clip=index.clip(place),
                copy_of=index.clip(of),
                similarity=rounded(match.similarity),
                threshold=SAME_COURSE,
                overlap_s=rounded(match.overlap_s),
            )
            for place, (of, match) in found.items()
        }

    return searched(index_folder(), search)


def _measured(engine: Engine) -> Iterator[tuple[int, str]]:
    """(id, clip) of all step runs that stand and took a fingerprint."""
    query = select(StepRun.id, measured_clip().label("clip")).where(
        among(StepRun.step, (QUALITY, IMPORT)), StepRun.status == "kept", ~StepRun.superseded
    )
    with engine.connect() as connection:
        for run in connection.execution_options(yield_per=BATCH).execute(query):
            yield run.id, run.clip


def _recorded(session: Session, owner: Mapping[str, str]) -> dict[str, NearCopy]:
    """clip → what it copies, as deduplicate found: clips that gave way to one of `owner`, and that one of them gave
    way to."""
    # As words, for only so does the index of this very expression serve.
    query = text(
        "SELECT subject, detail ->> 'duplicate_of', detail FROM step_run WHERE step = 'deduplicate' AND NOT superseded "
        "AND detail ->> 'duplicate_of' = ANY(:clips) UNION ALL "
        "SELECT detail ->> 'duplicate_of', subject, detail FROM step_run WHERE step = 'deduplicate' AND NOT superseded "
        "AND detail ->> 'duplicate_of' IS NOT NULL AND subject = ANY(:clips)"
    )
    return {
        clip: NearCopy(
            clip=clip,
            copy_of=copy_of,
            similarity=detail.get("score", SAME_COURSE),
            threshold=detail.get("threshold", SAME_COURSE),
            overlap_s=detail.get("overlap_s"),
        )
        for clip, copy_of, detail in session.execute(query, {"clips": sorted(owner)})
        if clip not in owner
    }


def _described(session: Session, found: Mapping[str, NearCopy], taken: Sequence[str]) -> list[NearCopy]:
    """The copies with where they stand, without those of videos that were, or are to be, taken down."""
    query = (
        select(Clip.id, Video.id, Video.url, ItemStatus.status, ItemStatus.reason)
        .join(Video, Video.id == Clip.video_id)
        .outerjoin(ItemStatus, ItemStatus.id == Clip.id)
        .outerjoin(Tombstone, Tombstone.video_id == Video.id)
        .where(among(Clip.id, found), Tombstone.video_id.is_(None), ~among(Video.id, taken))
    )
    rows = session.execute(query).all()
    members = select(ReleaseClip.clip_id, ReleaseClip.release_name).where(among(ReleaseClip.clip_id, found))
    releases: dict[str, list[str]] = {}
    for clip, name in session.execute(members.order_by(ReleaseClip.release_name)):
        releases.setdefault(clip, []).append(name)
    return [
        found[clip].model_copy(
            update={
                "video_id": video_id,
                "url": url,
                "status": status or "",
                "reason": reason,
                "releases": releases.get(clip, []),
            }
        )
        for clip, video_id, url, status, reason in rows
    ]


def _same_files(session: Session, wanted: Sequence[str], besides: set[str]) -> Iterator[tuple[str, NearCopy]]:
    """(video id, another video whose file has the same bytes), each once.

    Args:
        besides: ids of videos that are known as copies already.
    """
    own, other = aliased(StepRun), aliased(StepRun)
    own_file, other_file = aliased(StepOutput), aliased(StepOutput)
    query = (
        select(own.subject, Video.id, Video.url)
        .join(own_file, (own_file.step_run_id == own.id) & (own_file.role == "video"))
        .join(other_file, (other_file.artifact_sha256 == own_file.artifact_sha256) & (other_file.role == "video"))
        .join(other, (other.id == other_file.step_run_id) & (other.step == "download"))
        .join(Video, Video.id == other.subject)
        .outerjoin(Tombstone, Tombstone.video_id == Video.id)
        .where(own.step == "download", among(own.subject, wanted), ~among(Video.id, {*wanted, *besides}))
        .where(Tombstone.video_id.is_(None))
        .order_by(Video.id, own.subject)
        .distinct(Video.id)
    )
    for video_id, copy_id, url in session.execute(query):
        yield video_id, NearCopy(video_id=copy_id, url=url)
