"""Video classifiers on a frozen image encoder: only a small temporal head is trained.

The encoder's embeddings of evenly spaced frames go through a PCA that is fitted to the training frames, then through
the head. Every training takes the same number of steps whatever the number of videos, so that no set of videos can win
by being trained on for longer. On one CPU the same seed gives the same classifier.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from models.classifiers.batches import shuffled_batches

TemporalHead = Literal["statistics", "attention", "gru"]

COMPONENTS = 64  # of the PCA
WIDTH = 64  # of the head's hidden layer
HEAD_BATCH = 64
HEAD_LEARNING_RATE = 3e-3
HEAD_WEIGHT_DECAY = 0.05
DROPOUT = 0.2
# What a frozen classifier is beside its encoder and parameters.
HEAD_RECIPE = {
    "version": 1, "components": COMPONENTS, "width": WIDTH, "batch": HEAD_BATCH, "learning_rate": HEAD_LEARNING_RATE,
    "weight_decay": HEAD_WEIGHT_DECAY, "dropout": DROPOUT,
}  # fmt: skip


def fit_frozen(
    train: np.ndarray,
    labels: Sequence[int],
    test: np.ndarray,
    classes: int,
    *,
    head: TemporalHead,
    steps: int,
    seed: int,
) -> np.ndarray:
    """Trains a head on embeddings and judges others: float32 (T, classes), each row's sum 1.

    Args:
        train, test: float32 (N, F, D) and (T, F, D): embeddings of F frames of each video.
        labels: of the training videos, from 0 to `classes` - 1. A class without any is never found.

    Raises:
        ValueError: no training videos.
    """
    import torch

    if not len(train):
        raise ValueError("no training videos")
    torch.set_num_threads(1)
    reduced, centre, scale = _pca(train, seed)
    x = torch.from_numpy(((train - centre) @ reduced / scale).astype(np.float32))
    unseen = torch.from_numpy(((test - centre) @ reduced / scale).astype(np.float32))
    y = torch.tensor(list(labels))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _head(head, x, classes)
        optimizer = torch.optim.AdamW(model.parameters(), lr=HEAD_LEARNING_RATE, weight_decay=HEAD_WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, HEAD_LEARNING_RATE, total_steps=steps)
        batches = shuffled_batches(len(x), HEAD_BATCH, steps, seed)
        model.train()
        for rows in batches:
            loss = torch.nn.functional.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.inference_mode():
        return np.asarray(model(unseen).softmax(dim=1))


def _pca(train: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Components (D, P), centre (D,) and scale of the frames: the root of their variance per component."""
    from sklearn.decomposition import PCA

    frames = train.reshape(-1, train.shape[-1])
    wanted = max(1, min(COMPONENTS, len(frames) - 1, frames.shape[1]))
    fitted = PCA(wanted, svd_solver="randomized", random_state=seed).fit(frames)
    scale = float(np.sqrt(fitted.explained_variance_.mean())) or 1.0
    return fitted.components_.T, fitted.mean_, scale


def _head(kind: TemporalHead, x: Any, classes: int) -> Any:
    """An untrained head for (B, F, P); its scales are those of the training videos `x`."""
    from torch import nn

    frames, width = x.shape[1:]
    if kind == "statistics":
        return nn.Sequential(
            _statistics(x),
            nn.Dropout(DROPOUT),
            nn.Linear(3 * width, WIDTH),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(WIDTH, classes),
        )
    return _attention(frames, width, classes) if kind == "attention" else _gru(width, classes)


def _statistics(x: Any) -> Any:
    """(B, F, P) → (B, 3P): mean, standard deviation and mean step from frame to frame, on the scale of the
    means: where nothing much moves the other two are small and must not be blown up."""
    import torch
    from torch import nn

    def pooled(x: Any) -> Any:
        steps = (x[:, 1:] - x[:, :-1]).abs().mean(1) if x.shape[1] > 1 else torch.zeros_like(x[:, 0])
        return torch.stack([x.mean(1), x.std(1, correction=0), steps], dim=1)

    class Statistics(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            seen = pooled(x)
            self.register_buffer("centre", seen.mean(0))
            size = (seen - self.centre)[:, 0].pow(2).mean().sqrt()
            self.register_buffer("size", size if size > 1e-6 else torch.ones(()))

        def forward(self, x: Any) -> Any:
            return ((pooled(x) - self.centre) / self.size).flatten(1)

    return Statistics()


def _attention(frames: int, width: int, classes: int) -> Any:
    import torch
    from torch import nn

    class Attention(nn.Module):
        """One learnt question to all frames, which know their places."""

        def __init__(self) -> None:
            super().__init__()
            self.narrow = nn.Linear(width, WIDTH)
            self.place = nn.Parameter(0.02 * torch.randn(frames, WIDTH))
            self.question = nn.Parameter(0.02 * torch.randn(1, 1, WIDTH))
            self.attend = nn.MultiheadAttention(WIDTH, 4, dropout=DROPOUT, batch_first=True)
            self.decide = nn.Sequential(nn.LayerNorm(WIDTH), nn.Dropout(DROPOUT), nn.Linear(WIDTH, classes))

        def forward(self, x: Any) -> Any:
            seen = self.narrow(x) + self.place
            answer, _ = self.attend(self.question.expand(len(x), -1, -1), seen, seen, need_weights=False)
            return self.decide(answer[:, 0] + seen.mean(1))

    return Attention()


def _gru(width: int, classes: int) -> Any:
    from torch import nn

    class Gru(nn.Module):
        """What a recurrent network knows after the last frame, and on average."""

        def __init__(self) -> None:
            super().__init__()
            self.read = nn.GRU(width, WIDTH, batch_first=True)
            self.decide = nn.Sequential(nn.LayerNorm(WIDTH), nn.Dropout(DROPOUT), nn.Linear(WIDTH, classes))

        def forward(self, x: Any) -> Any:
            states, _ = self.read(x)
            return self.decide(states[:, -1] + states.mean(1))

    return Gru()
