"""The working folder of a training run: its job and the encoded clips that it reads."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medgen.errors import ItemFailed
from medgen.ledger import Work
from medgen.settings import current
from medgen.store import Store
from models.training.clip_frames import read_frames, read_geometries
from models.training.config import TrainConfig
from models.training.job import Sample, TrainJob
from tasks.training.released import ReleasedClip

TRAIN = "train"  # name of the step
LATENTS = "latents:"  # beginning of the role of an encoded clip among a training run's inputs; the clip's id follows


def working_folder(key: str) -> Path:
    """Where a training run works. Its checkpoints, log and TensorBoard files lie here."""
    return current().home / "training" / key


def materialize_job(
    store: Store,
    folder: Path,
    work: Work,
    clips: Mapping[str, ReleasedClip],
    config: TrainConfig,
    base_digest: str,
) -> TrainJob:
    """Writes the job and links its encoded clips into the working folder, where no cache can drop them.

    Clips of videos that were taken down since they were encoded are left out.

    Raises:
        ArtifactLost, StoreUnavailable: as `Store.path`.
    """
    links = folder / "samples"
    links.mkdir(parents=True, exist_ok=True)
    samples = []
    for role, sha256 in sorted(work.inputs.items()):
        clip = clips.get(role.removeprefix(LATENTS))
        if role.startswith(LATENTS) and clip is not None:
            path = _linked(store.path(sha256), links / f"{sha256}.safetensors")
            samples.append(
                Sample(path=path, clip_id=clip.clip_id, video_id=clip.video_id, category=clip.category, sha256=sha256)
            )
    job = TrainJob(
        config=config,
        base=str(work.access["base"]),
        base_digest=base_digest,
        samples=tuple(samples),
        empty=_linked(store.path(work.inputs["empty"]), links / "empty.safetensors"),
        folder=folder,
        probe_clip=_probe_clip(store, folder, [clips[s.clip_id] for s in samples], config),
    )
    job.write(folder / "job.json")
    return job


def _linked(source: Path, target: Path) -> Path:
    if not target.exists():
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
    return target


def _probe_clip(store: Store, folder: Path, clips: Sequence[ReleasedClip], config: TrainConfig) -> Path | None:
    """Frames of the first clip that can be read, for pre-flight's round trip; None when there is none."""
    for clip in clips[:3]:
        geometry = clip.best_fit(read_geometries(config.buckets), config.fps)
        try:
            if geometry is not None:
                frames = read_frames(store.path(clip.sha256), geometry, config.fps, clip.duration_s)
                np.save(folder / "probe_clip.npy", frames, allow_pickle=False)
                return folder / "probe_clip.npy"
        except ItemFailed:
            continue
    return None
