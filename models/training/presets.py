"""Presets of training: a base, what its family asks for, and arguments that work for it."""

from typing import Any, Literal, get_args

Preset = Literal[
    "nano",
    "wan-1.3b-lora",
    "wan-1.3b-full",
    "wan-14b-lora",
    "wan-14b-720p-lora",
    "wan2.2-5b-lora",
    "wan2.2-5b-image-lora",
    "wan2.2-a14b-high-lora",
    "wan2.2-a14b-low-lora",
    "wan2.2-i2v-high-lora",
    "wan2.2-i2v-low-lora",
    "hunyuan-lora",
    "paper",
    "paper-lora",
]

# Hub names of the bases in diffusers' format.
WAN_1_3B = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
WAN_14B = "Wan-AI/Wan2.1-T2V-14B-Diffusers"

WAN_2_2_5B_NAME = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
WAN_2_2_A14B_NAME = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
HUNYUAN_VIDEO = "hunyuanvideo-community/HunyuanVideo"

WAN_2_2_5B: dict[str, Any] = {
    "pretrained_model_name_or_path": WAN_2_2_5B_NAME,
    "training": "lora",
    "buckets": "121x704x1280",
    "fps": 24.0,
    "max_train_steps": 5000,
    "gradient_accumulation_steps": 8,
    "learning_rate": 1e-4,
    "lr_warmup_steps": 100,
    "use_ema": True,
    "flow_shift": 5.0,
}
WAN_2_2_A14B: dict[str, Any] = {
    "pretrained_model_name_or_path": WAN_2_2_A14B_NAME,
    "training": "lora",
    "max_train_steps": 5000,
    "gradient_accumulation_steps": 8,
    "learning_rate": 5e-5,
    "lr_warmup_steps": 100,
    "use_ema": True,
    "flow_shift": 12.0,
    "guidance_scale": 4.0,
}
WAN_2_2_I2V: dict[str, Any] = {
    **WAN_2_2_A14B,
    "pretrained_model_name_or_path": "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
    "flow_shift": 5.0,
    "guidance_scale": 3.5,
}
HUNYUAN: dict[str, Any] = {
    "pretrained_model_name_or_path": HUNYUAN_VIDEO,
    "training": "lora",
    "fps": 24.0,
    "max_sequence_length": 256,
    "caption_dropout": 0.0,  # its guidance is distilled: nothing is compared with the empty caption
    "flow_shift": 7.0,
    "guidance_scale": 6.0,
}
# arXiv 2507.05675: rank 32, alpha 32, learning rate 5e-5, bf16, 93 frames, shift 7, EMA 0.999, seed 1024, 50,000
# steps, batch 32 on 8 GPUs. How its batch of 32 and its 8 accumulation steps go together it doesn't say; here they are
# 8 × 4 × 1.
PAPER: dict[str, Any] = {
    "training": "lora",
    "buckets": "93x480x720",
    "max_train_steps": 50_000,
    "train_batch_size": 1,
    "gradient_accumulation_steps": 4,
    "num_processes": 8,
    "learning_rate": 5e-5,
    "lr_scheduler": "constant",
    "rank": 32,
    "lora_alpha": 32,
    "mixed_precision": "bf16",
    "flow_shift": 7.0,
    "use_ema": True,
    "ema_decay": 0.999,
    "seed": 1024,
    "checkpointing_steps": 1000,
}

PRESETS: dict[Preset, dict[str, Any]] = {
    # A toy that learns on two CPU cores in minutes: same classes, from scratch.
    "nano": {
        "pretrained_model_name_or_path": "nano",
        "training": "full",
        "from_scratch": True,
        "allow_stand_in_captions": True,  # made to be tried out offline
        "buckets": "17x64x96",
        "fps": 8.0,
        "max_sequence_length": 64,
        "validation_share": 0.15,
        "max_train_steps": 600,  # of the demo; with 1000 the loss on held-out videos rises again
        "train_batch_size": 8,
        "learning_rate": 1e-3,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 30,
        "adam_beta2": 0.99,
        "mixed_precision": "no",
        "gradient_checkpointing": False,
        "use_ema": True,
        "ema_decay": 0.99,
        "flow_shift": 3.0,
        "validation_steps": 150,
        "validation_inference_steps": 20,
        "guidance_scale": 1.5,  # 3 overexposes what 10 minutes of learning give, and shows no more of the prompt
        "checkpointing_steps": 150,
    },
    "wan-1.3b-lora": {
        "pretrained_model_name_or_path": WAN_1_3B,
        "training": "lora",
        "max_train_steps": 5000,
        "gradient_accumulation_steps": 8,
        "learning_rate": 1e-4,
        "lr_warmup_steps": 100,
        "use_ema": True,
    },
    "wan-1.3b-full": {
        "pretrained_model_name_or_path": WAN_1_3B,
        "training": "full",
        "max_train_steps": 10_000,
        "gradient_accumulation_steps": 32,
        "learning_rate": 1e-5,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 500,
        "use_ema": True,
    },
    "wan-14b-lora": {
        "pretrained_model_name_or_path": WAN_14B,
        "training": "lora",
        "max_train_steps": 5000,
        "gradient_accumulation_steps": 8,
        "learning_rate": 5e-5,
        "lr_warmup_steps": 100,
        "use_ema": True,
        "flow_shift": 3.0,
    },
    "wan-14b-720p-lora": {
        "pretrained_model_name_or_path": WAN_14B,
        "training": "lora",
        "buckets": "81x720x1280",
        "max_train_steps": 5000,
        "gradient_accumulation_steps": 8,
        "learning_rate": 5e-5,
        "lr_warmup_steps": 100,
        "use_ema": True,
        "flow_shift": 5.0,
        "offload_activations": True,  # with half of the blocks swapped it fits into 80 GB, by the count of its memory
        "blocks_to_swap": 20,
    },
    # Its own: 24 frames a second, 121 frames of 704 x 1280, shift 5 (wan/configs/wan_ti2v_5B.py of Wan-Video/Wan2.2).
    "wan2.2-5b-lora": WAN_2_2_5B,
    # Half of the clips with their first frame given, so that it keeps making videos of texts alone, as it was trained.
    "wan2.2-5b-image-lora": {**WAN_2_2_5B, "first_frame_share": 0.5},
    # Each of the two experts is a run of its own, on the noise levels that it is asked for.
    "wan2.2-a14b-high-lora": {**WAN_2_2_A14B, "expert": "high_noise"},
    "wan2.2-a14b-low-lora": {**WAN_2_2_A14B, "expert": "low_noise"},
    # The same with the first frame given: shift 5, guidance 3.5 (wan/configs/wan_i2v_A14B.py).
    "wan2.2-i2v-high-lora": {**WAN_2_2_I2V, "expert": "high_noise"},
    "wan2.2-i2v-low-lora": {**WAN_2_2_I2V, "expert": "low_noise"},
    "hunyuan-lora": {
        **HUNYUAN,
        "buckets": "129x544x960",  # the smaller of its two sizes (720p, 540p)
        "max_train_steps": 5000,
        "gradient_accumulation_steps": 8,
        "learning_rate": 1e-4,
        "lr_warmup_steps": 100,
        "use_ema": True,
    },
    # arXiv 2507.05675 on its own base: see `PAPER`. Frames are 720 x 480, the size of its clips.
    "paper": {**HUNYUAN, **PAPER},
    # The same on the base of its authors' published weights, which are fine-tunes of Wan 2.1.
    "paper-lora": {"pretrained_model_name_or_path": WAN_1_3B, **PAPER},
}
assert set(PRESETS) == set(get_args(Preset))
