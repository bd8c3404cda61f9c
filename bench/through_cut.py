"""Takes a folder of videos through download, segment and cut, for `bench.fuzz_media`.

A process of its own, in an installation of its own, which may crash. Policies that would turn small or short videos
down are off, and the first shots are cut whatever they show.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from sqlalchemy import select
from sqlalchemy.orm import Session

from medgen.among import among
from medgen.catalog import StepRun, open_catalog
from medgen.ledger import Record, Work, open_ledger
from medgen.shard import ShardResult, close_pools, run_shard
from medgen.shard_results import ShardResults
from medgen.video.report import shown_size
from tasks.curation import cut, discover, download, list_feed, list_sources, segment
from tasks.curation.download_policy import DownloadParams

CUTS_PER_VIDEO, MOST_FRAMES = 2, 100


def main() -> None:
    """With arguments FOLDER REPORT LIMIT_S [dissolves]."""
    folder, report, limit_s, *options = sys.argv[1:]
    run_product(Path(folder), Path(report), float(limit_s), dissolves=bool(options))


def run_product(folder: Path, report: Path, time_limit: float, *, dissolves: bool) -> None:
    """Runs the steps; a line of JSON for each item of each step: step, file, status, reason, message, seconds."""
    listing = list_sources.list_source.fn("fuzz", str(folder), list_feed.ListParams())
    judged = discover.discover_shards.fn("fuzz", listing, discover.DiscoverParams(keyword_filter="off"))
    listed = ShardResults(open_ledger()).result(judged)
    names = {}
    for item in listed.kept:
        row = discover.listed(_record(item.lineage["discover"]).outputs["hits"])[item.subject]
        names[item.subject] = Path(row["url"]).name
    with report.open("w", encoding="utf-8", buffering=1) as lines:

        def put(result: ShardResult) -> ShardResult:
            lines.writelines(json.dumps(verdict) + "\n" for verdict in _verdicts(result, names))
            return result

        params = DownloadParams(min_height=0, wanted_height=1080, min_duration_s=0.0)
        fetched = put(download.STEP.run(listed, params))
        settings = segment.SegmentParams(dissolves=dissolves, segment_limit_s=time_limit)
        segmented = put(segment.STEP.run(fetched, settings))
        put(run_shard(cut.STEP.step(cut.CutParams(cut_limit_s=time_limit)), list(_stretches(segmented))))
    close_pools()


def _verdicts(result: ShardResult, names: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    rows = select(StepRun.id, StepRun.started_at, StepRun.finished_at).where(among(StepRun.id, result.records))
    with Session(open_catalog()) as session:
        seconds = {number: (end - start).total_seconds() for number, start, end in session.execute(rows)}
    for number, record in open_ledger().load(result.records).items():
        yield {
            "step": record.step,
            "file": names[record.subject.partition("/")[0]],
            "status": record.status,
            "reason": record.reason,
            "message": str(record.detail.get("message", ""))[:300],
            "seconds": seconds[number],
        }


def _record(number: int) -> Record:
    return open_ledger().load([number])[number]


def _stretches(segmented: ShardResult) -> Iterator[Work]:
    """The first shots of each video, as cut sees a medical stretch."""
    for item in segmented.kept:
        past = {name: _record(number) for name, number in item.lineage.items()}
        outputs = segment.SEGMENT.outputs(past)
        table = pq.read_table(open_ledger().store.path(outputs["frames"]))
        samples = pq.read_table(open_ledger().store.path(outputs["samples"]), columns=["frame"])["frame"].to_pylist()
        shots, times = table["shot"].to_pylist(), table["time_s"].to_pylist()
        for shot in sorted(set(shots))[:CUTS_PER_VIDEO]:
            start = shots.index(shot)
            end = min(start + shots.count(shot), start + MOST_FRAMES)
            if end - start > 1 and any(start <= frame < end for frame in samples):
                yield Work(
                    f"{item.subject}/{start}-{end}",
                    inputs={
                        "video": download.DOWNLOAD.outputs(past)["video"],
                        "frames": outputs["frames"],
                        "samples": outputs["samples"],
                    },
                    context={
                        "start_frame": start,
                        "end_frame": end,
                        "start_s": times[start],
                        "end_s": times[end - 1],
                        "size": list(shown_size(segment.SEGMENT.detail(past)["video"], start)),
                    },
                    parents=item.lineage,
                )
