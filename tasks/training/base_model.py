"""Base model: what a training run starts from. For nano it is made here, its VAE trained on the release.

The transformer is at its seeded random initialisation: to learn it is the training's business. Source videos that
training holds out, nobody's VAE sees either.
"""

import heapq
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, as_completed
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from pebble import ProcessExpired
from prefect.runtime import flow_run
from pydantic import Field

from medgen.canonical import digest_of
from medgen.catalog import ModelVersion
from medgen.errors import ItemFailed, RunStopped
from medgen.folders import put_folder
from medgen.handover import Handover
from medgen.holdout import held_out_videos
from medgen.ledger import Ledger, Outcome, Record, StepIdentity, Work, open_ledger
from medgen.parameters import MOST_ITEMS, Parameters
from medgen.settings import current
from medgen.worker_processes import failure_of, worker_pool
from models.generation.video_diffusion import save_pipeline
from models.training.clip_frames import Geometry, read_frames
from models.training.nano import FPS, FRAMES, HEIGHT, NANO, SAMPLING, TRANSFORMER, VAE, WIDTH, untrained_pipeline
from models.training.nano import text_encoder_folder as text_encoder
from tasks.prefect_step import StepProgress, step_task
from tasks.training.model_files import KIND
from tasks.training.released import ReleasedClip, stream_clips

if TYPE_CHECKING:
    from diffusers.pipelines.wan.pipeline_wan import WanPipeline

    from models.training.nano_vae import TrainedVae

STEP = "base_model"
VERSION = 1
CLIP_LIMIT_S = 300.0  # of decoding one clip
KEPT_BACK = 8  # clips of held-out videos that the VAE is measured on
GEOMETRY = Geometry(FRAMES, HEIGHT, WIDTH)

Progress = Callable[[str, int, int], None]


class BaseModelParams(Parameters):
    """Parameters of base_model."""

    base_seed: int = Field(0, ge=0, lt=2**63, description="nano: seed of its weights and of the VAE's training.")
    vae_steps: int = Field(
        300, ge=0, le=MOST_ITEMS, description="nano: steps of the VAE's training; 0: a linear transform coder."
    )
    vae_clips: int = Field(64, ge=1, le=MOST_ITEMS, description="nano: most clips that the VAE is trained on.")
    validation_share: float = Field(0.15, ge=0, lt=1, description="Share of source videos held out of training.")
    split_seed: int = Field(0, ge=0, lt=2**31, description="Seed of the choice of held-out videos: the training's.")
    # Two threads on cores that others use too took six times as long as one.
    vae_threads: int = Field(
        1,
        ge=1,
        le=1024,
        exclude=True,
        description="nano: threads of the VAE's training; another number, other last digits.",
    )


class BaseModelDetail(TypedDict):
    """Detail of the record.

    Args:
        model: digest; `name` is what people call it.
        psnr_db: of the VAE on clips that it was trained on; `psnr_start_db` of the transform coder that it started as,
            `psnr_held_out_db` on clips of held-out videos, None without any.
        loss: mean over the last 20 steps; None without any.
        left_out: clip id → why it can't be read.
        threads: of the VAE's training.
    """

    model: str
    name: str
    release: str
    psnr_db: float
    psnr_start_db: float
    psnr_held_out_db: float | None
    loss: float | None
    clips: int
    held_out_clips: int
    left_out: dict[str, str]
    threads: int


BASE_MODEL: Handover[BaseModelDetail] = Handover(STEP)


def base_model(
    ledger: Ledger,
    release: str,
    params: BaseModelParams,
    progress: Progress = lambda stage, done, total: None,
    *,
    flow_run_id: str | None = None,
) -> Record:
    """The record of the nano base of a release; the base is made unless the record stands already.

    Outputs: manifest and files of an ordinary diffusers folder.

    Args:
        progress: called with (stage, done, total).

    Raises:
        ItemFailed: unknown_release, empty_release; no_usable_clips when no clip can be read.
        ModelUnavailable: the text encoder's package is missing.
    """
    clips, row = stream_clips(ledger, release)
    usable = ((clip.video_id, clip.split) for clip in clips if _fits(clip))
    away = held_out_videos(usable, params.validation_share, params.split_seed)
    shown = _chosen(ledger, release, params.vae_clips, lambda clip: clip.video_id not in away)
    kept_back = _chosen(ledger, release, min(params.vae_clips, KEPT_BACK), lambda clip: clip.video_id in away)
    identity = StepIdentity(
        STEP,
        VERSION,
        params.model_dump(mode="json") | {"preset": NANO, "sizes": digest_of({"vae": VAE, "transformer": TRANSFORMER})},
        {"text_encoder": _text_encoder_digest()},
    )
    work = Work(
        f"{NANO}-base-of-{release}",
        inputs={f"clip:{clip.clip_id}": clip.sha256 for clip in shown},
        context={"held_out_clips": digest_of([clip.sha256 for clip in kept_back])},
        parents={"release": row.step_run_id},
    )

    def make() -> Outcome:
        if not shown:
            raise ItemFailed(
                "no_usable_clips",
                f"none of the {row.clips} clips of {release} has both captions and lasts {GEOMETRY.lasts(FPS):.1f} s",
            )
        frames, left_out = _read(ledger, [*shown, *kept_back], progress)
        return _made(
            ledger,
            release,
            params,
            [frames.get(c.clip_id) for c in shown],
            [frames.get(c.clip_id) for c in kept_back],
            left_out,
            progress,
        )

    record, _ = ledger.once(identity, work, make, flow_run_id=flow_run_id)
    return record


def _fits(clip: ReleasedClip) -> bool:
    """Whether training would take the clip, as encode decides; else the choice of held-out videos would differ."""
    return bool(clip.brief.strip() and clip.detailed.strip() and clip.best_fit([GEOMETRY], FPS))


def _chosen(ledger: Ledger, release: str, most: int, wanted: Callable[[ReleasedClip], bool]) -> list[ReleasedClip]:
    """At most so many of the wanted clips that fit, by the hash of their bytes and so for no other reason."""
    clips, _ = stream_clips(ledger, release)
    fit = (clip for clip in clips if _fits(clip) and wanted(clip))
    return heapq.nsmallest(most, fit, key=lambda clip: (clip.sha256, clip.clip_id))


def _read(
    ledger: Ledger, clips: Sequence[ReleasedClip], progress: Progress
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(clip id → frames, clip id → why it can't be read), decoded in worker processes."""
    frames: dict[str, np.ndarray] = {}
    left_out: dict[str, str] = {}
    pool = worker_pool(min(current().workers, len(clips)))
    try:
        jobs: dict[Future[np.ndarray], str] = {
            pool.schedule(
                read_frames, args=(ledger.store.path(c.sha256), GEOMETRY, FPS, c.duration_s), timeout=CLIP_LIMIT_S
            ): c.clip_id
            for c in clips
        }
        for job in as_completed(jobs):
            try:
                frames[jobs[job]] = job.result()
            except ItemFailed as failure:
                left_out[jobs[job]] = str(failure)
            except (TimeoutError, ProcessExpired) as end:
                left_out[jobs[job]] = str(failure_of(end, CLIP_LIMIT_S))
            progress("decode", len(frames) + len(left_out), len(clips))
    finally:
        pool.stop()  # type: ignore[no-untyped-call]  # pebble's annotations leave it out
        pool.join()
    return frames, dict(sorted(left_out.items()))


def _made(
    ledger: Ledger,
    release: str,
    params: BaseModelParams,
    shown: Sequence[np.ndarray | None],
    kept_back: Sequence[np.ndarray | None],
    left_out: dict[str, str],
    progress: Progress,
) -> Outcome:
    train, test = ([clip for clip in clips if clip is not None] for clips in (shown, kept_back))
    if not train:
        raise ItemFailed("no_usable_clips", f"no clip of {release} can be read: {next(iter(left_out.values()))}")
    pipeline, trained, held_out_psnr = _trained(params, train, test, progress)
    with tempfile.TemporaryDirectory(dir=ledger.store.temporary, ignore_cleanup_errors=True) as making:
        stored = put_folder(ledger.store, save_pipeline(pipeline, Path(making) / NANO, SAMPLING))
    digest = stored.manifest.sha256
    version = ModelVersion(
        digest=digest,
        name=f"{NANO}-base-{digest[:12]}",
        kind=KIND,
        checkpoint_sha256=digest,
        release_name=release,
    )
    detail: BaseModelDetail = {
        "model": digest,
        "name": version.name,
        "release": release,
        "psnr_db": round(trained.psnr_db, 3),
        "psnr_start_db": round(trained.psnr_start_db, 3),
        "psnr_held_out_db": held_out_psnr,
        "loss": round(float(np.mean(trained.losses[-20:])), 5) if trained.losses else None,
        "clips": len(train),
        "held_out_clips": len(test),
        "left_out": left_out,
        "threads": params.vae_threads,
    }
    return Outcome(
        "kept",
        detail=dict(detail),
        outputs=stored.outputs(),
        rows=[version],
        decodes=len(shown) + len(kept_back),
    )


def _trained(
    params: BaseModelParams, train: Sequence[np.ndarray], test: Sequence[np.ndarray], progress: Progress
) -> tuple["WanPipeline", "TrainedVae", float | None]:
    """(pipeline with its VAE trained, how that went, PSNR in dB on the held-out clips if there are any)."""
    import torch

    from models.training.nano_vae import psnr, train_vae

    threads = torch.get_num_threads()
    torch.set_num_threads(params.vae_threads)
    try:
        pipeline = untrained_pipeline(params.base_seed)
        trained = train_vae(
            pipeline.vae,
            np.stack(train),
            seed=params.base_seed,
            steps=params.vae_steps,
            progress=partial(progress, "train VAE"),
        )
        held_out_psnr = round(psnr(pipeline.vae, np.stack(test)), 3) if test else None
    finally:
        torch.set_num_threads(threads)
    if not np.isfinite(trained.psnr_db):
        raise RunStopped(f"the VAE's training went astray (PSNR {trained.psnr_db}): try another base_seed")
    return pipeline, trained, held_out_psnr


def _text_encoder_digest() -> str:
    from models.hub_files import file_digest

    folder = text_encoder()
    names = ("config.json", "model.safetensors", "tokenizer.json")
    return digest_of({name: file_digest(folder / name) for name in names})


@step_task(STEP, "cpu")
def base_model_task(label: str, release: str, params: BaseModelParams) -> int:
    """The id of the record of a release's nano base."""
    shown: dict[str, StepProgress] = {}

    def progress(stage: str, done: int, total: int) -> None:
        shown.setdefault(stage, StepProgress(stage))(done, total)

    return base_model(open_ledger(), release, params, progress, flow_run_id=flow_run.id).id
