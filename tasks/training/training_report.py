"""What a training run shows people: the plot of its losses and the card of its model."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from medgen.markdown import cell, render
from models.training.config import TrainConfig

TEXT = " .,:-+_/()[]'="  # what others' text may hold in a card beside letters and digits


class TrainFacts(TypedDict):
    """What a training run was and came to.

    Args:
        base: digest of the model that it started from; `base_name` is what the user called it.
        steps: optimiser steps; `delivered_step`: after how many of them the weights were taken.
        held_out_videos: ids.
        quarantined: clip id → why it could not be used.
        train_loss, held_out_loss: at fixed noise, before and after; None when not measured.
    """

    release: str
    base: str
    base_name: str
    preset: str
    steps: int
    delivered_step: int
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
    """Markdown: what the model is, what it was trained on and how. The same run gives the same card."""
    losses = [
        {
            "loss at fixed noise": name,
            "before": _number(before),
            f"after {facts['steps']} steps": _number(after),
        }
        for name, (before, after) in (
            ("training clips", facts["train_loss"]),
            ("held-out clips", facts["held_out_loss"]),
        )
    ]
    settings = [{"setting": name, "value": cell(value, TEXT)} for name, value in sorted(config.identity().items())]
    return render(
        "tasks.training",
        "model_card.md.jinja",
        facts=facts,
        config=config,
        losses=losses,
        settings=settings,
        text=TEXT,
    )


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
