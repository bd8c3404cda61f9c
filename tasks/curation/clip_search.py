"""Which clips are like this one, or like these words?

Clips are compared by the embeddings of their frames. Words are compared with these where the frame encoder has a text
tower, as CLIP-class models do, and it can be had here; else with the embeddings of captions and titles, by the text
encoder. An answer says which of the two it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from threading import Lock

import numpy as np
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from medgen.among import among
from medgen.catalog import Clip, ItemStatus, ReleaseClip, Tombstone
from models import ModelUnavailable
from models.encoders import MOBILENET, ClipEncoder, encoder_digest, load_encoder
from models.hub_files import is_here
from models.retrieval.vector_index import Neighbour, Space, VectorIndex
from models.text_encoders import OFFLINE, load_text_encoder, text_encoder_digest

STATUSES = ("", "kept", "rejected", "failed")
WIDENING = (1, 4, 16)  # times the clips that are asked for, until enough of them are of the wanted kind
MOST = 1_000  # clips that are looked at for an answer


@dataclass(frozen=True)
class Wanted:
    """Which clips are wanted. Empty: any.

    Args:
        status: kept, rejected or failed.
        release: name of a release that holds them.
        count: at most.
    """

    status: str = ""
    release: str = ""
    count: int = 24


@dataclass(frozen=True)
class Answer:
    """What was found.

    Args:
        clips: the most alike first.
        by: how clips were compared, as a sentence.
        indexed: clips that were compared.
    """

    clips: tuple[Neighbour, ...]
    by: str
    indexed: int


class NotIndexed(LookupError):
    """What is asked for is not in the index. The message says what to do."""


@dataclass(frozen=True)
class Encoders:
    """Encoders that words may be embedded by, beside those that the index names and that are on this machine.

    Args:
        frames: name or folder of the frame encoder; "": as in the index.
        text: name or folder of the text encoder; "": as in the index.
    """

    frames: str = ""
    text: str = ""


def like_clip(engine: Engine, index: VectorIndex, clip: str, wanted: Wanted) -> Answer:
    """Clips that look like this one, itself left out.

    Raises:
        NotIndexed: the index has no frames of it.
    """
    for space in index.spaces():
        vector = dict(index.vectors(space, [clip])).get(clip) if space.kind == "frames" else None
        if vector is not None:
            by = f"the cosine of their frames' embeddings by {space.encoder}"
            return _answer(engine, index, space, vector, wanted, by, without=clip)
    raise NotIndexed(
        f"the index has no embedding of {clip}: it was classified before embeddings were kept, or not indexed since. "
        "`medgen search --update` indexes what is on record"
    )


def like_words(engine: Engine, index: VectorIndex, words: str, wanted: Wanted, encoders: Encoders) -> Answer:
    """Clips that are like these words.

    Raises:
        NotIndexed: the index is empty.
        ModelUnavailable: no encoder of words is to be had.
    """
    spaces = index.spaces()
    frames = next((space for space in spaces if space.kind == "frames"), None)
    why = ""
    if frames:
        try:
            vector = _by_text_tower(frames, words, encoders.frames)
            by = f"the words, by the text tower of {frames.encoder}, with the embeddings of frames"
            return _answer(engine, index, frames, vector, wanted, by)
        except ModelUnavailable as error:
            why = f"; not with frames: {error}"
    text = next((space for space in spaces if space.kind == "text"), None)
    if text is None:
        raise NotIndexed(
            f"no caption or title is in the index{why}. `medgen search --update` indexes what is on record"
        )
    by = f"the words with captions, and with titles where there is none, by {text.encoder}{why}"
    return _answer(engine, index, text, _by_text_encoder(text, words, encoders.text), wanted, by)


def _answer(
    engine: Engine,
    index: VectorIndex,
    space: Space,
    vector: np.ndarray,
    wanted: Wanted,
    by: str,
    without: str = "",
) -> Answer:
    fit: list[Neighbour] = []
    for times in WIDENING:
        asked = min(MOST, times * (wanted.count + 1))
        found = index.nearest(space, vector, asked)
        passing = _passing(engine, [neighbour.clip for neighbour in found], wanted)
        fit = [n for n in found if n.clip in passing and n.clip != without][: wanted.count]
        if len(fit) == wanted.count or len(found) < asked or asked == MOST:
            break
    return Answer(tuple(fit), by, index.size(space))


def _passing(engine: Engine, clips: Sequence[str], wanted: Wanted) -> set[str]:
    """Those of the clips that are wanted and whose video was not taken down."""
    query = select(Clip.id).where(
        among(Clip.id, clips), ~select(Tombstone).where(Tombstone.video_id == Clip.video_id).exists()
    )
    if wanted.status:
        query = query.join(ItemStatus, ItemStatus.id == Clip.id).where(ItemStatus.status == wanted.status)
    if wanted.release:
        query = query.join(ReleaseClip, ReleaseClip.clip_id == Clip.id)
        query = query.where(ReleaseClip.release_name == wanted.release)
    with Session(engine) as session:
        return set(session.scalars(query))


_one_at_a_time = Lock()  # models are not shared by threads


def _by_text_tower(space: Space, words: str, encoder: str) -> np.ndarray:
    name = encoder or space.encoder
    if name == MOBILENET:
        raise ModelUnavailable(f"{MOBILENET} embeds no words")
    if not is_here(name):  # a page must not fetch gigabytes
        raise ModelUnavailable(f"{name} is not on this machine")
    if encoder_digest(name) != space.digest:
        raise ModelUnavailable(f"{name} is not the encoder that the clips were embedded by")
    with _one_at_a_time:
        embedded: np.ndarray = _text_tower(name).embed_texts([words])[0]
    return embedded


def _by_text_encoder(space: Space, words: str, encoder: str) -> np.ndarray:
    name = encoder or space.encoder
    if name not in OFFLINE and not is_here(name):
        raise ModelUnavailable(f"the text encoder {name} is not on this machine")
    if text_encoder_digest(name) != space.digest:
        raise ModelUnavailable(f"{name} is not the text encoder that captions and titles were embedded by")
    with _one_at_a_time:
        embedded: np.ndarray = _text_encoder(name).embed([words])[0]
    return embedded


@cache
def _text_tower(name: str) -> ClipEncoder:
    encoder = load_encoder(name)
    if not isinstance(encoder, ClipEncoder):
        raise ModelUnavailable(f"{name} embeds no words")
    return encoder


_text_encoder = cache(load_text_encoder)
