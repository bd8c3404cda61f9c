"""Ways to tell medical videos by their frames, each judging only sources that it never saw."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from models.encoders import MOBILENET, load_encoder
from models.segmentation.manifest import read_manifest
from models.segmentation.train_head import validate
from models.segmentation.training_frames import LabelledVideo, embed_videos, sampled_frames

LAST_LAYER = 1280  # MobileNetV2's pooled features, the end of what the encoder gives
TIMED_FRAMES = 64


def table(folder: Path) -> Iterator[str]:
    """Markdown. Raises SourceUnreadable when the folder's labels don't suffice."""
    encoder = load_encoder(MOBILENET)
    files, _ = read_manifest(folder)
    videos, _ = embed_videos(folder, files, encoder)
    frames = [
        frame for file in files if file.file == videos[0].label.file for frame in sampled_frames(folder / file.file)
    ]
    started = time.process_time()
    encoder.embed((frames * TIMED_FRAMES)[:TIMED_FRAMES])
    cost = 1000 * (time.process_time() - started) / TIMED_FRAMES
    methods = {
        "last pooled layer": [_of(video, layers=slice(-LAST_LAYER, None), varied=False) for video in videos],
        "last pooled layer, varied copies": [
            _of(video, layers=slice(-LAST_LAYER, None), varied=True) for video in videos
        ],
        "several layers": [_of(video, layers=slice(None), varied=False) for video in videos],
        "several layers, varied copies": videos,
    }
    columns = ("MobileNetV2, logistic regression on", "balanced accuracy", "by frame", "log loss", "misjudged")
    yield "| " + " | ".join((*columns, "CPU ms a frame")) + " |"
    yield "|---|---|---|---|---|---|"
    for name, shown in methods.items():
        found = validate(shown).scores
        yield (
            f"| {name} | {found['balanced_accuracy_by_video']:.3f} | {found['balanced_accuracy_by_frame']:.3f} "
            f"| {found['log_loss']:.3f} | {', '.join(sorted(found['misjudged']))} | {cost:.0f} |"
        )


def _of(video: LabelledVideo, *, layers: slice, varied: bool) -> LabelledVideo:
    """What a method is given of a video."""
    copies = video.varied[:, layers] if varied else np.zeros((0, video.varied[:, layers].shape[1]), np.float32)
    return replace(video, embeddings=video.embeddings[:, layers], varied=copies)
