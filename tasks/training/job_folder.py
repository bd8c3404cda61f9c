"""The working folder of a training run: its job and the encoded clips that it reads."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path

import numpy as np

from medgen.errors import ItemFailed
from medgen.ledger import Work
from medgen.model_lineage import LATENTS
from medgen.settings import current
from medgen.store import Store
from models.training.clip_frames import read_frames, read_geometries
from models.training.config import TrainConfig
from models.training.job import Sample, TrainJob
from models.training.stored_bytes import StoredBytes
from tasks.training.released import ReleasedClip
from tasks.training.sample_files import materialize_samples

TEXTS = "texts:"  # the same of its embedded captions
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
    """Writes the job, and its encoded clips into the working folder, where no cache can drop them.

    Those that are there already are not touched. Clips of videos that were taken down since they were encoded are left
    out.

    Args:
        clips: of the release, in any order; read once.
        weights: of a mixture, release → share of the samples; see `tasks.training.mixture`.

    Raises:
        ArtifactLost, StoreUnavailable: as `Store.path`.
    """
    chosen: list[ReleasedClip] = [clip for clip in clips if LATENTS + clip.clip_id in work.inputs]
    there = {clip.clip_id for clip in chosen}
    wanted = [sha256 for role, sha256 in work.inputs.items() if _clip_of(role) in there]
    places = materialize_samples(store, folder / "samples", [*wanted, work.inputs["empty"]])
    empty = folder / "samples" / "empty.safetensors"
    empty.write_bytes(places[work.inputs["empty"]].read())
    samples = [sample for clip in chosen for sample in _samples(clip, work.inputs, places)]
    first = sorted(chosen, key=lambda one: one.clip_id)[:PROBED]  # to be looked at
    job = TrainJob(
        config=config,
        base=str(work.access["base"]),
        base_digest=base_digest,
        samples=tuple(sorted(samples, key=lambda sample: (sample.clip_id, sample.window))),
        empty=empty,
        folder=folder,
        weights=dict(weights or {}),
        probe_clip=_probe_clip(store, folder, first, config),
    )
    job.write(folder / "job.json")
    return job


def _samples(clip: ReleasedClip, inputs: Mapping[str, str], places: Mapping[str, StoredBytes]) -> Iterator[Sample]:
    """The windows of a clip that were encoded."""
    texts = inputs.get(TEXTS + clip.clip_id)
    for window in count():
        sha256 = inputs.get(LATENTS + (f"{clip.clip_id}@{window}" if window else clip.clip_id))
        if sha256 is None:
            return
        yield Sample(
            **dict(places[sha256]),
            clip_id=clip.clip_id,
            video_id=clip.video_id,
            category=clip.category,
            captioner_kind=clip.captioner_kind,
            split=clip.split,
            parts=clip.parts,
            texts=places[texts] if texts else None,
            window=window,
        )


def _clip_of(role: str) -> str:
    """The clip that an input of a training run is of."""
    return role.partition(":")[2].partition("@")[0]


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
