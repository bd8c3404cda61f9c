"""Metadata of a release as Croissant 1.0 (MLCommons), so that other tools can read it as a dataset."""

from collections.abc import Mapping
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
    "metadata": ("metadata.parquet", "application/vnd.apache.parquet", "A row for each clip."),
    "rejected": ("rejected.parquet", "application/vnd.apache.parquet", "What was left out, and why."),
    "funnel": ("funnel.json", "application/json", "What each step kept."),
    "card": ("README.md", "text/markdown", "The dataset card."),
    "manifest": ("manifest.json", "application/json", "All files with their sha256."),
}


def croissant(
    release: Mapping[str, Any], outputs: Mapping[str, str], schema: pa.Schema | None, licences: Mapping[str, int]
) -> dict[str, Any]:
    """The metadata.

    Args:
        release: columns of the release.
        outputs: role → digest of its files; only those that `FILES` names are listed.
        schema: of its metadata table.
        licences: licence → clips; each clip stands under its own.
    """
    fields = _fields(schema)
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": release["name"],
        "description": (
            f"{release['clips']} captioned medical video clips chosen by medgen. The manifest has sha256 "
            f"{release['digest']}. Each clip stands under the licence of its source video."
        ),
        "license": sorted(licences) or ["not stated"],
        "url": f"urn:medgen:release:{release['name']}",
        "version": "1.0.0",
        "datePublished": release["created_at"].date().isoformat(),
        "creator": {"@type": "sc:Organization", "name": "whoever ran medgen"},
        "isLiveDataset": False,
        "distribution": _distribution(release, outputs),
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "clips-metadata",
                "name": "clips-metadata",
                "description": "A record for each clip: scores, captions, source, licence, keys of its step runs.",
                "field": fields,
            }
        ]
        if fields
        else [],
    }


def _distribution(release: Mapping[str, Any], outputs: Mapping[str, str]) -> list[dict[str, Any]]:
    """The files of a release: those that are listed, its folder, and its clips as a set."""
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
    folder = {
        "@type": "cr:FileObject",
        "@id": "release",
        "name": "release",
        "description": "The folder of the release.",
        "contentUrl": ".",
        "encodingFormat": "application/x-directory",
        # A folder has no bytes of its own: its manifest stands for it.
        "sha256": release["digest"],
    }
    clips = {
        "@type": "cr:FileSet",
        "@id": "clips",
        "name": "clips",
        "description": "The clips, H.264 in MP4.",
        "containedIn": {"@id": "release"},
        "encodingFormat": "video/mp4",
        "includes": "clips/*.mp4",
    }
    return [*files, folder, clips]


def _fields(schema: pa.Schema | None) -> list[dict[str, Any]]:
    return [
        {
            "@type": "cr:Field",
            "@id": f"clips-metadata/{column.name}",
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
