"""Records as the steps write them, without the work behind them: for tests of what reads the catalog.

Every record goes through the ledger, so that hashes, keys and rows are real; only the measured numbers are made up.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medgen.canonical import canonical_json
from medgen.catalog import Clip, Evaluation, ModelVersion, Release, ReleaseClip, Source, Video, now
from medgen.ledger import Ledger, Outcome, Record, StepIdentity, Work
from medgen.store import Artifact
from models.retrieval.vector_index import pack
from tasks.curation.classify import EncoderFacts
from tasks.curation.discover import video_id

CHECKS = (("resolution_too_low", "short_side", "at least", 480.0), ("overlay_text", "overlay_words", "at most", 20.0))


class Recorder:
    """Writes the lives of videos and clips."""

    def __init__(self, ledger: Ledger, flow_run_id: str = "11111111-2222-4333-8444-555555555555") -> None:
        self.ledger = ledger
        self.flow_run_id = flow_run_id

    def step(
        self,
        name: str,
        subject: str,
        outcome: Outcome,
        parents: Mapping[str, Record] | None = None,
        inputs: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        models: Mapping[str, str] | None = None,
    ) -> Record:
        """One step run."""
        identity = StepIdentity(name, 1, dict(params or {}), dict(models or {}))
        work = Work(
            subject, inputs=dict(inputs or {}), parents={role: parent.id for role, parent in (parents or {}).items()}
        )
        return self.ledger.write(identity, work, outcome, started_at=now(), flow_run_id=self.flow_run_id)

    def discover(self, source: str, videos: Sequence[Mapping[str, Any]]) -> Record:
        """A source with its videos: url, and anything else that `Video` has."""
        rows = [
            Video(
                **{"title": "", "description": "", "tags": [], "external_id": None, "channel": None,
                   "channel_url": None, "licence": None, "published": None, "duration_s": 30.0} | dict(video)
                | {"id": video_id(video["url"]), "source_name": source}
            )
            for video in videos
        ]  # fmt: skip
        detail = {"source": source, "kind": "listing", "uri": source, "counts": {"kept": len(rows)}}
        return self.step("discover", source, Outcome("kept", detail=detail, rows=[
            Source(name=source, kind="listing", uri=source), *rows]))  # fmt: skip

    def cut(
        self,
        url: str,
        clip_file: Artifact,
        found: Record,
        count: int = 1,
        category: str = "imaging",
        embedded: tuple[EncoderFacts, np.ndarray] | None = None,
    ):
        """A video downloaded, judged and cut: its lineage, and the lineages of its clips.

        Args:
            embedded: by which encoder, and the clips' embeddings.
        """
        identity = video_id(url)
        lineage: dict[str, Record] = {"discover": found}
        lineage["download"] = self.step(
            "download", identity, Outcome("kept", detail={"metadata": {"title": "", "url": url}}), lineage
        )
        lineage["segment"] = self.step("segment", identity, Outcome("kept", detail={"shots": 2}), lineage)
        clips = [
            {"start_frame": 200 * k, "end_frame": 200 * k + 180, "start_s": 8.0 * k, "end_s": 8.0 * k + 7.2,
             "medical": 0.9, "category": category}
            for k in range(count)
        ]  # fmt: skip
        report = {
            "samples": [
                {"time_s": float(t), "shot": t // 8, "medical": round(0.55 + 0.4 * float(np.sin(t / 3)), 4)}
                for t in range(8 * count)
            ]
        }
        output = self.ledger.store.put_bytes(canonical_json(report), "application/json")
        detail, outputs = {}, {}
        if embedded:
            detail = {"encoder": embedded[0]}
            outputs = {"embeddings": self.ledger.store.put_bytes(pack(embedded[1]), "application/vnd.safetensors")}
        lineage["classify"] = self.step(
            "classify", identity,
            Outcome("kept", detail={"clips": clips} | detail, outputs={"classification": output} | outputs), lineage,
            params={"medical_threshold": 0.5}, models={"frames": "f" * 64},
        )  # fmt: skip
        lineages = []
        for k, facts in enumerate(clips):
            clip_id = f"c{identity[1:13]}{k:03d}"
            row = {
                "id": clip_id, "video_id": identity, "width": 640, "height": 480, "fps": 25.0,
                "digest": clip_file.sha256, **{n: facts[n] for n in ("start_frame", "end_frame", "start_s", "end_s")},
            }  # fmt: skip
            stretch = f"{identity}/{facts['start_frame']}-{facts['end_frame']}"
            made = self.step(
                "cut", stretch, Outcome("kept", detail={"clip": row}, outputs={"clip": clip_file}, rows=[Clip(**row)]),
                lineage,
            )  # fmt: skip
            lineages.append((clip_id, lineage | {"cut": made}))
        return identity, lineages

    def judge(self, clip_id: str, lineage: Mapping[str, Record], words: float = 0.0) -> tuple[str, dict[str, Record]]:
        """A clip measured and decided on: rejected for overlay text when it has more than 20 words."""
        lineage = dict(lineage)
        scores = {"short_side": 480.0, "overlay_words": words, "aesthetic": 4.2, "technical": 31.0}
        lineage["quality"] = self.step(
            "quality", clip_id, Outcome("kept", scores=scores, clip_id=clip_id), lineage, models={"technical": "a" * 64}
        )
        checks = [
            {"reason": reason, "metric": metric, "score": scores[metric], "threshold": threshold, "passes_when": side,
             "passed": scores[metric] >= threshold if side == "at least" else scores[metric] <= threshold}
            for reason, metric, side, threshold in CHECKS
        ]  # fmt: skip
        failed = [check for check in checks if not check["passed"]]
        if failed:
            first = {name: failed[0][name] for name in ("metric", "score", "threshold")}
            outcome = Outcome("rejected", failed[0]["reason"], {"checks": checks, **first})
        else:
            outcome = Outcome("kept", detail={"checks": checks, "motion_type": "moving"})
        lineage["decide"] = self.step("decide", clip_id, outcome, lineage)
        return outcome.status, lineage

    def caption(self, clip_id: str, lineage: Mapping[str, Record], text: str) -> dict[str, Record]:
        """The last steps of a kept clip."""
        lineage = dict(lineage)
        lineage["deduplicate"] = self.step(
            "deduplicate", clip_id, Outcome("kept", detail={"duplicate_of": None}), lineage
        )
        privacy = {"found": {"faces": False, "identifiers": []}, "blurred": []}
        lineage["privacy"] = self.step("privacy", clip_id, Outcome("kept", detail=privacy), lineage)
        made_by = {"model": "evidence_template", "model_digest": "b" * 64, "prompt_version": "v1"}
        captions = {kind: {"text": text, **made_by} for kind in ("brief", "detailed")}
        detail = {"captioner": "evidence_template", "transcript": text, "transcript_source": "subtitles"}
        lineage["caption"] = self.step(
            "caption", clip_id, Outcome("kept", detail=detail, captions=captions, clip_id=clip_id), lineage
        )
        return lineage

    def release(self, name: str, clips: Mapping[str, Mapping[str, Record]], policy: Mapping[str, Any]) -> Record:
        """A release of captioned clips, with a small metadata table and funnel."""
        store = self.ledger.store
        rows = [
            {
                "clip_id": clip, "category": "imaging", "duration": 7.2, "aesthetic_score": 4.0 + k, "licence": "CC0",
                "technical_score": 30.0 + k, "video_id": lineage["download"].subject, "file_name": f"clips/{clip}.mp4",
                "clip_sha256": lineage["cut"].outputs["clip"], "brief_caption": "A clip.",
                "detailed_caption": f"A clip, {clip}.",
            }
            for k, (clip, lineage) in enumerate(sorted(clips.items()))
        ]  # fmt: skip
        outputs = {}
        for role, table in (
            ("metadata", pa.Table.from_pylist(rows)),
            ("rejected", pa.table({"step": ["decide"], "subject": ["x"], "verdict": ["rejected"],
                                   "reason": ["overlay_text"], "metric": ["overlay_words"], "score": [40.0],
                                   "threshold": [20.0], "title": ["x"]})),
        ):  # fmt: skip
            scratch = store.scratch(".parquet")
            pq.write_table(table, scratch)
            outputs[role] = store.put_file(Path(scratch), "application/vnd.apache.parquet")
        funnel = [
            {
                "step": "discover",
                "unit": "listed rows",
                "in": 12,
                "kept": 9,
                "rejected": {"no_medical_term": 3},
                "failed": {},
            },
            {"step": "decide", "unit": "clips", "in": 9, "kept": 7, "rejected": {"overlay_text": 2}, "failed": {}},
        ]
        outputs["funnel"] = store.put_bytes(canonical_json(funnel), "application/json")
        outputs["card"] = store.put_bytes(b"# A card\n", "text/markdown")
        manifest = {"format": 1, "policy": dict(policy), "files": [
            {"path": row["file_name"], "sha256": row["clip_sha256"], "bytes": 1} for row in rows]}  # fmt: skip
        outputs["manifest"] = store.put_bytes(canonical_json(manifest), "application/json")
        digest = outputs["manifest"].sha256
        members = [
            Release(name=name, digest=digest, policy=dict(policy), clips=len(clips), record_root="c" * 64),
            *(ReleaseClip(release_name=name, clip_id=c, step_run_id=t["caption"].id) for c, t in clips.items()),
        ]
        detail = {"name": name, "digest": digest, "clips": len(clips)}
        return self.step("release", name, Outcome("kept", detail=detail, outputs=outputs, rows=members))

    def model(self, name: str, release: str, parent: Record) -> tuple[str, Record]:
        """A model trained on a release, and an evaluation of it."""
        weights = self.ledger.store.put_bytes(name.encode(), "application/octet-stream")
        trained = self.step(
            "train", name,
            Outcome("kept", detail={"loss": 0.1}, outputs={"model": weights}, rows=[
                ModelVersion(digest=weights.sha256, name=name, kind="text_to_video", checkpoint_sha256=weights.sha256,
                             release_name=release)]),
            {"release": parent},
        )  # fmt: skip
        self.step(
            "evaluate", name,
            Outcome("kept", detail={}, rows=[
                Evaluation(id=trained.id, model_digest=weights.sha256, metric="imaging_quality", value=0.61,
                           detail={"low": 0.58, "high": 0.64})]),
            inputs={"model": weights.sha256},
        )  # fmt: skip
        return weights.sha256, trained
