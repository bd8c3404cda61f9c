"""Bad luck in the middle of a run: the disk is full, Postgres is killed, another run works on the same. The run or its
items end with a plain reason, the next run goes on, nothing is lost, doubled or trusted by halves."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from flows.shards_in_flight import in_a_line
from medgen.catalog import Release, StepRun, Video, open_catalog
from medgen.ledger import Outcome, StepIdentity, Work, open_ledger
from medgen.settings import current
from medgen.shard import Step, run_shard
from medgen.store import Store, file_digest, open_store
from medgen.verify import verify
from medgen.video.cut import cut
from medgen.video.limits import Limits
from medgen.video.pictures import pictures
from tasks.curation import download, release, segment
from tasks.curation.download_policy import DownloadParams
from tests.conftest import discover_source, forget_installation, inline, numbered_video, stored
from tests.waiting import LIMIT_S


@pytest.fixture
def small_disk(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The home on a disk of its own, of 4 MB. Only root may make one."""
    home.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "medgen-test", home], capture_output=True
    ).returncode:
        pytest.skip("no disk can be mounted here")
    monkeypatch.setenv("MEDGEN_WORKERS", "1")
    monkeypatch.setattr("medgen.shard.MAX_ATTEMPTS", 1)
    forget_installation()
    yield home
    forget_installation()
    subprocess.run(["umount", "--lazy", home], check=True)


def cut_and_note(work: Work, store: Store) -> Outcome:
    """A clip by FFmpeg, then a megabyte by Python: as steps do."""
    source = Path(work.context["source"])
    times = [picture.pts for picture in pictures(source, Limits())]
    scratch = store.scratch(".mp4")
    cut(source, scratch, times=times, crop=None, crf=18, preset="ultrafast", limits=Limits())
    clip = store.put_file(scratch, "video/mp4")
    return Outcome("kept", outputs={"clip": clip, "note": store.put_bytes(work.subject.encode() * 1_000_000, "text/x")})


def test_a_full_disk_is_said_and_leaves_nothing_behind(small_disk: Path, tmp_path: Path) -> None:
    """Full at once for FFmpeg, then in the middle of what Python writes; then somebody makes room."""
    source = numbered_video(tmp_path / "source.mp4", 40)
    step = Step(StepIdentity("full", 1, {}, {}), cut_and_note)
    works = [Work(subject, context={"source": str(source)}) for subject in "ab"]
    filler, store = small_disk / "filler", open_store()

    def fill(leaving: int) -> None:
        filler.unlink(missing_ok=True)
        room = os.statvfs(small_disk)
        filler.write_bytes(bytes(max(0, room.f_bavail * room.f_bsize - leaving)))

    for leaving in (16 << 10, 512 << 10):
        fill(leaving)
        failed = run_shard(step, works)
        records = open_ledger().load(failed.records).values()
        assert {(r.status, r.reason) for r in records} == {("failed", "disk_full")}
        assert all("no room left on the disk" in r.detail["message"] for r in records)
        assert list(store.temporary.iterdir()) == []
        for path in store.folder.glob("??/*"):
            assert file_digest(path)[0] == path.name
    filler.unlink()
    made = run_shard(step, works)
    assert (len(made.kept), made.executed) == (2, 2)
    assert run_shard(step, works).executed == 0
    assert verify(open_ledger(), current().releases_folder) == []


def test_a_disk_full_for_the_release_leaves_no_half_folder(small_disk: Path) -> None:
    store = open_store()
    room = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(room.f_bavail * room.f_bsize - (64 << 10)))
    with pytest.raises(OSError, match="No space left on device"):
        store.put_bytes(bytes(1 << 20), "text/x")
    assert list(store.temporary.iterdir()) == list(store.folder.glob("??/*")) == []


def kill_postgres(home: Path) -> None:
    """kill -9 of the server and of all that it started."""
    pid = int((home / "postgres" / "postmaster.pid").read_text().split("\n")[0])
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    for process in (pid, *map(int, children)):
        os.kill(process, signal.SIGKILL)


def count_and_kill(work: Work, store: Store, *, home: Path, at: str) -> Outcome:
    """Makes a note; of one subject after the database was killed, once."""
    if work.subject == at and not (home / "killed").exists():
        (home / "killed").touch()
        kill_postgres(home)
    return Outcome("kept", outputs={"note": store.put_bytes(work.subject.encode(), "text/plain")})


def test_postgres_killed_in_the_middle_is_started_again_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the shard: what was recorded stands, and the next connection starts the server."""
    home = tmp_path / "home"
    monkeypatch.setenv("MEDGEN_HOME", str(home))
    monkeypatch.delenv("MEDGEN_DATABASE_URL", raising=False)
    forget_installation()
    try:
        step = Step(StepIdentity("count", 1, {}, {}), partial(count_and_kill, home=home, at="c"), runs_in="inline")
        works = [Work(subject) for subject in "abcde"]
        ledger = open_ledger()
        with open_catalog().connect() as in_use:  # a transaction that is open when the server dies is lost
            first = run_shard(step, works)
            with pytest.raises(OperationalError) as outage:
                in_use.execute(select(StepRun.id))
        told = in_a_line(outage.value)
        assert "\n" not in told and "sqlalche.me" not in told and "SELECT" not in told
        assert (home / "killed").exists() and (first.executed, len(first.kept)) == (5, 5)
        again = run_shard(step, works)
        assert (again.executed, again.reused, again.records) == (0, 5, first.records)
        with Session(open_catalog()) as session:
            assert session.scalar(select(func.count()).select_from(StepRun)) == 5
        assert verify(ledger, current().releases_folder) == []
    finally:
        kill_postgres(home)
        forget_installation()


def refresh(source: Path) -> tuple[list[tuple[int, ...]], str, Path]:
    """A video's first steps, and a release without clips, which needs no captions.

    Gives the records of each, and the release's digest and folder.
    """
    results = [discover_source(str(source))]
    results.append(download.STEP.run(results[-1], DownloadParams(min_duration_s=1.0)))
    results.append(segment.STEP.run(results[-1], segment.SegmentParams(dissolves=False)))
    made, record, folder = release.make_release.fn("t", stored(results), {}, release.ReleaseParams())
    return [result.records for result in (*results, made)], release.RELEASE.detail(record)["digest"], folder


def test_two_refreshes_at_once_give_one_release_and_double_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step by step at the same time, as badly as two commands can meet."""
    inline(monkeypatch)
    source = tmp_path / "videos"
    source.mkdir()
    numbered_video(source / "one.mp4", 50)
    together = threading.Barrier(2, timeout=LIMIT_S)  # else one that fails leaves the other waiting
    meet = run_shard.__globals__["_works"]

    def met(*arguments: object) -> object:
        together.wait()
        return meet(*arguments)

    open_ledger()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medgen.shard._works", met)
        with ThreadPoolExecutor(2) as runs:
            one, other = (run.result() for run in [runs.submit(refresh, source) for _ in range(2)])
    assert one == other
    with Session(open_catalog()) as session:
        assert session.scalar(select(func.count()).select_from(Release)) == 1
        assert session.scalar(select(func.count()).select_from(Video)) == 1
        standing = select(func.count(), func.count(StepRun.key.distinct())).where(~StepRun.superseded)
        runs_count, keys = session.execute(standing).one()
        assert runs_count == keys
    assert verify(open_ledger(), current().releases_folder) == []
    assert list(open_store().temporary.iterdir()) == []
