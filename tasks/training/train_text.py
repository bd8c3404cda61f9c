"""Train text: label files become a head for the text classifier of stage 2, on record like every other step.

The key holds the encoder, the recipe, the rule for the threshold and the digests of the label files: the same files
are not trained on twice.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medgen.canonical import canonical_json, digest_of
from medgen.catalog import ModelVersion
from medgen.ledger import Ledger, Outcome, Record, StepIdentity, Work
from medgen.store import Store
from models.encoders import shown_name
from models.relevance.classifier import head_model_digest
from models.relevance.labels import read_labels
from models.relevance.train_head import RECIPE, TrainedHead, train
from models.text_encoders import text_encoder_digest

# Output role → name of the file in a folder that the head is handed out to.
FILES = {"head": "text_head.safetensors", "scores": "text_head.json", "model_card": "text_head.md"}


def train_text(
    ledger: Ledger,
    paths: Sequence[Path],
    encoder: str,
    background: str,
    max_background_rate: float,
    titles: Sequence[str],
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> tuple[Record, bool]:
    """The record of the head of that encoder for those label files, and whether it was there already.

    Outputs:
        head: safetensors, usable as the head of the text classifier.
        scores: JSON, cross-validated figures and what the head was trained on.
        data_list: JSON, the label files with sha256, rows and rows left out, with the reason.
        model_card: Markdown.

    Raises:
        SourceUnreadable, ModelUnavailable: as `models.relevance.train_head.train`. Nothing is recorded then.
    """
    _, files = read_labels(paths, background, titles)
    digest = text_encoder_digest(encoder)
    params = {
        "encoder": shown_name(encoder),
        "background": background,
        "max_background_rate": max_background_rate,
        "titles": list(titles),
        **RECIPE,
    }
    identity = StepIdentity("train_text", 1, params, {"encoder": digest})
    listed = [file.row() for file in files]
    work = Work("text_head", context={"rows": sum(f.rows for f in files), "data": digest_of({"files": listed})})

    def make() -> Outcome:
        trained = train(paths, encoder, background, max_background_rate, titles, progress)
        return _outcome(trained, digest, ledger.store)

    return ledger.once(identity, work, make)


def _outcome(trained: TrainedHead, encoder: str, store: Store) -> Outcome:
    outputs = {
        "head": store.put_bytes(trained.head, "application/vnd.safetensors"),
        "scores": store.put_bytes(scores_file(trained), "application/json"),
        "data_list": store.put_bytes(canonical_json(trained.data_list), "application/json"),
        "model_card": store.put_bytes(model_card(trained.scores, trained.data_list).encode(), "text/markdown"),
    }
    head = outputs["head"].sha256
    version = ModelVersion(
        digest=head_model_digest(encoder, head), name=trained.scores["encoder"], kind="text_head",
        checkpoint_sha256=head,
    )  # fmt: skip
    figures = {k: v for k, v in trained.scores["cross_validation"].items() if isinstance(v, float)}
    return Outcome(
        "kept", detail={"model": version.digest, **trained.scores}, scores=figures, outputs=outputs, rows=[version]
    )


def scores_file(trained: TrainedHead) -> bytes:
    """JSON for people and machines: figures, and what trained the head."""
    content = trained.scores | {"trained_on": trained.data_list["files"]}
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def hand_out(store: Store, outputs: Mapping[str, str], folder: Path) -> dict[str, Path]:
    """Writes head, scores and model card of a record into a folder; role → file. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {role: folder / name for role, name in FILES.items()}
    for role, path in written.items():
        path.write_bytes(store.read(outputs[role]))
    return written


def model_card(scores: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Markdown: what the head is for, how good it is, what it was trained on, what it can't do."""
    found, rule = scores["cross_validation"], scores["rule"]
    figures = ("rows", "medical", "f1", "recall", "false_alarm_rate")
    files = []
    for name, own in found["by_file"].items():
        files.append((_cell(name), *(_number(own[figure]) for figure in figures)))
        if alone := own.get("by_title_alone"):
            files.append((f"{_cell(name)}, titles alone", *(_number(alone[figure]) for figure in figures)))
    languages = [(_cell(n), *(_number(own[figure]) for figure in figures)) for n, own in found["by_language"].items()]
    ways = [
        (
            way,
            _number(own["f1"]),
            "; ".join(f"{_cell(name)} {value}" for name, value in own["f1_by_file"].items()),
            _number(own.get("background_rate")),
            _number(own.get("background_rate_by_title_alone")),
        )
        for way, own in scores["ways"].items()
    ]
    trained_on = [
        (_cell(f["name"]), f["rows"], f["medical"], sum(f["left_out"].values()), f"`{f['sha256'][:16]}…`")
        for f in data["files"]
    ]
    bound = (
        f", among thresholds that call at most {rule['max_background_rate']:.2%} of the non-medical rows of "
        f"{_cell(rule['background'])} medical, with their descriptions and by their titles alone"
        if rule["background"]
        else ""
    )
    return f"""# Text head for {scores["encoder"]}

Is a video listing medical, by its title, description and tags? A linear model of hashed words; where that leaves a
probability between {scores["doubt"][0]} and {scores["doubt"][1]} (with a description or tags:
{scores["doubt_with_context"][0]} and {scores["doubt_with_context"][1]}), one of the title's words and
{scores["landmarks"]} likenesses of its embedding.

- encoder digest `{scores["encoder_digest"]}`
- {scores["dimension"]} numbers per text, inverse L2 penalties {scores["strengths"][0]} and {scores["strengths"][1]}
- threshold {scores["threshold"]}: the highest F1{bound}

## How good it is

Cross-validation by groups: each row is judged by a head that saw no row of its group, with a penalty, weights,
calibration and threshold chosen without its fold.

{_table(("label file", *figures), files)}

Expected calibration error {found["calibration_error"]}, for listings half of which are medical.

### By language

{_table(("language", *figures), languages)}

### What each part is worth

{_table(("judged by", "F1", "F1 by file", "background called medical", "by titles alone"), ways)}

## What it was trained on

{_table(("label file", "rows", "medical", "left out", "sha256"), trained_on)}

## What to keep in mind

- The figures hold for listings like those of the label files, and no better than their labels.
- Languages without rows above were not measured.
- It chooses material for a data set. It is no medical device and says nothing of a patient.
"""


def _number(value: float | None) -> str:
    return "not measured" if value is None else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return "None."
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Text of others, made harmless for a Markdown table."""
    return "".join(c if c.isalnum() or c in " .-+_/" else " " for c in text).strip()
