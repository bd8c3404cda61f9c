"""Pipelines of each family in their true layout, so small that a training step takes milliseconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5TokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

TEXT_DIM = 16
LETTERS = "abcdefghijklmnopqrstuvwxyz.,:'|<>_ 0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ-"


def tiny_wan_2_1(folder: Path) -> Path:
    """One transformer; a VAE of 4 channels that compresses 8 times in space."""
    return _wan(folder, _wan_transformer(4), None, _wan_vae(4))


def tiny_wan_ti2v(folder: Path) -> Path:
    """As TI2V-5B: timesteps of tokens, and a VAE with patches that compresses 16 times in space."""
    vae = _wan_vae(
        6, patch_size=2, in_channels=12, out_channels=12, scale_factor_spatial=16, is_residual=True, decoder_base_dim=4
    )
    return _wan(folder, _wan_transformer(6), None, vae, expand_timesteps=True)


def tiny_wan_a14b(folder: Path) -> Path:
    """Two experts with a boundary of 0.875."""
    return _wan(folder, _wan_transformer(4), _wan_transformer(4), _wan_vae(4), boundary_ratio=0.875)


def tiny_wan_i2v(folder: Path) -> Path:
    """As I2V-A14B: two experts that take a mask and the latents of a first frame beside."""
    experts = (_wan_transformer(4, 12), _wan_transformer(4, 12))
    return _wan(folder, *experts, _wan_vae(4), WanImageToVideoPipeline, boundary_ratio=0.9)


def tiny_hunyuan(folder: Path) -> Path:
    """Llama and CLIP, blocks of one and two streams, guidance as an input."""
    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2,
        mid_block_add_attention=False,
    )  # fmt: skip
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, text_embed_dim=TEXT_DIM, pooled_projection_dim=8, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    llama = LlamaConfig(
        vocab_size=len(LETTERS) + 4, hidden_size=TEXT_DIM, intermediate_size=16, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    words = folder.parent / "clip-words"
    words.mkdir(parents=True, exist_ok=True)
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *(c for c in LETTERS), *(f"{c}</w>" for c in LETTERS)]
    clip_tokenizer = CLIPTokenizer(
        vocab={word: n for n, word in enumerate(dict.fromkeys(vocabulary))}, merges=[], model_max_length=77
    )
    clip = CLIPTextConfig(
        vocab_size=200, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=77, projection_dim=8, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    HunyuanVideoPipeline(
        text_encoder=LlamaModel(llama).eval(),
        tokenizer=_words(),
        text_encoder_2=CLIPTextModel(clip).eval(),
        tokenizer_2=clip_tokenizer,
        vae=vae.eval(),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    ).save_pretrained(folder)
    return folder


# Family → (maker, bucket, shape of latents).
TINY: dict[str, tuple[Callable[[Path], Path], str, tuple[int, ...]]] = {
    "wan-2.1": (tiny_wan_2_1, "5x32x48", (4, 2, 4, 6)),
    "wan-2.2-ti2v": (tiny_wan_ti2v, "5x64x96", (6, 2, 4, 6)),
    "wan-2.2-a14b": (tiny_wan_a14b, "5x32x48", (4, 2, 4, 6)),
    "wan-2.2-i2v": (tiny_wan_i2v, "5x32x48", (8, 2, 4, 6)),
    "hunyuan-video": (tiny_hunyuan, "5x32x48", (4, 2, 4, 6)),
}


def _wan(
    folder: Path, first: Any, second: Any, vae: AutoencoderKLWan, kind: Any = WanPipeline, **settings: Any
) -> Path:
    config = UMT5Config(
        vocab_size=len(LETTERS) + 4, d_model=TEXT_DIM, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        is_encoder_decoder=False, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(1)
    kind(
        tokenizer=_letters(T5TokenizerFast, model_max_length=512),
        text_encoder=UMT5EncoderModel(config).eval(),
        vae=vae.eval(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=first,
        transformer_2=second,
        **settings,
    ).save_pretrained(folder)
    return folder


def _wan_transformer(channels: int, taken: int = 0) -> WanTransformer3DModel:
    torch.manual_seed(channels)
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=taken or channels, out_channels=channels,
        text_dim=TEXT_DIM, freq_dim=16, ffn_dim=64, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip


def _wan_vae(channels: int, **settings: Any) -> AutoencoderKLWan:
    torch.manual_seed(2)
    return AutoencoderKLWan(
        base_dim=4, z_dim=channels, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1] * channels, latents_std=[0.9] * channels, **settings,
    )  # fmt: skip


def _words() -> PreTrainedTokenizerFast:
    """A tokenizer of words, to which most are unknown: HunyuanVideo's long template is then short."""
    known = ["<pad>", "<s>", "</s>", "<unk>", "heart", "knee", "eye", "scan"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), "removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def _letters(kind: type, **settings: Any) -> Any:
    """A tokenizer of letters, with padding, end and unknown tokens as T5 and Llama have them."""
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("<s>", 0.0), *((letter, -2.0) for letter in LETTERS)]
    tokenizer = Tokenizer(models.Unigram(words, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return kind(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", **settings)
