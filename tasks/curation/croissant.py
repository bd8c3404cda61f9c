"""Metadata of a release as Croissant 1.0 (MLCommons), so that other tools can read it as a dataset."""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}

FILES = {
    "metadata": ("metadata.parquet", "application/x-parquet", "A row for each clip."),
    "rejected": ("rejected.parquet", "application/x-parquet", "What was left out, and why."),
    "funnel": ("funnel.json", "application/json", "What each step kept."),
    "card": ("README.md", "text/markdown", "The dataset card."),
}
"""Role of an output → (its place in the release's folder, its media type as `mlcroissant` knows it, what it is)."""

CLIPS = "clips"
"""Id of the record set of clips; a field is `clips/COLUMN`."""


def croissant(
    name: str,
    outputs: Mapping[str, str],
    schema: pa.Schema | None,
    licences: Iterable[str],
    *,
    digest: str = "",
    published: str = "",
) -> dict[str, Any]:
    """The metadata.

    Files are named by their place beside the document, as `mlcroissant` resolves them.

    Args:
        name: of the release, or the first part of it where its digest is not known yet.
        outputs: role → digest of its files; only those that `FILES` names are listed.
        schema: of its metadata table.
        licences: of the clips; each clip stands under its own.
        digest: sha256 of its manifest.
        published: ISO date.
    """
    fields = _fields(schema)
    manifest = f" Its manifest has sha256 {digest}." if digest else " Its digest is the sha256 of manifest.json."
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": (
            f"Captioned medical video clips chosen by medgen.{manifest} Each clip stands under the licence of its "
            "source video."
        ),
        "license": sorted(licences) or ["not stated"],
        "url": f"urn:medgen:release:{digest or name}",
        "version": "1.0.0",
        **({"datePublished": published} if published else {}),
        "creator": {"@type": "sc:Organization", "name": "whoever ran medgen"},
        "isLiveDataset": False,
        "distribution": _distribution(outputs),
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": CLIPS,
                "name": CLIPS,
                "description": "A record for each clip: file, scores, captions, source, licence, its step runs.",
                "key": {"@id": f"{CLIPS}/clip_id"},
                "field": fields,
            }
        ]
        if fields
        else [],
    }


def _distribution(outputs: Mapping[str, str]) -> list[dict[str, Any]]:
    """The files of a release that are listed, and its clips as a set, which lies beside the document."""
    files: list[dict[str, Any]] = [
        {
            "@type": "cr:FileObject",
            "@id": path,
            "name": path,
            "description": about,
            "contentUrl": path,
            "encodingFormat": media_type,
            "sha256": outputs[role],
        }
        for role, (path, media_type, about) in FILES.items()
        if role in outputs
    ]
    clips = {
        "@type": "cr:FileSet",
        "@id": "clip-files",
        "name": "clip-files",
        "description": "The clips, H.264 in MP4. The field file_name of a record names its file.",
        "encodingFormat": "video/mp4",
        "includes": "clips/*.mp4",
    }
    return [*files, clips]


def _fields(schema: pa.Schema | None) -> list[dict[str, Any]]:
    return [
        {
            "@type": "cr:Field",
            "@id": f"{CLIPS}/{column.name}",
            "name": column.name,
            "dataType": _type(column.type),
            "source": {"fileObject": {"@id": "metadata.parquet"}, "extract": {"column": column.name}},
        }
        for column in (schema or ())
    ]


def _type(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind):
        return "sc:Integer"
    if pa.types.is_floating(kind):
        return "sc:Float"
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    return "sc:Text"
