"""Stage 2: what a listing means, by the packaged head and by heads trained on the spot."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from sqlalchemy import select
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from apps.train_text import train_text
from medgen.catalog import ModelVersion, open_catalog
from medgen.errors import SourceUnreadable
from models import ModelUnavailable
from models.relevance.classifier import (
    DEFAULT_HEAD,
    HEAD_CARD,
    load_text_classifier,
    read_head,
    text_classifier_digest,
)
from models.relevance.features import COLUMNS, batches, features_of, words_of
from models.relevance.labels import read_labels
from models.relevance.train_head import train
from models.relevance.validation import operating_point
from models.text_encoders import OFFLINE, load_text_encoder, text_encoder_digest

MEDICAL = (
    "Laparoscopic cholecystectomy step by step",
    "How to insert a central venous catheter",
    "Symptoms and treatment of type 2 diabetes",
    "Colonoscopy: removal of a large polyp",
    "CPR for infants: first aid training",
    "Cómo tratar una fractura de tobillo",
)
OTHER = (
    "Minecraft but the floor is lava",
    "Official trailer of the new season",
    "I bought the cheapest car in the world",
    "Chocolate cake recipe, easy and quick",
    "Guitar lesson for beginners",
    "Live: the final of the world cup",
)


@pytest.fixture(scope="module")
def classifier() -> Any:
    """The packaged one."""
    return load_text_classifier()


def judged(classifier: Any, titles: Any, descriptions: Any = None, tags: Any = None) -> np.ndarray:
    """Probabilities of titles."""
    return classifier.probability(titles, descriptions or [""] * len(titles), tags or [""] * len(titles))


def test_plain_cases_and_no_words_at_all(classifier: Any) -> None:
    assert (judged(classifier, MEDICAL) >= classifier.threshold).all()
    assert (judged(classifier, OTHER) < classifier.threshold).all()
    found = classifier.probability(["", "   ", "!!!"], ["", "", ""], ["", "", ""])
    assert found.tolist() == [0, 0, 0] and found.dtype == np.float32
    assert len(classifier.probability([], [], [])) == 0
    with pytest.raises(ValueError, match="2 titles, 1 descriptions"):
        classifier.probability(["a", "b"], [""], ["", ""])


def test_titles_of_many_languages_and_bare_terms(classifier: Any) -> None:
    medical = ["Total Hip Replacement", "Nephron", "CAT Scans", "膝关节解剖", "Operacja zaćmy krok po kroku"]
    medical += ["تشريح القلب محاضرة", "복강경 담낭절제술", "УЗИ щитовидной железы", "Beyin MR yorumlama"]
    other = ["苹果蛋糕的做法", "自転車の修理方法", "기타 강좌 초급", "أجمل أهداف الدوري", "Обзор нового телефона"]
    other += ["Przepis na szarlotkę", "Học guitar cơ bản", "Elmalı kek tarifi", "Fietsband plakken"]
    assert (judged(classifier, medical) >= classifier.threshold).all()
    assert (judged(classifier, other) < classifier.threshold).all()


def test_a_description_supports_a_title_and_does_not_drown_it(classifier: Any) -> None:
    vague = ["Part 3: the second case"] * 2
    about = ["Surgery of the gallbladder: laparoscopic view, anatomy of the cystic duct.", "Let's play, level 7."]
    supported, not_supported = judged(classifier, vague, about)
    assert supported > not_supported
    thanks = "Subscribe to the channel! Follow us on Instagram and Facebook. https://example.org " * 5
    assert judged(classifier, [MEDICAL[0]], [thanks])[0] >= classifier.threshold


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=80), st.text(max_size=200), st.text(max_size=40)), max_size=12))
def test_any_text_has_a_probability_and_case_does_not_matter(rows: list[tuple[str, str, str]]) -> None:
    classifier = load_text_classifier()
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
    found = classifier.probability(*columns)
    assert found.shape == (len(rows),) and ((found >= 0) & (found <= 1)).all()
    assert (found == classifier.probability(*columns)).all()
    head = classifier.head
    scores, _ = head.words.score(columns[0])
    one_by_one = [head.words.score([text])[0][0] for text in columns[0]]
    assert np.allclose(scores, one_by_one, atol=1e-9)


@given(st.lists(st.text(max_size=60), max_size=8))
def test_features_of_texts_do_not_depend_on_their_company(texts: list[str]) -> None:
    text, column = features_of(words_of(texts))
    assert len(text) == 0 or (column.min() >= 0 and column.max() < COLUMNS)
    for number, one in enumerate(texts):
        _, own = features_of(words_of([one]))
        assert sorted(column[text == number]) == sorted(own)
    parts = batches(texts)
    assert [i for part in parts for i in range(*part.indices(len(texts)))] == list(range(len(texts)))


def test_import_is_light() -> None:
    heavy = {"torch", "transformers", "sklearn", "scipy"}
    code = f"import sys, models.relevance.classifier; print({heavy} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "set()"


# --- encoders by name


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of the kind of snowflake-arctic-embed, pooled by its first token."""
    import tokenizers
    import torch
    from tokenizers import models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    words = sorted({word for title in MEDICAL + OTHER for word in title.lower().split()})
    vocabulary = {word: n for n, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    inner = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    return folder


def test_encoders_give_vectors_of_length_one(tiny: Path) -> None:
    texts = [*MEDICAL, "", *OTHER]
    for name in ("minilm_int8", "wordllama", str(tiny)):
        encoder = load_text_encoder(name)
        found = encoder.embed(texts)
        assert found.shape == (len(texts), encoder.dimension) and found.dtype == np.float32
        assert np.allclose(np.linalg.norm(found, axis=1), [1.0 if text else 0.0 for text in texts], atol=1e-5), name
        assert (encoder.embed(texts) == found).all()
        assert len(text_encoder_digest(name)) == 64
    assert len({text_encoder_digest(name) for name in (*OFFLINE, str(tiny))}) == len(OFFLINE) + 1


def test_what_cannot_be_had_is_said_before_any_work(tmp_path: Path, tiny: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelUnavailable, match=r"nobody/nothing.*minilm_int8"):
        text_classifier_digest("nobody/nothing")
    with pytest.raises(ModelUnavailable, match="no text head at"):
        text_classifier_digest(head=str(tmp_path / "none.safetensors"))
    with pytest.raises(ValueError, match=r"was trained for .minilm_int8..*train-text"):
        text_classifier_digest(str(tiny))
    (tmp_path / "noise").write_bytes(b"\x00" * 100)
    with pytest.raises(ValueError, match="is not a head made by"):
        read_head(tmp_path / "noise")
    card, _ = read_head(DEFAULT_HEAD)
    arrays = load_file(DEFAULT_HEAD)
    for change in ({"threshold": 7}, {"doubt": [0.9, 0.1]}, {"dimension": 3}, {"features_version": 0}):
        save_file(arrays, tmp_path / "head", metadata={HEAD_CARD: json.dumps(card | change)})
        with pytest.raises(ValueError, match="is not a head made by"):
            read_head(tmp_path / "head")
    save_file(arrays | {"kernel": arrays["kernel"] * np.nan}, tmp_path / "head", metadata={HEAD_CARD: json.dumps(card)})
    with pytest.raises(ValueError, match="not finite"):
        read_head(tmp_path / "head")


# --- training


def write_labels(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A CSV of labels."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["title", "description", "tags", "is_medical", "group", "language"], restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def labels(tmp_path: Path) -> tuple[Path, Path]:
    """Labelled titles, and a background of other ones."""
    rows = [
        {"title": f"{title}, part {n}", "is_medical": answer, "group": f"{title[:8]}{n}", "language": "en"}
        for n in range(4)
        for titles, answer in ((MEDICAL, "yes"), (OTHER, "no"))
        for title in titles
    ]
    rows += [{"title": "nobody knows", "is_medical": "?"}, {"title": "", "is_medical": "1"}]
    background = [
        {"title": f"{title} #{n}", "description": "Buy now. Subscribe.", "tags": "fun|new", "is_medical": "0"}
        for n in range(5)
        for title in OTHER
    ]
    return write_labels(tmp_path / "labels.csv", rows), write_labels(tmp_path / "everyday.csv", background)


def test_a_head_for_any_encoder_is_validated_recorded_and_used(
    home: Path, tmp_path: Path, tiny: Path, labels: tuple[Path, Path]
) -> None:
    app = typer.Typer()
    app.command()(train_text)
    command = [*map(str, labels), "--encoder", str(tiny), "--background", "everyday", "--out", str(tmp_path / "head")]
    first = CliRunner().invoke(app, [*command, "--json"])
    assert first.exit_code == 0, first.output
    told = json.loads(first.stdout)
    files = told["cross_validation"]["by_file"]
    assert (files["labels"]["rows"], files["labels"]["medical"]) == (48, 24) and files["labels"]["f1"] > 0.8
    assert files["everyday"]["false_alarm_rate"] <= 0.2
    assert told["data_list"]["files"][0]["left_out"] == {"no label": 1, "no title": 1}
    assert set(told["ways"]) == {"two speeds", "words alone", "every title by its embedding"}
    head = tmp_path / "head" / "text_head.safetensors"
    classifier = load_text_classifier(str(tiny), str(head))
    assert (judged(classifier, [f"{t}, part 9" for t in MEDICAL]) >= classifier.threshold).mean() > 0.8
    assert (judged(classifier, [f"{t}, part 9" for t in OTHER]) < classifier.threshold).mean() > 0.8
    with Session(open_catalog()) as session:
        (version,) = session.scalars(select(ModelVersion))
        assert (version.kind, version.digest) == ("text_head", classifier.digest)
    card = (tmp_path / "head" / "text_head.md").read_text()
    assert "labels" in card and "no medical device" in card
    again = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert again["reused"] and again["artifacts"] == told["artifacts"]
    assert train(list(labels), str(tiny), "everyday").head == head.read_bytes()  # the same files, the same head


def test_label_files_that_cannot_be_used_say_why(tmp_path: Path, labels: tuple[Path, Path]) -> None:
    (tmp_path / "columns.csv").write_text("name,is_medical\na,1\n")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "broken.jsonl").write_text('{"title": "a", "is_medical": 1}\n{"title"')
    few = write_labels(tmp_path / "few.csv", [{"title": "a", "is_medical": "1"}, {"title": "b", "is_medical": "0"}])
    for path, reason in (
        (tmp_path / "columns.csv", "column_missing"),
        (tmp_path / "notes.txt", "unknown_source_type"),
        (tmp_path / "broken.jsonl", "file_unreadable"),
        (tmp_path / "missing.csv", "file_unreadable"),
        (few, "too_few_rows"),
    ):
        with pytest.raises(SourceUnreadable) as failure:
            read_labels([path])
        assert failure.value.reason == reason
    with pytest.raises(SourceUnreadable, match="no label file is named"):
        read_labels([labels[0]], "nowhere")
    with pytest.raises(SourceUnreadable, match="two label files"):
        read_labels([labels[0], labels[0]])


def test_the_threshold_keeps_the_bound_and_is_the_best_that_does() -> None:
    draw = np.random.default_rng(0)
    medical = draw.random(400) < 0.5
    probability = np.clip(0.5 + 0.25 * np.where(medical, 1, -1) + 0.2 * draw.normal(size=400), 0, 1)
    background = np.clip(0.4 + 0.2 * draw.normal(size=300), 0, 1)

    def f1(threshold: float) -> float:
        called = probability >= threshold
        return 2 * (called & medical).sum() / (called.sum() + medical.sum())

    for bound in (0.01, 0.05, 0.3, 1.0):
        threshold = operating_point(probability, medical, [background], bound)
        assert (background >= threshold).mean() <= bound
        others = [t for t in np.linspace(0.01, 1, 200) if (background >= t).mean() <= bound]
        assert f1(threshold) >= max(map(f1, others)) - 1e-3
