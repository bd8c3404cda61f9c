"""Hands out what a study found as files: every answer as CSV and Parquet, results as JSON. Names the systems."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from apps.study.ratings import Ratings
from tasks.evaluation.study import AXES

FORMULA = ("=", "+", "-", "@", "\t")  # spreadsheets take text that begins so for a formula


def export(ratings: Ratings, results: dict[str, Any], folder: Path) -> list[Path]:
    """Writes answers.csv, answers.parquet and results.json; files of an earlier export are replaced. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    table = answers_table(ratings)
    names = [folder / name for name in ("answers.csv", "answers.parquet", "results.json")]
    plain = table
    for name in ("comment", "prompt", "first_system", "second_system"):
        texts = [f"'{text}" if text.startswith(FORMULA) else text for text in table[name].to_pylist()]
        plain = plain.set_column(table.schema.get_field_index(name), name, pa.array(texts, pa.string()))
    pyarrow.csv.write_csv(plain, names[0])
    pyarrow.parquet.write_table(table, names[1])
    names[2].write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    return names


def answers_table(ratings: Ratings) -> pa.Table:
    """One row for each answer: pair, prompt, both systems with the digests of the videos, and what was chosen.

    Choices are names of systems, "both_lose" or "equally_good"; of attention checks "intact" or "broken" in place of
    names; null in a study of errors, whose answers are `error_level`. Raters are numbers.
    """
    rows = []
    for answer in ratings.answers:
        pair = ratings.pairs[answer.pair]
        names = {"first": pair.first_system, "second": pair.second_system, "neither": "both_lose"}
        names |= {"both": "equally_good"}
        if pair.kind == "check":
            names |= {place: "intact" if place == pair.expected else "broken" for place in ("first", "second")}
        rows.append(
            {"study": answer.study_name, "rater": answer.rater, "pair": pair.number, "kind": pair.kind,
             "prompt_id": pair.prompt_id, "prompt": pair.prompt, "category": pair.category,
             "first_system": pair.first_system, "second_system": pair.second_system,
             "first_sha256": pair.first_sha256, "second_sha256": pair.second_sha256,
             "second_was_left": answer.swapped}
            | {axis: names.get(getattr(answer, axis)) for axis in AXES}
            | {"error_level": answer.error_level, "comment": answer.comment, "seconds": answer.seconds,
               "revisions": answer.revisions,
               "answered_at": answer.answered_at, "revised_at": answer.revised_at}
        )  # fmt: skip
    text = ("study", "kind", "prompt_id", "prompt", "category", "first_system", "second_system")
    schema = pa.schema(
        [("study", pa.string()), ("rater", pa.int32()), ("pair", pa.int32())]
        + [(name, pa.string()) for name in (*text[1:], "first_sha256", "second_sha256")]
        + [("second_was_left", pa.bool_())]
        + [(name, pa.string()) for name in AXES]
        + [("error_level", pa.int32()), ("comment", pa.string())]
        + [("seconds", pa.float64()), ("revisions", pa.int32())]
        + [(name, pa.timestamp("us", "UTC")) for name in ("answered_at", "revised_at")]
    )
    return pa.Table.from_pylist(rows, schema=schema)
