"""Search over all videos and clips by what is known of them: filters, and pages by key.

A page begins after the last row of the page before (keyset), never at an offset, so that the thousandth page costs
what the first does. Nothing counts all rows: totals are the planner's estimates and are called so.
"""

import base64
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from sqlalchemy import (
    ColumnElement,
    Connection,
    ScalarSelect,
    Select,
    and_,
    case,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    tuple_,
)
from sqlalchemy.orm import aliased

from apps.audit.estimates import estimated_rows
from apps.audit.reading import TooSlow, limited
from medgen.among import among
from medgen.catalog import ItemStatus, ModelVersion, ReleaseClip, Score, Video
from medgen.notes import flagged

PAGE = 50
# Letters of scripts that put no spaces between words: Thai, Lao, Myanmar, Khmer, kana, CJK ideographs, also compatible
# ones.
JOINED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)
DIRECT_S = 1.2  # a search that takes longer is looked for piece by piece, newest first
WINDOW = 40_000  # rows of such a piece
FEW = 20_000  # as many clips with a score in range are asked for by name
COLUMNS = (
    ItemStatus.id, ItemStatus.kind, ItemStatus.video_id, ItemStatus.title, ItemStatus.channel, ItemStatus.licence,
    ItemStatus.category, ItemStatus.step, ItemStatus.status, ItemStatus.reason, ItemStatus.decided_at,
    ItemStatus.run_id, ItemStatus.source_name,
)  # fmt: skip
Kind = Literal["", "clip", "video", "stretch"]
Status = Literal["", "kept", "rejected", "failed"]
Sort = Literal["", "oldest", "highest", "lowest"]
REVERSED: dict[str, Sort] = {"": "oldest", "oldest": "", "highest": "lowest", "lowest": "highest"}


class Filters(BaseModel):
    """What is searched for. Empty means: any."""

    model_config = ConfigDict(frozen=True, extra="ignore", str_strip_whitespace=True)

    q: str = Field("", max_length=300, description="Words of title, channel and tags, or an id.")
    kind: Kind = ""
    step: str = Field("", max_length=60)
    status: Status = ""
    reason: str = Field("", max_length=120)
    category: str = Field("", max_length=120)
    licence: str = Field("", max_length=300)
    channel: str = Field("", max_length=300)
    source: str = Field("", max_length=300)
    release: str = Field("", max_length=120)
    model: str = Field("", max_length=200, description="Name or digest of a model that was trained on the clip.")
    metric: str = Field("", max_length=80)
    low: float | None = Field(None, description="Lowest score.")
    high: float | None = Field(None, description="Highest score.")
    since: date | None = Field(None, description="Decided on this day or later.")
    until: date | None = Field(None, description="Decided on this day or earlier.")
    flag: Literal["", "check", "wrong", "privacy", "licence", "cleared"] = Field(
        "", description="That people put on it."
    )
    sort: Sort = Field("", description="Newest decision first by itself; highest and lowest go by the score.")

    @field_validator("*", mode="before")
    @classmethod
    def _given(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = "".join(c for c in value if c.isprintable()).strip()
            return value or None if value == "" else value
        return value

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, values: Any) -> Any:
        return {k: v for k, v in dict(values).items() if not (isinstance(v, str) and not v.strip("\0 \t\r\n"))}

    @property
    def order(self) -> Sort:
        """How rows are sorted: by a score only where one is chosen."""
        return self.sort if self.metric or self.sort == "oldest" else ""

    @property
    def given(self) -> dict[str, str]:
        """The filters that are set, as a query string has them."""
        return {k: str(v) for k, v in self.model_dump().items() if v not in ("", None)}


@dataclass(frozen=True)
class Page:
    """A page of rows, newest decision first.

    Args:
        rows: columns of `item_status`; with a metric filter also `value`.
        after: cursor of the next page; None: this was the last.
        partial: the search was too broad to look through everything at once; `after` goes on looking.
        about: estimated number of rows in all.
    """

    rows: Sequence[Mapping[str, Any]]
    after: str | None
    partial: bool = False
    about: int | None = None


def search(connection: Connection, filters: Filters, after: str | None = None, size: int = PAGE) -> Page:
    """One page of what the filters let through."""
    where = conditions(connection, filters)
    if filters.order in ("highest", "lowest"):
        return _by_score(connection, filters, where, after, size)
    start = _parse_cursor(after)
    if start:
        place = tuple_(ItemStatus.decided_at, ItemStatus.id), tuple_(literal(start[0]), literal(start[1]))
        where.append(place[0] > place[1] if filters.order == "oldest" else place[0] < place[1])
    query = _selected(filters).where(*where).order_by(*_in_order(filters)).limit(size + 1)
    try:
        with limited(connection, DIRECT_S):
            rows = [dict(row) for row in connection.execute(query).mappings()]
    except TooSlow:
        return _in_pieces(connection, filters, where, start, size)
    about = None if after else estimated_rows(connection, _selected(filters).where(*where))
    more = len(rows) > size
    rows = rows[:size]
    return Page(rows, _cursor(rows[-1]) if more else None, about=about)


def neighbours(
    connection: Connection, filters: Filters, identity: str
) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """The rows before and after an item among what the filters let through, in their order."""
    query = _selected(filters).where(ItemStatus.id == identity)
    found = connection.execute(query).mappings().first()
    if found is None:
        return None, None
    row = dict(found)
    at = _score_cursor(row) if filters.order in ("highest", "lowest") else _cursor(row)
    back = filters.model_copy(update={"sort": REVERSED[filters.order]})
    before, after = (next(iter(search(connection, way, at, 1).rows), None) for way in (back, filters))
    return before, after


def _in_order(filters: Filters) -> tuple[ColumnElement[Any], ...]:
    columns = (ItemStatus.decided_at, ItemStatus.id)
    return tuple(c.asc() if filters.order == "oldest" else c.desc() for c in columns)


def _by_score(
    connection: Connection, filters: Filters, where: Sequence[ColumnElement[bool]], after: str | None, size: int
) -> Page:
    """Rows by the newest value of their score. Raises `TooSlow`: they are too many for that."""
    value = _newest(filters.metric)
    high = filters.order == "highest"
    start = _parse_score_cursor(after)
    conditions_ = list(where)
    if start:
        place = tuple_(value, ItemStatus.id), tuple_(literal(start[0]), literal(start[1]))
        conditions_.append(place[0] < place[1] if high else place[0] > place[1])
    order = (value.desc(), ItemStatus.id.desc()) if high else (value.asc(), ItemStatus.id.asc())
    query = _selected(filters).where(*conditions_).order_by(*order).limit(size + 1)
    rows = [dict(row) for row in connection.execute(query).mappings()]
    about = None if after else estimated_rows(connection, _selected(filters).where(*where))
    more = len(rows) > size
    rows = rows[:size]
    return Page(rows, _score_cursor(rows[-1]) if more else None, about=about)


def every(connection: Connection, filters: Filters, most: int, batch: int = 2000) -> Iterator[Mapping[str, Any]]:
    """All rows that the filters let through, newest first, at most `most`."""
    after, given = None, 0
    while True:
        page = search(connection, filters, after, batch)
        yield from page.rows[: most - given]
        given += len(page.rows)
        after = page.after
        if after is None or given >= most:
            return


def conditions(connection: Connection, filters: Filters) -> list[ColumnElement[bool]]:
    """The filters as conditions on `item_status`."""
    where: list[ColumnElement[bool]] = []
    if filters.q:
        where.append(_words(filters.q))
    for column, value in (
        (ItemStatus.kind, filters.kind),
        (ItemStatus.step, filters.step),
        (ItemStatus.status, filters.status),
        (ItemStatus.reason, filters.reason),
        (ItemStatus.category, filters.category),
        (ItemStatus.licence, filters.licence),
        (ItemStatus.channel, filters.channel),
        (ItemStatus.source_name, filters.source),
    ):
        if value:
            where.append(column == value)
    if filters.since:
        where.append(ItemStatus.decided_at >= _midnight(filters.since))
    if filters.until:
        where.append(ItemStatus.decided_at < _midnight(filters.until + timedelta(days=1)))
    if filters.release:
        where.append(_in_release([filters.release]))
    if filters.model:
        named = select(ModelVersion.release_name).where(
            or_(ModelVersion.name == filters.model, ModelVersion.digest == filters.model)
        )
        where.append(_in_release([name for name in connection.scalars(named) if name]))
    if filters.flag:
        where.append(flagged(filters.flag))
    if filters.metric:
        where.append(_scored(connection, filters))
    return where


def _newest(metric: str) -> ScalarSelect[float]:
    """The newest measurement of a row's clip."""
    measured = aliased(Score)
    return (
        select(measured.value)
        .where(measured.clip_id == ItemStatus.id, measured.metric == metric)
        .order_by(measured.step_run_id.desc())
        .limit(1)
        .scalar_subquery()
    )


def _selected(filters: Filters) -> Select[Any]:
    query = select(*COLUMNS)
    if filters.metric:
        query = query.add_columns(_newest(filters.metric).label("value"))
    return query


def _in_pieces(
    connection: Connection,
    filters: Filters,
    where: Sequence[ColumnElement[bool]],
    start: tuple[datetime, str] | None,
    size: int,
) -> Page:
    """Looks through the newest rows only; where it stopped, the next page goes on."""
    window = select(ItemStatus.id, ItemStatus.decided_at).order_by(*_in_order(filters))
    if start:
        place = tuple_(ItemStatus.decided_at, ItemStatus.id), tuple_(literal(start[0]), literal(start[1]))
        window = window.where(place[0] > place[1] if filters.order == "oldest" else place[0] < place[1])
    piece = window.limit(WINDOW).cte("piece").prefix_with("MATERIALIZED", dialect="postgresql")
    query = (
        _selected(filters)
        .where(ItemStatus.id.in_(select(piece.c.id)), *where)
        .order_by(*_in_order(filters))
        .limit(size)
    )
    rows = [dict(row) for row in connection.execute(query).mappings()]
    if len(rows) == size:
        return Page(rows, _cursor(rows[-1]), partial=True)
    end = connection.execute(window.offset(WINDOW - 1).limit(1)).first()
    return Page(rows, _cursor({"decided_at": end[1], "id": end[0]}) if end else None, partial=True)


def _words(q: str) -> ColumnElement[bool]:
    """Words in any order, "phrases", -without; the last word may be a beginning. An id finds its item, a URL what was
    made of it. Where words are not set apart, as in Chinese, Japanese, Thai, every part of a title is one."""
    if "://" in q:
        named = select(Video.id).where(or_(Video.url == q, Video.external_id == q))
        return ItemStatus.video_id.in_(named)
    if joined := JOINED.findall(q):
        shown = func.concat_ws(" ", ItemStatus.title, ItemStatus.channel)
        parts = [shown.contains(part, autoescape=True) for part in joined]
        rest = JOINED.sub(" ", q).strip()
        return and_(*parts, *([_words(rest)] if rest else []))
    query = func.websearch_to_tsquery(text("'simple'"), q)
    last = re.search(r"(\w{2,})$", q)
    matches: ColumnElement[bool] = ItemStatus.words.op("@@")(query)
    if last and '"' not in q and " -" not in f" {q}" and " or " not in q.lower():
        begun: ColumnElement[Any] = func.to_tsquery(text("'simple'"), f"{last[1]}:*")
        if before := q[: last.start()].strip():
            begun = func.websearch_to_tsquery(text("'simple'"), before).op("&&")(begun)
        matches = ItemStatus.words.op("@@")(begun)
    if re.fullmatch(r"[cv][0-9a-f]{6,40}(/\d+-\d+)?", q):
        end = q[:-1] + chr(ord(q[-1]) + 1)
        matches = or_(ItemStatus.id == q, and_(ItemStatus.id >= q, ItemStatus.id < end))
    return matches


def _in_release(names: Sequence[str]) -> ColumnElement[bool]:
    return exists().where(among(ReleaseClip.release_name, names), ReleaseClip.clip_id == ItemStatus.id)


def _scored(connection: Connection, filters: Filters) -> ColumnElement[bool]:
    """Clips with a score in the range: asked for by name when they are few, looked up one by one when they are many.

    The planner can't know which: it keeps no statistics of a value within a metric.
    """
    same = [Score.metric == filters.metric, Score.clip_id.is_not(None)]
    same += [Score.value >= filters.low] if filters.low is not None else []
    same += [Score.value <= filters.high] if filters.high is not None else []
    few = list(connection.scalars(select(Score.clip_id).where(*same).limit(FEW + 1)))
    low = filters.low if filters.low is not None else float("-inf")
    high = filters.high if filters.high is not None else float("inf")
    measured = aliased(Score)
    in_range = (
        select(measured.value.between(low, high))
        .where(measured.clip_id == ItemStatus.id, measured.metric == filters.metric)
        .order_by(measured.step_run_id.desc())
        .limit(1)
        .scalar_subquery()
    )
    # A comparison that the planner can't turn into a join: with many in range, walking the newest is quicker.
    by_newest = case((in_range, True), else_=False)
    return by_newest if len(few) > FEW else and_(among(ItemStatus.id, (clip for clip in few if clip)), by_newest)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _cursor(row: Mapping[str, Any]) -> str:
    key = json.dumps([row["decided_at"].astimezone(UTC).isoformat(), row["id"]])
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def _score_cursor(row: Mapping[str, Any]) -> str:
    key = json.dumps([row["value"], row["id"]])
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def _parse_score_cursor(after: str | None) -> tuple[float, str] | None:
    """A cursor as it was given; a made-up one begins at the beginning."""
    if not after or len(after) > 600:
        return None
    try:
        value, identity = json.loads(base64.urlsafe_b64decode(after + "=" * (-len(after) % 4)))
    except (ValueError, TypeError):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return (float(value), identity) if isinstance(identity, str) and identity.isprintable() else None


def _parse_cursor(after: str | None) -> tuple[datetime, str] | None:
    """A cursor as it was given; a made-up one begins at the beginning."""
    if not after or len(after) > 600:
        return None
    try:
        when, identity = json.loads(base64.urlsafe_b64decode(after + "=" * (-len(after) % 4)))
        moment = datetime.fromisoformat(when)
        if moment.tzinfo is None or not isinstance(identity, str) or not identity.isprintable():
            return None
    except (ValueError, TypeError):
        return None
    return moment, identity
