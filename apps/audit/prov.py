"""Lineage as W3C PROV, in its JSON form (PROV-JSON, W3C member submission of 2013).

Step runs are activities; artifacts, videos, clips, releases, models and evaluations are entities; the code that ran is
an agent. A run is named by the hash of its record, so that the document can be held against the catalog.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from apps.audit.lineage import ClipLineage, members, trained_on
from apps.audit.shown_text import plain
from medgen.canonical import digest_of
from medgen.ledger import Ledger

KINDS = ("source", "video", "clip", "artifact", "run", "release", "model", "evaluation", "code", "judge")
PREFIX = {kind: f"urn:medgen:{kind}:" for kind in KINDS} | {"medgen": "urn:medgen:", "dct": "http://purl.org/dc/terms/"}


def clip_document(lineage: ClipLineage) -> dict[str, Any]:
    """The PROV-JSON document of a clip: every record behind it and everything that it went into."""
    made = _Document()
    history, video, clip = lineage.history, lineage.history["video"], lineage.history["clip"]
    by_id = {step["id"]: step for step in history["steps"]}
    for step in history["steps"]:
        run = f"run:{step['record_hash']}"
        made.add(
            "activity",
            run,
            {
                "prov:startTime": step["started_at"],
                "prov:endTime": step["finished_at"],
                "prov:type": _name("medgen:" + step["step"]),
                "medgen:status": step["status"],
                "medgen:subject": step["subject"],
                "medgen:version": step["version"],
                "medgen:key": step["key"],
                **({"medgen:reason": step["reason"]} if step["reason"] else {}),
            },
        )
        code = _code(made, step["code_version"])
        made.relate("wasAssociatedWith", {"prov:activity": run, "prov:agent": code})
        for role, digest in sorted(step["models"].items()):
            judge = f"judge:{digest_of([role, digest])[:32]}"
            made.add(
                "entity", judge, {"prov:type": _name("medgen:judge"), "medgen:role": role, "medgen:digest": digest}
            )
            made.relate("used", {"prov:activity": run, "prov:entity": judge, "prov:role": role})
        for one in lineage.inputs.get(step["id"], ()):
            if one["artifact_sha256"]:
                entity = _artifact(made, one["artifact_sha256"])
                made.relate("used", {"prov:activity": run, "prov:entity": entity, "prov:role": one["role"]})
            if one["parent_id"] in by_id:
                parent = f"run:{by_id[one['parent_id']]['record_hash']}"
                made.relate("wasInformedBy", {"prov:informed": run, "prov:informant": parent})
        for one in step["outputs"]:
            entity = _artifact(made, one["sha256"])
            made.relate(
                "wasGeneratedBy",
                {
                    "prov:entity": entity,
                    "prov:activity": run,
                    "prov:time": step["finished_at"],
                    "prov:role": one["role"],
                },
            )
    source = _source(made, lineage.source["name"], lineage.source)
    whole = _video(made, video | {"video_id": video["id"]})
    made.relate("wasDerivedFrom", {"prov:generatedEntity": whole, "prov:usedEntity": source})
    own = _clip(made, clip)
    made.relate("wasDerivedFrom", {"prov:generatedEntity": own, "prov:usedEntity": whole})
    if clip["step_run_id"] in by_id:
        made.relate(
            "wasGeneratedBy", {"prov:entity": own, "prov:activity": f"run:{by_id[clip['step_run_id']]['record_hash']}"}
        )
    for caption in history["captions"]:
        if caption["step_run_id"] not in by_id:
            continue
        text = f"artifact:caption-{caption['step_run_id']}-{caption['kind']}"
        made.add("entity", text, {"prov:type": _name("medgen:caption"), "prov:value": plain(caption["text"], 10_000)})
        run = f"run:{by_id[caption['step_run_id']]['record_hash']}"
        made.relate("wasGeneratedBy", {"prov:entity": text, "prov:activity": run})
        made.relate("wasDerivedFrom", {"prov:generatedEntity": text, "prov:usedEntity": own})
    for release in lineage.releases:
        whole = _release(made, release)
        made.relate("hadMember", {"prov:collection": whole, "prov:entity": own})
    _models(made, lineage.models, lineage.evaluations)
    return made.content


def release_document(ledger: Ledger, release: Mapping[str, Any], run: Mapping[str, Any]) -> Iterator[str]:
    """The PROV-JSON document of a release, in pieces: it may hold a million clips.

    It goes down to clips, videos and sources; what was decided about a clip is in the document of the clip.
    """
    with ledger.engine.connect() as connection:
        models, evaluations = trained_on(connection, [release["name"]])
    head = _Document()
    whole = _release(head, release)
    activity = f"run:{run['record_hash']}"
    head.add(
        "activity",
        activity,
        {
            "prov:startTime": run["started_at"].isoformat(),
            "prov:endTime": run["finished_at"].isoformat(),
            "prov:type": _name("medgen:release"),
            "medgen:key": run["key"],
        },
    )
    head.relate("wasAssociatedWith", {"prov:activity": activity, "prov:agent": _code(head, run["code_version"])})
    head.relate("wasGeneratedBy", {"prov:entity": whole, "prov:activity": activity})
    _models(head, models, evaluations)
    entities, derived = head.content.pop("entity"), head.content.pop("wasDerivedFrom", {})
    # PROV-JSON has a section per kind of statement, so that the members are gone through once for each.
    yield json.dumps(head.content, ensure_ascii=False)[:-1]
    yield ', "entity": ' + json.dumps(entities, ensure_ascii=False)[:-1]
    told: set[str] = set()
    for batch in members(ledger.engine, release["name"]):
        part = _Document()
        for row in batch:
            _clip(part, row)
            if row["video_id"] not in told:
                _video(part, row)
            if row["source_name"] not in told:
                _source(part, row["source_name"])
            told |= {row["video_id"], row["source_name"]}
        yield ", " + json.dumps(part.content["entity"], ensure_ascii=False)[1:-1]
    yield '}, "hadMember": {'
    number = 0
    for batch in members(ledger.engine, release["name"]):
        pairs = {
            f"_:m{number + k}": {"prov:collection": whole, "prov:entity": f"clip:{row['id']}"}
            for k, row in enumerate(batch)
        }
        yield (", " if number else "") + json.dumps(pairs)[1:-1]
        number += len(batch)
    yield '}, "wasDerivedFrom": {'
    told, number = set(), 0
    yield json.dumps(derived)[1:-1]
    for batch in members(ledger.engine, release["name"]):
        more: dict[str, Any] = {}
        for row in batch:
            more[f"_:d{number}"] = {
                "prov:generatedEntity": f"clip:{row['id']}",
                "prov:usedEntity": f"video:{row['video_id']}",
            }
            number += 1
            if row["video_id"] not in told:
                source = f"source:{digest_of(row['source_name'])[:32]}"
                more[f"_:d{number}"] = {"prov:generatedEntity": f"video:{row['video_id']}", "prov:usedEntity": source}
                number += 1
                told.add(row["video_id"])
        yield (", " if derived or number > len(more) else "") + json.dumps(more)[1:-1]
    yield "}}"


class _Document:
    """A PROV-JSON document under way. Relations get blank names in order."""

    def __init__(self) -> None:
        self.content: dict[str, Any] = {"prefix": PREFIX, "entity": {}}

    def add(self, kind: str, name: str, attributes: Mapping[str, Any]) -> None:
        self.content.setdefault(kind, {}).setdefault(name, dict(attributes))

    def relate(self, kind: str, attributes: Mapping[str, Any]) -> None:
        rows = self.content.setdefault(kind, {})
        rows[f"_:{kind}{len(rows)}"] = dict(attributes)


def _name(value: str) -> dict[str, str]:
    return {"$": value, "type": "prov:QUALIFIED_NAME"}


def _artifact(made: _Document, digest: str) -> str:
    made.add("entity", f"artifact:{digest}", {"prov:type": _name("medgen:artifact"), "medgen:sha256": digest})
    return f"artifact:{digest}"


def _code(made: _Document, version: str) -> str:
    name = f"code:{digest_of(version)[:32]}"
    made.add("agent", name, {"prov:type": _name("prov:SoftwareAgent"), "prov:label": f"medgen {version}"})
    return name


def _source(made: _Document, name: str, more: Mapping[str, Any] | None = None) -> str:
    entity = f"source:{digest_of(name)[:32]}"
    told = {"dct:source": plain(more["uri"], 2000)} if more else {}
    made.add("entity", entity, {"prov:type": _name("medgen:source"), "prov:label": plain(name, 500), **told})
    return entity


def _video(made: _Document, row: Mapping[str, Any]) -> str:
    entity = f"video:{row['video_id']}"
    made.add(
        "entity",
        entity,
        {
            "prov:type": _name("medgen:video"),
            "prov:label": plain(row["title"], 500),
            "dct:source": plain(row["url"], 2000),
            "dct:license": plain(row["licence"] or "not stated by the source", 500),
        },
    )
    return entity


def _clip(made: _Document, row: Mapping[str, Any]) -> str:
    entity = f"clip:{row['id']}"
    made.add(
        "entity",
        entity,
        {
            "prov:type": _name("medgen:clip"),
            "medgen:sha256": row["digest"],
            "medgen:start_s": row["start_s"],
            "medgen:end_s": row["end_s"],
        },
    )
    return entity


def _release(made: _Document, row: Mapping[str, Any]) -> str:
    entity = f"release:{row['name']}"
    made.add(
        "entity",
        entity,
        {"prov:type": _name("prov:Collection"), "medgen:sha256": row["digest"], "medgen:clips": row["clips"]},
    )
    return entity


def _models(made: _Document, models: Any, evaluations: Any) -> None:
    for model in models:
        entity = f"model:{model['digest']}"
        made.add("entity", entity, {"prov:type": _name("medgen:model"), "prov:label": plain(model["name"], 200)})
        pair = {"prov:generatedEntity": entity, "prov:usedEntity": f"release:{model['release_name']}"}
        made.relate("wasDerivedFrom", pair)
    for one in evaluations:
        entity = f"evaluation:{one['id']}"
        told = {"prov:label": plain(one["metric"], 200), "prov:value": one["value"]}
        made.add("entity", entity, {"prov:type": _name("medgen:evaluation"), **told})
        pair = {"prov:generatedEntity": entity, "prov:usedEntity": f"model:{one['model_digest']}"}
        made.relate("wasDerivedFrom", pair)
