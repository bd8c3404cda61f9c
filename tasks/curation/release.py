"""Release: an immutable, named set of clips with metadata, card and funnel.

A release is known by the sha256 of its manifest, which lists every file with its own sha256. Nothing in it depends on
time, machine, order or number of workers: the same outcomes give the same release.
"""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from medgen import __version__
from medgen.canonical import canonical_json, digest_of
from medgen.catalog import Caption, Release, ReleaseClip, StepRun, open_catalog
from medgen.errors import ItemFailed
from medgen.handover import Handover
from medgen.ledger import Ledger, Outcome, Record, StepIdentity, Work, open_ledger
from medgen.parameters import Parameters
from medgen.settings import current
from medgen.shard import Item, ShardResult, Step, run_shard
from medgen.store import Artifact, Store
from medgen.takedown import TAKEN_DOWN, release_takedown
from models.captioning.checks import MOST_VIDEOS, repeated
from tasks.curation.classify import CLASSIFY
from tasks.curation.decide import DECIDE
from tasks.curation.discover import DISCOVER
from tasks.curation.download import DOWNLOAD
from tasks.curation.funnel import funnel, markdown, picture
from tasks.curation.privacy import PRIVACY
from tasks.curation.quality import QUALITY
from tasks.curation.steps import STEP_NAMES
from tasks.curation.vanished import vanished
from tasks.prefect_step import step_task

APPROVE = "approve"
LINEAGE = (*STEP_NAMES, "release")
# The steps whose keys stand in a clip's row: those that looked at pictures.
KEYED_STEPS = tuple(name for name in STEP_NAMES if name not in ("discover", "download"))
REJECTED = pa.schema(
    [
        ("step", pa.string()),
        ("subject", pa.string()),
        ("verdict", pa.string()),
        ("reason", pa.string()),
        ("metric", pa.string()),
        ("score", pa.float64()),
        ("threshold", pa.float64()),
        ("duplicate_of", pa.string()),
        ("title", pa.string()),
        ("url", pa.string()),
        ("sha256", pa.string()),
        ("key", pa.string()),
    ]
)
METADATA = pa.schema(
    [
        ("name", pa.string()),
        ("file", pa.string()),
        ("resolution", pa.string()),
        ("bit_rate", pa.int64()),
        ("aesthetic_score", pa.float64()),
        ("aesthetic_model", pa.string()),
        ("technical_score", pa.float64()),
        ("technical_model", pa.string()),
        ("duration", pa.float64()),
        ("fps", pa.float64()),
        ("camera_motion", pa.string()),
        ("category", pa.string()),
        ("category_probability", pa.float64()),
        ("medical_probability", pa.float64()),
        ("overlay_words", pa.int64()),
        ("brief_caption", pa.string()),
        ("detailed_caption", pa.string()),
        ("captioner", pa.string()),
        ("clip_id", pa.string()),
        ("clip_sha256", pa.string()),
        ("video_id", pa.string()),
        ("video_sha256", pa.string()),
        ("source", pa.string()),
        ("url", pa.string()),
        ("title", pa.string()),
        ("channel", pa.string()),
        ("licence", pa.string()),
        ("published", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("start_frame", pa.int64()),
        ("end_frame", pa.int64()),
        *((f"{step}_key", pa.string()) for step in KEYED_STEPS),
        ("models", pa.string()),
    ]
)


class ReleaseDetail(TypedDict):
    """What release puts on record: its name, the sha256 of its manifest, its number of clips."""

    name: str
    digest: str
    clips: int


class ReleaseOutputs(TypedDict):
    """The files of a release beside its clips."""

    content: str
    metadata: str
    rejected: str
    card: str
    funnel: str
    funnel_picture: str
    manifest: str


RELEASE: Handover[ReleaseDetail, ReleaseOutputs] = Handover("release")


class ReleaseParams(Parameters):
    """Parameters of release."""

    release_prefix: str = Field(
        "medgen", pattern=r"^[a-z0-9][a-z0-9-]{0,40}$", description="First part of the name of the release."
    )
    vanished_videos: Literal["keep", "drop"] = Field(
        "keep", description="Clips of videos that `medgen recheck` no longer found at their source: keep or leave out."
    )
    # Left out of records where it is not asked for, so that releases without it keep their names.
    approval: Literal["none", "required"] = Field(
        "none",
        exclude_if=lambda value: value == "none",
        description="required: the release may not be used before a person approves it.",
    )


def release(work: Work, store: Store, params: ReleaseParams) -> Outcome:
    """Builds a release of what the content artifact says.

    Outputs:
        manifest, metadata, rejected, card, funnel, funnel_picture; the clips are in the store already.
    """
    content = json.loads(store.read(work.inputs["content"]))
    rows = content["clips"]
    table = pa.Table.from_pylist([{k: v for k, v in row.items() if k in METADATA.names} for row in rows], METADATA)
    scratch, other = store.scratch(".parquet"), store.scratch(".parquet")
    pq.write_table(table, scratch, compression="zstd")
    pq.write_table(pa.Table.from_pylist(content["rejected"], REJECTED), other, compression="zstd")
    card = _card(content)
    outputs = {
        "content": Artifact(work.inputs["content"], "application/json", work.context["bytes"]),
        "metadata": store.put_file(scratch, "application/vnd.apache.parquet"),
        "rejected": store.put_file(other, "application/vnd.apache.parquet"),
        "card": store.put_bytes(card.encode(), "text/markdown"),
        "funnel": store.put_bytes(canonical_json(content["funnel"]), "application/json"),
        "funnel_picture": store.put_bytes(picture(content["funnel"]), "image/png"),
    }
    paths = {
        "metadata": "metadata.parquet",
        "rejected": "rejected.parquet",
        "card": "README.md",
        "funnel": "funnel.json",
        "funnel_picture": "funnel.png",
    }
    files: list[dict[str, Any]] = [
        {"path": path, "sha256": outputs[role].sha256, "bytes": outputs[role].bytes} for role, path in paths.items()
    ]
    files += [{"path": row["file"], "sha256": row["clip_sha256"], "bytes": row["bytes"]} for row in rows]
    manifest = {"format": 1, "policy": content["policy"], "files": sorted(files, key=lambda file: file["path"])}
    outputs["manifest"] = store.put_bytes(canonical_json(manifest), "application/json")
    digest = outputs["manifest"].sha256
    name = f"{params.release_prefix}-{digest[:12]}"
    catalog_rows = [
        Release(
            name=name, digest=digest, policy=content["policy"], clips=len(rows), record_root=content["record_root"]
        ),
        *(ReleaseClip(release_name=name, clip_id=r["clip_id"], step_run_id=r["step_run_id"]) for r in rows),
    ]
    detail: ReleaseDetail = {"name": name, "digest": digest, "clips": len(rows)}
    return Outcome("kept", detail=detail, outputs=outputs, rows=catalog_rows)


def _content(
    ledger: Ledger,
    kept: Sequence[Item],
    dropped: Sequence[Mapping[str, int]],
    discovered: Collection[int],
    policy: Mapping[str, Any],
    params: ReleaseParams,
) -> dict[str, Any]:
    """All that the release says, from the records behind it, in an order of its own.

    Of videos that were taken down while the refresh went on it only counts the clips.
    """
    lineages = [*(item.lineage for item in kept), *dropped]
    records = _loaded(ledger, {run_id for lineage in lineages for run_id in lineage.values()} | set(discovered))
    # The same clip may come by two lineages when two sources list a video: it is released once.
    clips = {item.subject: item for item in sorted(kept, key=lambda item: (item.subject, sorted(item.lineage.items())))}
    captions = _captions(ledger, [item.lineage["caption"] for item in clips.values()])
    pasts = [{s: records[i] for s, i in lineage.items()} for lineage in dropped]
    # After the loads: what a takedown has blanked since is no longer needed.
    gone = ledger.forgotten([*clips, *(_last(past).subject for past in pasts)])
    pasts = [past for past in pasts if _last(past).subject not in gone]
    living = [item for clip, item in sorted(clips.items()) if clip not in gone]
    rows = [_row(item, {s: records[i] for s, i in item.lineage.items()}, captions) for item in living]
    vanished_since = vanished(ledger.engine) if params.vanished_videos == "drop" else {}
    left = [_left_out(row, "source_vanished") for row in rows if row["video_id"] in vanished_since]
    rows = [row for row in rows if row["video_id"] not in vanished_since]
    # The same words under several videos say nothing of any of them; which ones that are shows only here.
    captions_of = {row["clip_id"]: row["detailed_caption"] for row in rows}
    times = repeated(captions_of, {row["clip_id"]: row["video_id"] for row in rows})
    left += [_repeated(row, times[row["clip_id"]]) for row in rows if row["clip_id"] in times]
    rows = [row for row in rows if row["clip_id"] not in times]
    reasons = Counter(row["reason"] for row in left)
    if len(living) < len(clips):
        reasons[TAKEN_DOWN] = len(clips) - len(living)
    table = funnel(
        [r for r in records.values() if r.step == "discover"], [r for r in records.values() if r.step != "discover"]
    )
    left_out: list[dict[str, Any]] = [*(_rejected(past) for past in pasts), *left]
    released = {"step": "release", "unit": "clips", "in": len(clips), "kept": len(rows)}
    return {
        "policy": dict(policy),
        "clips": rows,
        "rejected": sorted(left_out, key=lambda row: (LINEAGE.index(row["step"]), row["subject"], row["key"])),
        "funnel": [*table, released | {"rejected": dict(sorted(reasons.items())), "failed": {}}],
        "record_root": digest_of(sorted(record.record_hash for record in records.values())),
    }


def _loaded(ledger: Ledger, ids: set[int]) -> dict[int, Record]:
    ordered = sorted(ids)
    records: dict[int, Record] = {}
    for start in range(0, len(ordered), 5000):
        records |= ledger.load(ordered[start : start + 5000])
    return records


def _captions(ledger: Ledger, run_ids: Sequence[int]) -> dict[tuple[int, str], Caption]:
    with Session(ledger.engine) as session:
        rows = session.scalars(select(Caption).where(Caption.step_run_id.in_(run_ids)))
        return {(row.step_run_id, row.kind): row for row in rows}


def _last(past: Mapping[str, Record]) -> Record:
    return past[max(past, key=LINEAGE.index)]


def _rejected(past: Mapping[str, Record]) -> dict[str, Any]:
    """One video or clip that a step turned down or failed on, with the file that it was about."""
    last = _last(past)
    metadata = past["download"].detail.get("metadata", {}) if "download" in past else {}
    file = past["download"].outputs.get("video") if "download" in past else None
    if "cut" in past:
        file = past["cut"].outputs.get("clip", file)
    named = ("metric", "score", "threshold", "duplicate_of")
    return {
        "step": last.step,
        "subject": last.subject,
        "verdict": last.status,
        "reason": last.reason,
        **{name: last.detail.get(name) for name in named},
        **{name: metadata.get(name) for name in ("title", "url")},
        "sha256": file,
        "key": last.key,
    }


def _repeated(row: Mapping[str, Any], videos: int) -> dict[str, Any]:
    """A clip that is left out because its caption stands under `videos` videos."""
    measured = {"metric": "videos_with_this_caption", "score": float(videos), "threshold": float(MOST_VIDEOS)}
    return _left_out(row, "caption_repeated") | measured


def _left_out(row: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """A captioned clip that is not released."""
    return {
        "step": "release",
        "subject": row["clip_id"],
        "verdict": "rejected",
        "reason": reason,
        "title": row["title"],
        "url": row["url"],
        "sha256": row["clip_sha256"],
        "key": row["caption_key"],
    }


def _row(item: Item, past: Mapping[str, Record], captions: Mapping[tuple[int, str], Caption]) -> dict[str, Any]:
    published, scores, measured = PRIVACY.detail(past), QUALITY.scores(past), QUALITY.detail(past)
    clip, metadata = published["clip"], DOWNLOAD.detail(past)["metadata"]
    classified = next(c for c in CLASSIFY.detail(past)["clips"] if c["start_frame"] == clip["start_frame"])
    brief, detailed = (captions[past["caption"].id, kind] for kind in ("brief", "detailed"))
    seconds = clip["end_s"] - clip["start_s"]
    return {
        "name": item.subject,
        "file": f"clips/{item.subject}.mp4",
        "resolution": f"{clip['width']}x{clip['height']}",
        "bit_rate": published["bit_rate"],
        "aesthetic_score": scores["aesthetic"],
        "aesthetic_model": measured["aesthetic_model"],
        "technical_score": scores["technical"],
        "technical_model": measured["technical_model"],
        "duration": round(seconds, 4),
        "fps": clip["fps"],
        "camera_motion": DECIDE.detail(past)["motion_type"],
        "category": classified["category"],
        "category_probability": classified["category_probability"],
        "medical_probability": classified["medical"],
        "overlay_words": int(scores["overlay_words"]),
        "brief_caption": brief.text,
        "detailed_caption": detailed.text,
        "captioner": brief.model,
        "clip_id": item.subject,
        "clip_sha256": clip["digest"],
        "video_id": clip["video_id"],
        "video_sha256": DOWNLOAD.outputs(past)["video"],
        "source": DISCOVER.detail(past)["source"],
        "url": metadata["url"],
        "title": metadata["title"],
        "channel": metadata["channel"],
        "licence": metadata["licence"],
        "published": metadata["published"],
        "start_s": clip["start_s"],
        "end_s": clip["end_s"],
        "start_frame": clip["start_frame"],
        "end_frame": clip["end_frame"],
        **{f"{step}_key": past[step].key for step in KEYED_STEPS},
        "models": json.dumps(past["quality"].models | past["classify"].models, sort_keys=True),
        "bytes": published["bytes"],
        "step_run_id": past["caption"].id,
    }


def _card(content: Mapping[str, Any]) -> str:
    """Dataset card: what is in the release, by which policy, under which licences, and what its scores mean."""
    rows = content["clips"]
    seconds = sum(row["duration"] for row in rows)
    licences = Counter(row["licence"] or "not stated by the source" for row in rows)
    categories = Counter(row["category"] for row in rows)
    captioners = sorted({row["captioner"] for row in rows})
    technical, aesthetic = (sorted({row[f"{kind}_model"] for row in rows}) for kind in ("technical", "aesthetic"))
    lines = [
        "---",
        "task_categories: [text-to-video]",
        "tags: [medical, video, captions]",
        "---",
        "# A medical video dataset made by medgen",
        "",
        f"{len(rows)} clips, {seconds:.1f} s in all, from {len({row['video_id'] for row in rows})} videos.",
        f"Made by medgen {__version__}.",
        "",
        "`metadata.parquet` has a row per clip: file, scores, captions, source, licence and the keys of the step runs",
        "behind it. `funnel.json` and `funnel.png` say what each step kept and why the rest was dropped.",
        "",
        "## Licences",
        "Each clip stands under the licence of its source video; the set as a whole has none of its own.",
        "",
        "| licence | clips |",
        "|---|---:|",
        *(f"| {_cell(name)} | {count} |" for name, count in sorted(licences.items())),
        "",
        "## Categories",
        "| category | clips |",
        "|---|---:|",
        *(f"| {name} | {count} |" for name, count in sorted(categories.items())),
        "",
        "## Scores and captions",
        f"Technical scores by: {', '.join(technical) or 'none'}.",
        f"Aesthetic scores by: {', '.join(aesthetic) or 'none'}.",
        f"Captions by: {', '.join(captioners) or 'none'}.",
        "`evidence_template` words the evidence on record and has seen no picture; an `entropy` stand-in for",
        "aesthetics only catches empty pictures. Both are weaker than the models that they stand in for.",
        "",
        "## Funnel",
        markdown(content["funnel"]),
        "",
        "## Policy",
        "```json",
        json.dumps(content["policy"], indent=1, sort_keys=True, ensure_ascii=False),
        "```",
        "",
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def awaits_approval(session: Session, release: Release) -> bool:
    """Whether a release's policy asks for an approval that it has not got."""
    if release.policy.get("approval", "none") == "none":
        return False
    approved = select(StepRun.id).where(
        StepRun.step == APPROVE, StepRun.subject == release.name, StepRun.status == "kept"
    )
    return session.scalar(approved.limit(1)) is None


def materialize(store: Store, name: str, manifest_sha256: str) -> Path:
    """The release as ordinary files in its folder; made when it isn't there.

    Clips are hard links into the store where the file system allows, copies elsewhere. What was taken down since the
    release was made is left out, and `TAKEDOWN.json` says so.

    Raises:
        ItemFailed: release_not_approved when its policy asks for an approval that it has not got.
    """
    target = current().releases_folder / name
    if target.exists():
        return target
    with Session(open_catalog()) as session:
        release = session.get(Release, name)
        if release is not None and awaits_approval(session, release):
            raise ItemFailed(
                "release_not_approved",
                f"the release {name} awaits approval: `medgen release approve {name} --by NAME`, or run the "
                "deployment `approve`",
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    manifest = store.read(manifest_sha256)
    files = json.loads(manifest)["files"]
    with Session(open_catalog()) as session:
        taken = release_takedown(session, name, files)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-", ignore_cleanup_errors=True) as making:
        folder = Path(making) / name
        (folder / "clips").mkdir(parents=True)
        (folder / "manifest.json").write_bytes(manifest)
        for file in files:
            if taken and file["path"] in taken.changes:
                continue
            source, to = store.path(file["sha256"]), folder / file["path"]
            try:
                os.link(source, to)
            except OSError:
                shutil.copyfile(source, to)
        if taken:
            taken.apply(store, folder)
        try:
            folder.rename(target)
        except OSError:
            if not target.exists():  # else another process was quicker
                raise
    return target


def step(params: ReleaseParams) -> Step:
    """Release, ready to run."""
    identity = StepIdentity("release", 2, params.model_dump(mode="json"), {})
    return Step(identity, partial(release, params=params), runs_in="inline")


@step_task("release", "cpu")
def make_release(
    label: str,
    kept: Sequence[Item],
    dropped: Sequence[Mapping[str, int]],
    discovered: Collection[int],
    policy: Mapping[str, Any],
    params: ReleaseParams,
) -> tuple[ShardResult, Record, Path | None]:
    """Makes the release of a refresh and lays out its files, unless it awaits approval.

    Args:
        kept: clips that passed all steps.
        dropped: lineages of what did not.
        discovered: step runs of all shards of listings, also of those that nothing was kept of.
    """
    ledger = open_ledger()
    content_json = canonical_json(_content(ledger, kept, dropped, discovered, policy, params))
    content = ledger.store.put_bytes(content_json, "application/json")
    work = Work("release", inputs={"content": content.sha256}, context={"bytes": content.bytes})
    result = run_shard(step(params), [work])
    record = next(iter(ledger.load([result.kept[0].lineage["release"]]).values()))
    name = RELEASE.detail(record)["name"]
    with Session(ledger.engine) as session:
        waits = awaits_approval(session, session.get_one(Release, name))
    return result, record, None if waits else materialize(ledger.store, name, RELEASE.outputs(record)["manifest"])


def read_funnel(record: Record) -> list[dict[str, Any]]:
    """The funnel of a release's step run."""
    funnel_of: list[dict[str, Any]] = json.loads(open_ledger().store.read(RELEASE.outputs(record)["funnel"]))
    return funnel_of


def read_picture(record: Record) -> bytes:
    """The funnel's PNG of a release's step run."""
    return open_ledger().store.read(RELEASE.outputs(record)["funnel_picture"])
