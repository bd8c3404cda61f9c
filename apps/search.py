"""`medgen search`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from apps.console import Json, err, out, print_json, report_expected_errors
from medgen.counted import counted

if TYPE_CHECKING:
    from medgen.ledger import Ledger
    from models.retrieval.vector_index import VectorIndex


def search(
    words: Annotated[str, typer.Argument(metavar="WORDS", help="What the clips should be like, in words.")] = "",
    like: Annotated[str, typer.Option(metavar="CLIP", help="Find clips that look like this one: its id.")] = "",
    status: Annotated[str, typer.Option(help="Only clips that are kept, rejected or failed.")] = "",
    release: Annotated[str, typer.Option(metavar="NAME", help="Only clips of this release.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=500, help="Clips to show.")] = 20,
    update: Annotated[bool, typer.Option("--update", help="First index what is new on record.")] = False,
    frame_encoder: Annotated[
        str, typer.Option(help="Where the clips' frame encoder is, if not in the hub's cache: a folder.")
    ] = "",
    text_encoder: Annotated[str, typer.Option(help="Encoder of captions and titles. [minilm_int8]")] = "",
    as_json: Json = False,
) -> None:
    """Find clips by what they show, released and rejected: like these words, or like another clip."""
    from apps.similar_clips import described
    from medgen.errors import RunStopped
    from medgen.ledger import open_ledger
    from models import ModelUnavailable
    from tasks.curation.clip_search import STATUSES, Encoders, NotIndexed, Wanted, like_clip, like_words
    from tasks.curation.clip_vectors import open_index

    words = words.strip()
    with report_expected_errors(NotIndexed, ModelUnavailable):
        if (words and like) or not (words or like or update):
            raise RunStopped("say what to look for: words, or --like CLIP")
        if status not in STATUSES:
            raise RunStopped(f"no such status: {status!r}; there are {', '.join(filter(None, STATUSES))}")
        ledger = open_ledger()
        index = open_index(ledger.engine, writing=True)
        if update or not index.spaces():
            _update(ledger, index, text_encoder)
        if not words and not like:
            return
        wanted = Wanted(status, release, limit)
        if like:
            answer = like_clip(ledger.engine, index, like, wanted)
        else:
            answer = like_words(ledger.engine, index, words, wanted, Encoders(frame_encoder, text_encoder))
        rows = described(ledger.engine, answer.clips)
        if as_json:
            print_json({"by": answer.by, "indexed": answer.indexed, "clips": rows})
        else:
            _print(rows, answer.by, answer.indexed)


def _update(ledger: "Ledger", index: "VectorIndex", encoder: str) -> None:
    from models.text_encoders import MINILM_INT8, load_text_encoder
    from tasks.curation.clip_vectors import fill_frames, fill_texts, remove_taken_down

    encoder = encoder or MINILM_INT8
    remove_taken_down(ledger.engine, index)
    frames = fill_frames(ledger, index)
    loaded = load_text_encoder(encoder)
    texts = fill_texts(ledger, index, encoder, loaded.embed)
    err.print(f"indexed {counted(frames, 'clip')} by their frames, {texts} by their words", highlight=False)


def _print(rows: Sequence[dict[str, Any]], by: str, indexed: int) -> None:
    table = Table(title=f"Of {indexed:,} indexed clips, by {escape(by)}", title_justify="left")
    for column in ("similarity", "clip", "verdict", "category", "title"):
        table.add_column(column, overflow="fold")
    for row in rows:
        verdict = row["status"] + (f": {row['reason']}" if row["reason"] else "")
        cells = (f"{row['similarity']:.3f}", row["id"], verdict, row["category"] or "", row["title"])
        table.add_row(*(escape(cell) for cell in cells))
    out.print(table)
