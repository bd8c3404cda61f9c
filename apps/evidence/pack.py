"""What an evidence pack holds, gathered in a folder: records, lineage, captions, files, what was verified."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from apps.audit import openlineage, prov
from apps.audit.lineage import clip_lineage
from apps.audit.releases import outputs_of, release_of
from apps.history import verdict
from medgen.catalog import StepRun
from medgen.errors import ItemFailed
from medgen.ledger import Ledger
from medgen.store import ArtifactLost, Store, file_digest
from medgen.takedown import list_tombstones
from medgen.verify import record_faults, verify

FILES_OF_A_RELEASE = {
    "card": "card.md", "metadata": "metadata.parquet", "rejected": "rejected.parquet", "funnel": "funnel.json",
    "manifest": "manifest.json",
}  # fmt: skip
CLIP_README = """What the catalog of a medgen installation has on record about the clip {id}.

{sentence}

history.json      the video it was cut from, with the licence that its source named and when it was fetched; each
                  decision with score, threshold, parameters, model and version of the code, oldest first; captions;
                  releases and models that hold it
source.json       its source: what people stated of the legal basis and for how long it is kept, the newest first
inputs.json       what each of these step runs read: its inputs and the step runs that they came from
prov.json         the same lineage as W3C PROV
openlineage.json  the same lineage as OpenLineage events
verified.json     what was wrong with these records and the files that they name when this was packed; [] is nothing
page.html         the page on which its video was shown, as it was when the video was fetched, where the refresh kept
                  it (keep_page); when and from where says history.json. A stranger's page: read it as text
media/            the clip itself, when it was asked for
"""
RELEASE_README = """What the catalog of a medgen installation has on record about the release {name}.

{clips} clips; sha256 of the manifest {digest}.

release.json      the release: when it was made, from what, with which parameters and which version of the code
card.md, metadata.parquet, rejected.parquet, funnel.json, manifest.json
                  the files that describe it, byte by byte
prov.json         its clips, videos, sources, and the models and evaluations that came of it, as W3C PROV
openlineage.json  the events of the run that made it
takedowns.json    the reports of the takedowns that changed it
verified.json     what was wrong in the whole catalog and store when this was packed; [] is nothing
"""

Progress = Callable[[str, int, int], None]


def clip_pack(ledger: Ledger, clip_id: str, folder: Path, media: bool = False) -> list[str]:
    """Fills a folder with what is on record about a clip. Returns what is wrong with its records and artifacts.

    Args:
        media: the clip's own file too.

    Raises:
        Unknown: there is no such clip.
        ArtifactLost: the clip's own file, which was asked for.
    """
    lineage = clip_lineage(ledger, clip_id)
    faults = _faults_behind(ledger, lineage.history)
    clip = lineage.history["clip"]
    _text(folder / "README.txt", CLIP_README.format(id=clip_id, sentence=verdict(lineage.history)))
    _json(folder / "history.json", lineage.history)
    _json(folder / "source.json", lineage.source)
    _json(folder / "inputs.json", lineage.inputs)
    _json(folder / "prov.json", prov.clip_document(lineage))
    _json(folder / "openlineage.json", openlineage.clip_events(lineage))
    _json(folder / "verified.json", faults)
    copy_source_page(ledger.store, lineage.history["steps"], folder / "page.html")
    if media:
        (folder / "media").mkdir()
        shutil.copyfile(ledger.store.path(clip["digest"]), folder / "media" / f"{clip['digest']}.mp4")
    return faults


def release_pack(
    ledger: Ledger, name: str, folder: Path, releases_folder: Path, progress: Progress | None = None
) -> list[str]:
    """Fills a folder with what is on record about a release. Returns what is wrong in the catalog and the store.

    Args:
        progress: as of `medgen.verify.verify`, which looks at everything: a release builds on most of it.

    Raises:
        Unknown: there is no such release.
        ArtifactLost: one of the files that describe it.
    """
    with ledger.engine.connect() as connection:
        release = release_of(connection, name)
        row = connection.execute(select(StepRun.__table__).where(StepRun.id == release["step_run_id"])).mappings().one()
        run, outputs = dict(row), outputs_of(connection, release["step_run_id"])
    faults = verify(ledger, releases_folder, progress=progress)
    _text(folder / "README.txt", RELEASE_README.format(**release))
    _json(folder / "release.json", {"release": release, "step_run": run, "files": outputs})
    for role, file in FILES_OF_A_RELEASE.items():
        if role in outputs:
            shutil.copyfile(ledger.store.path(outputs[role]), folder / file)
    _pieces(folder / "prov.json", prov.release_document(ledger, release, run))
    _pieces(folder / "openlineage.json", openlineage.release_events(ledger, release, run))
    with Session(ledger.engine) as session:
        reports = [stone.detail for stone in list_tombstones(session) if name in stone.detail.get("releases", ())]
    _json(folder / "takedowns.json", reports)
    _json(folder / "verified.json", faults)
    return faults


def _faults_behind(ledger: Ledger, history: Mapping[str, Any]) -> list[str]:
    """What is wrong with the records behind a clip, and with the artifacts that stand on them."""
    named = {step["id"]: f"step run {step['id']} ({step['step']})" for step in history["steps"]}
    with Session(ledger.engine) as session:
        faults = [f"{named[id_]}: {fault}" for id_, fault in record_faults(session, list(named)).items() if fault]
    if history["forgotten"]:
        return faults  # its bytes are gone on purpose
    for step in history["steps"]:
        if step["superseded"]:
            continue
        for output in step["outputs"]:
            try:
                actual, _ = file_digest(ledger.store.path(output["sha256"]))
            except ItemFailed as failure:
                faults.append(f"{named[step['id']]}: {output['role']}: {failure}")
                continue
            if actual != output["sha256"]:
                faults.append(f"{named[step['id']]}: {output['role']}: artifact {output['sha256']} has other bytes now")
    return faults


def copy_source_page(store: Store, steps: Iterable[Mapping[str, Any]], target: Path) -> None:
    """Copies the page on which a video was shown, as the steps of a history have it; nothing where none is kept.

    One that is gone is missing in the pack: a takedown removed it, or else `verified.json` names it.
    """
    for step in steps:
        for output in step["outputs"]:
            if step["step"] == "download" and output["role"] == "page" and not step["superseded"]:
                with suppress(ArtifactLost):
                    shutil.copyfile(store.path(output["sha256"]), target)


def _text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _json(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False, default=str)
        file.write("\n")


def _pieces(path: Path, pieces: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(pieces)
