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
from medgen.markdown import cell, render
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


def export(store: Store, outputs: Mapping[str, str], folder: Path) -> dict[str, Path]:
    """Writes head, scores and model card of a record into a folder; role → file. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {role: folder / name for role, name in FILES.items()}
    for role, path in written.items():
        path.write_bytes(store.read(outputs[role]))
    return written


def model_card(scores: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Markdown: what the head is for, how good it is, what it was trained on, what it can't do."""
    validated, rule = scores["cross_validation"], scores["rule"]
    files = []
    for name, own in validated["by_file"].items():
        files.append({"label file": cell(name), **_figures(own)})
        if alone := own.get("by_title_alone"):
            files.append({"label file": f"{cell(name)}, titles alone", **_figures(alone)})
    ways = [
        {
            "judged by": way,
            "F1": _number(own["f1"]),
            "F1 by file": "; ".join(f"{cell(name)} {value}" for name, value in own["f1_by_file"].items()),
            "background called medical": _number(own.get("background_rate")),
            "by titles alone": _number(own.get("background_rate_by_title_alone")),
        }
        for way, own in scores["ways"].items()
    ]
    trained_on = [
        {
            "label file": cell(file["name"]),
            "rows": file["rows"],
            "medical": file["medical"],
            "left out": sum(file["left_out"].values()),
            "sha256": f"`{file['sha256'][:16]}…`",
        }
        for file in data["files"]
    ]
    bound = (
        f", among thresholds that call at most {rule['max_background_rate']:.2%} of the non-medical rows of "
        f"{cell(rule['background'])} medical, with their descriptions and by their titles alone"
        if rule["background"]
        else ""
    )
    return render(
        "tasks.training",
        "text_head.md.jinja",
        scores=scores,
        bound=bound,
        files=files,
        languages=[{"language": cell(n), **_figures(own)} for n, own in validated["by_language"].items()],
        ways=ways,
        trained_on=trained_on,
    )


def _figures(own: Mapping[str, Any]) -> dict[str, str]:
    return {name: _number(own[name]) for name in ("rows", "medical", "f1", "recall", "false_alarm_rate")}


def _number(value: float | None) -> str:
    return "not measured" if value is None else str(value)
