"""Pre-flight: what would go wrong after hours goes wrong within a minute.

Each check has a measured value, what is expected, a verdict and advice. A `fail` must stop a run; a `warn` is for a
person to judge.
"""

import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import torch

from models.families.family import Family
from models.families.known import family_of
from models.generation.video_diffusion import open_pipeline, pipeline_folder
from models.training.config import TrainConfig
from models.training.cost import (
    FITS,
    GIB,
    Architecture,
    checkpoint_bytes,
    trainable_weights,
    training_memory,
    waiting_memory,
    weights,
    what_fits,
)
from models.training.errors import explain_out_of_memory
from models.training.flow_matching import loss_of_silence
from models.training.job import (
    Check,
    Sample,
    TrainJob,
    Verdict,
    check_captions,
    memory_advice,
    split_by_video,
)
from models.training.loss import batch_of, losses_of
from models.training.samples import BadSample, batch_order, read_sample, shape_of
from models.training.sampling import checked_geometry
from models.training.trainer import Trainer

READ_S = 15.0  # reading samples, whose number is not known beforehand
PROBE_S = 30.0
PROBE_STEPS = 20
# A good reconstruction has 30 dB and more; Wan 2.1's VAE has about 33 dB on 480p video, nano's about 25. Below 18 dB
# a picture is not recognisable, so that nothing that is trained on it can be.
PSNR_FAIL, PSNR_WARN = 14.0, 20.0
# Normalised latents have mean 0 and deviation 1 over a VAE's own training data; clips of one domain differ somewhat.
DEVIATION_FAIL, DEVIATION_WARN = (0.2, 4.0), (0.5, 2.0)


def preflight(job: TrainJob) -> Iterator[Check]:
    """All checks in the order of their cost; those that need the model come last and are left out when it can't fit.

    Yields as they are done. What can't be checked is left out: the VAE without a clip; learning where the model would
    not fit, or fits in shards alone.

    Raises:
        ModelUnavailable, NothingToTrainOn, TrainingStopped: the run could not even start.
    """
    yield check_split(job)
    yield check_captions((s.captioner_kind for s in job.samples), allowed=job.config.allow_stand_in_captions)
    checked, deviations = check_samples(job.samples)
    yield checked
    if deviations:
        yield check_latents(deviations)
    base = pipeline_folder(job.base)
    family = family_of(base)
    yield checked_geometry(job.config, base)
    architecture = Architecture.of(family.transformer)
    yield check_disk(job.config, architecture, job.folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fits = None
    if largest := largest_shape(job.samples):
        fits = check_memory(job.config, architecture, largest, device)
        yield fits
    if job.probe_clip is not None:
        yield check_vae(job.base, job.probe_clip, str(device), family)
    if fits is not None and (fits.verdict == "pass" or (fits.verdict == "warn" and job.config.num_processes == 1)):
        by_itself = {"num_processes": 1, "context_parallel_degree": 1}
        alone = job.model_copy(update={"config": job.config.model_copy(update=by_itself)})
        yield from check_learning(Trainer(alone, resume=False))


def largest_shape(samples: tuple[Sample, ...]) -> tuple[int, ...] | None:
    """(C, F, H, W) of the largest latents that can be read; None when none can."""
    shapes = []
    for sample in samples:
        with suppress(BadSample):
            shapes.append(shape_of(sample))
    return max(shapes, key=math.prod, default=None)


def check_split(job: TrainJob) -> Check:
    """Are there source videos on both sides?"""
    train, away = split_by_video(job.samples, job.config.validation_share, job.config.seed)
    videos = {s.video_id for s in train}, {s.video_id for s in away}
    measured = f"{len(train)} clips of {len(videos[0])} videos to train on, {len(away)} of {len(videos[1])} held out"
    expected = "clips on both sides, and more than one to train on"
    if not train:
        return Check("split", measured, expected, "fail", "The release has no encoded clip: look at `medgen status`.")
    if not away:
        advice = "No video is held out, so that overfitting will not show: use a release of more source videos."
        return Check("split", measured, expected, "warn", advice)
    if len(train) < 2:
        return Check("split", measured, expected, "warn", "The model will learn one clip by heart.")
    return Check("split", measured, expected, "pass")


def check_samples(samples: tuple[Sample, ...]) -> tuple[Check, list[tuple[float, float]]]:
    """Are the files whole? Also (mean, deviation) of the latents of those that are."""
    until, good, bad = time.monotonic() + READ_S, [], {}
    for sample in samples:
        if time.monotonic() > until:
            break
        try:
            latents = read_sample(sample).latents
            good.append((float(latents.mean()), float(latents.std())))
        except BadSample as error:
            bad[sample.clip_id] = str(error)
    read = len(good) + len(bad)
    measured = f"{len(good)} of {read} read are whole ({len(samples)} in all)"
    if not bad:
        return Check("samples", measured, "all", "pass" if read else "fail"), good
    named = "; ".join(f"{clip} {why}" for clip, why in list(bad.items())[:3])
    verdict: Verdict = "fail" if len(bad) > read / 2 else "warn"
    return Check("samples", measured, "all", verdict, f"Encode these again; training leaves them out: {named}"), good


def check_latents(moments: list[tuple[float, float]]) -> Check:
    """Are the latents normalised?"""
    mean = float(np.mean([m for m, _ in moments]))
    second = float(np.mean([m**2 + d**2 for m, d in moments]))
    deviation = math.sqrt(max(0.0, second - mean**2))
    measured = f"mean {mean:.3f}, deviation {deviation:.3f}"
    expected = "mean near 0, deviation near 1"
    advice = "They were encoded by another VAE or not normalised: encode the release for this base."
    if not DEVIATION_FAIL[0] < deviation < DEVIATION_FAIL[1]:
        return Check("latents", measured, expected, "fail", advice)
    odd = not DEVIATION_WARN[0] < deviation < DEVIATION_WARN[1] or abs(mean) > 0.7
    return Check("latents", measured, expected, "warn" if odd else "pass", advice if odd else "")


def check_disk(config: TrainConfig, architecture: Architecture, folder: Path) -> Check:
    """Is there room for the checkpoints and the model?"""
    model = 4 * weights(architecture)
    # One more checkpoint than is kept while it is written; the model in the working folder and again in the store.
    needed = (config.checkpoints_total_limit + 1) * checkpoint_bytes(architecture, config) + 2 * model
    # What was trained, before it becomes the model, and the best of it so far.
    needed += 4 * trainable_weights(architecture, config) * (2 if config.deliver == "best" else 1)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    verdict: Verdict = "pass" if free > 1.2 * needed else "warn" if free > needed else "fail"
    return Check(
        "disk",
        f"{free / GIB:.2f} GiB free",
        f"at least {needed / GIB:.2f} GiB for {config.checkpoints_total_limit + 1} checkpoints and the model",
        verdict,
        "" if verdict == "pass" else f"Free space on the disk of {folder}, or lower checkpoints_total_limit.",
    )


def check_memory(
    config: TrainConfig, architecture: Architecture, latent: tuple[int, ...], device: torch.device
) -> Check:
    """Does a step fit the device, as counted from the architecture? Sharding over processes is not counted in."""
    cuda = device.type == "cuda"
    need = training_memory(architecture, config, latent, cuda=cuda)
    if cuda:
        free, total = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_allocated(device)  # the model itself is there already
    else:
        free, total = psutil.virtual_memory().available, psutil.virtual_memory().total
    verdict: Verdict = "pass" if need.total < FITS * free else "warn" if need.total < 1.1 * free else "fail"
    advice = ""
    if verdict != "pass":
        found = what_fits(architecture, config, latent, free, cuda=cuda)
        settings = " ".join(f"--set {name}={json.dumps(value)}" for name, value in (found or {}).items())
        advice = f"This would fit, by the same count: {settings}. " if found else ""
        advice += memory_advice(config) + "."
    waiting = waiting_memory(architecture, config, latent) * config.num_processes
    room = psutil.virtual_memory().available
    if cuda and verdict == "pass" and waiting > FITS * room:
        verdict = "warn"
        advice = (
            f"{waiting / GIB:.0f} GiB wait in the CPU's memory, if all processes run on this machine, and "
            f"{room / GIB:.0f} are free: lower blocks_to_swap ({config.blocks_to_swap})."
        )
    if verdict == "fail" and config.num_processes > 1:
        verdict = "warn"
        advice = f"Counted without shards: right for FSDP over {config.num_processes} processes only. Else: {advice}"
    return Check(
        "memory",
        f"{free / GIB:.1f} of {total / GIB:.1f} GiB free",
        f"about {need.text()}",
        verdict,
        advice,
    )


def check_vae(base: str, clip: Path, device: str, family: Family) -> Check:
    """Does the VAE give back what it is given? Frames (F, H, W, 3) uint8 in a .npy file."""
    frames = np.load(clip, allow_pickle=False)
    pipeline = open_pipeline(base, device=device, parts=("vae",))
    back = family.decode_video(pipeline.vae, family.encode_video(pipeline.vae, frames))
    error = float(np.mean((frames[: len(back)].astype(np.float32) - back.astype(np.float32)) ** 2))
    psnr = 10 * math.log10(255**2 / max(error, 1e-6))
    verdict: Verdict = "pass" if psnr >= PSNR_WARN else "warn" if psnr >= PSNR_FAIL else "fail"
    advice = "The VAE does not reproduce this clip: check the base, or train nano's VAE for longer."
    return Check(
        "vae_round_trip",
        f"PSNR {psnr:.1f} dB",
        f"at least {PSNR_WARN:.0f} dB",
        verdict,
        "" if psnr >= PSNR_WARN else advice,
    )


def check_learning(trainer: Trainer) -> Iterator[Check]:
    """Is the first loss what it should be, and can one batch be learnt? Changes the trainer's weights."""
    config = trainer.config
    order = batch_order(trainer.train.buckets(), config.train_batch_size, config.seed)
    indices = next(order)
    items = [(place, trainer.train.near(index)[1]) for place, index in enumerate(indices)]
    batch = batch_of(items, 0, config, trainer.empty, trainer.family, trainer.expert)
    silence = loss_of_silence(batch["latents"])
    rate = config.learning_rate * (1 if config.from_scratch else 10 if config.training == "lora" else 3)
    losses: list[float] = []
    until = time.monotonic() + PROBE_S
    with explain_out_of_memory(config):
        for _ in range(PROBE_STEPS):
            torch.manual_seed(0)
            with trainer.accelerator.autocast():
                loss = losses_of(trainer.model, batch, trainer.accelerator.device, trainer.family).mean()
            trainer.accelerator.backward(loss)
            losses.append(float(loss.detach()))
            if len(losses) == 1:
                yield check_first_loss(losses[0], silence, from_scratch=config.from_scratch)
            if not math.isfinite(losses[-1]):
                break
            trainer.accelerator.clip_grad_norm_([p for _, p in trainer.trainable()], config.max_grad_norm)
            for group in trainer.optimizer.param_groups:
                group["lr"] = rate
            trainer.optimizer.step()
            trainer.optimizer.zero_grad(set_to_none=True)
            if time.monotonic() > until and len(losses) > 3:
                break
    yield check_probe(losses, rate)


def check_first_loss(loss: float, silence: float, *, from_scratch: bool) -> Check:
    """The first loss against that of a model that always answers 0.

    An untrained transformer answers noise of variance about a third beside the target: a little above silence. A
    trained one is far below; above silence, it was trained on something else.
    """
    share = loss / silence
    measured = f"{loss:.3f}, {share:.2f} of a silent model's {silence:.3f}"
    if from_scratch:
        expected, fine = "0.8 to 2 times a silent model's", 0.8 <= share <= 2.0
        verdict: Verdict = "pass" if fine else "fail"
        advice = "The base is not untrained (set from_scratch=false), or the latents are not normalised."
    else:
        expected = "below 0.9 of a silent model's"
        verdict = "pass" if share < 0.9 else "warn" if share < 1.5 else "fail"
        advice = "The base does not know these latents: clips and base must have the same VAE and text encoder."
    if not math.isfinite(loss):
        verdict, advice = "fail", "The model answers with numbers that are not finite: check the base's weights."
    return Check("first_loss", measured, expected, verdict, "" if verdict == "pass" else advice)


def check_probe(losses: list[float], rate: float) -> Check:
    """Did the loss on one batch with fixed noise fall?"""
    fall = 1 - min(losses[-3:]) / losses[0] if len(losses) > 3 and math.isfinite(losses[-1]) else float("nan")
    measured = f"{losses[0]:.3f} → {losses[-1]:.3f} in {len(losses)} steps at {rate:g}"
    verdict: Verdict = "pass" if fall > 0.01 else "warn" if fall > 0 else "fail"
    advice = "One batch can't be learnt: no weights are trained, or learning_rate is too low or far too high."
    return Check("overfit_probe", measured, "falls by more than 1 %", verdict, "" if verdict == "pass" else advice)
