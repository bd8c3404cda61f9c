"""Recheck: whether videos that are kept still exist at their source.

Subject: a video. Each day's check is a record of its own: kept, the source still has it; rejected, it is gone, with
the source's reason. Only final words count as gone: not found, removed, private. A server that is down, asks to log
in or refuses for now has not answered, and the last answer stands.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field
from sqlalchemy import Engine, Select, func, literal, select, tuple_
from sqlalchemy.orm import Session, aliased
from yt_dlp.utils import YoutubeDLError

from medgen.among import PAGE, among, pages
from medgen.catalog import StepRun, Tombstone, Video, now
from medgen.errors import ItemFailed
from medgen.ledger import Ledger, Outcome, StepIdentity, Work
from medgen.listings.sources import FOLDER_SCHEME, Feed, folder_path
from medgen.parameters import MOST_SECONDS
from medgen.shard import Step, run_shard
from medgen.store import Store
from medgen.web.failures import failure_of
from medgen.web.guarded_youtube_dl import GuardedYoutubeDL
from medgen.web.session import WebParams, options_of, page_guard
from tasks.curation.vanished import RECHECK

SHARD = 256
# What extractors of yt-dlp say of a video that will not come back; "not available" alone may pass.
GONE_WORDS = re.compile(
    r"\b(private video|video is private|made private|removed|deleted|terminated|no longer (available|exists?)"
    r"|does(n't| not) exist|not found|taken down)\b",
    re.IGNORECASE,
)
GONE = frozenset(["http_404", "http_410"])


class RecheckParams(WebParams):
    """Parameters of recheck. Hosts are held to the policy that a video was downloaded under."""

    recheck_limit_s: float = Field(
        120.0, gt=0, le=MOST_SECONDS, exclude=True, description="Longest wait for one answer, seconds."
    )


@dataclass(frozen=True)
class Rechecked:
    """How many videos were asked for, still there, gone, without an answer; and those that were asked for today."""

    asked: int = 0
    there: int = 0
    gone: int = 0
    unanswered: int = 0
    reused: int = 0


def recheck(work: Work, store: Store, params: RecheckParams) -> Outcome:
    """Asks the source of one video whether it still exists. Nothing is downloaded.

    Raises:
        ItemFailed: the source gave no answer that counts.
    """
    if work.context["url"].startswith(FOLDER_SCHEME):
        gone = _gone_from_folder(work.context)
    else:
        gone = _gone_from_web(work.context, params)
    if gone is None:
        return Outcome("kept", detail={"day": work.context["day"]})
    return Outcome("rejected", gone.reason, {"day": work.context["day"], "message": gone.message})


def _gone_from_folder(context: Mapping[str, Any]) -> ItemFailed | None:
    folder = Path(context["path"])
    if not folder.is_dir():
        raise ItemFailed("folder_missing", f"there is no folder {folder}", transient=True)
    if folder_path(Feed(context["source"], "folder", folder), context["url"]).exists():
        return None
    return ItemFailed("file_gone", "the folder no longer has the file")


def _gone_from_web(context: Mapping[str, Any], params: RecheckParams) -> ItemFailed | None:
    hosts = {"allowed_hosts": tuple(context["allowed_hosts"]), "denied_hosts": tuple(context["denied_hosts"])}
    guard = page_guard(params.model_copy(update=hosts), params.recheck_limit_s)
    options = options_of(params) | {
        "noplaylist": True,
        "playlist_items": "1",
        "ignore_no_formats_error": True,  # whether it can be downloaded is not asked
    }
    try:
        with GuardedYoutubeDL(options, guard) as downloader:
            downloader.extract_info(context["url"], download=False)
    except YoutubeDLError as error:
        failure = failure_of(error, guard.last_error)
        if failure.reason in GONE or (failure.reason == "unavailable" and GONE_WORDS.search(failure.message)):
            return failure
        raise failure from error
    finally:
        guard.leave()
    return None


def step(params: RecheckParams) -> Step:
    """Recheck, ready to run."""
    identity = StepIdentity(RECHECK, 1, params.model_dump(mode="json"), {})
    return Step(identity, partial(recheck, params=params), runs_in="threads")


def due(engine: Engine, *, older_than: timedelta = timedelta(0), limit: int | None = None) -> Iterator[tuple[str, int]]:
    """(video id, id of its download) of kept videos to ask for, those first that were asked for the longest ago.

    They are read some at a time; whoever is asked for meanwhile does not come again.

    Args:
        older_than: leave out videos that their source was known to have, or not to have, within this time.
    """
    wanted = _due(now(), older_than).subquery()
    place = tuple_(wanted.c.at, wanted.c.subject)
    query = select(wanted.c.subject, wanted.c.id, wanted.c.at).order_by(wanted.c.at, wanted.c.subject)
    left = limit
    while left != 0:
        with Session(engine) as session:
            rows = session.execute(query.limit(PAGE if left is None else min(PAGE, left))).all()
        if not rows:
            return
        yield from ((subject, run_id) for subject, run_id, _ in rows)
        left = left if left is None else left - len(rows)
        last = tuple_(literal(rows[-1].at), literal(rows[-1].subject))
        query = query.where(place > last)


def _due(before: datetime, older_than: timedelta) -> Select[Any]:
    """A query for subject, id of the download, and when it was last asked for, or downloaded (`at`)."""
    fetched, answer = aliased(StepRun), aliased(StepRun)
    asked = (
        select(StepRun.subject, func.max(StepRun.finished_at).label("at"))
        .where(StepRun.step == RECHECK)
        .group_by(StepRun.subject)
        .subquery()
    )
    answered = (
        select(answer.subject, func.max(answer.finished_at).label("at"))
        .where(answer.step == RECHECK, answer.status != "failed")
        .group_by(answer.subject)
        .subquery()
    )
    downloads = (
        select(fetched.subject, func.max(fetched.id).label("id"), func.max(fetched.finished_at).label("at"))
        .where(fetched.step == "download", fetched.status == "kept", ~fetched.superseded)
        .group_by(fetched.subject)
        .subquery()
    )
    at = func.greatest(downloads.c.at, asked.c.at)
    return (
        select(downloads.c.subject, downloads.c.id, at.label("at"))
        .outerjoin(asked, asked.c.subject == downloads.c.subject)
        .outerjoin(answered, answered.c.subject == downloads.c.subject)
        .outerjoin(Tombstone, Tombstone.video_id == downloads.c.subject)
        .where(Tombstone.video_id.is_(None), at <= before)
        .where(func.greatest(downloads.c.at, answered.c.at) <= before - older_than)
    )


def recheck_videos(
    ledger: Ledger,
    params: RecheckParams,
    *,
    older_than: timedelta = timedelta(0),
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Rechecked:
    """Asks for kept videos, each at most once a day as long as there was an answer.

    Hosts are held to the policy that the video was downloaded under.

    Args:
        older_than, limit: as `due`.
        progress: called with (done, total).

    Raises:
        ShardFailed: most sources fail for the same transient reason: the network is down more likely than they are.
    """
    with ledger.engine.connect() as connection:
        known = connection.scalar(select(func.count()).select_from(_due(now(), older_than).subquery())) or 0
    many = known if limit is None else min(known, limit)
    total, done = Rechecked(), 0
    for page in pages(due(ledger.engine, older_than=older_than, limit=limit), SHARD):
        some = dict(page)
        result = run_shard(step(params), _works(ledger, some), ledger=ledger)
        ended = ledger.load(lineage[RECHECK] for lineage in result.dropped).values()
        gone = sum(record.status == "rejected" for record in ended)
        total = Rechecked(
            total.asked + result.executed,
            total.there + len(result.kept),
            total.gone + gone,
            total.unanswered + len(ended) - gone,
            total.reused + result.reused,
        )
        done += len(some)
        if progress:
            progress(done, max(done, many))
    return total


def _works(ledger: Ledger, downloads: Mapping[str, int]) -> list[Work]:
    """What recheck sees of each video: its URL, where it may be asked for, and the day."""
    day = now().date().isoformat()
    with Session(ledger.engine) as session:
        rows: Sequence[Any] = session.execute(
            select(Video.id, Video.url, StepRun.context, StepRun.params)
            .join(StepRun, StepRun.subject == Video.id)
            .where(among(StepRun.id, downloads.values()))
        ).all()
    works = []
    for video_id, url, listed, params in rows:
        if url.startswith(FOLDER_SCHEME):
            where = {"source": listed["source"], "path": listed["path"]}
        else:
            where = {name: params.get(name, []) for name in ("allowed_hosts", "denied_hosts")}
        context = {"url": url, "day": day, **where}
        works.append(Work(video_id, context=context, parents={"download": downloads[video_id]}))
    return works
