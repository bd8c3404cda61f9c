"""Takedown: what is forgotten is gone everywhere and stays gone; what vanished is marked; the rest is untouched."""

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import av
import cv2
import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, or_, select, text
from sqlalchemy.orm import Session
from starlette.testclient import TestClient
from typer.testing import CliRunner

from apps.audit.application import create_site
from apps.cli import app
from medgen.catalog import Clip, ModelVersion, StepOutput, StepRun, Tombstone, now, open_catalog
from medgen.gc import collect_garbage
from medgen.ledger import Outcome, StepIdentity, Work, open_ledger
from medgen.postgres import embedded_url
from medgen.settings import current
from medgen.shard import ShardResult
from medgen.store import Store, _name, file_digest, open_store
from medgen.takedown import NAME, NOTICE, PLAIN, blanked, taken_down_digests
from medgen.verify import verify
from medgen.video.limits import Limits
from medgen.video.pictures import pictures
from tasks.curation import caption, classify, cut, decide, deduplicate, download, privacy, quality, release, segment
from tasks.curation.clip_vectors import fill_frames, open_index
from tasks.curation.discover import video_id
from tasks.curation.download_policy import DownloadParams
from tasks.curation.takedown_block import takedown_block
from tasks.curation.vanished import vanished
from tasks.operations.health import CHECKS
from tasks.operations.recheck import RecheckParams, due, recheck_videos
from tasks.operations.takedown import finish, take_down
from tests.conftest import ROOT, S3Server, discover_source, forget_installation, inline, numbered_video, stored
from tests.test_bad_input import Answer, Server

SECRET = "Zebedee Quux"  # a word of the video that goes, found nowhere afterwards
PARAMS = DownloadParams(allowed_hosts=("127.0.0.1",), stall_limit_s=0.5)
LOOSE: dict[str, Any] = {
    "segment": segment.SegmentParams(dissolves=False),
    "classify": classify.ClassifyParams(medical_threshold=0, frame_similarity=-1),
    "cut": cut.CutParams(crop_borders=False),
    "quality": quality.QualityParams(face_model="none"),
    "decide": decide.DecideParams(
        still_below=0, technical_threshold=100, max_freeze_share=1, min_short_side=0, min_sharpness=0,
        max_overlay_share=1, max_overlay_words=10_000, max_blockiness=1e6, keep_uncropped_borders=True,
    ),
    "deduplicate": deduplicate.DeduplicateParams(near_duplicates="keep"),
    "privacy": privacy.PrivacyParams(),
    "caption": caption.CaptionParams(caption_terms="none", detailed_min_words=1, brief_min_words=1),
}  # fmt: skip


ROWS = {
    "gone": {"title": f"Laparoscopy by {SECRET}", "description": f"{SECRET} operates", "tags": [SECRET]},
    "left": {"title": "Arthroscopy of a knee", "description": "left copy"},
    "right": {"title": "Colonoscopy in adults", "description": "right copy"},
    "words": {"title": f"{SECRET} cooks noodles"},  # no medical term: listed and never taken
}


def refresh(listing: Path) -> tuple[list[ShardResult], Any, Path]:
    """All steps on one listing, as the flow runs them; gives their results, the release's record and its folder."""
    results = [discover_source(str(listing))]
    results.append(download.STEP.run(results[-1], PARAMS))
    for name, module in (("segment", segment), ("classify", classify), ("cut", cut), ("quality", quality)):
        results.append(module.STEP.run(results[-1], LOOSE[name]))
    results.append(decide.STEP.run(results[-1], LOOSE["decide"]))
    results.append(deduplicate.STEP.run([results[-1]], LOOSE["deduplicate"]))
    results.append(privacy.STEP.run(results[-1], LOOSE["privacy"]))
    results.append(caption.STEP.run(results[-1], LOOSE["caption"]))
    return [*results, *_released(results)]  # type: ignore[return-value]


def _released(results: list[ShardResult], **params: str) -> tuple[ShardResult, Any, Path]:
    return release.make_release.fn("t", stored(results), {}, release.ReleaseParams(**params))


@dataclass(frozen=True)
class Made:
    """An installation on which a refresh was run: its folder and database, and what the refresh gave."""

    home: Path
    database: str
    server: Server
    listing: Path
    results: tuple[ShardResult, ...]
    folder: Path

    def url(self, name: str) -> str:
        """Where the server has a video."""
        return f"http://127.0.0.1:{self.server.port}/{name}.mp4"

    def id(self, name: str) -> str:
        """Its id."""
        return video_id(self.url(name))

    def clip(self, name: str) -> str:
        """Id of its only clip."""
        with Session(open_catalog()) as session:
            return session.scalars(select(Clip.id).where(Clip.video_id == self.id(name))).one()

    def urls(self, *names: str) -> dict[str, str]:
        """As `take_down` wants them."""
        return {self.id(name): self.url(name) for name in names}


def remade(video: Answer, folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> bytes:
    """A video encoded anew, each of its pictures changed."""
    before, after = folder / "before.mp4", folder / "after.mp4"
    before.write_bytes(video.body)
    shown = [np.ascontiguousarray(change(picture.rgb())) for picture in pictures(before, Limits())]
    with av.open(str(after), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "12", "g": "50", "preset": "veryfast"})
        stream.height, stream.width = shown[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in shown:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    return after.read_bytes()


def _settle(patch: pytest.MonkeyPatch, home: Path, url: str) -> None:
    patch.setenv("MEDGEN_HOME", str(home))
    patch.setenv("MEDGEN_DATABASE_URL", url)
    forget_installation()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, postgres_folder: Path) -> Iterator[Made]:
    """One refresh of three videos, two of which have the same bytes and show other things than the first, and a row
    without a medical word."""
    folder, url = tmp_path_factory.mktemp("takedown"), embedded_url(postgres_folder)
    name = "takedown_original"
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {name}")
    with Server() as server, pytest.MonkeyPatch.context() as patch:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        one = Answer(numbered_video(folder / "one.mp4", 170, cuts=(5,)).read_bytes())
        other = Answer(numbered_video(folder / "two.mp4", 170, cuts=(10,)).read_bytes())
        two = Answer(remade(other, folder, lambda picture: picture[::-1, ::-1]))
        speech = f"WEBVTT\n\n00:00.500 --> 00:06.000\nHello, {SECRET} speaking\n"
        server.answers = {"/gone.mp4": one, "/left.mp4": two, "/right.mp4": two}
        server.answers["/gone.vtt"] = Answer(speech.encode(), type="text/vtt")
        base = f"http://127.0.0.1:{server.port}"
        rows = [{"url": f"{base}/{name}.mp4", "licence": "MIT", **row} for name, row in ROWS.items()]
        rows[0] |= {"subtitles_url": f"{base}/gone.vtt", "channel": SECRET}
        listing = folder / "listing.jsonl"
        listing.write_text("\n".join(json.dumps(row) for row in rows))
        inline(patch)
        patch.setattr("medgen.shard.BACKOFF_S", 0.01)
        _settle(patch, folder / "home", url.replace("/postgres?", f"/{name}?"))
        *results, record, laid_out = refresh(listing)
        assert record.detail["clips"] == 3
        forget_installation()
        yield Made(folder / "home", name, server, listing, tuple(results), laid_out)
        server.closing.set()
        server.shutdown()


@pytest.fixture
def made(original: Made, postgres_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    """A copy of the installation, for a test to spoil."""
    url, name = embedded_url(postgres_folder), "takedown_copy"
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {original.database}")
    subprocess.run(["cp", "-a", original.home, tmp_path / "home"], check=True)  # hard links within it stay links
    _settle(monkeypatch, tmp_path / "home", url.replace("/postgres?", f"/{name}?"))
    monkeypatch.setenv("COLUMNS", "200")
    original.server.asked.clear()
    yield replace(
        original, home=tmp_path / "home", database=name, folder=tmp_path / "home" / "releases" / original.folder.name
    )
    forget_installation()


def in_catalog(word: str) -> list[str]:
    """Rows of any table in which a word is found."""
    found = []
    with open_catalog().connect() as connection:
        for table in connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all():
            rows = connection.scalars(text(f"SELECT t::text FROM {table} t WHERE t::text LIKE :w"), {"w": f"%{word}%"})
            found += [f"{table}: {row[:200]}" for row in rows]
    return found


def contents() -> dict[str, bytes]:
    """All files of the installation, and the objects of its S3 bucket."""
    found = {str(path): path.read_bytes() for path in current().home.rglob("*") if path.is_file()}
    if remote := open_store().remote:
        for digest, _, _ in remote.digests():
            found[f"s3 {digest}"] = remote.client.get_object(remote.bucket, _name(digest)).data
    return found


def in_files(word: str) -> list[str]:
    """Files and objects in which a word is found, in tables too."""
    tables = {name: pq.read_table(pa.BufferReader(data)) for name, data in contents().items() if data[:4] == b"PAR1"}
    plain = [name for name, data in contents().items() if word.encode() in data]
    return plain + [name for name, table in tables.items() if word in str(table.to_pylist())]


def held_anywhere(digests: set[str]) -> set[str]:
    """Those of `digests` that are the sha256 of some file or object."""
    return digests & {hashlib.sha256(data).hexdigest() for data in contents().values()}


def medgen(*arguments: str, code: int = 0) -> str:
    """The command line, in this process."""
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
    return done.output


def facts(*arguments: str) -> Any:
    """What the command line prints with --json."""
    return json.loads(medgen(*arguments, "--json"))


def artifacts_of(made: Made, *names: str) -> set[str]:
    """Digests of all that the steps made of videos, but for the tables that name others too."""
    about = [pattern for n in names for pattern in (made.id(n), f"{made.id(n)}/%", made.clip(n))]
    with Session(open_catalog()) as session:
        query = select(StepOutput.artifact_sha256).join(StepRun, StepRun.id == StepOutput.step_run_id)
        return set(session.scalars(query.where(or_(*(StepRun.subject.like(pattern) for pattern in about)))))


def taken_down_videos() -> set[str]:
    """Ids of all videos with a tombstone."""
    with open_catalog().connect() as connection:
        return set(connection.scalars(select(Tombstone.video_id)))


def records() -> int:
    """How many step runs there are."""
    with Session(open_catalog()) as session:
        return session.scalar(select(func.count()).select_from(StepRun)) or 0


def faults(made: Made) -> list[str]:
    """What verify finds."""
    return verify(open_ledger(), made.home / "releases")


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_what_is_forgotten_is_gone_everywhere_and_stays_gone(
    made: Made, where: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "s3":
        server: S3Server = request.getfixturevalue("s3")
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        forget_installation()
        remote = open_store().remote
        assert remote
        for path in (made.home / "store").glob("??/*"):
            remote.put(path.name, path, path.stat().st_size, "application/octet-stream")
    gone, clip = made.id("gone"), made.clip("gone")
    own, living = artifacts_of(made, "gone"), artifacts_of(made, "left", "right")
    assert len(own) >= 6 and not own & living and held_anywhere(own | living) == own | living
    assert in_catalog(SECRET) and in_files(SECRET) and faults(made) == []
    index = open_index(open_catalog(), writing=True)
    assert fill_frames(open_ledger(), index) == 3
    with Session(open_catalog()) as session, session.begin():
        session.add(ModelVersion(digest="m" * 64, name="nano-1", kind="t2v", release_name=made.folder.name))

    (planned,) = facts("forget", gone[:9], "--dry-run")
    assert set(planned["removed"]) == own and planned["clips"] == [clip] and planned["models"] == ["nano-1"]
    assert taken_down_videos() == set() and held_anywhere(own) == own
    medgen("forget", gone, code=1)  # nobody said yes

    (told,) = facts("forget", made.url("gone"), "--yes", "--reason", "asked")
    assert set(told["removed"]) == own and told["bytes"] > 0 and told["clips"] == [clip]
    assert told["releases"] == {made.folder.name: 1} and told["models"] == ["nano-1"] and len(told["advice"]) == 2
    facts("forget", made.url("words"), "--yes", "--reason", "asked too")
    assert in_catalog(SECRET) == [] and in_files(SECRET) == []
    assert held_anywhere(own) == set() and held_anywhere(living) == living
    assert open_store().missing(own | living) == own
    assert index.held(index.spaces()[0], [clip, made.clip("left")]).keys() == {made.clip("left")}
    assert taken_down_videos() == {gone, made.id("words")}
    assert taken_down_digests(open_catalog()) == {hashlib.sha256(made.server.answers["/gone.mp4"].body).hexdigest()}

    # The release says what is missing, also when it is laid out again; a release that lacks more is damaged.
    for _ in range(2):
        notice = json.loads((made.folder / NOTICE).read_text())
        assert [(t["video_id"], t["reason"], t["clips"]) for t in notice["takedowns"]] == [(gone, "asked", [clip])]
        assert {file["path"] for file in notice["files"]} == {
            f"clips/{clip}.mp4", "metadata.parquet", "croissant.json",
        }  # fmt: skip
        described = json.loads((made.folder / "croissant.json").read_text())["distribution"]
        digests = {one["@id"]: one["sha256"] for one in described if "sha256" in one}
        assert digests["metadata.parquet"] == file_digest(made.folder / "metadata.parquet")[0]
        rows = pq.read_table(made.folder / "metadata.parquet").to_pylist()
        assert {row["video_id"] for row in rows} == {made.id("left"), made.id("right")}
        assert {path.stem for path in (made.folder / "clips").iterdir()} == {row["clip_id"] for row in rows}
        assert faults(made) == []
        shutil.rmtree(made.folder)
        assert facts("release", "show", made.folder.name)["taken_down"] == notice
    assert "taken down" in medgen("release", "show", made.folder.name)
    assert "but for what was taken down" in medgen("verify") and len(facts("verify")["taken_down"]) == 2

    # What is on record says so.
    for name in (gone, clip, made.url("gone")):
        story = facts("show", name)
        assert story["forgotten"]["reason"] == "asked" and story["video"]["title"] == ""
        assert "Taken down 20" in medgen("show", name).splitlines()[1]
    assert "taken down: 2 videos" in medgen("status")
    listed = {entry["url"]: entry for entry in facts("status", "--all")["items"]}
    assert (listed[made.url("gone")]["status"], listed[made.url("gone")]["reason"]) == ("rejected", "forgotten")
    assert len(listed) == 4 and listed[made.url("left")]["clips"] == 1
    tombstones = facts("forget", "--list")
    assert [(g["url"], g["finished"]) for g in tombstones] == [(made.url("gone"), True), (made.url("words"), True)]
    assert "asked too" in medgen("forget", "--list")

    # Twice is harmless, and so is gc.
    before = records()
    medgen("forget", gone, "--yes", "--reason", "again")
    assert finish(open_ledger()) == [] and records() == before
    collect_garbage(open_ledger(), grace_s=-1)
    assert faults(made) == []

    # The next refresh neither asks for it nor lists it; what is the best copy without it is decided anew.
    made.server.asked.clear()
    *results, record, folder = refresh(made.listing)
    executed = {result.step: result.executed for result in results}
    assert made.server.asked == [] and executed.pop("deduplicate") <= 2 and executed.pop("release") == 1
    assert set(executed.values()) == {0} and len(executed) == 9
    assert record.detail["clips"] == 2 and not (folder / NOTICE).exists()
    assert in_catalog(SECRET) == [] and in_files(SECRET) == [] and faults(made) == []


def test_bytes_that_another_video_has_stay_until_that_is_forgotten_too(made: Made) -> None:
    left, right = artifacts_of(made, "left"), artifacts_of(made, "right")
    shared, own = left & right, left - right
    video = hashlib.sha256(made.server.answers["/left.mp4"].body).hexdigest()
    assert video in shared and len(shared) >= 4 and own
    (told,) = take_down(open_ledger(), made.urls("left"), "asked")
    assert set(told.kept_for_others) == shared and set(told.removed) == own
    names = {made.id("right"), made.clip("right")}
    assert all({subject.partition("/")[0] for subject in who} <= names for who in told.kept_for_others.values())
    assert held_anywhere(left | right) == right and taken_down_digests(open_catalog()) == frozenset()
    clips = {path.stem for path in (made.folder / "clips").iterdir()}
    assert clips == {made.clip("gone"), made.clip("right")}  # the same bytes, but not the same clip
    assert faults(made) == []
    take_down(open_ledger(), made.urls("right"), "asked")
    assert held_anywhere(left | right) == set() and taken_down_digests(open_catalog()) == {video}
    assert {path.stem for path in (made.folder / "clips").iterdir()} == {made.clip("gone")}
    assert faults(made) == []


def upload_again(made: Made, folder: Path) -> Path:
    """Puts what "left" and "right" show at the address "again", brighter and encoded anew; gives a listing of all."""
    brighter = remade(made.server.answers["/left.mp4"], folder, lambda p: cv2.convertScaleAbs(p, alpha=0.95, beta=10))
    made.server.answers["/again.mp4"] = Answer(brighter)
    row = {"url": made.url("again"), "licence": "MIT", "title": "Endoscopy once more"}
    listing = folder / "listing.jsonl"
    listing.write_text(f"{made.listing.read_text()}\n{json.dumps(row)}")
    return listing


def rejected_of(record: Any) -> dict[str, dict[str, Any]]:
    """Subject → row, of what a release says that it left out."""
    return {row["subject"]: row for row in pq.read_table(open_store().path(record.outputs["rejected"])).to_pylist()}


def clips_in(folder: Path) -> set[str]:
    """Ids of the clips in the folder of a release."""
    return {path.stem for path in (folder / "clips").iterdir()}


def objects() -> dict[str, int]:
    """Digest → bytes, of all that the store holds."""
    return {digest: size for digest, _, size in open_store().digests()}


def counted(planned: list[dict[str, Any]]) -> set[str]:
    """Digests of all that reports say was, or would be, removed; each report counts its own."""
    for report in planned:
        assert report["artifacts"] == len({*report["removed"], *report["replaced"]})
    return {digest for report in planned for digest in (*report["removed"], *report["replaced"])}


def test_what_was_taken_down_does_not_come_back_through_its_copy(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOOSE, "deduplicate", deduplicate.DeduplicateParams())
    *_, record, folder = refresh(made.listing)
    other, clips = made.clip("gone"), {made.clip("left"): "left", made.clip("right"): "right"}
    (loser,) = clips.keys() & rejected_of(record).keys()
    (winner,) = clips.keys() - {loser}
    assert rejected_of(record)[loser]["duplicate_of"] == winner and clips_in(folder) == {winner, other}

    # The copy is named beforehand, and what is counted beforehand is what goes.
    before = objects()
    (planned,) = facts("forget", made.url(clips[winner]), "--dry-run")
    assert objects() == before and taken_down_videos() == set()
    (copy,) = planned["copies"]
    assert (copy["clip"], copy["video_id"], copy["copy_of"]) == (loser, made.id(clips[loser]), winner)
    assert (copy["status"], copy["reason"], copy["threshold"]) == ("rejected", "duplicate", 0.7)
    assert 0.7 <= copy["similarity"] <= 1 and 5 < copy["overlap_s"] < 7
    assert copy["releases"] == [made.folder.name]
    advised = medgen("forget", made.url(clips[winner]), "--dry-run")
    assert loser in advised and made.url(clips[loser]) in advised and "new releases leave these clips out" in advised
    (told,) = facts("forget", made.url(clips[winner]), "--yes")
    assert counted([planned]) == counted([told]) == before.keys() - objects().keys() and planned["replaced"]
    assert planned["bytes"] == told["bytes"] == sum(before[digest] for digest in counted([told]))
    assert (planned["releases"], planned["copies"]) == (told["releases"], told["copies"])

    # It does not take the place of the better one, nor does what is uploaded once more; nothing else is decided anew.
    listing = upload_again(made, tmp_path)
    *results, record, folder = refresh(listing)
    executed = {result.step: result.executed for result in results}
    assert executed["deduplicate"] == 2 and clips_in(folder) == {other}
    for clip in (loser, made.clip("again")):
        row = rejected_of(record)[clip]
        assert (row["step"], row["reason"]) == ("deduplicate", "near_duplicate_of_forgotten")
        assert row["duplicate_of"] == winner and row["score"] >= row["threshold"] == 0.7
        (decided,) = (s for s in facts("show", clip)["steps"][::-1] if s["reason"] == "near_duplicate_of_forgotten")
        assert decided["detail"]["tombstone"] == made.id(clips[winner])
    assert faults(made) == []

    # The site says so.
    with TestClient(create_site(), base_url="http://localhost") as site:
        address = f"/takedowns/{made.id(clips[winner])}"
        report = site.get(f"{address}.json").json()
        assert report["copies"] == told["copies"] and report["blocking"] is None and report["finished"]
        assert {stopped["clip"] for stopped in report["stopped"]} == {loser, made.clip("again")}
        assert {stopped["copy_of"] for stopped in report["stopped"]} == {winner}
        page = site.get(address).text
        assert loser in page and made.clip("again") in page and "kept out of new releases" in page
        assert "shows the same as a video that was taken down" in site.get(f"/clips/{loser}").text

    # Allowed, the better of the copies comes in; blocked again, none would.
    medgen("forget", made.url(clips[winner]), "--yes", "--allow-copies")
    *_, folder = refresh(listing)
    assert len(clips_in(folder) & {loser, made.clip("again")}) == 1
    assert takedown_block(open_catalog()).fingerprints == {}
    medgen("forget", made.url(clips[winner]), "--yes", "--block-copies")
    assert takedown_block(open_catalog()).tombstones == {winner: made.id(clips[winner])}

    # The copies of it that are left go together.
    arguments, before = ("forget", made.url(clips[loser]), "--with-copies"), objects()
    planned, told = facts(*arguments, "--dry-run"), facts(*arguments, "--yes")
    assert {report["video_id"] for report in told} == {made.id(clips[loser]), made.id("again")}
    assert counted(planned) == counted(told) == before.keys() - objects().keys()
    assert faults(made) == []


def test_a_copy_in_releases_is_named_left_out_of_the_next_and_goes_when_that_is_asked_for(made: Made) -> None:
    """With near-duplicates kept: one takedown comes while a release is under way, the next takes the copy too."""
    left, right, other = made.clip("left"), made.clip("right"), made.clip("gone")
    take_down(open_ledger(), made.urls("left"), "asked")
    assert clips_in(made.folder) == {right, other}
    _, record, folder = _released(list(made.results[:-1]))
    assert clips_in(folder) == {other} and record.detail["clips"] == 1
    row = rejected_of(record)[right]
    assert (row["step"], row["reason"], row["duplicate_of"]) == ("release", "near_duplicate_of_forgotten", left)
    assert row["score"] >= row["threshold"] == 0.7

    before = objects()
    arguments = ("forget", made.url("left"), "--with-copies")
    assert "either copies go too" in medgen(*arguments, "--allow-copies", "--yes", code=1)
    planned = {report["video_id"]: report for report in facts(*arguments, "--dry-run")}
    assert planned.keys() == {made.id("left"), made.id("right")} and objects() == before
    assert [copy["releases"] for copy in planned[made.id("left")]["copies"]] == [[made.folder.name]]
    told = {report["video_id"]: report for report in facts(*arguments, "--yes")}
    taken = told[made.id("right")]
    gone_since = before.keys() - objects().keys()
    assert counted([planned[made.id("right")]]) == counted([taken]) == gone_since and taken["replaced"]
    assert (taken["copy_of"], taken["blocking"], taken["clips"]) == ([made.id("left")], [right], [right])
    assert counted(list(planned.values())) == counted(list(told.values()))
    assert clips_in(made.folder) == clips_in(folder) == {other}
    assert taken_down_videos() == {made.id("left"), made.id("right")} and faults(made) == []


def test_two_that_were_one_file_go_together_though_cut_short(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    planned = facts("forget", made.url("left"), "--with-copies", "--dry-run")
    before = objects()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("tasks.operations.takedown._blank_records", stop)
        take_down(open_ledger(), made.urls("left"), "asked", with_copies=True)
    assert objects() == before and "not finished" in medgen("forget", "--list")
    told = {report.video_id: report for report in finish(open_ledger())}
    right = told[made.id("right")]
    assert (right.copy_of, right.blocking) == ([made.id("left")], [made.clip("right")])
    assert [copy.clip for copy in told[made.id("left")].copies or ()] == [made.clip("right")]
    assert counted(planned) == before.keys() - objects().keys() and faults(made) == []


def test_a_takedown_of_an_earlier_version_is_read_and_blocks_nothing(made: Made) -> None:
    """Its fingerprints were blanked, and its report says nothing of copies."""
    take_down(open_ledger(), made.urls("gone"), "asked")
    with open_catalog().begin() as connection:
        connection.execute(text("UPDATE tombstone SET detail = detail - '{copies,copy_of,blocking}'::text[]"))
        blank = "UPDATE step_run SET detail = jsonb_set(detail, '{fingerprint}', '\"\"') WHERE step = 'quality'"
        connection.execute(text(f"{blank} AND subject = :clip"), {"clip": made.clip("gone")})
    assert takedown_block(open_catalog()).fingerprints == {}
    (planned,) = facts("forget", made.url("gone"), "--dry-run")
    assert planned["copies"] == [] and "taken down" in medgen("forget", made.url("gone"), "--dry-run")
    with TestClient(create_site(), base_url="http://localhost") as site:
        assert "were not looked for yet" in site.get(f"/takedowns/{made.id('gone')}").text


def test_two_at_once_leave_what_one_after_the_other_leaves(made: Made) -> None:
    told = take_down(open_ledger(), made.urls("left", "right"), "asked")
    both = artifacts_of(made, "left", "right")
    assert held_anywhere(both) == set() and not any(one.kept_for_others for one in told)
    assert len(json.loads((made.folder / NOTICE).read_text())["takedowns"]) == 2
    assert faults(made) == []


KILLER = """
import os, signal, sys
import medgen.takedown
from tasks.operations import takedown
from medgen.ledger import Ledger
from medgen.store import Store

left = 0

def deadly(function):
    def call(*arguments, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return call

for owner, name in ((Store, "put_file"), (Store, "remove"), (Ledger, "write"), (medgen.takedown, "_write"),
                    (takedown, "_save_report"), (takedown, "read_rehashed"),
                    (takedown, "deletable")):
    setattr(owner, name, deadly(getattr(owner, name)))

deed, after = 1, 2
for kills in range(int(sys.argv[3])):
    child = os.fork()  # before any connection is open
    if child == 0:
        left = deed
        from medgen.ledger import open_ledger
        takedown.take_down(open_ledger(), {sys.argv[1]: sys.argv[2]}, "asked")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        sys.exit(os.WEXITSTATUS(status) or (0 if kills > 4 else 3))
    deed, after = after, deed + after
"""


def test_killed_anywhere_it_is_finished_by_the_next(made: Made) -> None:
    """Processes that die at their first, second, third, fifth, eighth … deed, until one comes through."""
    own = artifacts_of(made, "gone")
    command = [sys.executable, "-c", KILLER, made.id("gone"), made.url("gone"), "100"]
    subprocess.run(command, cwd=ROOT, check=True)
    assert held_anywhere(own) == set() and in_catalog(SECRET) == [] and faults(made) == []
    assert in_files(ROWS["gone"]["title"]) == []
    assert not (made.folder / "clips" / f"{made.clip('gone')}.mp4").exists()


def test_what_was_cut_short_gc_finishes(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    own, remove = artifacts_of(made, "gone"), Store.remove
    removed: list[str] = []

    def remove_three(store: Store, digest: str) -> None:
        if len(removed) == 3:
            raise KeyboardInterrupt
        removed.append(digest)
        remove(store, digest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "remove", remove_three)
        take_down(open_ledger(), made.urls("gone"), "asked")
    assert len(held_anywhere(own)) >= 3 and in_catalog(SECRET) == []
    found = " ".join(faults(made))
    assert "not finished" in found and "was taken down, but is in the store" in found
    assert "not finished" in medgen("forget", "--list")
    assert "finished the takedown" in medgen("gc", "--grace-minutes", "-1")
    assert held_anywhere(own) == set() and faults(made) == []
    bytes_back = open_store().put_bytes(made.server.answers["/gone.mp4"].body, "video/x-any")
    assert bytes_back.sha256 in own and [f"artifact {bytes_back.sha256}" in fault for fault in faults(made)] == [True]
    medgen("gc")
    assert faults(made) == []


def test_a_video_in_flight_does_not_come_back(made: Made) -> None:
    """All that a running refresh may do after the takedown, with what it had found before."""
    own, living = artifacts_of(made, "gone"), artifacts_of(made, "left", "right")
    work = Work(made.id("gone"), context={"title": SECRET})
    take_down(open_ledger(), made.urls("gone"), "asked")
    discovered, fetched, segmented, classified, cut_out, measured, decided, unique, guarded, captioned, _ = made.results
    for upstream, step, params in (
        (discovered, download.STEP, PARAMS),
        (fetched, segment.STEP, LOOSE["segment"]),
        (segmented, classify.STEP, LOOSE["classify"]),
        (classified, cut.STEP, LOOSE["cut"]),
        (cut_out, quality.STEP, LOOSE["quality"]),
        (measured, decide.STEP, LOOSE["decide"]),
        ([decided], deduplicate.STEP, LOOSE["deduplicate"]),
        (unique, privacy.STEP, LOOSE["privacy"]),
        (guarded, caption.STEP, LOOSE["caption"]),
    ):
        result = step.run(upstream, params)
        # Without it another may be the best copy, so that deduplicate decides anew.
        assert result.executed in ((1, 3) if result.step == "deduplicate" else (1,))
        assert (len(result.kept), len(result.dropped)) == (2, 1)
        (record,) = open_ledger().load([lineage[result.step] for lineage in result.dropped]).values()
        assert (record.status, record.reason, record.outputs) == ("rejected", "forgotten", {})
        assert step.run(upstream, params).executed == 0
    _, record, folder = _released([captioned])
    assert record.detail["clips"] == 2 and len(pq.read_table(folder / "metadata.parquet")) == 2
    # A worker that was at it when the tombstone came.
    made_late = open_store().put_bytes(b"made of it", "text/plain")
    shared = open_store().put_bytes(made.server.answers["/left.mp4"].body, "video/x-any")
    outcome = Outcome("kept", detail={"title": SECRET}, outputs={"video": made_late, "copy": shared})
    identity = StepIdentity("download", 1, {}, {})
    late = open_ledger().write(identity, work, outcome, started_at=now(), flow_run_id=None)
    assert (late.status, late.reason, late.detail) == ("rejected", "forgotten", {})
    assert open_store().missing([made_late.sha256, shared.sha256]) == {made_late.sha256}
    assert held_anywhere(own | living) == living and in_catalog(SECRET) == [] and faults(made) == []


def test_what_a_step_in_flight_wrote_of_it_is_found_by_gc(made: Made, tmp_path: Path) -> None:
    """Discover read the listing before the tombstone came and recorded it after."""
    take_down(open_ledger(), made.urls("gone"), "asked")
    again = tmp_path / "again.jsonl"
    again.write_text(made.listing.read_text())
    discover_source(str(again))
    assert in_files(made.url("gone"))
    medgen("gc")
    assert in_files(f"Laparoscopy by {SECRET}") == [] and faults(made) == []
    assert "finished" not in medgen("gc")


@pytest.mark.parametrize(
    ("tampering", "named"),
    [
        ("UPDATE step_run SET detail = '{}' WHERE step = 'download' AND subject = :v", "after a takedown blanked it"),
        ("UPDATE caption SET text = 'x' WHERE text = ''", "after a takedown blanked it"),
        ("UPDATE step_run SET finished_at = now() WHERE step = 'classify' AND subject = :v", "after a takedown"),
        ("UPDATE tombstone SET reason = 'x'", "its tombstone was changed"),
        ("UPDATE step_run SET detail = '{}' WHERE step = 'forget'", "changed after it was written"),
    ],
)
def test_a_takedown_excuses_nothing_else(made: Made, tampering: str, named: str) -> None:
    take_down(open_ledger(), made.urls("gone"), "asked")
    with open_catalog().begin() as connection:
        connection.execute(text(tampering), {"v": made.id("gone")})
    assert any(named in fault for fault in faults(made)), faults(made)


def test_records_altered_before_a_takedown_stay_under_suspicion(made: Made) -> None:
    with open_catalog().begin() as connection:
        connection.execute(text("UPDATE caption SET text = text || '!'"))
    (told,) = take_down(open_ledger(), made.urls("gone"), "asked")
    assert len(told.altered) == 1 and f"step run {told.altered[0]}: was changed" in " ".join(faults(made))


def test_damage_to_a_release_is_no_takedown(made: Made) -> None:
    take_down(open_ledger(), made.urls("gone"), "asked")
    clip = made.folder / "clips" / f"{made.clip('left')}.mp4"
    clip.unlink()
    notice = json.loads((made.folder / NOTICE).read_text())
    notice["files"].append({"path": f"clips/{clip.name}", "sha256": "0" * 64, "now": None})
    (made.folder / NOTICE).write_text(json.dumps(notice))
    (made.folder / "clips" / f"{made.clip('gone')}.mp4").write_bytes(b"back")
    found = " ".join(faults(made))
    assert f"clips/{clip.name} is missing" in found and f"{NOTICE} is missing or was changed" in found
    assert f"clips/{made.clip('gone')}.mp4 was taken down, but is there" in found


HOSTILE = ["../../etc", "'; DROP TABLE video; --", "", "   ", "%", "_", "a\nb", "\x1b[2J", "v" * 1_000_000, "http://",
           "http://" + "x" * 1_000_000, "ftp://host/x.mp4", "javascript://x", "http://[", "v0000000000000000",
           "é\u202e", "file:///etc/passwd"]  # fmt: skip


def test_what_names_no_video_is_refused_in_one_line(home: Path) -> None:
    for name in HOSTILE:
        for command in (("forget", "--yes"), ("forget", "--dry-run"), ("show",)):
            told = medgen(*command, "--", name, code=1)
            assert told.startswith("error:") and len(told) < 400 and "Traceback" not in told, (command, name[:80])
    for reason in ("", " ", "a\nb", "x" * 1001, "\x00"):
        assert "a reason is" in medgen("forget", "http://host/x.mp4", "--yes", "--reason", reason, code=1)
    assert "name at least one" in medgen("forget", "--yes", code=1)
    assert "say --yes" in medgen("forget", "http://host/x.mp4", code=1)
    assert taken_down_videos() == set() and records() == 0


def test_a_url_never_seen_is_never_taken(made: Made, tmp_path: Path) -> None:
    url = made.url("gone") + "?new"
    made.server.answers["/gone.mp4?new"] = made.server.answers["/gone.mp4"]
    (told,) = facts("forget", url, "--yes", "--reason", "in advance")
    assert told["artifacts"] == 0 and "taken down unseen" in medgen("show", url, code=1)
    listing = tmp_path / "new.jsonl"
    listing.write_text(json.dumps({"url": url, "title": "Laparoscopy"}))
    found = discover_source(str(listing))
    (record,) = open_ledger().load(found.records).values()
    assert found.kept == () and record.detail["counts"] == {"rejected forgotten": 1}
    (verdict,) = pq.read_table(open_store().path(record.outputs["verdicts"])).to_pylist()
    assert (verdict["url"], verdict["title"], verdict["reason"]) == (url, "", "forgotten")
    assert facts("forget", video_id(url), "--dry-run")[0]["url"] == url


def test_sources_are_asked_once_a_day_and_what_vanished_is_marked(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, params = open_ledger(), RecheckParams(stall_limit_s=0.5)
    answers = made.server.answers
    monkeypatch.setitem(answers, "/left.mp4", Answer(status=404))
    monkeypatch.setitem(answers, "/right.mp4", Answer(status=503))
    first = recheck_videos(ledger, params)
    assert (first.asked, first.there, first.gone, first.unanswered) == (3, 1, 1, 1)
    assert vanished(open_catalog()).keys() == {made.id("left")}
    assert sum(len(answer.body) for answer in answers.values()) > 0
    made.server.asked.clear()
    monkeypatch.setitem(answers, "/right.mp4", Answer(status=410))
    again = recheck_videos(ledger, params)  # only the one that had not answered
    assert (again.asked, again.reused, again.gone) == (1, 2, 2)
    assert {path for _, path in made.server.asked} == {"/right.mp4"}
    gone = {made.id("left"), made.id("right")}
    assert vanished(open_catalog()).keys() == gone == facts("status")["vanished"].keys()
    assert "vanished from their source: 2" in medgen("status")
    assert facts("show", made.clip("left"))["vanished"] and "Vanished from its source" in medgen(
        "show", made.id("left")
    )
    assert facts("show", made.id("gone"))["vanished"] is None
    assert [*due(open_catalog(), older_than=timedelta(hours=1))] == [] and len([*due(open_catalog(), limit=2)]) == 2

    captioned = made.results[9]
    _, dropped, _ = _released([captioned], vanished_videos="drop")
    assert dropped.detail["clips"] == 1 and _released([captioned])[1].detail["clips"] == 3
    rejected = pq.read_table(open_store().path(dropped.outputs["rejected"])).to_pylist()
    assert [row["reason"] for row in rejected] == ["source_vanished"] * 2

    tomorrow = now() + timedelta(days=1)
    monkeypatch.setattr("tasks.operations.recheck.now", lambda: tomorrow)
    monkeypatch.setitem(answers, "/left.mp4", answers["/gone.mp4"])
    assert recheck_videos(ledger, params, limit=2).asked == 2
    recheck_videos(ledger, params)
    assert vanished(open_catalog()).keys() == {made.id("right")}  # the other is back
    take_down(ledger, made.urls("right"), "asked")
    assert vanished(open_catalog()) == {} and made.id("right") not in dict(due(open_catalog()))
    assert facts("recheck", "--limit", "1")["vanished"] == {} and "exist" in medgen("recheck")
    assert faults(made) == []


def test_a_folder_that_lost_a_file_is_told_from_one_that_is_not_there(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("stays.mp4", "goes.mp4"):
        numbered_video(folder / name, 25)
    found = discover_source(str(folder))
    download.STEP.run(found, DownloadParams(min_duration_s=0.5))
    ledger = open_ledger()
    away = folder.rename(tmp_path / "away")
    assert recheck_videos(ledger, RecheckParams()).unanswered == 2 and vanished(open_catalog()) == {}
    away.rename(folder)
    (folder / "goes.mp4").unlink()
    assert recheck_videos(ledger, RecheckParams()).gone == 1
    assert vanished(open_catalog()).keys() == {video_id("folder:videos/goes.mp4")}


texts = st.text(min_size=1, max_size=8)
facts_of_a_step = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(texts | st.sampled_from(sorted(PLAIN)), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(facts_of_a_step)
def test_blanking_keeps_the_shape_and_no_word(value: Any) -> None:
    def compare(before: Any, after: Any, name: str) -> None:
        if isinstance(before, str):
            assert after == (before if name in PLAIN else "")
        elif isinstance(before, list):
            assert len(after) == len(before)
            for one, other in zip(before, after, strict=True):
                compare(one, other, name)
        elif isinstance(before, dict):
            assert after.keys() == {key for key in before if NAME.fullmatch(key)}
            for key, item in after.items():
                compare(before[key], item, key)
        else:
            assert after == before

    compare(value, blanked(value), "")
    assert blanked(blanked(value)) == blanked(value)


def test_what_was_stated_of_a_source_is_on_record_and_its_retention_ends(made: Made) -> None:
    (name,) = {row["name"] for row in facts("source")}
    assert facts("source")[0]["legal_basis"] is None
    assert "must be given" in medgen("source", name, "--legal-basis", "consent", code=1)
    assert "there is no source" in medgen("source", "nobody", "--legal-basis", "consent", "--by", "Dr A", code=1)
    assert "not between" in medgen("source", name, "--legal-basis", "x", "--retain-days", "-1", "--by", "A", code=1)
    medgen("source", name, "--legal-basis", "CC BY 4.0 <b>", "--retain-days", "30", "--by", "Dr A")
    medgen("source", name, "--contact", "dpo@example.org", "--by", "Dr B")
    (row,) = facts("source", name)
    assert (row["legal_basis"], row["retain_days"], row["stated_by"]) == ("CC BY 4.0 <b>", 30, "Dr B")
    assert row["retention_ended"] == 0 and "no video's retention has ended" in medgen("forget", "--retention-ended")
    with open_catalog().begin() as connection:
        aged = "UPDATE video SET discovered_at = discovered_at - interval '31 days' WHERE id = :id"
        connection.execute(text(aged), {"id": made.id("gone")})
    assert facts("source", name)[0]["retention_ended"] == 1
    weak = CHECKS["retention"]()
    assert weak.verdict == "weak" and f"1 of {name}" in weak.found
    with TestClient(create_site(), base_url="http://localhost") as site:
        page = site.get(f"/sources?name={quote(name)}").text
        assert "CC BY 4.0 &lt;b&gt;" in page and "30 days" in page and "before that" in page
    (told,) = facts("forget", "--retention-ended", "--reason", "retention ended", "--yes")
    assert told["video_id"] == made.id("gone") and taken_down_videos() == {made.id("gone")}
    assert facts("source", name)[0]["retention_ended"] == 0 and faults(made) == []
