"""The medical dictionary: what counts as a medical word in a listing, what hides it, and what the file holds."""

import json
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.relevance.build_dictionary import build, curated, term_of, write
from models.relevance.dictionary import (
    FIELD_WEIGHTS,
    MAX_TEXT_CHARS,
    TERMS_PATH,
    TERMS_SCHEMA,
    THRESHOLD,
    MedicalDictionary,
    dictionary_digest,
    load_medical_dictionary,
)
from models.relevance.folding import fold
from models.relevance.patterns import Patterns, spellings

NONE = pa.array([""])


def table(*terms, negative=(), language="en"):
    """Rows for terms, each a spelling or (spelling, weight)."""
    pairs = [(term, 1.0) if isinstance(term, str) else term for term in terms]
    rows = [(spelling, weight, "term") for spelling, weight in pairs] + [(line, 0.0, "negative") for line in negative]
    return pa.Table.from_pylist(
        [
            dict(
                zip(
                    TERMS_SCHEMA.names,
                    (term_of(text), text, language, "disease", weight, "test", "1", role),
                    strict=True,
                )
            )
            for text, weight, role in rows
        ],
        TERMS_SCHEMA,
    )


def small(*terms, negative=(), language="en"):
    return MedicalDictionary.of_rows(table(*terms, negative=negative, language=language))


@pytest.fixture(scope="module")
def medical():
    return load_medical_dictionary()


def passes(dictionary, title, description="", tags=""):
    return bool(dictionary.judge(*(pa.array([text]) for text in (title, description, tags))).score[0] >= THRESHOLD)


@pytest.mark.parametrize(
    ("term", "language", "text"),
    [
        ("biopsy", "en", "two biopsies"),
        ("abscess", "en", "abscesses"),
        ("diagnosis", "en", "differential diagnoses"),
        ("sinus", "en", "clear your sinuses"),
        ("nurse", "en", "a nurse's day"),
        ("crohn's", "en", "Crohns disease"),
        ("crohn's", "en", "Crohn’s disease"),
        ("césarienne", "fr", "CESARIENNE"),
        ("cirugía", "es", "dos cirugias"),
        ("hospital", "es", "hospitales"),
        ("c section", "en", "c_section"),
        ("heart valve", "en", "heart\n -- valve"),
        ("mri", "en", "ＭＲＩ of the knee"),
        ("mri", "en", "做MRI检查"),
        ("scotchcast", "en", "3M™ Scotchcast™ cast"),
        ("größe", "de", "GRÖSSE"),
        ("注射", "zh", "皮下注射法"),
        ("ct检查", "zh", "做CT 检查"),
        ("हड्डी", "hi", "हड्डी रोग"),
        ("قلب", "ar", "جراحة القلب"),
    ],
)
def test_spellings_of_one_term(term, language, text):
    assert small(term, language=language).match(text) == [term]


def test_a_term_is_not_found_inside_a_longer_word():
    dictionary = small("ent", "nerve", "ct检查", "हड्डी")
    assert dictionary.match("patient, nerves2, innerve, oct检查, हड्डीयाँ") == []


@pytest.mark.parametrize(
    ("term", "text"),
    [("kardiolog-", "oddział kardiologiczny"), ("-ectomie", "Appendectomie"), ("-외과-", "심장외과의사")],
)
def test_a_word_may_go_on_where_a_hyphen_stands(term, text):
    assert small(term).judge(pa.array([text, f"x{text}x"]), *[pa.array(["", ""])] * 2).terms(0) == [term]


def test_of_parts_of_words_the_longest_counts_once_and_captions_name_whole_words():
    dictionary = small("-ectomy", "chole-", "cholecyst-", "gastritis", "-itis", "cyst-")
    (score,) = dictionary.judge(pa.array(["Cholecystectomy, gastritis"]), NONE, NONE).score
    assert score == 3  # cholecyst-, -ectomy, gastritis
    assert dictionary.match("Cholecystectomy, gastritis") == ["gastritis"]
    assert dictionary.evidence(["", "arthritis", "a b"]).tolist()[1][2] == 1
    with pytest.raises(ValueError, match="one letter"):
        small("-a")


def test_score_sums_distinct_terms_in_their_best_field():
    dictionary = small(("biopsy", 1.0), ("heart", 0.25), ("stroke", 0.5))
    title = pa.array(["Heart biopsy", None, "heart", ""])
    description = pa.array(["biopsy of the heart, heart, heart", "stroke", None, "nothing"])
    tags = pa.array(["stroke\nstroke", "strokes", "heart\nstroke", None])
    judgement = dictionary.judge(title, description, tags)
    best = FIELD_WEIGHTS
    assert judgement.score.dtype == np.float32
    expected = [1.25 * best[0] + 0.5 * best[2], 0.5 * max(best[1:]), 0.25 * best[0] + 0.5 * best[2], 0.0]
    np.testing.assert_allclose(judgement.score, expected)
    assert [judgement.terms(row) for row in range(4)] == [
        ["biopsy", "heart", "stroke"],
        ["stroke"],
        ["heart", "stroke"],
        [],
    ]


def test_negative_context_hides_only_its_own_occurrence():
    dictionary = small(
        "hospital", "laparoscopy", "general hospital ward", negative=["general hospital", "toy hospital"]
    )
    assert dictionary.match("toy hospital, TOY-HOSPITALS and general hospital") == []
    assert dictionary.match("a toy hospital, then a real hospital") == ["hospital"]
    assert dictionary.match("general hospital ward") == ["general hospital ward"]  # reaches out of the context
    assert dictionary.match("toy hospital for laparoscopy") == ["laparoscopy"]


def test_nested_and_overlapping_negative_contexts():
    dictionary = small("b", "d", negative=["a b c d e", "b c", "x d"])
    assert dictionary.match("a b c d e") == []
    assert dictionary.match("b c d") == ["d"]


# --- the vectorised judgement equals a plain one, row by row

SMALL = table(
    ("biopsy", 1.0),
    ("heart", 0.25),
    ("heart valve", 1.0),
    ("crohn's", 1.0),
    ("注射", 1.0),
    ("ct检查", 0.5),
    ("हड्डी", 0.5),
    ("naïve cell", 0.5),
    negative=["heart of gold", "valve heart valve"],
)
PIECES = st.sampled_from(
    [
        *("heart", "HEART", "valve", "of", "gold", "Biópsies", "biopsy", "Crohn’s", "naïve", "NAI\u0308VE cells"),
        *("皮下注射", "CT检查", "ct", "हड्डी", "é", "½", "™", "한국", "𠀀", "ﬁ", "Ａ", "👍🏽"),
        *("l’heart", "d'", "'", "`", "ı", "Œuf", "がん", "क्ष", "ज़", "ー"),
        *("\u00ad", "\xa0", " ", "  ", "\n", "-", "_", "\0"),
    ]
)
TEXTS = st.none() | st.lists(PIECES | st.text(max_size=3), max_size=9).map("".join)


def reference(texts):
    """Score and terms of one listing, the plain way."""
    best: dict[str, float] = {}
    for text, field_weight in zip(texts, FIELD_WEIGHTS, strict=True):
        folded = f" {fold(text or '')} "
        spans = {"term": [], "negative": []}
        for row in SMALL.to_pylist():
            for spelling in spellings(row["term"], "en"):
                bare = any("\u3400" <= char <= "\u9fff" for char in spelling)
                key = spelling if bare and spelling == "注射" else f" {spelling}" if bare else f" {spelling} "
                at = folded.find(key)
                while at >= 0:
                    spans[row["role"]].append((at, at + len(key), row))
                    at = folded.find(key, at + 1)
        for start, end, row in spans["term"]:
            if not any(first <= start and end <= last for first, last, _ in spans["negative"]):
                score = row["weight"] * field_weight
                best[row["spelling"]] = max(best.get(row["spelling"], 0.0), score)
    return sum(best.values()), sorted(best)


PLAIN = MedicalDictionary.of_rows(SMALL)


@settings(deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS), max_size=5))
def test_equals_the_plain_judgement(rows):
    columns = [pa.array([row[field] for row in rows], pa.string()) for field in range(3)]
    judgement = PLAIN.judge(*columns)
    for number, row in enumerate(rows):
        score, terms = reference(row)
        assert judgement.terms(number) == terms
        assert judgement.score[number] == pytest.approx(score)


@given(st.lists(PIECES | st.text(max_size=4), max_size=8).map("".join))
def test_folding_is_stable_and_blind_to_case_and_composition(text):
    assert fold(fold(text)) == fold(text)
    latin = "".join(char for char in text if char < "\u0250")
    for form in ("NFC", "NFD"):
        assert fold(unicodedata.normalize(form, latin)) == fold(latin)
    assert fold(latin.upper().lower()) == fold(latin.lower())


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("L'hypertension de l’œil, dell'arteria", "l hypertension de l oeil dell arteria"),
        ("It's Crohn’s: don't", "its crohns dont"),
        ("HASTALIK hastalık Ankara'ya", "hastalik hastalik ankara ya"),
        ("肺がん検診", "肺がん検診"),  # かん is another word
        ("ज़ख़्म", "जख्म"),  # writers leave the nukta out, never the virama
    ],
)
def test_marks_are_folded_as_each_language_uses_them(text: str, folded: str) -> None:
    assert fold(text) == folded
    assert small(folded).judge(pa.array([text]), NONE, NONE).terms(0) == [folded]


def test_batches_of_any_size_and_arrow_type_agree(medical, monkeypatch):
    rows = [
        (f"Listing {n} about {'knee surgery' if n % 3 else 'baking'} 做手术", "x" * (n % 70), None) for n in range(500)
    ]
    columns = [pa.array([row[field] for row in rows], pa.string()) for field in range(3)]
    whole = medical.judge(*columns)
    monkeypatch.setattr("models.relevance.dictionary._CHUNK_BYTES", 1000)
    pieces = medical.judge(*(pa.chunked_array([column[:7], column[7:]]).cast(pa.large_string()) for column in columns))
    views = medical.judge(*(column.cast(pa.string_view()) for column in columns))
    for other in (pieces, views):
        np.testing.assert_array_equal(other.score, whole.score)
        assert [other.terms(row) for row in range(500)] == [whole.terms(row) for row in range(500)]
    sliced = medical.judge(*(column[100:103] for column in columns))
    np.testing.assert_array_equal(sliced.score, whole.score[100:103])
    assert len(medical.judge(*(column[:0] for column in columns)).score) == 0
    with pytest.raises(ValueError, match="differ in length"):
        medical.judge(columns[0], columns[1][:3], columns[2])


def test_threads_share_a_dictionary(medical):
    column = pa.array(["Total knee arthroplasty", "Baking bread"] * 2000)
    expected = medical.judge(column, column, column).score
    with ThreadPoolExecutor(4) as pool:
        for judged in pool.map(lambda _: medical.judge(column, column, column).score, range(8)):
            np.testing.assert_array_equal(judged, expected)


def test_only_the_beginning_of_a_long_text_is_read():
    dictionary = small("surgery", "注射")
    assert dictionary.match("word " * (MAX_TEXT_CHARS // 5) + "surgery") == []
    # The limit cuts "surgery" out of a longer word: half a word is no match.
    assert dictionary.match("x" * (MAX_TEXT_CHARS - 8) + " surgery" + "like") == []
    assert dictionary.match("x" * (MAX_TEXT_CHARS - 8) + " surgery" + " end") == ["surgery"]
    assert dictionary.match("注" * (MAX_TEXT_CHARS - 2) + "注射射") == ["注射"]


def test_bytes_that_are_no_text_do_no_harm():
    raw = [b"biopsy \xff\xfe biopsy", b"\xe6\xb3", b"biopsy\xf0\x9f", None, b"\xed\xa0\x80 biopsy"]
    column = pa.array(raw, pa.binary()).view(pa.string())
    judgement = small("biopsy").judge(column, column, column)
    assert [judgement.terms(row) for row in range(5)] == [["biopsy"], [], ["biopsy"], [], ["biopsy"]]


# --- the dictionary that is shipped


@pytest.mark.parametrize(
    "title",
    [
        "Laparoscopic cholecystectomy, step by step",
        "How to use an epinephrine autoinjector",
        "Hamstring stretches for lower back pain",
        "Cirugía de rodilla: artroscopia de menisco",
        "Comment faire un massage cardiaque",
        "Blutdruck messen: so geht es richtig",
        "Primeiros socorros: manobra de Heimlich",
        "静脉采血操作",
        "点滴の方法と看護",
        "घुटनों का दर्द और इलाज",
        "L'échographie de la vésicule biliaire",
        "Emodialisi: accesso all'arteria radiale",
        "Przeszczep nerki: opieka pielęgniarska",
        "Перелом лучевой кости, наложение гипса",
        "Böbrek nakli sonrası hemşirelik bakımı",
        "Verpleegkundige: infuus prikken",
        "Cara memasang kateter urin",
        "Cách đặt ống nội khí quản",
        "심전도 판독 강의",
        "شرح تخطيط القلب الكهربائي",
        "آموزش تزریق عضلانی",
    ],
)
def test_medical_titles_pass(medical, title):
    assert passes(medical, title)
    assert passes(medical, "Episode 12", f"In this video: {title}")


@pytest.mark.parametrize(
    "title",
    [
        "My heart will go on (official video)",
        "Minecraft HOSPITAL tour",
        "a plant-surgery vlog",
        "Surgery Simulator, part 3",
        "Fuel injection explained",
        "Stroke of luck: best of hip hop",
        "Dr Pepper review",
        "Smokey eye makeup tutorial",
        "El corazón de la ciudad",
        "Chicken breast recipe",
        "",
    ],
)
def test_everyday_titles_do_not_pass(medical, title):
    assert not passes(medical, title)


def test_everyday_words_weigh_little_alone_and_more_together(medical):
    alone, together = (medical.judge(pa.array([text]), NONE, NONE).score[0] for text in ("heart", "heart diet tips"))
    assert 0 < alone < THRESHOLD <= together


def test_shipped_file_is_well_kept(medical):
    rows = pq.read_table(TERMS_PATH)
    metadata = {key.decode(): value.decode() for key, value in rows.schema.metadata.items()}
    sources = {(source["name"], source["version"]) for source in json.loads(metadata["sources"])}
    assert sources == set(zip(rows["source"].to_pylist(), rows["source_version"].to_pylist(), strict=True))
    assert all(source["licence"] for source in json.loads(metadata["sources"]))
    assert len(json.loads(metadata["tuned_on"])) == 2
    assert medical.version == metadata["version"]
    assert medical.digest == dictionary_digest()
    terms = rows.filter(pa.compute.equal(rows["role"], "term"))
    assert len(set(terms["term"].to_pylist())) == len(terms) > 100_000
    by_language = terms["language"].value_counts().to_pylist()
    assert {row["values"] for row in by_language if row["counts"] > 1500} == set(
        ["ar", "de", "en", "es", "fa", "fr", "hi", "id", "it", "ja", "ko", "nl", "pl", "pt", "ru", "tr", "vi", "zh"]
    )
    # A negative context without a term inside hides nothing.
    contexts = rows.filter(pa.compute.equal(rows["role"], "negative"))["spelling"]
    bare = MedicalDictionary.of_rows(terms)
    empty = pa.array([""] * len(contexts))
    assert [
        c for c, s in zip(contexts.to_pylist(), bare.judge(contexts, empty, empty).score, strict=True) if s == 0
    ] == []


def test_curated_part_builds_to_the_shipped_rows_and_the_same_bytes(tmp_path: Path):
    first, second = build(curated()), build(curated())
    write(first, tmp_path / "first.parquet")
    write(second, tmp_path / "second.parquet")
    assert (tmp_path / "first.parquet").read_bytes() == (tmp_path / "second.parquet").read_bytes()
    shipped = pq.read_table(TERMS_PATH)
    assert first.to_pylist() == shipped.filter(pa.compute.equal(shipped["source"], "curated")).to_pylist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stent\n", "before any section"),
        ("[device strong]\n...\n", "no letter"),
        ("[device strong]\nstent; STENT\n", "already"),
        ("[gadget strong]\nstent\n", "no such section"),
    ],
)
def test_bad_curated_files_are_refused(tmp_path: Path, text, message):
    (tmp_path / "en.txt").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"en\.txt:\d.*{message}"):
        list(curated(tmp_path))


def test_file_and_digest(tmp_path: Path):
    path = tmp_path / "terms.parquet"
    write(table("stent", negative=["stent game"]), path)
    dictionary = load_medical_dictionary(path)
    assert dictionary.match("Stents; stent game") == ["stent"]
    assert dictionary.digest == dictionary_digest(path)
    assert len(dictionary.digest) == 64
    write(table("stent"), path)
    assert dictionary_digest(path) != dictionary.digest


def test_what_was_compiled_once_judges_the_same(tmp_path: Path):
    rows = table("stent", ("valve", 0.3), "针灸", negative=["stent game"]).to_pylist()
    compiled, path = Patterns.compiled(rows), tmp_path / "cache" / "terms.npz"
    compiled.keep(path)
    assert [file.name for file in path.parent.iterdir()] == ["terms.npz"]
    kept = Patterns.kept(path)
    assert kept
    texts = [
        pa.array(field) for field in (["Stents; stent game", "做针灸", "valves"], ["valve", "", ""], ["", "", "x"])
    ]
    first, again = (MedicalDictionary(patterns).judge(*texts) for patterns in (compiled, kept))
    assert first.score.tolist() == again.score.tolist()
    for row, terms in enumerate((["stent", "valve"], ["针灸"], ["valve"])):
        assert first.terms(row) == again.terms(row) == terms


@pytest.mark.parametrize("spoil", [lambda content: b"", lambda content: content[:-100], lambda content: b"\0" * 500])
def test_a_spoilt_cache_is_no_dictionary(tmp_path: Path, spoil):
    path = tmp_path / "terms.npz"
    assert Patterns.kept(path) is None
    Patterns.compiled(table("stent").to_pylist()).keep(path)
    path.write_bytes(spoil(path.read_bytes()))
    assert Patterns.kept(path) is None


@pytest.mark.parametrize(
    "rows",
    [
        table("stent").drop_columns("weight"),
        table("stent").slice(0, 0),
        table(negative=["stent"]),
        table(("stent", 0.0)),
        table(("stent", float("nan"))),
        table("针"),
        table("stent").set_column(0, "term", pa.array(["Stent"])),
        table("stent").set_column(0, "term", pa.array([""])),
    ],
)
def test_bad_dictionaries_are_refused(tmp_path: Path, rows):
    pq.write_table(rows, tmp_path / "terms.parquet")
    with pytest.raises(ValueError, match=r"dictionary|term|weight"):
        load_medical_dictionary(tmp_path / "terms.parquet")


def test_what_is_no_parquet_file_is_refused(tmp_path: Path):
    (tmp_path / "terms.parquet").write_text("stent\n")
    with pytest.raises(ValueError):
        load_medical_dictionary(tmp_path / "terms.parquet")


def test_import_is_light():
    code = (
        "import sys, models.relevance.dictionary, models.captioning.loading, models.captioning.transcript;"
        "print({'torch', 'openai', 'transformers', 'cv2'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "set()"
