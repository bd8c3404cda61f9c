"""The keyword dictionary: what counts as a medical word in a listing, and what hides it."""

import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.relevance import (
    MAX_TEXT_CHARS,
    KeywordDictionary,
    keyword_digest,
    load_keyword_dictionary,
)

MEDICAL = load_keyword_dictionary()
ACCENTS = ["", "\u0300", "\u0301", "\u0308", "\u0327"]


def small(*terms, stop=()):
    return KeywordDictionary(tuple(terms), tuple(stop), digest="test")


def test_finds_words_and_compounds_sorted_and_once():
    found = small("suture", "heart valve", "x ray").match("X-ray, sutures; SUTURE the heart\n valve. suture")
    assert found == ["heart valve", "suture", "x ray"]


@pytest.mark.parametrize(
    ("term", "text"),
    [
        ("biopsy", "two biopsies"),
        ("abscess", "abscesses"),
        ("diagnosis", "differential diagnoses"),
        ("sinus", "clear your sinuses"),
        ("nurse", "a nurse's day"),
        ("crohn's", "Crohns disease"),
        ("crohn's", "Crohn’s disease"),
        ("césarienne", "CESARIENNE"),
        ("c section", "c_section"),
        ("mri", "ＭＲＩ of the knee"),
    ],
)
def test_spellings_of_one_term(term, text):
    assert small(term).match(text) == [term]


def test_everyday_words_alone_are_not_medical():
    text = "My heart came back, the cell phone operation in swimming: breast stroke and a stroke of luck"
    assert MEDICAL.match(text) == []


@pytest.mark.parametrize(
    "text",
    ["Minecraft HOSPITAL tour", "a plant-surgery vlog", "Surgery Simulator, part 3", "Fuel injection explained"],
)
def test_stop_contexts_hide_the_terms_inside_them(text):
    assert MEDICAL.match(text) == []


def test_stop_context_hides_only_its_own_occurrence():
    assert MEDICAL.match("Minecraft hospital, then a real hospital") == ["hospital"]
    assert MEDICAL.match("surgery simulator for laparoscopy") == ["laparoscopy"]


def test_stop_context_does_not_hide_a_longer_term_that_reaches_out_of_it():
    dictionary = small("general hospital ward", "hospital", stop=["general hospital"])
    assert dictionary.match("general hospital ward") == ["general hospital ward"]


def test_nested_and_overlapping_stop_contexts():
    dictionary = small("b", "d", stop=["a b c d e", "b c", "x d"])
    assert dictionary.match("a b c d e") == []
    assert dictionary.match("b c d") == ["d"]


@given(st.sampled_from(MEDICAL.terms), st.data())
def test_case_and_accents_do_not_matter(term, data):
    disguised = "".join(
        data.draw(st.sampled_from([char, char.upper()]))
        + (data.draw(st.sampled_from(ACCENTS)) if char.isalpha() else "")
        for char in term
    )
    form = data.draw(st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
    assert MEDICAL.match(unicodedata.normalize(form, disguised)) == MEDICAL.match(term)
    assert term in MEDICAL.match(term)


@given(st.text())
def test_folding_twice_is_folding_once(text):
    assert MEDICAL.match(text.upper().lower()) == MEDICAL.match(text.lower())


@given(
    st.sampled_from(MEDICAL.terms),
    st.text(alphabet="qwz7", min_size=1, max_size=5),
    st.booleans(),
)
def test_never_matches_inside_a_longer_word(term, extra, before):
    # No term or plural begins or ends in these letters beside another, so nothing else can arise.
    text = extra + term if before else term + extra
    assert term not in MEDICAL.match(text)


@given(st.text(max_size=300))
def test_any_text_gives_sorted_known_terms(text):
    found = MEDICAL.match(text)
    assert found == sorted(set(found))
    assert set(found) <= set(MEDICAL.terms)


def test_only_the_beginning_of_a_long_text_is_read():
    filler = "word " * (MAX_TEXT_CHARS // 5)
    assert MEDICAL.match(filler + "surgery") == []
    # "surgery" is cut from a longer word by the limit: half a word is no match.
    assert MEDICAL.match("x" * (MAX_TEXT_CHARS - 8) + " surgery" + "like") == []


def test_hostile_text_is_matched_quickly():
    text = "surgery simulator surgery " * 50_000
    started = time.perf_counter()
    assert MEDICAL.match(text) == ["surgery"]
    assert time.perf_counter() - started < 5.0


def test_shipped_file_is_well_kept():
    bare = KeywordDictionary(MEDICAL.terms, (), digest="test")
    assert len(MEDICAL.terms) > 500
    assert len(set(MEDICAL.terms)) == len(MEDICAL.terms)
    # A stop context without a term inside hides nothing.
    assert [context for context in MEDICAL.stop_contexts if not bare.match(context)] == []


def test_file_format_and_digest(tmp_path: Path):
    path = tmp_path / "terms.txt"
    path.write_text("# comment\n\nstent  # a tube\n!stent game\n", encoding="utf-8")
    dictionary = load_keyword_dictionary(path)
    assert dictionary.terms == ("stent",)
    assert dictionary.stop_contexts == ("stent game",)
    assert dictionary.digest == keyword_digest(path)
    assert len(dictionary.digest) == 64
    before = dictionary.digest
    path.write_text("stent\n", encoding="utf-8")
    assert keyword_digest(path) != before
    assert keyword_digest() == MEDICAL.digest != before


@pytest.mark.parametrize("content", ["", "# nothing\n", "!only a stop context\n", "stent\n...\n"])
def test_bad_files_are_refused(tmp_path: Path, content):
    path = tmp_path / "terms.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="term"):
        load_keyword_dictionary(path)


def test_import_is_light():
    code = (
        "import sys, models.relevance, models.captioner, models.transcript;"
        "print({'torch', 'openai', 'transformers', 'cv2'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "set()"
