"""Lineage as W3C PROV, in its JSON form (PROV-JSON, W3C member submission of 2013).

Step runs are activities; artifacts, videos, clips, releases, models and evaluations are entities; the code that ran is
an agent. A run is named by the hash of its record, so that the document can be held against the catalog.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from apps.audit.lineage import ClipLineage, members, trained_on
from apps.audit.shown_text import plain
from medgen.canonical import digest_of
from medgen.ledger import Ledger

KINDS = ("source", "video", "clip", "artifact", "run", "release", "model", "evaluation", "code", "judge")
PREFIX = {kind: f"urn:medgen:{kind}:" for kind in KINDS} | {"medgen": "urn:medgen:", "dct": "http://purl.org/dc/terms/"}

Batches = Iterable[Sequence[Mapping[str, Any]]]  # of `members`


def clip_document(lineage: ClipLineage) -> dict[str, Any]:
    """The PROV-JSON document of a clip: every record behind it and everything that it went into."""
    document = _Document()
    history, video, clip = lineage.history, lineage.history["video"], lineage.history["clip"]
    by_id = {step["id"]: step for step in history["steps"]}
    for step in history["steps"]:
        _step_run(document, step, lineage.inputs.get(step["id"], ()), by_id)
    source = _source(document, lineage.source["name"], lineage.source)
    parent = _video(document, video | {"video_id": video["id"]})
    document.relate("wasDerivedFrom", {"prov:generatedEntity": parent, "prov:usedEntity": source})
    own = _clip(document, clip)
    document.relate("wasDerivedFrom", {"prov:generatedEntity": own, "prov:usedEntity": parent})
    if clip["step_run_id"] in by_id:
        run = f"run:{by_id[clip['step_run_id']]['record_hash']}"
        document.relate("wasGeneratedBy", {"prov:entity": own, "prov:activity": run})
    for caption in history["captions"]:
        if caption["step_run_id"] not in by_id:
            continue
        text = f"artifact:caption-{caption['step_run_id']}-{caption['kind']}"
        attributes = {"prov:type": _name("medgen:caption"), "prov:value": plain(caption["text"], 10_000)}
        document.add("entity", text, attributes)
        run = f"run:{by_id[caption['step_run_id']]['record_hash']}"
        document.relate("wasGeneratedBy", {"prov:entity": text, "prov:activity": run})
        document.relate("wasDerivedFrom", {"prov:generatedEntity": text, "prov:usedEntity": own})
    for release in lineage.releases:
        document.relate("hadMember", {"prov:collection": _release(document, release), "prov:entity": own})
    _models(document, lineage.models, lineage.evaluations)
    return document.content


def _step_run(
    document: "_Document",
    step: Mapping[str, Any],
    inputs: Sequence[Mapping[str, Any]],
    by_id: Mapping[int, Mapping[str, Any]],
) -> None:
    """A step run with its code, models, inputs and outputs, and the runs that it builds on."""
    run = f"run:{step['record_hash']}"
    attributes = {
        "prov:startTime": step["started_at"],
        "prov:endTime": step["finished_at"],
        "prov:type": _name("medgen:" + step["step"]),
        "medgen:status": step["status"],
        "medgen:subject": step["subject"],
        "medgen:version": step["version"],
        "medgen:key": step["key"],
    }
    if step["reason"]:
        attributes["medgen:reason"] = step["reason"]
    document.add("activity", run, attributes)
    code = _code(document, step["code_version"])
    document.relate("wasAssociatedWith", {"prov:activity": run, "prov:agent": code})
    for role, digest in sorted(step["models"].items()):
        judge = f"judge:{digest_of([role, digest])[:32]}"
        attributes = {"prov:type": _name("medgen:judge"), "medgen:role": role, "medgen:digest": digest}
        document.add("entity", judge, attributes)
        document.relate("used", {"prov:activity": run, "prov:entity": judge, "prov:role": role})
    for row in inputs:
        if row["artifact_sha256"]:
            artifact = _artifact(document, row["artifact_sha256"])
            document.relate("used", {"prov:activity": run, "prov:entity": artifact, "prov:role": row["role"]})
        if row["parent_id"] in by_id:
            parent = f"run:{by_id[row['parent_id']]['record_hash']}"
            document.relate("wasInformedBy", {"prov:informed": run, "prov:informant": parent})
    for output in step["outputs"]:
        artifact = _artifact(document, output["sha256"])
        document.relate(
            "wasGeneratedBy",
            {
                "prov:entity": artifact,
                "prov:activity": run,
                "prov:time": step["finished_at"],
                "prov:role": output["role"],
            },
        )


def release_document(ledger: Ledger, release: Mapping[str, Any], run: Mapping[str, Any]) -> Iterator[str]:
    """The PROV-JSON document of a release, in pieces: it may hold a million clips.

    It goes down to clips, videos and sources; what was decided about a clip is in the document of the clip.
    """
    with ledger.engine.connect() as connection:
        models, evaluations = trained_on(connection, [release["name"]])
    head = _Document()
    collection = _release(head, release)
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
    head.relate("wasGeneratedBy", {"prov:entity": collection, "prov:activity": activity})
    _models(head, models, evaluations)
    entities, derived = head.content.pop("entity"), head.content.pop("wasDerivedFrom", {})
    # PROV-JSON has a section per kind of statement, so that the members are gone through once for each.
    yield json.dumps(head.content, ensure_ascii=False)[:-1]
    yield ', "entity": ' + json.dumps(entities, ensure_ascii=False)[:-1]
    yield from _member_entities(members(ledger.engine, release["name"]))
    yield '}, "hadMember": {'
    yield from _memberships(members(ledger.engine, release["name"]), collection)
    yield '}, "wasDerivedFrom": {'
    yield json.dumps(derived)[1:-1]
    yield from _derivations(members(ledger.engine, release["name"]), bool(derived))
    yield "}}"


def _member_entities(batches: Batches) -> Iterator[str]:
    """Clips with their videos and sources, each once, as further entries of a section that has some."""
    written: set[str] = set()
    for batch in batches:
        document = _Document()
        for row in batch:
            _clip(document, row)
            if row["video_id"] not in written:
                _video(document, row)
            if row["source_name"] not in written:
                _source(document, row["source_name"])
            written |= {row["video_id"], row["source_name"]}
        yield ", " + json.dumps(document.content["entity"], ensure_ascii=False)[1:-1]


def _memberships(batches: Batches, collection: str) -> Iterator[str]:
    number = 0
    for batch in batches:
        pairs = {
            f"_:m{number + k}": {"prov:collection": collection, "prov:entity": f"clip:{row['id']}"}
            for k, row in enumerate(batch)
        }
        yield (", " if number else "") + json.dumps(pairs)[1:-1]
        number += len(batch)


def _derivations(batches: Batches, follows: bool) -> Iterator[str]:
    """Clips derived from videos, and videos from sources. `follows`: the section has entries already."""
    written: set[str] = set()
    number = 0
    for batch in batches:
        pairs: dict[str, Any] = {}
        for row in batch:
            video = f"video:{row['video_id']}"
            pairs[f"_:d{number}"] = {"prov:generatedEntity": f"clip:{row['id']}", "prov:usedEntity": video}
            number += 1
            if row["video_id"] not in written:
                source = f"source:{digest_of(row['source_name'])[:32]}"
                pairs[f"_:d{number}"] = {"prov:generatedEntity": video, "prov:usedEntity": source}
                number += 1
                written.add(row["video_id"])
        yield (", " if follows or number > len(pairs) else "") + json.dumps(pairs)[1:-1]


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


def _artifact(document: _Document, digest: str) -> str:
    document.add("entity", f"artifact:{digest}", {"prov:type": _name("medgen:artifact"), "medgen:sha256": digest})
    return f"artifact:{digest}"


def _code(document: _Document, version: str) -> str:
    name = f"code:{digest_of(version)[:32]}"
    document.add("agent", name, {"prov:type": _name("prov:SoftwareAgent"), "prov:label": f"medgen {version}"})
    return name


def _source(document: _Document, name: str, more: Mapping[str, Any] | None = None) -> str:
    entity = f"source:{digest_of(name)[:32]}"
    address = {"dct:source": plain(more["uri"], 2000)} if more else {}
    if more and more["terms"]:
        address["medgen:legal_basis"] = plain(more["terms"][0]["legal_basis"], 2000)
    document.add("entity", entity, {"prov:type": _name("medgen:source"), "prov:label": plain(name, 500), **address})
    return entity


def _video(document: _Document, row: Mapping[str, Any]) -> str:
    entity = f"video:{row['video_id']}"
    document.add(
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


def _clip(document: _Document, row: Mapping[str, Any]) -> str:
    entity = f"clip:{row['id']}"
    document.add(
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


def _release(document: _Document, row: Mapping[str, Any]) -> str:
    entity = f"release:{row['name']}"
    document.add(
        "entity",
        entity,
        {"prov:type": _name("prov:Collection"), "medgen:sha256": row["digest"], "medgen:clips": row["clips"]},
    )
    return entity


def _models(document: _Document, models: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]) -> None:
    for model in models:
        entity = f"model:{model['digest']}"
        document.add("entity", entity, {"prov:type": _name("medgen:model"), "prov:label": plain(model["name"], 200)})
        pair = {"prov:generatedEntity": entity, "prov:usedEntity": f"release:{model['release_name']}"}
        document.relate("wasDerivedFrom", pair)
    for row in evaluations:
        entity = f"evaluation:{row['id']}"
        value = {"prov:label": plain(row["metric"], 200), "prov:value": row["value"]}
        document.add("entity", entity, {"prov:type": _name("medgen:evaluation"), **value})
        pair = {"prov:generatedEntity": entity, "prov:usedEntity": f"model:{row['model_digest']}"}
        document.relate("wasDerivedFrom", pair)
