"""A Wan pipeline so small that a training step takes milliseconds, and made-up encoded clips for it."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, BertTokenizerFast

from models.training.config import TrainConfig, configured
from models.training.job import Sample, TrainJob

TEXT_DIM, CHANNELS = 16, 4
SHAPE = (CHANNELS, 2, 4, 6)  # of latents: 5 frames of 32 × 48
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "heart", "knee", "eye", "a", "scan", "of", "the"]


def tiny_base(folder: Path, seed: int = 0) -> Path:
    """An ordinary diffusers pipeline folder; transformer of 2 layers and width 32."""
    torch.manual_seed(seed)
    words = folder.parent / "vocabulary.txt"
    folder.parent.mkdir(parents=True, exist_ok=True)
    words.write_text("\n".join(WORDS))
    bert = BertConfig(
        vocab_size=len(WORDS), hidden_size=TEXT_DIM, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=CHANNELS, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * CHANNELS, latents_std=[1.0] * CHANNELS,
    )  # fmt: skip
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=CHANNELS, out_channels=CHANNELS, text_dim=TEXT_DIM,
        freq_dim=16, ffn_dim=64, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    WanPipeline(
        tokenizer=BertTokenizerFast(vocab_file=str(words), model_max_length=16),
        text_encoder=BertModel(bert).eval(),
        vae=vae.eval(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=transformer,
    ).save_pretrained(folder)
    return folder


def made_up_samples(folder: Path, videos: int = 5, clips: int = 2, shapes: tuple = (SHAPE,)) -> tuple[Sample, ...]:
    """Encoded clips: a smooth pattern per video, and captions that name it."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for video in range(videos):
        for clip in range(clips):
            draw = torch.Generator().manual_seed(1000 * video + clip)
            shape = shapes[(video * clips + clip) % len(shapes)]
            pattern = torch.randn(shape[0], 1, 1, 1, generator=torch.Generator().manual_seed(video)).expand(shape)
            latents = 0.9 * pattern + 0.3 * torch.randn(shape, generator=draw)
            name = f"clip-{video}-{clip}"
            save_file(
                {
                    "latents": latents.contiguous(),
                    "brief": torch.randn(3, TEXT_DIM, generator=torch.Generator().manual_seed(video)),
                    "detailed": torch.randn(5, TEXT_DIM, generator=torch.Generator().manual_seed(100 + video)),
                },
                str(folder / f"{name}.safetensors"),
                {"clip_id": name},
            )
            found.append(Sample(path=folder / f"{name}.safetensors", clip_id=name, video_id=f"video-{video}"))
    return tuple(found)


def tiny_config(**changes: object) -> TrainConfig:
    """Few and fast steps; everything that has a state is on."""
    return configured(
        "nano",
        {
            "pretrained_model_name_or_path": "tiny", "buckets": "5x32x48", "max_sequence_length": 8,
            "max_train_steps": 10, "train_batch_size": 4, "lr_warmup_steps": 2, "checkpointing_steps": 4,
            "validation_steps": 5, "validation_timesteps": 2, "validation_share": 0.3, "rank": 4, "lora_alpha": 8,
            "validation_inference_steps": 2, "guidance_scale": 2.0,
            **changes,
        },
    )  # fmt: skip


def tiny_job(folder: Path, base: Path, samples: tuple[Sample, ...], **changes: object) -> TrainJob:
    """A job in `folder`/run."""
    empty = folder / "empty.safetensors"
    save_file({"empty": torch.full((2, TEXT_DIM), 0.1)}, str(empty))
    return TrainJob(
        config=tiny_config(**changes), base=str(base), base_digest="b" * 64, samples=samples, empty=empty,
        folder=folder / "run",
    )  # fmt: skip
