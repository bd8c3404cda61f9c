"""What a release says: its clips, what it leaves out and why, the funnel; from the records behind them."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa
from sqlalchemy import select
from sqlalchemy.orm import Session

from medgen.canonical import digest_of
from medgen.catalog import Caption
from medgen.ledger import Ledger, Record
from medgen.shard import Item
from medgen.takedown import BLOCKED, TAKEN_DOWN
from models.captioning.checks import MOST_VIDEOS, repeated
from models.duplicates.fingerprint import Fingerprint
from tasks.curation.classify import CLASSIFY
from tasks.curation.decide import DECIDE
from tasks.curation.discover_record import DISCOVER
from tasks.curation.download import DOWNLOAD
from tasks.curation.funnel import funnel
from tasks.curation.privacy import PRIVACY
from tasks.curation.quality import QUALITY
from tasks.curation.steps import STEP_NAMES
from tasks.curation.takedown_block import BlockedBy, takedown_block
from tasks.curation.vanished import vanished

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


def release_content(
    ledger: Ledger,
    kept: Sequence[Item],
    dropped: Sequence[Mapping[str, int]],
    discovered: Collection[int],
    policy: Mapping[str, Any],
    *,
    drop_vanished: bool,
) -> dict[str, Any]:
    """All that the release says, from the records behind it, in an order of its own.

    Of videos that were taken down while the refresh went on it only counts the clips; clips that show the same are left
    out.
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
    vanished_since = vanished(ledger.engine) if drop_vanished else {}
    left = [_left_out(row, "source_vanished") for row in rows if row["video_id"] in vanished_since]
    rows = [row for row in rows if row["video_id"] not in vanished_since]
    stopped = _blocked(ledger, living, records)
    left += [_near_duplicate(row, stopped[row["clip_id"]]) for row in rows if row["clip_id"] in stopped]
    rows = [row for row in rows if row["clip_id"] not in stopped]
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


def _blocked(ledger: Ledger, living: Sequence[Item], records: Mapping[int, Record]) -> dict[str, BlockedBy]:
    """Clips that show the same as what was taken down, after deduplicate had seen them too."""
    block = takedown_block(ledger.engine)
    if not block.fingerprints:
        return {}
    measured = {item.subject: QUALITY.detail(records[item.lineage["quality"]]) for item in living}
    return block.blocked({clip: Fingerprint.parse(detail["fingerprint"]) for clip, detail in measured.items()})


def _near_duplicate(row: Mapping[str, Any], of: BlockedBy) -> dict[str, Any]:
    """A clip that is left out because it shows the same as what was taken down."""
    measured = {"metric": "duplicate_similarity", "score": of["similarity"], "threshold": of["threshold"]}
    return _left_out(row, BLOCKED) | measured | {"duplicate_of": of["clip"]}


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
