"""Sources of one name: each stands for itself, on record and in what people see, whatever was recorded before."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from apps.audit.lineage_graph import graph_of
from apps.history import history
from apps.verdicts import totals, verdicts
from medgen.catalog import ItemStatus, Source, Video, open_catalog
from medgen.ledger import open_ledger
from medgen.listings.shards import shards
from medgen.listings.sources import folder_path, open_feed
from medgen.shard import ShardResult
from medgen.verify import verify
from tasks.curation.discover import DiscoverParams
from tasks.curation.list_feed import ListParams, list_feed
from tasks.curation.list_sources import Listing, list_source, listing_of
from tasks.operations.failures import failures
from tests.conftest import inline, judged_listing
from tests.test_list_feed import PARAMS, Server, entries, server  # noqa: F401  (a fixture)

ALL = DiscoverParams(keyword_filter="off", text_classifier="off")


@pytest.fixture(autouse=True)
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    inline(monkeypatch)


def write(path: Path, *videos: str) -> Path:
    """A listing of these videos, and of a row that can't be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"url": f"http://videos.example/{video}", "title": video} for video in videos]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "no row\n")
    return path


def judged(source: Path | str) -> ShardResult:
    """One run of a source."""
    listing = list_source.fn("s", str(source), ListParams())
    assert not listing.error, listing.error
    return judged_listing(listing, ALL)


def judged_by_label(source: Path | str) -> ShardResult:
    """The same as it was while a label was all that a source was known by."""
    feed = open_feed(str(source))
    return judged_listing(listing_of(feed, shards(feed)), ALL)


def subjects(*results: ShardResult) -> list[str]:
    """What the records of runs are about."""
    return [open_ledger().load(result.records)[i].subject for result in results for i in result.records]


def on_record() -> dict[str, str]:
    """Name → address of all sources."""
    with Session(open_catalog()) as session:
        return {source.name: source.uri for source in session.scalars(select(Source))}


def rows_by_source() -> dict[str, int]:
    """Rows that `medgen status --all` lists of each source."""
    return dict(Counter(verdict["source"] for verdict in verdicts(open_ledger())))


def downgraded_and_upgraded() -> None:
    """The installation as an earlier version left it, after the first start of this one."""
    from alembic import command

    from medgen.migrations import config, upgrade

    alembic = config()
    with open_catalog().connect() as connection:
        alembic.attributes["connection"] = connection
        command.downgrade(alembic, "0005")
        connection.commit()
    upgrade(open_catalog())


@pytest.mark.parametrize("videos", [("three", "four", "five"), ("one", "two")], ids=["other", "same"])
def test_two_listings_of_one_name_both_stand(home: Path, tmp_path: Path, videos: Sequence[str]) -> None:
    a = write(tmp_path / "a/list.jsonl", "one", "two")
    b = write(tmp_path / "b/list.jsonl", *videos)
    first, second = judged(a), judged(b)
    assert subjects(first, second) == ["list.jsonl", "list.jsonl (2)"]
    assert on_record() == {"list.jsonl": str(a), "list.jsonl (2)": str(b)}
    told = {"list.jsonl": 3, "list.jsonl (2)": len(videos) + 1}
    assert rows_by_source() == told and totals(open_ledger())[0]["in"] == sum(told.values())
    (failed,) = failures(open_ledger())
    assert type(failed["count"]) is int  # a numeric of Postgres fits into no table of Prefect's
    assert (failed["reason"], failed["count"]) == ("bad_row", 2)
    for result, kept in ((first, 2), (second, len(videos))):
        assert len(result.kept) == kept
    again = [judged(b), judged(a)]
    assert [(result.executed, result.reused) for result in again] == [(0, 1), (0, 1)]
    write(a, "one", "six")  # what becomes of one leaves the other alone
    assert subjects(judged(a)) == ["list.jsonl"] and rows_by_source() == told
    with open_catalog().connect() as connection:
        sources = dict(
            connection.execute(
                select(Video.url, ItemStatus.source_name).join(ItemStatus, ItemStatus.id == Video.id)
            ).all()
        )
        graph = graph_of(connection, "source", "list.jsonl (2)")
    assert sources["http://videos.example/six"] == "list.jsonl"
    if "five" in videos:
        assert sources["http://videos.example/five"] == "list.jsonl (2)" and len(graph.ids("video")) == 3
    assert verify(open_ledger(), home / "releases") == []


def test_names_of_one_run_do_not_depend_on_the_order(home: Path, tmp_path: Path) -> None:
    from tasks.curation.list_sources import source_names

    places = [str(write(tmp_path / folder / "list.jsonl", folder)) for folder in ("a", "b", "c")]
    missing = str(tmp_path / "d/list.jsonl")
    told = source_names([places[2], missing, places[0], places[1], places[0]])
    assert told == ["list.jsonl (3)", missing, "list.jsonl", "list.jsonl (2)", "list.jsonl"]
    listed = [list_source.fn("s", place, ListParams()).source for place in reversed(places)]
    assert listed == ["list.jsonl (3)", "list.jsonl (2)", "list.jsonl"]
    taken = write(tmp_path / "e" / "other.jsonl", "e")
    assert source_names([f"list.jsonl (2)={taken}", f"x={taken}", f"x={places[0]}"]) == [
        "list.jsonl (2) (2)",
        "x (2)",
        "x",
    ]


def test_runs_at_once_agree_on_the_names(home: Path, tmp_path: Path) -> None:
    places = [write(tmp_path / str(number) / "list.jsonl", str(number)) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found: list[Listing] = list(pool.map(lambda place: list_source.fn("s", str(place), ListParams()), places * 2))
    names = [listing.source for listing in found]
    assert names[:8] == names[8:] and len(set(names)) == 8
    assert set(names) == {"list.jsonl", *(f"list.jsonl ({number})" for number in range(2, 9))}


def test_two_folders_of_one_name_both_stand(home: Path, tmp_path: Path) -> None:
    for folder in ("a/videos", "b/videos", "a/lists", "b/lists"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("a", "b"):
        (tmp_path / folder / "videos/1.mp4").write_bytes(folder.encode())
        write(tmp_path / folder / "lists/part.jsonl", folder)
    results = [judged(tmp_path / folder) for folder in ("a/videos", "b/videos", "a/lists", "b/lists")]
    assert subjects(*results) == ["videos", "videos (2)", "lists/part.jsonl", "lists (2)/part.jsonl"]
    ids = [result.kept[0].subject for result in results]
    assert len(set(ids)) == 4
    for folder, video in zip(("a", "b"), ids, strict=False):
        told = history(open_ledger(), video)
        found = open_feed(str(tmp_path / folder / "videos"))
        name = told["video"]["source_name"]
        listed = told["steps"][0]["detail"]
        assert (listed["source"], listed["uri"]) == (name, str(found.path))
        path = folder_path(type(found)(name, "folder", Path(listed["uri"])), told["video"]["url"])
        assert path.read_bytes() == folder.encode()
    assert rows_by_source() == {"videos": 1, "videos (2)": 1, "lists/part.jsonl": 2, "lists (2)/part.jsonl": 2}


def test_a_source_that_was_moved_keeps_its_name(home: Path, tmp_path: Path) -> None:
    (tmp_path / "a/videos").mkdir(parents=True)
    (tmp_path / "a/videos/1.mp4").write_bytes(b"1")
    listing = write(tmp_path / "a/list.jsonl", "one")
    first, listed = judged(tmp_path / "a/videos"), judged(listing)
    (tmp_path / "a").rename(tmp_path / "b")
    moved = judged(tmp_path / "b/videos")
    assert subjects(moved) == ["videos"] and [item.subject for item in moved.kept] == [first.kept[0].subject]
    assert judged(tmp_path / "b/list.jsonl").records == listed.records
    write(listing, "two")  # something new at the old place
    assert subjects(judged(listing)) == ["list.jsonl (2)"]
    assert rows_by_source() == {"videos": 1, "list.jsonl": 2, "list.jsonl (2)": 2}
    shutil.rmtree(tmp_path / "b")
    # What holds something else is another source, unless it is called so.
    other = write(tmp_path / "c/list.jsonl", "three")
    assert subjects(judged(other)) == ["list.jsonl (3)"]
    assert subjects(judged(f"list.jsonl={write(tmp_path / 'd/new.jsonl', 'four')}")) == ["list.jsonl"]
    listing.unlink()
    for _ in range(2):
        named = f"list.jsonl (2)={write(tmp_path / 'e/new.jsonl', 'five')}"
        assert subjects(judged(named)) == ["list.jsonl (2)"]


def test_a_place_is_what_is_written_where_links_lead_elsewhere(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = [write(tmp_path / day / "list.jsonl", day) for day in ("1", "2")]
    current = tmp_path / "current"
    for day in days:
        current.unlink(missing_ok=True)
        current.symlink_to(day.parent)
        assert subjects(judged(current / "list.jsonl")) == ["list.jsonl"]
    assert subjects(judged(days[1])) == ["list.jsonl"]  # the same file, written otherwise
    assert subjects(judged(days[0])) == ["list.jsonl (2)"]
    monkeypatch.chdir(tmp_path)
    assert subjects(judged("current/../2/list.jsonl")) == ["list.jsonl"]


def test_two_feeds_of_one_name_both_stand(home: Path, server: Server) -> None:  # noqa: F811
    server.publish("a", "b")
    urls = [f"feed={server.base}/rss", f"feed={server.base}/rss?other"]
    for url in urls:  # as recorded before
        assert list_feed(open_ledger(), open_feed(url), PARAMS).new == 2
    server.publish("c")
    found = [list_source.fn("s", url, PARAMS) for url in urls]
    assert [listing.source for listing in found] == ["feed", "feed (2)"]
    assert [list(listing.shards) for listing in found] == [
        ["feed/000001", "feed/000002"], ["feed (2)/000001", "feed (2)/000002"],
    ]  # fmt: skip
    again = list_feed(open_ledger(), open_feed(urls[0]), PARAMS)
    assert again.new == 0 and len(entries(again)) == 3
    assert verify(open_ledger(), home / "releases") == []


def test_what_was_recorded_by_label_is_read_on(home: Path, tmp_path: Path) -> None:
    a = write(tmp_path / "a/list.jsonl", "one", "two")
    b = write(tmp_path / "b/list.jsonl", "three", "four", "five")
    alone = write(tmp_path / "a/alone.jsonl", "six")
    gone = write(tmp_path / "old/gone.jsonl", "seven")
    before = [judged_by_label(source) for source in (alone, a, b, gone)]
    moved = tmp_path / "new/gone.jsonl"
    gone.parent.rename(moved.parent)
    write(moved, "seven", "eight")
    before.append(judged_by_label(moved))
    assert rows_by_source() == {"alone.jsonl": 2, "list.jsonl": 4, "gone.jsonl": 3}  # one hid the other
    downgraded_and_upgraded()

    def run() -> list[ShardResult]:
        return [judged(source) for source in (alone, a, b, moved)]

    results = run()
    assert [result.executed for result in results] == [0, 0, 1, 0]
    assert subjects(*results) == ["alone.jsonl", "list.jsonl", "list.jsonl (2)", "gone.jsonl"]
    assert [results[0].records, results[1].records, results[3].records] == [before[i].records for i in (0, 1, 4)]
    assert [result.executed for result in run()] == [0, 0, 0, 0]
    told = {"alone.jsonl": 2, "list.jsonl": 3, "list.jsonl (2)": 4, "gone.jsonl": 3}
    assert rows_by_source() == told
    assert totals(open_ledger())[0]["in"] == sum(told.values())
    (failed,) = failures(open_ledger())
    assert failed["count"] == len(told)
    for video in ("one", "three", "six", "seven"):
        assert history(open_ledger(), f"http://videos.example/{video}")["steps"]
    assert verify(open_ledger(), home / "releases") == []
    assert on_record() | {"list.jsonl": ""} == {
        "alone.jsonl": str(alone), "list.jsonl": "", "list.jsonl (2)": str(b), "gone.jsonl": str(gone),
    }  # fmt: skip
