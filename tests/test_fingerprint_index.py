"""The index of fingerprints gives what a fresh one gives, whatever came before: nights, damage, kills."""

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.search_in_memory import Candidate, rivals
from bench.search_in_memory import duplicates as duplicates_in_memory
from models.duplicates import candidates, index, search
from models.duplicates.candidates import candidate_pairs
from models.duplicates.fingerprint import PARTS, Fingerprint
from models.duplicates.index import Entry, FingerprintIndex, IndexDamaged, open_index
from models.duplicates.search import copies_of, duplicates
from tasks.curation.fingerprints import searched
from tests.conftest import ROOT

FILES = ("entries", "fingerprints", "hashes", "comparisons", "index.json")


def noise(seed: int, pieces: int = 1 << 28) -> Fingerprint:
    """A short clip of noise whose hashes share pieces with those of other clips when there are few different ones."""
    made = np.random.default_rng(seed)
    shown = int(made.integers(1, 5))

    def hashes(count: int) -> np.ndarray:
        bits = made.random((count, 256)) < 0.5
        for row in bits if pieces < 1 << 28 else ():
            for band in range(4):
                piece = np.random.default_rng(int(made.integers(pieces)))
                row[28 * band : 28 * band + 28] = piece.random(28) < 0.5
        return np.packbits(bits, axis=1)

    parts = np.stack([hashes((shown + 1) // 2)[:, :16] for _ in PARTS], axis=1)
    course = made.integers(0, 256, (int(made.integers(1, 16)), 64), np.uint8)
    return Fingerprint(0.25, hashes(shown), parts, made.random(shown) < 0.2, course)


def copied(of: Fingerprint, seed: int) -> Fingerprint:
    """A clip of which one is a copy."""
    course = of.course.astype(int) + np.random.default_rng(seed).integers(-6, 7, of.course.shape)
    return Fingerprint(of.step_s, of.hashes, of.parts, of.flat, np.clip(course, 0, 255).astype(np.uint8))


def clip_of(number: int) -> Fingerprint:
    """One of a few clips, some of which are copies of others."""
    film, version = divmod(number, 4)
    whole = Fingerprint(*_moving(film))
    return copied(whole, version) if version else whole


def _moving(film: int) -> tuple[float, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    made = np.random.default_rng(100 + film % 3)  # films that begin with the same picture
    hashes = made.integers(0, 256, (2, 32), np.uint8)
    own = np.random.default_rng(200 + film)
    course = own.integers(0, 256, (14, 64), np.uint8)
    return 0.25, hashes, made.integers(0, 256, (1, 9, 16), np.uint8), np.zeros(2, bool), course


@pytest.mark.parametrize("known", [None, 15, 45])
def test_looked_at_are_the_clips_that_share_a_piece(
    known: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same as the search in memory, for many clips a piece and for few, with much memory and with little."""
    monkeypatch.setattr(candidates, "MOST_APART", 129)
    for pieces in (200, 8):
        prints = [noise(seed, pieces) for seed in range(60)]
        order = np.random.default_rng(pieces).permutation(len(prints))
        expected = [
            (n, rival) for n, others in rivals([prints[place] for place in order], known=known) for rival in others
        ]
        with open_index(tmp_path / str(pieces)) as made:
            made.add(Entry(n, str(n), (0.0, 0.0, 0.0), of) for n, of in enumerate(prints[:40]))
            made.add(Entry(n, str(n), (0.0, 0.0, 0.0), of) for n, of in enumerate(prints[40:], start=40))
            for most, few in ((1 << 24, 1 << 20), (200, 13)):
                monkeypatch.setattr(candidates, "MOST_KEYS", most)
                monkeypatch.setattr(candidates, "CLIPS_AT_ONCE", few)
                monkeypatch.setattr(candidates, "MEETINGS_AT_ONCE", few)
                pairs = candidate_pairs(made.hashes(), order, known)
                assert [(int(p) >> 32, int(p) & 0xFFFFFFFF) for p in pairs] == expected
        assert expected


def ranked(made: FingerprintIndex, living: dict[int, Entry]) -> np.ndarray:
    """Places, the best first."""
    ids = sorted(living, key=lambda n: (living[n].facts, living[n].clip))
    return made.places(np.array(ids, np.int64))


def verdicts(made: FingerprintIndex, living: dict[int, Entry]) -> dict[str, tuple[str, float, float]]:
    """clip → what it copies, of the clips that there are now."""
    wanted = np.array(sorted(living), np.int64)
    held = made.holds(wanted, np.array([living[n].clip.encode() for n in wanted.tolist()]))
    made.add(living[n] for n in wanted[~held].tolist())
    found = duplicates(made, ranked(made, living))
    return {made.clip(p): (made.clip(k), match.similarity, match.overlap_s) for p, (k, match) in found.items()}


NIGHTS = st.lists(
    st.tuples(st.sets(st.integers(0, 19), max_size=14), st.sets(st.integers(0, 19), max_size=4)), min_size=2, max_size=5
)


@settings(max_examples=12, deadline=None)
@given(NIGHTS, st.integers(1, 4), st.randoms(use_true_random=False))
def test_any_number_of_nights_give_what_a_fresh_index_gives(
    nights: list[tuple[set[int], set[int]]], most: int, chance: random.Random
) -> None:
    """Clips come, go and change their ranks; a bucket has room for few."""
    ids: dict[int, Entry] = {}
    newest: dict[int, int] = {}
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(candidates, "MOST_IN_BUCKET", most)
        for night, (present, anew) in enumerate(nights):
            for clip in present:
                if clip not in newest or clip in anew:
                    newest[clip] = len(ids)
                    facts = (chance.random(), 0.0, 0.0)
                    ids[len(ids)] = Entry(len(ids), f"c{clip}", facts, clip_of(clip))
            living = {newest[clip]: ids[newest[clip]] for clip in present}
            with open_index(Path(folder) / "kept") as made:
                found = verdicts(made, living)
                assert verdicts(made, living) == found
            with open_index(Path(folder) / str(night)) as fresh:
                assert verdicts(fresh, living) == found


def test_entries_are_found_in_whatever_order_their_ids_come(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).permutation(60)
    with open_index(tmp_path) as made:
        for some in (ids[:1], ids[1:5], ids[5:5], ids[5:40], np.sort(ids[40:]), np.arange(60, 70)):
            made.add(Entry(n, str(n), (0.0, 0.0, 0.0), clip_of(0)) for n in some.tolist())
        held = np.arange(70)
        assert made.ids[made.places(held)].tolist() == held.tolist()
        assert made.holds(np.array([70, 3]), np.array([b"70", b"3"])).tolist() == [False, True]
    with open_index(tmp_path) as again:
        assert again.ids[again.places(held)].tolist() == held.tolist()


def test_verdicts_are_those_of_the_search_in_memory(tmp_path: Path) -> None:
    living = {n: Entry(n, f"c{n}", (float(n * 7 % 20), 0.0, 0.0), clip_of(n)) for n in range(20)}
    with open_index(tmp_path) as made:
        found = verdicts(made, living)
    expected = duplicates_in_memory(Candidate(e.clip, e.fingerprint, (*e.facts, e.clip)) for e in living.values())
    assert {clip: kept for clip, (kept, *_) in found.items()} == expected
    assert len(expected) == 15


def test_a_pair_is_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of a pair, that it is none of copies too, stays on file, also when a process is killed."""
    asked: list[None] = []
    real = search.compare

    def counted(first: Fingerprint, second: Fingerprint) -> search.Match | None:
        asked.append(None)
        return real(first, second)

    monkeypatch.setattr(search, "compare", counted)
    living = {n: Entry(n, f"c{n}", (float(n), 0.0, 0.0), clip_of(n)) for n in range(20)}
    with open_index(tmp_path) as made:
        first = verdicts(made, living)
    assert first and len(asked) > len(first)
    before = len(asked)
    with open_index(tmp_path) as made:
        assert verdicts(made, living) == first and len(asked) == before
        copies_of(made, np.arange(4), np.arange(4, 20))
        known = len(asked)
        copies_of(made, np.arange(4), np.arange(4, 20))
        assert len(asked) == known
        del living[0]
        verdicts(made, living)
        assert len(asked) > known  # what was dropped for it is compared with others now


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_index_is_made_anew(name: str, tmp_path: Path) -> None:
    living = {n: Entry(n, f"c{n}", (float(n), 0.0, 0.0), clip_of(n)) for n in range(12)}
    expected = searched(tmp_path, lambda made: verdicts(made, living))
    path = tmp_path / name
    good = path.read_bytes()
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 1
    for bad in (bytes(damaged), b"", good[: len(good) // 2], b"\0" * len(good), good + b"\1" * 1000):
        path.write_bytes(bad)
        assert searched(tmp_path, lambda made: verdicts(made, living)) == expected
        path.write_bytes(good) if len(bad) > len(good) else None
    path.unlink()
    assert searched(tmp_path, lambda made: verdicts(made, living)) == expected


def test_ids_of_another_catalog_and_of_another_version_empty_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = {n: Entry(n, f"c{n}", (float(n), 0.0, 0.0), clip_of(n)) for n in range(8)}
    other = {n: Entry(n, f"d{n}", (float(n), 0.0, 0.0), clip_of(n + 8)) for n in range(8)}
    first = searched(tmp_path, lambda made: verdicts(made, mine))
    with open_index(tmp_path) as made, pytest.raises(IndexDamaged, match="another catalog"):
        verdicts(made, other)
    assert searched(tmp_path, lambda made: verdicts(made, other)).keys() == {"d1", "d2", "d3", "d5", "d6", "d7"}
    assert searched(tmp_path, lambda made: verdicts(made, mine)) == first
    with open_index(tmp_path) as made:
        assert len(made) == 8
        for wrong in (Entry(3, "c3", (0.0, 0.0, 0.0), clip_of(3)), Entry(99, "c" * 33, (0.0, 0.0, 0.0), clip_of(3))):
            with pytest.raises(ValueError, match=r"already|too long"):
                made.add([wrong])
        with pytest.raises(KeyError):
            made.places(np.array([3, 99]))
    monkeypatch.setattr(index, "_HEADER", {"format": 0})
    with open_index(tmp_path) as made:
        assert len(made) == 0


FILL_FOR_EVER = """
import sys
from pathlib import Path
import numpy as np
from models.duplicates.fingerprint import Fingerprint
from models.duplicates.index import Entry, open_index

with open_index(Path(sys.argv[1])) as made:
    for n in range(len(made), len(made) + 100_000):
        course = np.full((6, 64), n % 256, np.uint8)
        parts = np.zeros((1, 9, 16), np.uint8)
        fingerprint = Fingerprint(0.25, np.zeros((1, 32), np.uint8), parts, np.zeros(1, bool), course)
        made.add([Entry(n, f"c{n}", (0.0, 0.0, 0.0), fingerprint)])
        made.remember([(n, n - 1, None)])
"""


def test_killed_while_it_adds_it_holds_what_was_added(tmp_path: Path) -> None:
    """Two processes, each killed at some moment; then a tail that no entry points to."""
    held = 0
    for _ in range(2):
        size = _bytes(tmp_path)
        with subprocess.Popen([sys.executable, "-c", FILL_FOR_EVER, str(tmp_path)], cwd=ROOT) as process:
            while _bytes(tmp_path) < size + 10_000 and process.poll() is None:
                time.sleep(0.005)
            process.kill()
        with (tmp_path / "fingerprints").open("ab") as file:
            file.write(b"half a fingerprint")
        with open_index(tmp_path) as made:
            assert len(made) > held
            held = len(made)
            for n in range(held):
                assert made.clip(n) == f"c{n}" and (made.fingerprint(n).course == n % 256).all()
            made.hashes()
            assert sum(len(rows) for rows in made.comparisons()) >= held - 2


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*"))
