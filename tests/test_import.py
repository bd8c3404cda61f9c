"""Published sets: each layout becomes a release as it says; what is not sound is left out with a reason."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pyarrow.parquet as pq
import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.testclient import TestClient
from typer.testing import CliRunner

from apps.audit.application import create_site
from apps.cli import app
from apps.history import history, verdict
from apps.verdicts import imports
from flows.import_release import ImportFailed
from medgen.catalog import ItemStatus, StepRun, open_catalog
from medgen.errors import ItemFailed, SourceUnreadable
from medgen.gc import collect_garbage
from medgen.ledger import open_ledger
from medgen.published.fields import published_row
from medgen.published.layout import open_published, split_of
from medgen.published.raw_rows import MAX_HEADER, raw_rows
from medgen.takedown import BLOCKED
from medgen.verify import verify
from tasks.importing import list_published
from tasks.importing.import_params import ImportParams
from tasks.operations.failures import failures
from tasks.operations.near_copies import near_copies
from tasks.operations.takedown import take_down
from tasks.training.released import released_clips
from tasks.training.webdataset import export_webdataset
from tests.clip_release import moving_clip
from tests.conftest import inline
from tests.published_sets import (
    add,
    imports_here,
    made_clips,
    medvideocap,
    medvideocap_row,
    put_videos,
    videofolder,
    videos_inside,
    webdataset,
    write_table,
)

CLIPS = 4
Importer = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return made_clips(tmp_path_factory.mktemp("clips"), CLIPS)


@pytest.fixture
def imported(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Importer]:
    """Imports a set in this process."""
    inline(monkeypatch)
    with imports_here() as run:
        yield run


def metadata(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a release's metadata, by the row of the set."""
    rows = pq.read_table(Path(summary["folder"]) / "metadata.parquet").to_pylist()
    return sorted(rows, key=lambda row: (row["imported_list"], row["imported_row"]))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_each_layout_becomes_a_release_that_says_where_it_is_from(
    imported: Importer, tmp_path: Path, clips: list[bytes]
) -> None:
    texts = [f"A scan, number {number}." for number in range(CLIPS)]
    found: dict[str, list[dict[str, Any]]] = {}
    for make in (medvideocap, videofolder, videos_inside, webdataset):
        folder = make(tmp_path / f"A {make.__name__}", clips)
        summary = imported(folder)
        rows = found[make.__name__] = metadata(summary)
        assert summary["clips"] == CLIPS and not summary["left_out"], summary
        assert summary["release"].startswith(f"a-{make.__name__.replace('_', '-')}-")
        assert sorted(row["clip_sha256"] for row in rows) == sorted(map(sha256, clips))
        assert all(row["clip_sha256"] == row["imported_file_sha256"] for row in rows)
        lists = {file.name: sha256(file.path.read_bytes()) for file in open_published(str(folder)).files}
        assert {(row["imported_list"], row["imported_list_sha256"]) for row in rows} == set(lists.items())
        assert sorted(row["brief_caption"] for row in rows) == texts
        again = imported(folder)
        assert (again["executed"], again["release"]) == (0, summary["release"])

    first = found["medvideocap"][0]
    assert {row["category"] for row in found["medvideocap"]} == {"medical imaging", "clinical practice"}
    assert (first["aesthetic_score"], first["technical_score"], first["split"]) == (4.5, 0.7, None)
    assert first["aesthetic_model"] == "not stated, given by A medvideocap"
    assert json.loads(first["given"])["claims"]["resolution"] == "720x480" and first["resolution"] == "96x64"
    assert first["detailed_caption"].startswith("A bright block")
    rows = found["videofolder"]
    assert sorted(row["split"] for row in rows) == ["test", "train", "train", "validation"]
    assert {row["licence"] for row in rows} == {"cc-by-4.0"}
    assert {json.loads(row["given"])["scores"]["given_quality_score"] for row in rows} == {0.0, 0.1}
    assert all(row["brief_caption"] == row["detailed_caption"] for row in rows)  # one stands for both kinds
    rows = found["videos_inside"]
    assert len({row["video_id"] for row in rows}) == 2 and {row["split"] for row in rows} == {"train"}
    assert rows[0]["imported_file"] == "0.mp4"
    rows = found["webdataset"]
    assert len({row["video_id"] for row in rows}) == 2 and {row["licence"] for row in rows} == {"CC0"}
    assert (rows[1]["start_s"], rows[1]["end_s"], rows[1]["duration"]) == (10.0, 13.0, 3.0)


def test_captions_are_those_that_are_asked_for(imported: Importer, tmp_path: Path, clips: list[bytes]) -> None:
    rows = [
        {"id": f"{n}.mp4", "caption": "No.", "alt": f"Short {n}.", "story": f"Long {n}.", "who": "openai:gpt-4o"}
        for n in range(CLIPS)
    ]
    put_videos(tmp_path / "elsewhere", clips, [row["id"] for row in rows])
    write_table(tmp_path / "set.csv", rows)
    columns = ("file=id", "brief=alt", "detailed=story", "captioner=who")
    summary = imported(
        f"mine={tmp_path / 'set.csv'}", videos=str(tmp_path / "elsewhere"), columns=columns, licence="CC0",
        captioner_kind="vision_language_model", release_prefix="ours",
    )  # fmt: skip
    found, release = released_clips(open_ledger(), summary["release"])
    assert {(clip.brief, clip.detailed) for clip in found} == {(f"Short {n}.", f"Long {n}.") for n in range(CLIPS)}
    assert {clip.captioner_kind for clip in found} == {"vision_language_model"}
    assert release.policy["imported"]["set"] == "mine" and str(tmp_path) not in json.dumps(release.policy)
    assert {row["captioner"] for row in metadata(summary)} == {"openai:gpt-4o"}
    with pytest.raises(ImportFailed, match=r"could be imported: missing_column 4"):
        imported(tmp_path / "set.csv", columns=("detailed=stories",))
    with pytest.raises(ValueError, match=r"no field of a published set"):
        ImportParams(columns=("speech=x",))
    with pytest.raises(ValueError, match=r"no group"):
        ImportParams(video_pattern="x+")


def test_what_is_not_sound_is_left_out_with_a_reason(imported: Importer, tmp_path: Path, clips: list[bytes]) -> None:
    folder = tmp_path / "set"
    outside = tmp_path / "secret.mp4"
    outside.write_bytes(clips[0])
    put_videos(folder, [clips[0], clips[1][:-400], b"no video", clips[2]], ["a.mp4", "cut.mp4", "text.mp4", "c.mp4"])
    (folder / "link.mp4").symlink_to(outside)
    os.mkfifo(folder / "pipe.mp4")
    good = {"brief_caption": "Brief.", "detailed_caption": "Detailed."}
    names = ("a", "a", "cut", "text", "link", "pipe", "missing", "../secret", "/etc/passwd", "C:\\x", "https://x.org/v")
    rows: list[Any] = [{"file": f"{name}.mp4", **good} for name in names]
    # What the catalog could not give back as it was is no fault of the clip.
    rows[0] |= {"bit_rate": 10**400, "duration": -0.0, "fps": 1e22, "odd\0_score": -0.0, "licence": "CC0 \ud800\0"}
    rows += [
        {"file": "c.mp4", "brief_caption": "", "detailed_caption": None},
        {"file": "c.mp4", **good, "aesthetic_score": "high"},
        {"file": "c.mp4", **good, "aesthetic_score": 1e300},
        {"file": "c.mp4", **good, "detailed_caption": "x" * 30_000},
        {"file": "c.mp4", **good, "url": "https://me:secret@example.org/"},
        {"file": "c.mp4", **good, "sha256": "0" * 64},
        ["no object"],
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    summary = imported(folder)
    assert summary["clips"] == 1 and summary["left_out"] == {
        "unsafe_path": 4, "file_not_found": 2, "listed_before": 1, "caption_missing": 1, "bad_row": 3,
        "caption_too_long": 1, "credentials_in_url": 1, "outside_folder": 1, "digest_mismatch": 1, "truncated_file": 1,
        "not_a_video": 1,
    }  # fmt: skip
    told = {(row["step"], row["reason"]): row for row in failures(open_ledger())}
    assert (
        "rows.json row 8: '../secret"
        in told["import_list", "unsafe_path"]["example"] + ": " + (told["import_list", "unsafe_path"]["message"])
    )
    assert told["import", "file_not_found"]["retried"] and not told["import", "not_a_video"]["retried"]
    listed = pq.read_table(Path(summary["folder"]) / "rejected.parquet").to_pylist()
    assert len(listed) == len(rows) - 1 and "secret" not in json.dumps(listed)
    with Session(open_catalog()) as session:
        where = dict(
            session.execute(
                select(ItemStatus.reason, func.count()).where(ItemStatus.kind == "stretch").group_by("reason")
            ).all()
        )
    assert where["not_a_video"] == 1 and verify(open_ledger(), Path(summary["folder"]).parent) == []
    # What was not there is tried again, and what comes is taken.
    (folder / "missing.mp4").write_bytes(clips[3])
    assert imported(folder)["clips"] == 2


def test_limits_hold_and_other_containers_are_encoded_anew(
    imported: Importer, tmp_path: Path, clips: list[bytes]
) -> None:
    put_videos(tmp_path / "set", clips[:2], ["a.mp4", "b.mp4"])
    with av.open(io.BytesIO(clips[0])) as source, av.open(str(tmp_path / "set" / "c.mkv"), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    write_table(tmp_path / "set" / "metadata.jsonl", [{"file_name": n, "text": n} for n in ("a.mp4", "b.mp4", "c.mkv")])
    summary = imported(tmp_path / "set", max_clip_bytes=len(clips[0]))
    by_file = {row["imported_file"]: row for row in metadata(summary)}
    recoded = by_file["c.mkv"]
    assert (
        recoded["clip_sha256"] != recoded["imported_file_sha256"] == sha256((tmp_path / "set" / "c.mkv").read_bytes())
    )
    assert (recoded["resolution"], recoded["end_frame"]) == ("96x64", 24) and recoded["duration"] == pytest.approx(3)
    with pytest.raises(ImportFailed, match="duration_above_limit 3"):
        imported(tmp_path / "set", max_clip_s=1.0)
    with pytest.raises(ImportFailed, match="resolution_above_limit 3"):
        imported(tmp_path / "set", max_pixels=1000)


def test_members_of_a_tar_are_checked(imported: Importer, tmp_path: Path, clips: list[bytes]) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as tar:
        add(tar, "good.mp4", clips[0])
        add(tar, "good.txt", b"A scan.")
        add(tar, "../../climbs.mp4", clips[1])
        add(tar, "../../climbs.txt", b"A scan.")
        add(tar, "link.mp4", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "link.txt", b"A scan.")
        add(tar, "hard.mp4", b"", type=tarfile.LNKTYPE, linkname="good.mp4")
        add(tar, "alone.txt", b"A scan.")
        add(tar, "long.mp4", clips[2])
        add(tar, "long.json", b'{"caption": "' + b"x" * (2 << 20) + b'"}')
        add(tar, "bad.mp4", clips[2])
        add(tar, "bad.json", b"{no json")
    summary = imported(folder)
    assert summary["clips"] == 1
    assert summary["left_out"] == {"bad_member": 3, "unsafe_path": 1, "bad_sample": 1, "bad_row": 1}
    assert not (tmp_path / "climbs.mp4").exists()
    bomb = tarfile.TarInfo("x")
    bomb.type, bomb.size = tarfile.GNUTYPE_LONGNAME, MAX_HEADER + 1
    (tmp_path / "bomb.tar").write_bytes(bomb.tobuf() + b"\0" * 1024)
    with pytest.raises(SourceUnreadable, match="header"):
        list(raw_rows(open_published(str(tmp_path / "bomb.tar")).files[0]))
    with tarfile.open(tmp_path / "short.tar", "w") as tar:
        add(tar, "a.txt", b"A scan.")
        add(tar, "a.mp4", clips[0])
    whole = (tmp_path / "short.tar").read_bytes()
    (tmp_path / "short.tar").write_bytes(whole[:4000])
    with pytest.raises(SourceUnreadable, match="unexpected end"):
        list(raw_rows(open_published(str(tmp_path / "short.tar")).files[0]))


def test_a_killed_import_goes_on_and_takes_nothing_twice(
    imported: Importer, tmp_path: Path, clips: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import import_release as flow

    monkeypatch.setattr(list_published, "PAGE_ROWS", 1)
    submit, seen = flow.import_rows.submit, list[Any]()

    def killed_at_the_third(*arguments: Any) -> Any:
        seen.append(arguments)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return submit(*arguments)

    for make in (medvideocap, videos_inside):
        folder = make(tmp_path / make.__name__, clips)
        seen.clear()
        with monkeypatch.context() as patch:
            patch.setattr(flow.import_rows, "submit", killed_at_the_third)
            with pytest.raises(KeyboardInterrupt):
                imported(folder)
        went_on = imported(folder)
        assert (went_on["clips"], went_on["executed"], went_on["reused"]) == (CLIPS, 3, 3)
        assert imported(folder)["executed"] == 0
    with Session(open_catalog()) as session:
        runs = select(StepRun.subject).where(StepRun.step == "import")
        assert len(set(session.scalars(runs))) == len(session.scalars(runs).all()) == 2 * CLIPS
    assert collect_garbage(open_ledger(), grace_s=-1).objects == 0


def smaller(clip: bytes) -> bytes:
    """The clip at three quarters of its size."""
    made = io.BytesIO()
    with av.open(io.BytesIO(clip)) as source, av.open(made, "w", format="mp4") as out:
        video = source.streams.video[0]
        stream = out.add_stream("libx264", rate=video.average_rate, options={"crf": "28"})
        stream.width, stream.height, stream.pix_fmt = video.width * 3 // 4, video.height * 3 // 4, "yuv420p"
        for frame in source.decode(video):
            scaled = frame.reformat(stream.width, stream.height)
            scaled.pts = None
            out.mux(stream.encode(scaled))
        out.mux(stream.encode(None))
    return made.getvalue()


def test_auditors_see_that_it_is_imported_and_a_takedown_reaches_it(
    imported: Importer, home: Path, tmp_path: Path
) -> None:
    ledger = open_ledger()
    clips = [moving_clip(tmp_path, seed) for seed in range(CLIPS)]
    folder = medvideocap(tmp_path / "theirs", clips)
    summary = imported(folder, video_pattern=r"^(\w+)_")
    rows, first = metadata(summary), metadata(summary)[0]
    assert len({row["video_id"] for row in rows}) == 2 and summary["captioner_kinds"] == {"unknown": CLIPS}
    assert imports(ledger) == [{"source": "theirs", "kept": CLIPS, "rejected": 0, "failed": 0}]
    told = history(ledger, first["clip_id"])
    assert verdict(told).startswith("Imported as theirs published it") and [s["step"] for s in told["steps"]] == [
        "import_list",
        "import",
    ]
    with TestClient(create_site(), base_url="http://localhost") as site:
        page = site.get(f"/clips/{first['clip_id']}").text
        assert (
            "Imported as published" in page and first["imported_list_sha256"] in page and "aesthetic</bdi> 4.5" in page
        )
        assert "no step of this installation judged it" in page and first["imported_file_sha256"] in page
        for address in (
            "/", "/items", f"/videos/{first['video_id']}", "/sources?name=theirs", f"/releases/{summary['release']}",
            f"/lineage/clip/{first['clip_id']}", f"/clips/{first['clip_id']}/prov.json",
            f"/clips/{first['clip_id']}/openlineage.json", f"/releases/{summary['release']}/croissant.json",
            f"/releases/{summary['release']}/prov.json", "/items?category=medical imaging",
        ):  # fmt: skip
            answer = site.get(address)
            assert answer.status_code == 200, address
        assert rows[1]["clip_id"] in answer.text and "medical imaging" in answer.text
    card = (Path(summary["folder"]) / "README.md").read_text()
    assert f"**{CLIPS} of {CLIPS} clips were imported** from theirs" in card

    # Its own export comes back as it went out, as clips of the same videos.
    exported = tmp_path / "exported"
    export_webdataset(ledger, summary["release"], exported, shard_bytes=10**6)
    back = imported(exported)
    assert {row["clip_id"]: row["detailed_caption"] for row in metadata(back)} == {
        row["clip_id"]: row["detailed_caption"] for row in rows
    }

    (report,) = take_down(ledger, {first["video_id"]: first["url"]}, "asked")
    assert report.releases == {summary["release"]: 2, back["release"]: 2} and len(report.clips) == 2
    assert not (Path(summary["folder"]) / first["file_name"]).exists() and verify(ledger, home / "releases") == []
    with Session(open_catalog()) as session:
        words = session.scalars(select(StepRun.context).where(StepRun.subject.startswith(first["video_id"]))).all()
        assert len(words) >= 4 and "scan" not in json.dumps(words) and "ab0_" not in json.dumps(words)
    left = imported(folder, video_pattern=r"^(\w+)_")
    assert left["clips"] == 2 and left["left_out"] == {"forgotten": 2}
    # Nor do its bytes come back by another name.
    other = imported(f"other={folder}", video_pattern=r"^(\w+)_")
    assert other["clips"] == 2 and other["left_out"] == {"copy_of_forgotten": 2}
    # Nor what was encoded anew.
    again = imported(medvideocap(tmp_path / "again", [smaller(clip) for clip in clips]), video_pattern=r"^(\w+)_")
    assert again["clips"] == 2 and {row["clip_id"] for row in metadata(again)}.isdisjoint(report.clips)
    rejected = pq.read_table(Path(again["folder"]) / "rejected.parquet").to_pylist()
    assert {row["duplicate_of"] for row in rejected} == set(report.clips) and len(rejected) == 2
    assert all(row["reason"] == BLOCKED and row["score"] >= row["threshold"] for row in rejected)
    assert again["funnel"][-1]["rejected"] == {BLOCKED: 2}
    # What is left has copies by now, which a takedown names.
    kept = next(row for row in metadata(again) if row["video_id"] != first["video_id"])
    assert {copy.clip for copy in near_copies(ledger.engine, [kept["video_id"]])[kept["video_id"]]} >= {
        row["clip_id"] for row in metadata(left)
    }
    assert verify(ledger, home / "releases") == [] and collect_garbage(ledger, grace_s=-1).objects == 0


def test_the_command_says_what_came_in_and_how_to_train(
    imported: Importer, tmp_path: Path, clips: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, arguments: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
        assert name == "import_release"
        return imported(**arguments)

    monkeypatch.setattr("apps.import_release.run_flow", run)
    folder = str(medvideocap(tmp_path / "set", clips))
    done = CliRunner().invoke(app, ["import", folder, "--name", "theirs", "--licence", "CC0", "--set", "crf=20"])
    assert done.exit_code == 0 and "train on it with medgen train theirs-" in done.output, done.output
    ours = done.output.split("medgen train ")[1].split()[0]
    asked = CliRunner().invoke(app, ["import", folder, "--name", "waits", "--set", "approval=required"])
    assert "awaits approval: medgen release approve waits-" in asked.output
    told: list[dict[str, Any]] = []

    def train_or_run(name: str, arguments: dict[str, Any], *, quiet: bool, **_: Any) -> dict[str, Any]:
        if name == "import_release":
            return run(name, arguments, quiet=quiet)
        told.append(arguments)
        return {"checks": []}

    monkeypatch.setattr("apps.run_flow.run_flow", train_or_run)
    done = CliRunner().invoke(app, ["train", f"{folder}=2.5", ours, "--check"])
    assert done.exit_code == 0, done.output
    assert told[0]["release"].startswith("set-") and told[0]["release"].endswith(f"=2.5,{ours}")
    status = CliRunner().invoke(app, ["status"])
    assert "imported of set: 4 clips, 0 left out" in status.output


def test_splits_and_rows_that_are_told_apart() -> None:
    assert [split_of(name) for name in ("train/a.mp4", "data/test-00000-of-2.parquet", "my_val.csv", "latest.csv")] == [
        "train", "test", "validation", "",
    ]  # fmt: skip
    row = published_row(medvideocap_row(0) | {"Clip ID": 3, "DOVER Score": "nan", "sharpness_score": "2"}, {})
    assert row.scores == {"aesthetic": 4.5, "dover": 0.7, "sharpness_score": 2.0} and row.file == "ab0_0"
    with pytest.raises(ItemFailed, match="missing_file"):
        published_row({"caption": "x"}, {})


def test_tables_of_any_form_are_read_row_by_row(tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_text('{"a": "' + "x" * (5 << 20) + '"}\n')
    (tmp_path / "torn.json").write_text('[{"a": 1}, {"a": ')
    (tmp_path / "lines.json").write_text('{"a": 1}\n{"a": NaN}\nnot json\n')
    (tmp_path / "one.json").write_text('{"data": []}')
    (tmp_path / "bom.csv").write_bytes('\ufefffile,caption\r\nä.mp4,"two\nlines"\r\nx,y,z\r\n'.encode())

    def rows(name: str) -> list[Any]:
        return [
            row.failure.reason if row.failure else row.values
            for row in raw_rows(open_published(str(tmp_path / name)).files[0])
        ]

    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n\n{"a": 2}\n'))
    assert rows("packed.jsonl.gz") == [{"a": 1}, {"a": 2}]
    assert rows("lines.json") == [{"a": 1}, {"a": None}, "bad_row"]
    assert rows("bom.csv") == [{"file": "ä.mp4", "caption": "two\nlines"}, "bad_row"]
    for name in ("long.jsonl", "torn.json", "one.json"):
        with pytest.raises(SourceUnreadable):
            rows(name)
    with pytest.raises(SourceUnreadable, match="holds no description"):
        open_published(str(_empty(tmp_path / "empty")))
    with pytest.raises(SourceUnreadable, match="does not exist"):
        open_published(str(tmp_path / "nothing"))


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder
