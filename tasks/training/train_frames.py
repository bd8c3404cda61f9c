"""Train frames: a labelled folder becomes a head for the frame judge, on record like every other step.

The key holds the encoder, the recipe and the digests and labels of all videos: the same folder is not trained twice.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medgen.canonical import canonical_json, digest_of
from medgen.catalog import ModelVersion
from medgen.ledger import Ledger, Outcome, Record, StepIdentity, Work
from medgen.markdown import cell, render
from medgen.store import Store
from models.encoders import features_digest, shown_name
from models.segmentation.frames import head_model_digest
from models.segmentation.manifest import read_manifests
from models.segmentation.train_head import RECIPE, TrainedHead, train

# Output role → name of the file in a folder that the head is handed out to.
FILES = {"head": "frame_head.safetensors", "scores": "frame_head.json", "model_card": "frame_head.md"}


def train_frames(
    ledger: Ledger,
    folders: Sequence[Path],
    encoder: str,
    progress: Callable[[str, int, int, str], None] = lambda stage, done, total, item: None,
) -> tuple[Record, bool]:
    """The record of the head of that encoder for those folders, and whether it was there already.

    Outputs:
        head: safetensors, usable as `frame_head`.
        scores: JSON, leave-one-source-out figures and what the head was trained on.
        data_list: JSON, the items with label, sources, licence and sha256, and those left out, with the reason.
        model_card: Markdown.

    Raises:
        SourceUnreadable, ModelUnavailable: as `models.segmentation.train_head.train`. Nothing is recorded then.
    """
    files, left_out = read_manifests(folders)
    digest = features_digest(encoder)
    identity = StepIdentity("train_frames", 3, {"encoder": shown_name(encoder), **RECIPE}, {"encoder": digest})
    context = {"videos": len(files), "data": digest_of({"videos": [f.row() for f in files], "left_out": left_out})}
    work = Work("frame_head", context=context)
    return ledger.once(identity, work, lambda: _outcome(train(folders, encoder, progress), digest, ledger.store))


def _outcome(trained: TrainedHead, encoder: str, store: Store) -> Outcome:
    outputs = {
        "head": store.put_bytes(trained.head, "application/vnd.safetensors"),
        "scores": store.put_bytes(scores_file(trained), "application/json"),
        "data_list": store.put_bytes(canonical_json(trained.data_list), "application/json"),
        "model_card": store.put_bytes(model_card(trained.scores, trained.data_list).encode(), "text/markdown"),
    }
    head = outputs["head"].sha256
    version = ModelVersion(
        digest=head_model_digest(encoder, head), name=trained.scores["encoder"], kind="frame_head",
        checkpoint_sha256=head,
    )  # fmt: skip
    figures = {k: v for k, v in trained.scores["leave_one_source_out"].items() if isinstance(v, float)}
    return Outcome(
        "kept", detail={"model": version.digest, **trained.scores}, scores=figures, outputs=outputs, rows=[version]
    )


def scores_file(trained: TrainedHead) -> bytes:
    """JSON for people and machines: figures, judgements, and what trained the head; a line for each item."""
    content = trained.scores | {"trained_on": trained.data_list["videos"], "left_out": trained.data_list["left_out"]}
    lists = {name: content.pop(name) for name in ("judged", "trained_on")}
    lines = json.dumps(content, indent=1, ensure_ascii=False)[:-2]
    for name, rows in lists.items():
        each = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows)
        lines += f',\n "{name}": [\n{each}\n ]'
    return (lines + "\n}\n").encode()


def export(store: Store, outputs: Mapping[str, str], folder: Path) -> dict[str, Path]:
    """Writes head, scores and model card of a record into a folder; role → file. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {role: folder / name for role, name in FILES.items()}
    for role, path in written.items():
        path.write_bytes(store.read(outputs[role]))
    return written


def model_card(scores: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Markdown: what the head is for, how good it is, what it was trained on, what it can't do."""
    held_out = scores["leave_one_source_out"]
    misjudged = [
        {
            "video": cell(judged["file"]),
            "truth": "medical" if judged["medical"] else "not medical",
            "P(medical)": judged["probability"],
        }
        for judged in scores["judged"]
        if judged["file"] in held_out["misjudged"]
    ]
    labels = Counter(video["class"] for video in data["videos"])
    sources = {label: {tuple(v["source"]) for v in data["videos"] if v["class"] == label} for label in labels}
    licences = Counter(video["licence"] or "not stated" for video in data["videos"])
    category = held_out["category_accuracy_of_medical_videos"]
    figures = {
        "balanced accuracy by video": held_out["balanced_accuracy_by_video"],
        "balanced accuracy by frame": held_out["balanced_accuracy_by_frame"],
        "category right, of medical videos of known kind": "not measured" if category is None else category,
        "log loss by frame": held_out["log_loss"],
        "area under the curve": held_out["area_under_curve"],
        "medical ones below 0.05": held_out["medical_below_0.05"],
        "expected calibration error": held_out["calibration_error"],
    }
    return render(
        "tasks.training",
        "frame_head.md.jinja",
        scores=scores,
        held_out=held_out,
        categories=[
            {"category": name, **{k: v for k, v in of.items() if k != "interval_by_source"}, "95 %": _span(of)}
            for name, of in held_out["recall_by_category"].items()
        ],
        interval=_span({"interval_by_source": held_out["balanced_accuracy_interval_by_source"]}),
        figures=[{"figure": name, "value": value} for name, value in figures.items()],
        misjudged=misjudged,
        trained_on=[
            {"class": label, "videos": count, "sources": len(sources[label])} for label, count in sorted(labels.items())
        ],
        licences=[{"licence": cell(name), "videos": count} for name, count in sorted(licences.items())],
        left_out=len(data["left_out"]),
    )


def _span(of: Mapping[str, Any]) -> str:
    low, high = of["interval_by_source"]
    return f"{low:.2f} to {high:.2f}"
