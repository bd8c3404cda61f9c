"""Discovery over many shards: each row judged once, whatever is killed, and only what is new is read."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medgen.canonical import digest_of
from medgen.ledger import open_ledger
from medgen.store import file_digest, open_store
from tasks.curation.discover import DiscoverParams, video_id
from tasks.curation.list_feed import ListParams
from tasks.curation.list_sources import Listing, list_source
from tests.conftest import judged_listing, medgen, medgen_running
from tests.waiting import wait_until

MEDICAL = "Laparoscopic cholecystectomy: step by step surgery for gallstones, part {}"
OTHER = "Minecraft speedrun world record, episode {}"
SHARDS, ROWS = 24, 600


def row(number: int, **more: Any) -> dict[str, Any]:
    """A listing's row; every tenth is medical."""
    words = MEDICAL if number % 10 == 0 else OTHER
    return {"url": f"http://videos.example/{number}", "title": words.format(number), "id": str(number)} | more


def write(folder: Path, shard: int, rows: list[dict[str, Any]]) -> Path:
    """A shard as a Parquet file."""
    folder.mkdir(exist_ok=True)
    path = folder / f"part-{shard:03d}.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder of shards with numbered rows."""
    folder = tmp_path / "listings"
    for shard in range(SHARDS):
        write(folder, shard, [row(shard * ROWS + number) for number in range(ROWS)])
    return folder


def listed(source: Path | str) -> Listing:
    """What there is to judge."""
    return list_source.fn("s", str(source), ListParams())


def judged(source: Path | str, **parameters: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Any]:
    """(rows of all verdicts, rows of all hits, result) of a source, judged in this process's installation."""
    result = judged_listing(listed(source), DiscoverParams(**parameters))
    records = open_ledger().load(result.records).values()
    tables = {"verdicts": [], "hits": []}
    for record in sorted(records, key=lambda one: one.subject):
        for role, rows in tables.items():
            rows += pq.read_table(open_store().path(record.outputs[role])).to_pylist()
    return tables["verdicts"], tables["hits"], result


def test_every_row_has_its_verdict_with_the_scores_behind_it(home: Path, tmp_path: Path) -> None:
    rows = [
        row(0, description="How gallstones are removed", tags="surgery|laparoscopy", channel="Clinic", duration="61.5"),
        row(1),
        row(0, url="http://videos.example/other"),
        row(0),
        row(0, url="ftp://videos.example/x"),
        row(0, url="http://videos.example/y", duration="long"),
        row(2, url=None),
        {**row(3, url="http://videos.example/z"), "title": None},
    ]
    path = tmp_path / "listing.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    verdicts, hits, result = judged(path)
    assert [(v["row"], v["status"], v["reason"]) for v in verdicts] == [
        (1, "kept", None),
        (2, "rejected", "no_medical_term"),
        (3, "kept", None),
        (4, "rejected", "listed_before"),
        (5, "failed", "unsupported_url"),
        (6, "failed", "bad_row"),
        (7, "failed", "missing_url"),
        (8, "rejected", "no_medical_term"),
    ]
    assert verdicts[3]["message"] == "as row 1"
    assert verdicts[0]["word_score"] >= 1 and verdicts[0]["text_probability"] > 0.5
    assert verdicts[1]["word_score"] == 0 and verdicts[1]["text_probability"] is None
    assert [hit["row"] for hit in hits] == [1, 3]
    first = hits[0]
    assert first["video_id"] == video_id("http://videos.example/0")
    assert first["tags"] == ["surgery", "laparoscopy"] and first["duration_s"] == 61.5
    assert any("cholecystectomy" in term for term in first["terms"]), first["terms"]
    assert [item.subject for item in result.kept] == [hit["video_id"] for hit in hits]
    assert judged(path)[2].executed == 0
    # Another threshold is another judgement of the same rows.
    assert judged(path, keyword_threshold=1e6)[0][0]["reason"] == "weak_medical_terms"
    assert judged(path, text_threshold=0.9999999)[0][0]["reason"] == "not_medical_by_text"
    everything = judged(path, keyword_filter="off", text_classifier="off")
    assert [hit["row"] for hit in everything[1]] == [1, 2, 3, 8]


def test_batches_do_not_matter(home: Path, tmp_path: Path) -> None:
    rows = [row(number, description=f"Case {number} of the surgical series. " * (number % 7)) for number in range(300)]
    whole = judged(write(tmp_path / "a", 0, rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a" / "part-000.parquet", row_group_size=7)
    pieces = judged(tmp_path / "a" / "part-000.parquet")
    assert pieces[2].executed == 1
    assert pieces[:2] == whole[:2]
    assert len(whole[1]) == 30


def test_only_what_is_new_is_read(home: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts, hits, first = judged(shards)
    assert (first.executed, len(verdicts), len(hits)) == (SHARDS, SHARDS * ROWS, SHARDS * ROWS // 10)
    os.utime(shards / "part-002.parquet")  # touched, not changed
    write(shards, 5, [row(5 * ROWS + number) for number in range(ROWS)] + [row(1_000_000)])  # grown by a medical row
    write(shards, SHARDS, [row(2_000_000 + number) for number in range(5)])
    read: list[str] = []

    def digest(path: Path) -> tuple[str, int]:
        read.append(path.name)
        return file_digest(path)

    monkeypatch.setattr("medgen.listings.shards.file_digest", digest)
    _, hits, second = judged(shards)
    assert sorted(read) == ["part-002.parquet", "part-005.parquet", f"part-{SHARDS:03d}.parquet"]
    assert (second.executed, second.reused) == (2, SHARDS - 1)
    assert len(hits) == SHARDS * ROWS // 10 + 2


def test_killed_discovery_goes_on_at_the_shard_and_ends_with_the_same_rows(
    home: Path, shards: Path, tmp_path: Path
) -> None:
    records = open_ledger().load(judged(shards)[2].records).values()
    other = tmp_path / "killed"
    database = {"MEDGEN_DATABASE_URL": another_database(os.environ["MEDGEN_DATABASE_URL"]), "MEDGEN_WORKERS": "1"}
    command = ("discover", "--source", str(shards), "--json")
    with medgen_running(*command, home=other, **database) as process:
        wait_until(
            lambda: done_shards(database["MEDGEN_DATABASE_URL"]) >= 3 or process.poll() is not None, "nothing is judged"
        )
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
    before = done_shards(database["MEDGEN_DATABASE_URL"])
    resumed = json.loads(medgen(*command, home=other, inline=True, **database).stdout)
    assert resumed["digest"] == digest_of(sorted([r.subject, r.status, sorted(r.outputs.values())] for r in records))
    assert (resumed["rows"], resumed["kept"]) == (SHARDS * ROWS, SHARDS * ROWS // 10)
    assert (resumed["executed"], resumed["reused"]) == (SHARDS - before, before)


def another_database(url: str) -> str:
    """An empty database on the same server."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS another WITH (FORCE)")
        connection.execute("CREATE DATABASE another")
    return re.sub(r"/\w+\?", "/another?", url)


def done_shards(url: str) -> int:
    """Shards that are on record."""
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        if connection.execute("SELECT to_regclass('step_run')").fetchone() == (None,):
            return 0
        (count,) = connection.execute("SELECT count(*) FROM step_run WHERE step = 'discover'").fetchone() or (0,)
        return count
