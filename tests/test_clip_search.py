"""Clips are found by what they show and by what is said of them, in files and in pgvector alike; and semantic
duplicates are those that comparing every pair finds."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from medgen.catalog import Tombstone, open_catalog
from medgen.ledger import Work, open_ledger
from medgen.shard import Item
from models.duplicates.fingerprint import fingerprint
from models.duplicates.index import Entry as PrintEntry
from models.duplicates.semantic import semantic_duplicates
from models.encoders import encoder_digest, load_encoder
from models.retrieval.vector_file import VectorFile
from models.retrieval.vector_index import Entry, Space, VectorIndex, pack, unit, unpack
from models.text_encoders import MINILM_INT8, load_text_encoder
from tasks.curation import clip_vectors, vector_table
from tasks.curation.clip_search import Encoders, NotIndexed, Wanted, like_clip, like_words
from tasks.curation.clip_vectors import fill_frames, fill_texts, open_index, remove_taken_down
from tasks.curation.deduplicate import DeduplicateParams, compare, deduplicate
from tasks.curation.semantic_copies import semantic_copies
from tasks.curation.vector_table import VectorTable
from tests.recorded import Recorder
from tests.test_frames import words_tokenizer

D = 24


@pytest.fixture(params=["files", "pgvector"])
def index(request: pytest.FixtureRequest, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VectorIndex:
    """An empty index of either kind, which is the installation's."""
    if request.param == "pgvector":  # which the embedded server has
        made = open_index(open_catalog(), writing=True)
        assert isinstance(made, VectorTable)
        return made
    for name in ("make_table", "has_table"):
        monkeypatch.setattr(clip_vectors, name, lambda engine: False)
    made = open_index(open_catalog(), writing=True)
    assert isinstance(made, VectorFile)
    return made


def vectors_of(count: int, seed: int) -> np.ndarray:
    """Unit vectors in a few heaps, as embeddings lie."""
    chance = np.random.default_rng(seed)
    heaps = chance.normal(size=(5, D))
    return unit(heaps[chance.integers(0, 5, count)] + 0.4 * chance.normal(size=(count, D)))


def test_an_index_answers_as_comparing_all_does_through_every_change(index, monkeypatch):
    space, other = Space("frames", "a" * 64, "e", D), Space("text", "b" * 64, "t", D)
    assert index.spaces() == [] and index.nearest(space, np.ones(D), 3) == [] and index.held(space, ["c1"]) == {}
    chance = np.random.default_rng(3)
    truth: dict[str, np.ndarray] = {}
    monkeypatch.setattr(vector_table, "PAGE", 40)
    for turn in range(6):
        clips = [f"c{number:05d}" for number in chance.choice(160, 60, replace=False)]
        rows = vectors_of(60, turn)
        index.put(space, [Entry(clip, turn + 1, row) for clip, row in zip(clips, rows, strict=True)])
        truth |= dict(zip(clips, rows, strict=True))
        gone = sorted(truth)[turn::17]
        index.remove([*gone, "never-there"])
        for clip in gone:
            del truth[clip]
        wanted = vectors_of(1, 100 + turn)[0]
        names = sorted(truth)
        cosines = np.array([truth[name] @ wanted for name in names])
        found = index.nearest(space, wanted, 10)
        assert {n.clip for n in found[:8]} <= {names[at] for at in np.argsort(-cosines)[:10]}  # half precision
        assert [n.similarity for n in found] == sorted((n.similarity for n in found), reverse=True)
        assert all(n.similarity == pytest.approx(truth[n.clip] @ wanted, abs=2e-3) for n in found)
        assert index.size(space) == len(truth) and set(index.held(space, [*names, "x"])) == set(names)
        read = dict(index.vectors(space, [*names, "x"]))
        assert read.keys() == truth.keys() and all(read[name] @ truth[name] > 0.999 for name in names)
    index.put(other, [Entry("c00001", 0, vectors_of(1, 0)[0])])
    assert {s.kind for s in index.spaces()} == {"frames", "text"} and index.size(other) == 1
    with pytest.raises(ValueError, match="no vector of"):
        index.put(space, [Entry("c9", 1, np.ones(D + 1))])
    if isinstance(index, VectorFile):  # killed while it was written: what was not whole is not there
        place = index._place(space)
        for name, size in (("vectors", 2 * D * 3 + 1), ("rows", 5)):
            with (place / name).open("ab") as file:
                file.write(b"x" * size)
        assert index.size(space) == len(truth)
        index.put(space, [Entry("c99999", 9, vectors_of(1, 7)[0])])
        assert index.size(space) == len(truth) + 1
        assert index.nearest(space, vectors_of(1, 7)[0], 1)[0].clip == "c99999"
        (place / "space.json").write_text("{}")  # of another version: it is made anew
        assert index.held(space, ["c99999"]) and index.spaces() == [other]
        index.put(space, [Entry("c1", 1, vectors_of(1, 7)[0])])
        assert index.size(space) == 1


def test_a_large_space_is_searched_by_hnsw_and_misses_little(home, monkeypatch):
    monkeypatch.setattr(vector_table, "FEW", 1_000)
    index = open_index(open_catalog(), writing=True)
    space, rows = Space("frames", "a" * 64, "e", D), vectors_of(1_500, 5)
    index.put(space, [Entry(f"c{n:05d}", 1, row) for n, row in enumerate(rows)])
    with open_catalog().connect() as connection:
        made = connection.exec_driver_sql("SELECT indexdef FROM pg_indexes WHERE tablename = 'clip_vector'").scalars()
        assert any("hnsw" in line for line in made)
    right = 0
    for wanted in vectors_of(20, 9):  # of other heaps: a search from outside, as of words among pictures
        best = {f"c{n:05d}" for n in np.argsort(-(rows @ wanted))[:10]}
        right += len(best & {n.clip for n in index.nearest(space, wanted, 10)})
    assert right >= 190


def test_what_is_packed_is_read_back_and_nothing_else():
    rows = vectors_of(7, 1)
    assert np.abs(unpack(pack(rows)) - rows).max() < 1e-3
    for data in (b"", b"no vectors", pack(rows)[:-1]):
        with pytest.raises(ValueError, match="no vectors"):
            unpack(data)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(0, 10**6), st.floats(0.55, 0.999), st.booleans())
def test_semantic_duplicates_are_those_that_comparing_every_pair_finds(count, seed, threshold, twice):
    rows = vectors_of(count, seed)
    rows = np.concatenate([rows, rows[: count // 3]]) if twice else rows
    cosines = rows @ rows.T
    if (np.abs(cosines[np.triu_indices(len(rows), 1)] - threshold) < 1e-5).any():
        return  # rounding decides
    naive: dict[int, int] = {}
    for row in range(len(rows)):
        if row not in naive:
            naive |= {o: row for o in range(row + 1, len(rows)) if o not in naive and cosines[row, o] >= threshold}
    found = semantic_duplicates(rows, threshold)
    assert {copy: better for copy, (better, _) in found.items()} == naive
    assert all(cosine == pytest.approx(cosines[copy, better], abs=1e-4) for copy, (better, cosine) in found.items())


def recorded(embed: Callable[[str], np.ndarray], encoder: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Clips on record with embeddings: word → (clip id, lineage). The clip of the dog is rejected; that of the scan has
    a caption which its title does not tell."""
    ledger = open_ledger()
    recorder = Recorder(ledger)
    titles = {
        "ultrasound": "Echo of a heart valve",
        "scan": "Part 7",
        "dog": "My dog at the beach",
        "street": "Traffic",
    }
    found = recorder.discover("films", [{"url": f"https://x.example/{w}", "title": t} for w, t in titles.items()])
    name = Path(encoder).name if Path(encoder).is_dir() else encoder
    clips = {}
    for word in titles:
        vector = embed(word)[None]
        facts = {"name": name, "digest": encoder_digest(encoder), "dimension": vector.shape[1]}
        file = ledger.store.put_bytes(word.encode(), "video/mp4")
        _, [(clip, lineage)] = recorder.cut(f"https://x.example/{word}", file, found, embedded=(facts, vector))
        status, lineage = recorder.judge(clip, lineage, words=99.0 if word == "dog" else 0.0)
        if status == "kept":
            text = "A CT of the lungs of a patient" if word == "scan" else f"A video: {titles[word]}"
            lineage = recorder.caption(clip, lineage, text)
        clips[word] = clip, lineage
    return clips


def reading_clip(folder: Path) -> Path:
    """A random CLIP that reads four words, saved as its real siblings are."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision, text = {**layers, "image_size": 32, "patch_size": 8}, {**layers, "vocab_size": 50}
    t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    words_tokenizer(["ultrasound", "scan", "street", "dog"]).save_pretrained(folder)
    return folder


def test_words_are_compared_with_frames_by_a_text_tower_else_with_captions_and_titles(index, tmp_path):
    folder = str(reading_clip(tmp_path / "reading-clip"))
    tower = load_encoder(folder)
    clips = recorded(lambda word: tower.embed_texts([word])[0], folder)  # pictures that show just that
    ledger, engine = open_ledger(), open_catalog()
    with pytest.raises(NotIndexed, match="medgen search --update"):
        like_words(engine, index, "dog", Wanted(), Encoders())
    assert fill_frames(ledger, index) == 4 and fill_frames(ledger, index) == 0
    texts = load_text_encoder(MINILM_INT8)
    assert fill_texts(ledger, index, MINILM_INT8, texts.embed) == 4
    assert fill_texts(ledger, index, MINILM_INT8, texts.embed) == 0

    with_tower = Encoders(frames=folder)
    for word, (clip, _) in clips.items():
        answer = like_words(engine, index, word, Wanted(), with_tower)
        assert answer.clips[0].clip == clip and answer.clips[0].similarity > 0.99 and answer.indexed == 4
        assert "by the text tower of reading-clip" in answer.by
    # Rejected clips are found as released ones are, or left out.
    dog = clips["dog"][0]
    assert dog not in {n.clip for n in like_words(engine, index, "dog", Wanted("kept"), with_tower).clips}
    only = like_words(engine, index, "scan", Wanted("rejected"), with_tower)
    assert [n.clip for n in only.clips] == [dog]

    # Without the encoder at hand captions and titles serve, and the answer says so.
    said = like_words(engine, index, "computed tomography of the chest", Wanted(count=2), Encoders())
    assert said.clips[0].clip == clips["scan"][0]
    assert "captions, and with titles where there is none, by minilm_int8; not with frames: reading-clip" in said.by
    assert like_words(engine, index, "a pet", Wanted(count=1), Encoders()).clips[0].clip == dog  # by its title

    like = like_clip(engine, index, dog, Wanted())
    assert dog not in {n.clip for n in like.clips} and len(like.clips) == 3 and "frames" in like.by
    with pytest.raises(NotIndexed, match="no embedding of c0"):
        like_clip(engine, index, "c0", Wanted())

    # What is taken down is not shown from that moment, and leaves the index.
    with open_catalog().begin() as connection:
        video = clips["dog"][1]["download"].subject
        connection.execute(Tombstone.__table__.insert().values(video_id=video, url="u", reason="r", detail={}))
    assert dog not in {n.clip for n in like_words(engine, index, "dog", Wanted(), with_tower).clips}
    remove_taken_down(engine, index)
    assert all(index.held(space, [dog]) == {} and index.size(space) == 3 for space in index.spaces())
    assert fill_frames(ledger, index) == 0


def test_the_site_and_the_command_say_how_clips_were_compared(home, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from apps.audit.application import create_site
    from apps.cli import app

    tower = load_encoder(folder := str(reading_clip(tmp_path / "reading-clip")))
    clips = recorded(lambda word: tower.embed_texts([word])[0], folder)

    def told(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["search", *arguments])
        assert done.exit_code == code, done.output
        return done.stdout if not code else done.output

    found = json.loads(told("scan", "--frame-encoder", folder, "--json"))
    assert found["clips"][0]["id"] == clips["scan"][0] and "text tower" in found["by"]
    rows = json.loads(told("--like", clips["scan"][0], "--status", "rejected", "--json"))["clips"]
    assert [(row["id"], row["reason"]) for row in rows] == [(clips["dog"][0], "overlay_text")]
    assert "by the words with captions" in " ".join(told("heart").split())
    assert "say what to look for" in told(code=1) and "no such status" in told("x", "--status", "y", code=1)

    with TestClient(create_site(), base_url="http://127.0.0.1") as browser:
        page = browser.get("/similar", params={"words": "heart valve"}).text
        assert "Compared by <bdi>the words with captions" in page and clips["ultrasound"][0] in page
        assert "not with frames: reading-clip is not on this machine" in page
        page = browser.get("/similar", params={"clip": clips["dog"][0], "status": "kept"}).text
        assert page.count("like this one") == 3 and "embeddings by reading-clip" in page
        assert "no embedding of cnone" in browser.get("/similar", params={"clip": "cnone"}).text
        assert f"/similar?clip={clips['dog'][0]}" in browser.get(f"/clips/{clips['dog'][0]}").text
        assert browser.get("/similar", params={"words": "x", "status": "odd"}).status_code == 422


def test_semantic_duplicates_are_dropped_only_where_that_is_asked_for(index, tmp_path):
    chance = np.random.default_rng(0)
    heart, dog = unit(chance.normal(size=(2, 1376)))
    shown = {"ultrasound": heart, "scan": unit(heart + 0.002 * chance.normal(size=1376)), "dog": dog, "street": -heart}
    clips = recorded(lambda word: shown[word], "mobilenet_v2")
    prints = [
        PrintEntry(lineage["quality"].id, clip, (0.0, 2.0 - place, 1e3), fingerprint(noise, 0.25))
        for place, (clip, lineage) in enumerate(clips.values())
        for noise in [chance.integers(0, 256, (24, 90, 160), dtype=np.uint8)]
    ]
    items = [Item(clip, {step: run.id for step, run in lineage.items()}) for clip, lineage in clips.values()]

    def copies(semantic: Any) -> dict[str, dict[str, Any]]:
        return compare(
            items, tmp_path / "prints", lambda ids: [p for p in prints if p.id in set(ids)], semantic=semantic
        )

    assert copies(None) == {}
    found = copies(partial(semantic_copies, threshold=0.95))
    assert found.keys() == {clips["scan"][0]}
    better = found[clips["scan"][0]]["copy_of"]
    assert better["clip"] == clips["ultrasound"][0] and better["metric"] == "embedding_cosine"
    assert better["similarity"] == pytest.approx(float(heart @ shown["scan"]), abs=1e-3) and better["threshold"] == 0.95
    work = Work(clips["scan"][0], context={"copy_of": better})
    store = open_ledger().store
    dropped = deduplicate(work, store, DeduplicateParams(semantic_duplicates=0.95))
    assert (dropped.status, dropped.reason) == ("rejected", "semantic_duplicate")
    assert dropped.detail == {
        "duplicate_of": clips["ultrasound"][0], "metric": "embedding_cosine", "score": better["similarity"],
        "threshold": 0.95,
    }  # fmt: skip
    assert deduplicate(work, store, DeduplicateParams(near_duplicates="keep")).status == "kept"
