"""Lineage as OpenLineage events (specification 2-0-2): what each step run read and wrote.

A run's UUID follows from its record hash, so that the same record always gives the same event.
"""

import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from apps.audit.lineage import ClipLineage, members
from apps.audit.shown_text import plain
from medgen import __version__
from medgen.ledger import Ledger

PRODUCER = f"urn:medgen:{__version__}"
SCHEMA = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
FACET = "urn:medgen:openlineage-facet:1"
NAMESPACE = "medgen"


def clip_events(lineage: ClipLineage) -> list[dict[str, Any]]:
    """A START and an end event for every step run behind a clip, oldest first."""
    events = []
    by_id = {step["id"]: step for step in lineage.history["steps"]}
    clip, video = lineage.history["clip"], lineage.history["video"]
    for step in lineage.history["steps"]:
        read = [
            _dataset(f"artifact/{i['artifact_sha256']}")
            for i in lineage.inputs.get(step["id"], ())
            if i["artifact_sha256"]
        ]
        written = [_dataset(f"artifact/{o['sha256']}") for o in step["outputs"]]
        if step["step"] == "download":
            facts = {"url": plain(video["url"], 2000), "licence": plain(video["licence"] or "not stated", 500)}
            read.append(_dataset(f"video/{video['id']}", medgen_source=_facet(facts)))
        if step["id"] == clip["step_run_id"]:
            written.append(_dataset(f"clip/{clip['id']}"))
        parents = [
            by_id[i["parent_id"]]["record_hash"] for i in lineage.inputs.get(step["id"], ()) if i["parent_id"] in by_id
        ]
        decision = {name: step[name] for name in ("status", "reason", "subject", "version", "key", "record_hash")}
        decision |= {"scores": {s["metric"]: s["value"] for s in step["scores"]}, "models": step["models"]}
        facets = {
            "medgen_decision": _facet(decision | {"after_records": parents}),
            "processing_engine": _facet({"version": step["code_version"], "name": "medgen"}),
        }
        end = "FAIL" if step["status"] == "failed" else "COMPLETE"
        for kind, when in (("START", step["started_at"]), (end, step["finished_at"])):
            events.append(_event(kind, when, step["record_hash"], step["step"], facets, read, written))
    return events


def release_events(ledger: Ledger, release: Mapping[str, Any], run: Mapping[str, Any]) -> Iterator[str]:
    """The events of the step run that made a release, in pieces: a list of a START and a COMPLETE event.

    The clips are its inputs; they are named in the second event.
    """
    facets = {
        "medgen_decision": _facet({"status": run["status"], "key": run["key"], "record_hash": run["record_hash"]})
    }
    output = _dataset(
        f"release/{release['name']}", medgen_release=_facet({"sha256": release["digest"], "clips": release["clips"]})
    )
    began, ended = (run[name].isoformat() for name in ("started_at", "finished_at"))
    yield "[" + json.dumps(_event("START", began, run["record_hash"], "release", facets, [], [])) + ", "
    complete = _event("COMPLETE", ended, run["record_hash"], "release", facets, [], [output])
    complete.pop("inputs")
    yield json.dumps(complete)[:-1] + ', "inputs": ['
    first = True
    for batch in members(ledger.engine, release["name"]):
        rows = ", ".join(
            json.dumps(_dataset(f"clip/{row['id']}", medgen_clip=_facet({"sha256": row["digest"]}))) for row in batch
        )
        yield ("" if first else ", ") + rows
        first = False
    yield "]}]"


def _event(
    kind: str, when: str, record_hash: str, job: str, facets: Mapping[str, Any], read: list[Any], written: list[Any]
) -> dict[str, Any]:
    return {
        "eventType": kind,
        "eventTime": when,
        "producer": PRODUCER,
        "schemaURL": SCHEMA,
        "run": {"runId": str(uuid.uuid5(uuid.NAMESPACE_URL, f"urn:medgen:run:{record_hash}")), "facets": dict(facets)},
        "job": {"namespace": NAMESPACE, "name": job},
        "inputs": read,
        "outputs": written,
    }


def _dataset(name: str, **facets: Any) -> dict[str, Any]:
    return {"namespace": NAMESPACE, "name": name} | ({"facets": facets} if facets else {})


def _facet(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"_producer": PRODUCER, "_schemaURL": FACET, **facts}
