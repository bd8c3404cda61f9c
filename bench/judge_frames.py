"""How well frames tell medical videos and their categories: judged by heads that saw none of their sources.

By the picture alone, and with the words beside it. Pictures of a second folder are left out by their repository, videos
by their source; intervals are by source. Titles that go with each category are drawn from the titles of
`bench/category_titles.csv`, which trained nothing, and from everyday ones.
"""

import csv
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.encoders import MOBILENET, load_encoder
from models.relevance.classifier import load_text_classifier
from models.segmentation.category import CATEGORIES, category
from models.segmentation.evidence import load_title_evidence, words_beside
from models.segmentation.frames import DEFAULT_HEAD
from models.segmentation.heads import NON_MEDICAL
from models.segmentation.manifest import LabelledFile, read_manifests
from models.segmentation.train_head import classes_of, validate
from models.segmentation.training_frames import LabelledVideo, embed_videos, sampled_frames
from models.segmentation.validation import Judged, interval_by_source

TITLES = Path(__file__).parent / "category_titles.csv"
EVERYDAY = Path(__file__).parents[1] / "models" / "relevance" / "written_listings.csv"
TIMED_FRAMES = 64
DRAWS = 5
MOST_FAILURES = 12


def paragraphs(folder: Path, pictures: Path | None) -> Iterator[str]:
    """Markdown. Raises SourceUnreadable when the folders' labels don't suffice."""
    folders = [folder] if pictures is None else [folder, pictures]
    files, _ = read_manifests(folders)
    judged, unsure, how = _judged(files)
    yield how + (
        " Parts of the features, their components, width of the kernel and the grid of penalties were chosen with such "
        "figures of the pictures in view: expect a little less elsewhere."
    )
    yield "\n".join(_by_source(judged, {"videos": folder, **({"pictures": pictures} if pictures else {})}, files))
    yield "\n".join(_by_category(judged))
    yield "\n".join(_failures(judged))
    yield (
        "A CLIP-class encoder by name needs the same folders once more: `medgen train-frames FOLDER… --encoder NAME` "
        "trains, validates and exports a head for it as this one was, and `--set frame_encoder=NAME --set "
        "frame_head=FILE` judges by it. No such encoder comes in a package, so none was measured here."
    )
    yield "\n".join(_doubts(judged, unsure))
    yield "\n".join(_categories(judged))
    yield f"An encoder's features of a frame cost {_cost(files):.0f} ms of one processor."


def pictures_beside(folder: Path) -> Path | None:
    """The folder of labelled pictures beside a folder of labelled videos; None where there is none."""
    pictures = folder.resolve().parent / "frames"
    return pictures if (pictures / "MANIFEST.csv").is_file() else None


def _judged(files: Sequence[LabelledFile]) -> tuple[list[Judged], tuple[float, float], str]:
    """Every item judged unseen: as it stands with the packaged head, where that was trained on these very files, else
    by training anew."""
    card = json.loads(DEFAULT_HEAD.with_suffix(".json").read_text(encoding="utf-8"))
    known = {row["sha256"]: row for row in card["judged"]}
    shown = [file for file in files if not file.made and file.sha256 in known]
    trained, undecodable = {row["sha256"] for row in card["trained_on"]}, {Path(name).name for name in card["left_out"]}
    if shown and all(file.sha256 in trained or file.path.name in undecodable for file in files):
        items = [_of_row(file, known[file.sha256]) for file in shown]
        return (
            items,
            (card["unsure"][0], card["unsure"][1]),
            "As they stand with the packaged head (`frame_head.json`).",
        )
    videos, _ = embed_videos(files, load_encoder(MOBILENET))
    found = validate(videos, parts=_parts(videos))
    how = f"By heads trained on these folders alone ({len(videos)} files, {len(classes_of(videos))} classes)."
    return list(found.judged), found.unsure, how


def _parts(videos: Sequence[LabelledVideo]) -> tuple[int, ...]:
    from models.encoders import feature_parts

    return feature_parts(MOBILENET) or (videos[0].features.shape[1],)


def _of_row(file: LabelledFile, row: Mapping[str, Any]) -> Judged:
    return Judged(
        file.file, file.sha256, file.medical, row["probability"], (row["probability"],), file.kind, row["kinds"],
        file.sources,
    )  # fmt: skip


def _by_source(judged: Sequence[Judged], folders: Mapping[str, Path], files: Sequence[LabelledFile]) -> Iterator[str]:
    yield "| judged | items | sources | balanced accuracy | 95 % by source | recall | specificity | medical, P < 0.05 |"
    yield "|---|---|---|---|---|---|---|---|"
    path = {file.file: file.path for file in files}
    groups: dict[str, list[Judged]] = {"all": list(judged)} if len(folders) > 1 else {}
    for name, folder in folders.items():
        groups[name] = [item for item in judged if path[item.file].is_relative_to(folder.resolve())]
    for name, own in groups.items():
        right = np.array([(item.probability >= 0.5) == item.medical for item in own])
        truth = np.array([item.medical for item in own])
        low, high = interval_by_source(own, right)
        recall, specificity = right[truth].mean(), right[~truth].mean()
        far = np.mean([item.probability < 0.05 for item in own if item.medical])
        yield (
            f"| {name} | {len(own)} | {len({source for item in own for source in item.sources})} "
            f"| {(recall + specificity) / 2:.3f} | {low:.2f} to {high:.2f} | {recall:.3f} | {specificity:.3f} "
            f"| {far:.3f} |"
        )


def _by_category(judged: Sequence[Judged]) -> Iterator[str]:
    yield "| category | items | sources | found medical by the picture | 95 % by source | category by the picture |"
    yield "|---|---|---|---|---|---|"
    for name in (*CATEGORIES, NON_MEDICAL):
        own = [item for item in judged if item.kind == name]
        if not own:
            continue
        found = np.array([item.probability >= 0.5 for item in own])
        low, high = interval_by_source(own, found)
        kind = "–" if name == NON_MEDICAL else f"{np.mean([item.kind_found == name for item in own]):.3f}"
        sources = len({source for item in own for source in item.sources})
        yield f"| {name} | {len(own)} | {sources} | {found.mean():.3f} | {low:.2f} to {high:.2f} | {kind} |"


def _failures(judged: Sequence[Judged]) -> Iterator[str]:
    """The sources with the most misjudged items."""
    wrong = [item for item in judged if (item.probability >= 0.5) != item.medical]
    total = Counter(source for item in judged for source in item.sources)
    yield f"| misjudged by the picture: most of {len(wrong)}, by source | items | taken for medical | missed |"
    yield "|---|---|---|---|"
    missed = Counter(source for item in wrong if item.medical for source in item.sources)
    taken = Counter(source for item in wrong if not item.medical for source in item.sources)
    for source, _ in sorted((missed + taken).items(), key=lambda pair: (-pair[1], pair[0]))[:MOST_FAILURES]:
        yield f"| {source} | {total[source]} | {taken[source] or ''} | {missed[source] or ''} |"


def _titles() -> tuple[dict[str, list[str]], list[str]]:
    """Category → titles, and everyday titles that are not medical."""
    with TITLES.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with EVERYDAY.open(encoding="utf-8", newline="") as file:
        everyday = [row["title"] for row in csv.DictReader(file) if row["is_medical"] == "0" and row["title"]]
    return {name: [row["title"] for row in rows if row["category"] == name] for name in CATEGORIES}, everyday


def _doubts(judged: Sequence[Judged], unsure: tuple[float, float]) -> Iterator[str]:
    """What becomes of doubts by each policy."""
    by_category, everyday = _titles()
    every = [title for titles in by_category.values() for title in titles]
    classifier = load_text_classifier()
    pools = {**by_category, "": every, NON_MEDICAL: everyday}
    said = {name: classifier.probability(own, [""] * len(own), [""] * len(own)) for name, own in pools.items()}
    random, evidence = np.random.default_rng(0), load_title_evidence()
    picture = np.array([item.probability for item in judged])
    truth = np.array([item.medical for item in judged])
    doubt = (picture > unsure[0]) & (picture < unsure[1])
    titles = np.stack([random.choice(said[item.kind or ""], DRAWS) for item in judged])
    joint = np.stack([evidence.medical(picture, titles[:, draw]) for draw in range(DRAWS)], axis=1)
    asked = np.where(doubt[:, None], joint, picture[:, None])
    verdicts = {
        "the picture alone": picture[:, None] >= 0.5,
        "unsure=keep": np.where(doubt, True, picture >= 0.5)[:, None],
        "unsure=reject": np.where(doubt, False, picture >= 0.5)[:, None],
        "unsure=ask_the_title": asked >= 0.5,
        "picture and title always weighed together": joint >= 0.5,
        "the title alone": titles >= classifier.threshold,
    }
    yield (
        f"Unsure between {unsure[0]} and {unsure[1]}: {doubt.mean():.2f} of all, {doubt[truth].mean():.2f} of the "
        f"medical ones. Titles: {len(every)} written for this bench, which trained nothing, and {len(everyday)} "
        "everyday ones, on which the text classifier was trained.\n"
    )
    yield "| verdict by | balanced accuracy | 95 % by source | recall | specificity |"
    yield "|---|---|---|---|---|"
    for name, verdict in verdicts.items():
        right = (verdict == truth[:, None]).mean(axis=1)
        low, high = interval_by_source(judged, right)
        recall, other = right[truth].mean(), right[~truth].mean()
        yield f"| {name} | {(recall + other) / 2:.3f} | {low:.2f} to {high:.2f} | {recall:.3f} | {other:.3f} |"


def _categories(judged: Sequence[Judged]) -> Iterator[str]:
    """Every written title with a picture of its category, judged unseen, where there is one."""
    from sklearn.metrics import f1_score

    with TITLES.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    random, weights = np.random.default_rng(0), load_title_evidence().category
    found: dict[str, list[str]] = {"words alone": [], "picture alone": [], "both": []}
    truth, languages, hits = [], [], []
    for row in rows:
        own = [item for item in judged if item.kind == row["category"]]
        words = words_beside(row["title"])
        assert words is not None  # there is a title
        for _ in range(DRAWS if own else 0):
            item = own[random.integers(len(own))]
            seen = {**item.kinds, NON_MEDICAL: 0.0}
            found["picture alone"].append(category(seen, None, weights).name)
            found["words alone"].append(max(words.shares, key=lambda name: words.shares[name]))
            found["both"].append(category(seen, words, weights).name)
            truth.append(row["category"])
            languages.append(row["language"])
            hits.append(found["both"][-1] == row["category"])
    yield "| category by | macro F1 | " + " | ".join(CATEGORIES) + " |"
    yield "|---" * (2 + len(CATEGORIES)) + "|"
    for name, own_names in found.items():
        each = f1_score(truth, own_names, labels=list(CATEGORIES), average=None, zero_division=0)
        macro = f1_score(truth, own_names, labels=sorted(set(truth)), average="macro", zero_division=0)
        yield f"| {name} | {macro:.3f} | " + " | ".join(f"{value:.3f}" for value in each) + " |"
    shares = {
        k: np.mean([h for h, lang in zip(hits, languages, strict=True) if lang == k]) for k in dict.fromkeys(languages)
    }
    yield ""
    yield (
        f"{len(rows)} titles in {len(shares)} languages, each with {DRAWS} pictures of its category. Right by both: "
        + ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
        + ". The titles were written before the phrases that train the classifier of words, and by the same hand: "
        "expect less of others' titles."
    )


def _cost(files: Sequence[LabelledFile]) -> float:
    """Milliseconds of one processor for a frame's features."""
    encoder = load_encoder(MOBILENET)
    frames = sampled_frames(files[0].path)
    started = time.process_time()
    encoder.features((frames * TIMED_FRAMES)[:TIMED_FRAMES])
    return 1000 * (time.process_time() - started) / TIMED_FRAMES
