"""Validation loss: the same clips, noise and noise levels every time, so that values of one run can be compared."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from models.families.family import Expert, Family
from models.training.config import TrainConfig
from models.training.flow_matching import generator, levels
from models.training.loss import caption_of, losses_of, split
from models.training.samples import SampleSet


def fixed_loss(
    model: Any,
    samples: SampleSet,
    config: TrainConfig,
    accelerator: Accelerator,
    family: Family,
    expert: Expert,
    most: int | None = None,
) -> tuple[float, dict[str, float], dict[str, float]] | None:
    """Mean loss at fixed noise and noise levels, by level, and by category. None without samples. All processes take
    part.

    Args:
        model: as accelerate prepared it; in training mode again afterwards.
        most: clips to use, at most; `validation_samples` limits them too.
    """
    total = min(len(samples), config.validation_samples, most or len(samples))
    if not total:
        return None
    # Evenly over the clips, which are in order of their ids.
    chosen = [i * len(samples) // total for i in range(total)]
    sigmas = levels(config.validation_timesteps, config.flow_shift, expert.sigma)
    categories = sorted({samples.samples[index].category for index in chosen})
    # Loss by level, and the number of clips; then loss by category, and the number of clips of each.
    sums = torch.zeros(len(sigmas) + 1, dtype=torch.float64)
    of_category = torch.zeros(2, len(categories), dtype=torch.float64)
    model.eval()
    with torch.no_grad():
        for turn, index in enumerate(chosen):
            # All processes must make the same number of forward passes when weights are sharded.
            group, place_in_group = divmod(accelerator.process_index, config.context_parallel_degree)
            of_group = turn % (accelerator.num_processes // config.context_parallel_degree) == group
            if not of_group and accelerator.distributed_type != DistributedType.FSDP:
                continue
            mine = of_group and place_in_group == 0
            if (sample := samples.get(index)) is None:
                continue
            clip = samples.samples[index].clip_id
            place = categories.index(samples.samples[index].category)
            text = caption_of(sample, config.detailed_share >= 0.5)
            for level, sigma in enumerate(sigmas):
                shape = (family.predicted_channels, *sample.latents.shape[1:])
                noise = torch.randn(shape, generator=generator(config.seed, "validation", clip, level))
                batch = {
                    **split(sample.latents[None], family),
                    "noise": noise[None],
                    "sigma": sigma[None],
                    **family.text_inputs([text], config.max_sequence_length),
                }
                with accelerator.autocast():
                    loss = float(losses_of(model, batch, accelerator.device, family))
                if mine:
                    sums[level] += loss
                    of_category[0, place] += loss / len(sigmas)
            sums[-1] += mine
            of_category[1, place] += mine
    model.train()
    sums = accelerator.reduce(sums.to(accelerator.device, torch.float32), "sum").double().cpu()
    of_category = accelerator.reduce(of_category.to(accelerator.device, torch.float32), "sum").double().cpu()
    if not sums[-1]:
        return None
    means = (sums[:-1] / sums[-1]).tolist()
    by_level = {f"{sigma:.4f}": value for sigma, value in zip(sigmas.tolist(), means, strict=True)}
    counted = zip(categories, *of_category.tolist(), strict=True)
    return sum(means) / len(means), by_level, {category: total / clips for category, total, clips in counted if clips}
