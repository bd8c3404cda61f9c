"""Import, second step: a clip of a published set is checked and taken into the store and the catalog.

Its bytes are kept as they were published where they are MP4, else encoded anew. What its publisher says of it, captions
and scores too, goes on record as given: nothing of it was measured or judged here.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medgen.canonical import canonical_json, digest_of
from medgen.catalog import Clip
from medgen.errors import ItemFailed
from medgen.handover import Handover
from medgen.ledger import Ledger, Outcome, Record, StepIdentity, Work, open_ledger
from medgen.listings.shard_file import mark_of
from medgen.listings.sources import is_inside
from medgen.shard import Step
from medgen.shard_results import ShardReference
from medgen.store import Store, file_digest
from medgen.takedown import IMPORT, taken_down_digests
from medgen.truncation import missing_bytes
from medgen.video.cut import cut as cut_video
from medgen.video.limits import Limits
from medgen.video.pictures import pictures
from medgen.video.probe import probe
from medgen.workplace import sweep, workplace
from models.duplicates.fingerprint import fingerprint
from tasks.curation.cut import ClipFacts
from tasks.curation.quality import MOTION_FPS, small_grey
from tasks.importing.import_params import ImportParams
from tasks.importing.list_published import LISTED
from tasks.prefect_step import run_stored_in_prefect, step_task

MP4 = "video/mp4"
PROMPTS = "as published"  # in place of a version of prompts
KINDS = ("unknown", "vision_language_model", "human", "template")
FOLDERS = ("", "videos", "video", "clips")  # of a set, in which a table's file names may lie
COPIED_AT_ONCE = 1 << 20


class Imported(TypedDict):
    """Where a clip was taken from: the set, the file of it that lists the clip, its digest and row; the clip's own file
    and digest, both as published. `recoded`: it was encoded anew."""

    set: str
    list: str
    list_sha256: str
    row: int
    file: str
    file_sha256: str
    recoded: bool


class ImportDetail(TypedDict):
    """What is on record of an imported clip.

    Args:
        given: what its publisher says of it: category, split, licence, camera_motion, written_by (what wrote the
            captions), aesthetic_by and technical_by (what measured the scores), and claims about the file.
        caption_columns: kind of caption → the column that it was read from.
        fingerprint: as of quality, by which copies of what was taken down are known; before version 2 there was none.
    """

    clip: ClipFacts
    bytes: int
    bit_rate: int
    imported: Imported
    given: dict[str, Any]
    category: NotRequired[str]
    caption_columns: dict[str, str]
    captioner_kind: str
    fingerprint: NotRequired[str]


class ImportOutputs(TypedDict):
    """The clip, MP4."""

    clip: str


IMPORTED: Handover[ImportDetail, ImportOutputs] = Handover(IMPORT)


def import_clip(work: Work, store: Store, params: ImportParams) -> Outcome:
    """Takes one clip in.

    Raises:
        ItemFailed: file_not_found, file_too_large, source_changed, outside_folder, digest_mismatch, truncated_file;
            as `medgen.video.pictures.pictures`.
    """
    row = work.context
    limits = Limits(max_pixels=params.max_pixels, max_duration_s=params.max_clip_s)
    with workplace(store) as folder:
        video = folder / "video"
        _fetch(work.access, video, params.max_clip_bytes)
        digest, size = file_digest(video)
        if row["sha256"] and row["sha256"] != digest:
            raise ItemFailed("digest_mismatch", f"{row['file']} has sha256 {digest}, its row says {row['sha256']}")
        # What was taken down comes back under no other address. Workers read no catalog.
        if "forgotten" in work.access and digest in _digests_in(work.access["forgotten"]):
            return Outcome("rejected", "copy_of_forgotten", {"message": "the same file was taken down"})
        if missing := missing_bytes(video):
            raise ItemFailed("truncated_file", f"by its own account the file lacks its last {missing} bytes")
        facts = probe(video, limits)
        times, known_by = _decoded(video, limits, facts.fps)
        published_as_mp4 = "mp4" in facts.container.split(",")
        if not published_as_mp4:
            encoded = folder / "clip.mp4"
            cut_video(video, encoded, times=times, crop=None, crf=params.crf, preset=params.x264_preset, limits=limits)
            video = encoded
            facts, size = probe(video, limits), video.stat().st_size
        artifact = store.put_file(video, MP4)
    clip = _clip(
        work.subject, row, len(times), facts.duration_s, (facts.width, facts.height), facts.fps, artifact.sha256
    )
    imported: Imported = {
        "set": row["source"],
        "list": row["list"],
        "list_sha256": row["list_sha256"],
        "row": row["row"],
        "file": row["file"],
        "file_sha256": digest,
        "recoded": not published_as_mp4,
    }
    names = ("category", "split", "licence", "camera_motion", "written_by", "aesthetic_by", "technical_by", "claims")
    detail: ImportDetail = {
        "clip": clip,
        "bytes": size,
        "bit_rate": round(8 * size / facts.duration_s),
        "imported": imported,
        "given": {name: row[name] for name in names if row[name]},
        "caption_columns": row["columns"],
        "captioner_kind": row["captioner_kind"],
        "fingerprint": known_by,
    }
    if row["category"]:
        detail["category"] = row["category"]
    by = row["written_by"] or f"not stated by {row['source']}"
    model = {
        "model": by,
        "model_digest": digest_of(["as published", row["list_sha256"], by]),
        "prompt_version": PROMPTS,
    }
    return Outcome(
        "kept",
        detail=detail,
        scores={f"given_{name}": value for name, value in row["scores"].items()},
        outputs={"clip": artifact},
        rows=[Clip(**clip)],
        captions={kind: {"text": row[kind], **model} for kind in ("brief", "detailed")},
        clip_id=clip["id"],
        decodes=1,
    )


def _decoded(video: Path, limits: Limits, fps: float) -> tuple[list[int], str]:
    """(times of all pictures, fingerprint): all of it is decoded, so that only what is sound comes in."""
    times: list[int] = []
    small: list[np.ndarray] = []
    every = max(1, round(fps / MOTION_FPS))
    for picture in pictures(video, limits):
        times.append(picture.pts)
        if picture.index % every == 0:
            small.append(small_grey(picture.frame))
    return times, fingerprint(np.stack(small), every / fps).text()


def _clip(
    subject: str,
    row: Mapping[str, Any],
    frames: int,
    seconds: float,
    size: tuple[int, int],
    fps: float,
    digest: str,
) -> ClipFacts:
    """A clip as it goes on record: its times count from the beginning of its source video where its row says so."""
    video, _, _ = subject.partition("/")
    identity = hashlib.sha256(canonical_json([IMPORT, video, digest])).hexdigest()[:16]
    start = row["start_s"] if row["start_s"] is not None and row["start_s"] >= 0 else 0.0
    return {
        "id": f"c{identity}",
        "video_id": video,
        "start_frame": 0,
        "end_frame": frames,
        "start_s": start,
        "end_s": round(start + seconds, 6),
        "width": size[0],
        "height": size[1],
        "fps": fps,
        "digest": digest,
    }


def _fetch(access: Mapping[str, Any], target: Path, most: int) -> None:
    """Copies a video to `target`: a file, a stretch of a tar, or what was laid out of a Parquet file."""
    if "failure" in access:
        raise ItemFailed(*access["failure"][:2], later=access["failure"][2])
    size, offset = access["size"], access.get("offset", 0)
    if size > most:
        raise ItemFailed("file_too_large", f"{size} bytes, allowed {most}")
    try:
        with Path(access["path"]).open("rb") as source, target.open("wb") as copy:
            if "mark" in access and mark_of(Path(access["path"]).stat()) != access["mark"]:
                raise ItemFailed("source_changed", f"{access['path']} was changed while it was used", later=True)
            source.seek(offset)
            left = size
            while left and (piece := source.read(min(left, COPIED_AT_ONCE))):
                copy.write(piece)
                left -= len(piece)
    except (FileNotFoundError, PermissionError) as error:
        raise ItemFailed("file_not_found", str(error.strerror), later=True) from error
    if left:
        raise ItemFailed("source_changed", f"{access['path']} has {left} bytes less than before", later=True)


@lru_cache(maxsize=4)
def _digests_in(path: str) -> frozenset[str]:
    """Digests of files that were taken down, from a file that was written for a task run."""
    return frozenset(Path(path).read_text().split())


def step(params: ImportParams) -> Step:
    """The import of clips, ready to run."""
    names = {"max_clip_bytes", "max_clip_s", "max_pixels", "crf", "x264_preset"}
    return Step(
        StepIdentity(IMPORT, 2, params.model_dump(mode="json", include=names), {}),
        partial(import_clip, params=params),
        prepare=sweep,
        time_limit_s=params.import_limit_s,
    )


def works_of(listing: Record, rows: Sequence[Mapping[str, Any]], folder: Path, videos: Path | None) -> list[Work]:
    """A work for each row that a listing took.

    Args:
        listing: record of the file that lists them.
        folder: of the set; `videos`: where else its videos lie.
    """
    listed = LISTED.detail(listing)
    return [
        Work(
            f"{row['video_id']}/{row['key']}",
            context=_context(row, listed["source"], listed["file"], listed["digest"], where),
            parents={"import_list": listing.id},
            access=where,
        )
        for row in rows
        for where in [_where(row, folder, listed["file"], videos)]
    ]


def _context(row: Mapping[str, Any], source: str, file: str, digest: str, where: Mapping[str, Any]) -> dict[str, Any]:
    """All that the function sees of a row, and the size and time of change of its file, of one that lies beside."""
    kind = row["captioner_kind"] if row["captioner_kind"] in KINDS else "unknown"
    return {
        **{name: row[name] for name in ("row", "file", "brief", "detailed", "category", "split", "licence", "start_s")},
        **{name: row[name] for name in ("camera_motion", "sha256")},
        "written_by": row["captioner"],
        "captioner_kind": kind,
        "aesthetic_by": row["aesthetic_model"],
        "technical_by": row["technical_model"],
        **{name: json.loads(row[name]) for name in ("scores", "claims", "columns")},
        "source": source,
        "list": file,
        "list_sha256": digest,
        "mark": where.get("mark", ""),
    }


def _where(row: Mapping[str, Any], folder: Path, file: str, videos: Path | None) -> dict[str, Any]:
    """How to get at a row's video: path, size, and offset or mark. Inside Parquet, its place alone."""
    if row["place"]:
        place = json.loads(row["place"])
        if "offset" in place:
            return {"path": str(folder / file), "offset": place["offset"], "size": place["size"]}
        return {"place": place}
    for path, within in _candidates(row["file"], folder, (folder / file).parent, videos):
        try:
            if not path.is_file():
                continue
            if not is_inside(within, path):
                return {"failure": ("outside_folder", f"{row['file']} is a link that leads out of the set", False)}
            status = path.stat()
        except (OSError, ValueError):
            continue
        return {"path": str(path), "size": status.st_size, "mark": mark_of(status)}
    return {"failure": ("file_not_found", f"{row['file']} is not among the files of the set (yet)", True)}


def _candidates(name: str, folder: Path, beside: Path, videos: Path | None) -> Iterator[tuple[Path, Path]]:
    """(where a file may lie, the folder that it must lie in)."""
    places = [(videos, videos)] if videos else [(beside, folder), *((folder / part, folder) for part in FOLDERS)]
    for place, within in places:
        for full in (name, f"{name}.mp4"):
            yield place / full, within


@step_task(IMPORT, "cpu")
def import_rows(
    label: str,
    listing_id: int,
    group: int,
    folder: str,
    videos: str,
    params: ImportParams,
    retry_quarantined: bool = False,
) -> ShardReference:
    """Imports the clips of a group of rows of a listing's table."""
    ledger = open_ledger()
    listing = ledger.load([listing_id])[listing_id]
    with pq.ParquetFile(ledger.store.path(LISTED.outputs(listing)["rows"])) as file:
        rows = file.read_row_group(group).to_pylist()
    works = works_of(listing, rows, Path(folder), Path(videos) if videos else None)
    with ledger.store.tidy():
        if gone := taken_down_digests(ledger.engine):
            path = ledger.store.scratch(".txt")
            path.write_text("\n".join(sorted(gone)))
            works = [replace(work, access={**work.access, "forgotten": str(path)}) for work in works]
        return _run(ledger, listing, works, Path(folder), params, retry_quarantined)


def _run(
    ledger: Ledger, listing: Record, works: Sequence[Work], folder: Path, params: ImportParams, retry_quarantined: bool
) -> ShardReference:
    file = folder / LISTED.detail(listing)["file"]
    with _laid_out(ledger, works, step(params), file, params) as ready:
        return run_stored_in_prefect(step(params), ready, retry_quarantined=retry_quarantined)


def groups_of(ledger: Ledger, listing: Record) -> int:
    """How many groups of rows a listing's table has."""
    with pq.ParquetFile(ledger.store.path(LISTED.outputs(listing)["rows"])) as file:
        return file.num_row_groups if file.metadata.num_rows else 0


@contextmanager
def _laid_out(
    ledger: Ledger, works: Sequence[Work], step: Step, file: Path, params: ImportParams
) -> Iterator[list[Work]]:
    """The works with videos that lie inside Parquet as files of their own, of those that there is something to do for.

    A group of its rows is gone through once, a few videos at a time in memory.
    """
    inside = {index: work for index, work in enumerate(works) if "place" in work.access}
    if not inside:
        yield [*works]
        return
    keys = {index: step.identity.key(work) for index, work in inside.items()}
    standing = ledger.done(ledger.find(keys.values()))
    todo = {index: work for index, work in inside.items() if keys[index] not in standing}
    ready = [*works]
    with workplace(ledger.store) as folder:
        for index, work in todo.items():
            ready[index] = replace(
                work, access={"failure": ("file_not_found", f"{file.name} holds no such video", True)}
            )
        for index, data in _videos_inside(file, {index: work.access["place"] for index, work in todo.items()}):
            if len(data) > params.max_clip_bytes:
                failure = ("file_too_large", f"{len(data)} bytes, allowed {params.max_clip_bytes}", False)
                ready[index] = replace(works[index], access={"failure": failure})
                continue
            path = folder / str(index)
            path.write_bytes(data)
            ready[index] = replace(works[index], access={**works[index].access, "path": str(path), "size": len(data)})
        yield ready


def _videos_inside(file: Path, places: Mapping[int, Mapping[str, Any]]) -> Iterator[tuple[int, bytes]]:
    """(index, bytes) of videos in a Parquet file, by index → place."""
    wanted: dict[tuple[str, int], dict[int, int]] = {}
    for index, place in places.items():
        wanted.setdefault((place["column"], place["row_group"]), {})[place["index"]] = index
    try:
        with pq.ParquetFile(file, buffer_size=COPIED_AT_ONCE, pre_buffer=False) as parquet:
            for (column, group), rows in wanted.items():
                batches = parquet.iter_batches(1, row_groups=[group], columns=[column], use_threads=False)
                for at, batch in enumerate(islice(batches, max(rows) + 1)):
                    if at not in rows:
                        continue
                    value = batch.column(0)[0].as_py()
                    data = value.get("bytes") if isinstance(value, dict) else value
                    if data:
                        yield rows[at], data
    except (pa.ArrowException, OSError, KeyError, IndexError) as error:
        raise ItemFailed("source_unreadable", f"{file.name}: {error}", transient=True) from error
