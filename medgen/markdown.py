"""Markdown for people: cards and reports from templates, tables, and the text of others made harmless."""

import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

NAME = " .-+_/"  # what names may hold beside letters and digits
SENTENCE = " .,:;-+_/%×()[]'?!"  # what sentences may


def render(package: str, template: str, **values: Any) -> str:
    """The text of a template that lies in a package's folder.

    Templates have the filters `table` and `cell`, and a value that is missing is an error.

    Args:
        package: such as "tasks.training".
        template: name of the file, such as "model_card.md.jinja".
    """
    return _environment(package).get_template(template).render(values)


def table(rows: Sequence[Mapping[str, object]], align: str = "") -> str:
    """Rows of one shape as a table, the keys of the first its head; "None." without any. Cells stand as they are.

    Args:
        align: "l" or "r" for each column; "" leaves it to the reader's program.
    """
    if not rows:
        return "None."
    head = list(rows[0])
    if align:
        rule = "|" + "|".join({"l": "---", "r": "---:"}[letter] for letter in align) + "|"
    else:
        rule = _line(["---"] * len(head))
    return "\n".join([_line(head), rule, *(_line([row[name] for name in head]) for row in rows)])


def cell(value: object, punctuation: str = NAME) -> str:
    """Text of others with nothing that means something in Markdown: letters with their marks, digits and some
    punctuation."""
    return "".join(c if c.isalnum() or c in punctuation or _is_mark(c) else " " for c in str(value)).strip()


def _is_mark(char: str) -> bool:
    return unicodedata.category(char) in ("Mn", "Mc")  # vowels of Devanagari, for example


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


@cache
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=PackageLoader(package, "."),
        autoescape=False,  # nothing here becomes HTML
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"table": table, "cell": cell}
    return environment
