"""The working folder of a training run: its job and the encoded clips that it reads."""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
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
PROBED = 3  # clips that pre-flight's round trip is tried with until one can be read


def working_folder(key: str) -> Path:
    """Where a training run works. Its checkpoints, log and TensorBoard files lie here."""
    return current().home / "training" / key


def materialize_job(
    store: Store,
    folder: Path,
    work: Work,
    clips: Iterable[ReleasedClip],
    config: TrainConfig,
    base_digest: str,
    weights: Mapping[str, float] | None = None,
) -> TrainJob:
    """Writes the job and links its encoded clips into the working folder, where no cache can drop them.

    Those that are linked already are not touched. Clips of videos that were taken down since they were encoded are left
    out.

    Args:
        clips: of the release, in any order; read once.
        weights: of a mixture, release → share of the samples; see `tasks.training.mixture`.

    Raises:
        ArtifactLost, StoreUnavailable: as `Store.path`.
    """
    links = folder / "samples"
    links.mkdir(parents=True, exist_ok=True)
    linked = {entry.name for entry in os.scandir(links)}
    samples: list[Sample] = []
    first: list[ReleasedClip] = []  # by their ids, to be looked at
    for clip in clips:
        sha256 = work.inputs.get(LATENTS + clip.clip_id)
        if sha256 is None:
            continue
        path = links / f"{sha256}.safetensors"
        if path.name not in linked:
            _link(store.path(sha256), path)
        samples.append(
            Sample(
                path=path,
                clip_id=clip.clip_id,
                video_id=clip.video_id,
                category=clip.category,
                sha256=sha256,
                captioner_kind=clip.captioner_kind,
                split=clip.split,
                parts=clip.parts,
            )
        )
        first = sorted([*first, clip], key=lambda one: one.clip_id)[:PROBED]
    empty = links / "empty.safetensors"
    if empty.name not in linked:
        _link(store.path(work.inputs["empty"]), empty)
    job = TrainJob(
        config=config,
        base=str(work.access["base"]),
        base_digest=base_digest,
        samples=tuple(sorted(samples, key=lambda sample: sample.clip_id)),
        empty=empty,
        folder=folder,
        weights=dict(weights or {}),
        probe_clip=_probe_clip(store, folder, first, config),
    )
    job.write(folder / "job.json")
    return job


def _link(source: Path, target: Path) -> None:
    """Links or copies; a file that is there stays."""
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:  # another file system: never half a copy under the name
        making = target.with_name(f".{target.name}.making")
        shutil.copyfile(source, making)
        making.replace(target)


def _probe_clip(store: Store, folder: Path, clips: Sequence[ReleasedClip], config: TrainConfig) -> Path | None:
    """Frames of the first clip that can be read, for pre-flight's round trip; None when there is none."""
    for clip in clips:
        geometry = clip.best_fit(read_geometries(config.buckets), config.fps)
        try:
            if geometry is not None:
                frames = read_frames(store.path(clip.sha256), geometry, config.fps, clip.duration_s)
                np.save(folder / "probe_clip.npy", frames, allow_pickle=False)
                return folder / "probe_clip.npy"
        except ItemFailed:
            continue
    return None
