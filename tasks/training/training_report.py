"""What a training run shows people: the plot of its losses and the card of its model."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from models.training.config import TrainConfig

# Called with what training tells; for faces that show it.
watchers: list[Callable[[dict[str, Any]], None]] = []


class TrainFacts(TypedDict):
    """What a training run was and came to.

    Args:
        base: digest of the model that it started from; `base_name` is what the user called it.
        steps: optimiser steps.
        held_out_videos: ids.
        quarantined: clip id → why it could not be used.
        train_loss, held_out_loss: at fixed noise, before and after; None when not measured.
    """

    release: str
    base: str
    base_name: str
    preset: str
    steps: int
    train_clips: int
    train_videos: int
    held_out_clips: int
    held_out_videos: list[str]
    quarantined: dict[str, str]
    train_loss: list[float | None]
    held_out_loss: list[float | None]


class ValidationRow(TypedDict):
    """One validation: losses at fixed noise on held-out clips (`loss`) and training clips; None when not measured."""

    step: int
    loss: float | None
    train_loss: float | None


def loss_plot(curve: Sequence[Mapping[str, Any]], validations: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG: the loss of every step, and the losses at fixed noise on training and held-out clips."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), dpi=110)
    axes = figure.add_subplot()
    steps = [row["step"] for row in curve]
    axes.plot(steps, [row["loss"] for row in curve], color="0.8", linewidth=0.8, label="each step")
    for key, label, colour in (("train_loss", "training clips", "tab:blue"), ("loss", "held-out clips", "tab:orange")):
        rows = [row for row in validations if row[key] is not None]
        if rows:
            axes.plot(
                [r["step"] for r in rows], [r[key] for r in rows], "o-", color=colour, label=f"{label}, fixed noise"
            )
    axes.set_xlabel("step")
    axes.set_ylabel("flow-matching loss")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def loss_rows(validations: Sequence[ValidationRow]) -> list[dict[str, Any]]:
    """Rows of a table: step, training loss and held-out loss at fixed noise."""
    return [
        {"step": row["step"], "training clips": _number(row["train_loss"]), "held-out clips": _number(row["loss"])}
        for row in validations
    ]


def model_card(facts: TrainFacts, config: TrainConfig) -> str:
    """Markdown: what the model is, what it was trained on and how. The same run gives the same card.

    Args:
        facts: detail of the record of the step train.
    """
    first, last = facts["held_out_loss"]
    settings = "\n".join(f"| {name} | {_cell(value)} |" for name, value in sorted(config.identity().items()))
    left_out = "\n".join(f"- {clip}: {_cell(why)}" for clip, why in sorted(facts["quarantined"].items())) or "None."
    adapter = (
        "\n`pytorch_lora_weights.safetensors` is the adapter alone, for `pipeline.load_lora_weights` on the base"
        f"{'; the transformer here has it merged in' if config.merge_lora else ''}.\n"
        if config.training == "lora"
        else ""
    )
    return f"""---
library_name: diffusers
pipeline_tag: text-to-video
---

# {_cell(facts["preset"])} trained on {_cell(facts["release"])}

A text-to-video pipeline of diffusers: {"an adapter (LoRA)" if config.training == "lora" else "all weights"} of the
transformer of {_cell(facts["base_name"])} (`{facts["base"]}`), trained by flow matching on the release
{_cell(facts["release"])}.
{adapter}
## What it was trained on

- {facts["train_clips"]} clips of {facts["train_videos"]} source videos
- held out, and never trained on: {facts["held_out_clips"]} clips of {len(facts["held_out_videos"])} source videos

Clips that could not be used:

{left_out}

## How it went

| loss at fixed noise | before | after {facts["steps"]} steps |
| --- | --- | --- |
| training clips | {_number(facts["train_loss"][0])} | {_number(facts["train_loss"][1])} |
| held-out clips | {_number(first)} | {_number(last)} |

A model that answers nothing has about 2. {"The weights are the moving average." if config.use_ema else ""}

## Settings

| setting | value |
| --- | --- |
{settings}

## What to keep in mind

Its videos are synthetic. They can be wrong in ways that look right, and are no basis for teaching, diagnosis or
treatment unless a professional has checked them. The licences of the training clips are those of the release.
"""


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


def _cell(value: Any) -> str:
    """Text of others, made harmless for a Markdown table."""
    return "".join(c if c.isalnum() or c in " .,:-+_/()[]'=" else " " for c in str(value)).strip()
