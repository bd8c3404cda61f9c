"""The page of a creation: video, storyboard, scores, checklist and sources. It runs no script and escapes all text."""

import base64
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from medgen import __version__
from medgen.ledger import Record
from medgen.store import Store
from tasks.creation.compose import COMPOSE
from tasks.creation.credentials import CREDENTIALS
from tasks.creation.on_record import Creation

IN_WORDS = {
    "near_copy": "near copy of a training clip",
    "not_measured": "could not be measured",
    "judged_wrong": "judged medically wrong",
    "below_score": "scores less than asked for",
}


def page(
    store: Store,
    creation: Creation,
    composed: Record,
    signed: Record,
    approval: Record | None,
    name: str,
    subtitles: str,
) -> str:
    """The HTML page.

    Args:
        composed, signed: records of compose and credentials.
        name: of the video and its subtitles beside the page, without ending.
        subtitles: WebVTT; they stand in the page too, because a browser takes none from a file beside it.
    """
    content: Any = creation.content
    return _template().render(
        creation=creation,
        board=creation.storyboard,
        content=content,
        approval=approval.detail if approval else None,
        composed=COMPOSE.detail(composed),
        credentials=CREDENTIALS.detail(signed),
        file=name,
        subtitles=base64.b64encode(subtitles.encode()).decode(),
        faults=IN_WORDS,
        score_names=sorted({name for row in content["shots"] if row["chosen"] for name in row["chosen"]["scores"]}),
        version=__version__,
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("tasks.creation", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("creation_page.html.jinja")
