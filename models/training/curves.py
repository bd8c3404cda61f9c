"""The curves of a training run: JSON lines in its folder, TensorBoard, and what trackers accelerate knows.

What is measured of the machine (speed, memory) is in TensorBoard and trackers only: files of a run on record say what
was learnt, and are the same whatever machine it ran on.
"""

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgen.video.limits import Limits
from medgen.video.pictures import pictures
from models.training.job import read_rows

if TYPE_CHECKING:
    from torch import Tensor

Track = Callable[[Mapping[str, float], int], None]

LOSSES = "losses.jsonl"
VALIDATION = "validation.jsonl"
WIDEST, GIF_MS = 320, 100  # pixels and milliseconds of a frame of an animated picture
FLUSH_EVERY = 50  # steps between flushes to disk


class Curves:
    """Writes the curves; those of an earlier run are kept up to the step that this one goes on from.

    Args:
        folder: working folder of the run.
        track: called with (name → value, step) for trackers beside TensorBoard.
        step: optimiser steps that were done before; with 0 the first validation is made anew.
    """

    def __init__(self, folder: Path, step: int, track: Track = lambda values, step: None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        for name, keep in ((LOSSES, step), (VALIDATION, step if step else -1)):
            rows = [row for row in read_rows(folder / name) if row["step"] <= keep]
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.folder, self.track = folder, track
        self.board: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def add_step(self, row: Mapping[str, Any], machine: Mapping[str, float]) -> None:
        """Adds a step: step, loss, lr, grad_norm; and of the machine what `models.training.speed` tells."""
        _append(self.folder / LOSSES, row)
        named = {"loss/train": row["loss"], "lr": row["lr"], "grad_norm": row["grad_norm"]}
        self._show(named | {f"machine/{name}": value for name, value in machine.items()}, row["step"])

    def add_validation(self, row: Mapping[str, Any], videos: Sequence[Path] = ()) -> None:
        """Adds a validation: step, loss, train_loss, by_sigma, by_category; a loss is None where there were no clips.

        Args:
            videos: of the validation prompts, in order.
        """
        _append(self.folder / VALIDATION, row)
        named = {"loss/held_out": row["loss"], "loss/train_fixed": row["train_loss"]}
        for kind in ("sigma", "category"):
            named |= {f"held_out_by_{kind}/{key or 'none'}": loss for key, loss in row[f"by_{kind}"].items()}
        self._show({name: value for name, value in named.items() if value is not None}, row["step"])
        for number, path in enumerate(videos):
            add_animation(self.board, f"prompt/{number:02d}", path, row["step"])

    def add_gradients(self, norms: "Tensor", step: int) -> None:
        """Adds a histogram over the trained weights of the logarithm (base 10) of each one's gradient's norm."""
        self.board.add_histogram("gradient/log10_norm_of_each_weight", norms.clamp(min=1e-30).log10(), step)

    def _show(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        self.track(values, step)

    def close(self) -> None:
        """Ends TensorBoard's file."""
        self.board.close()


def add_animation(board: Any, name: str, path: Path, step: int) -> None:
    """Shows a video as an animated picture; TensorBoard's own way needs a library that is not here."""
    from PIL import Image
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]  # has no types

    shown = [Image.fromarray(picture.rgb()) for picture in pictures(path, Limits())]
    for frame in shown:
        frame.thumbnail((WIDEST, WIDEST))
    out = io.BytesIO()
    shown[0].save(out, "GIF", save_all=True, append_images=shown[1:], duration=GIF_MS, loop=0)
    picture = Summary.Image(
        height=shown[0].height, width=shown[0].width, colorspace=3, encoded_image_string=out.getvalue()
    )
    board._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=picture)]), step)


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        if row["step"] % FLUSH_EVERY == 0:
            os.fsync(file.fileno())
