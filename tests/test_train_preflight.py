"""Pre-flight verdicts, and costs that someone can recompute."""

from itertools import islice

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch.utils.flop_counter import FlopCounterMode

from models.training.config import configured
from models.training.cost import (
    KEPT,
    Architecture,
    block_matrices,
    forward_flops,
    lora_weights,
    training_flops,
    training_memory,
    waiting_memory,
    weights,
    what_fits,
)
from models.training.job import PreflightFailed, require
from models.training.preflight import check_disk, check_first_loss, check_memory, check_probe, preflight
from tests.tiny_wan import SHAPE, made_up_samples, tiny_base, tiny_config, tiny_job

WAN_1_3B = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30}


def test_operations_of_a_case_counted_by_hand():
    a = Architecture(
        layers=1, width=2, ffn=3, text_dim=5, freq_dim=4, in_channels=1, out_channels=1, patch=(1, 1, 1),
        cross_attn_norm=True,
    )  # fmt: skip
    t, text = 3, 2  # tokens
    by_hand = (
        2 * t * 1 * 2  # patches: 1 channel to width 2
        + 2 * text * (5 * 2 + 2 * 2)  # text projection
        + 2 * (4 * 2 + 2 * 2 + 2 * 12)  # time
        + 4 * 2 * t * 2 * 2 + 2 * (2 * t * t * 2)  # self-attention: 4 projections; scores and mixing
        + 2 * 2 * t * 2 * 2 + 2 * 2 * text * 2 * 2 + 2 * (2 * t * text * 2)  # cross-attention
        + 2 * t * 2 * 3 + 2 * t * 3 * 2  # feed-forward
        + 2 * t * 2 * 1  # out
    )  # fmt: skip
    assert forward_flops(a, (1, 3, 1, 1), text) == by_hand == 520
    assert training_flops(a, (1, 3, 1, 1), text, lora=False) == 3 * by_hand
    assert training_flops(a, (1, 3, 1, 1), text, lora=True) == 2 * by_hand


def test_counts_agree_with_the_model_itself():
    small = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "text_dim": 24,
             "freq_dim": 16, "ffn_dim": 80, "num_layers": 2}  # fmt: skip
    model = WanTransformer3DModel(**small)
    a = Architecture.of(model.config)
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 4, 3, 8, 6), torch.tensor([5.0]), torch.randn(1, 7, 24))
    assert counter.get_total_flops() == forward_flops(a, (4, 3, 8, 6), 7)
    with torch.device("meta"):
        big = WanTransformer3DModel(**WAN_1_3B)
    assert sum(p.numel() for p in big.parameters()) == weights(Architecture.of(big.config)) == 1_418_996_800
    from peft import LoraConfig

    model.add_adapter(LoraConfig(r=3, target_modules=["to_q", "to_out.0", "ffn.net.0.proj"]))
    adapters = sum(p.numel() for n, p in model.named_parameters() if "lora" in n)
    assert adapters == lora_weights(a, 3, ["to_q", "to_out.0", "ffn.net.0.proj"])


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_kept_activations_agree_with_saved_tensors(precision):
    width, ffn = 64, 256

    def kept(tokens: int) -> int:
        block = WanTransformerBlock(width, ffn, 2, cross_attn_norm=True)
        own = {p.untyped_storage().data_ptr() for p in block.parameters()}
        seen: dict[int, tuple[int, torch.Tensor]] = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address comes twice
            return tensor

        half = precision == "bf16"
        x = torch.randn(1, tokens, width, dtype=torch.bfloat16 if half else torch.float32).requires_grad_()
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
            torch.autocast("cpu", torch.bfloat16, enabled=half),
        ):
            rope = torch.randn(1, tokens, 1, 32), torch.randn(1, tokens, 1, 32)
            block(x, torch.randn(1, 4, width), torch.randn(1, 6, width), rope)
        return sum(size for size, _ in seen.values())

    per_token = (kept(512) - kept(256)) / 256
    per_width, per_ffn = KEPT[precision]
    assert per_token == pytest.approx(per_width * width + per_ffn * ffn, rel=0.1)


def test_memory_grows_with_what_it_should():
    with torch.device("meta"):
        a = Architecture.of(WanTransformer3DModel(**WAN_1_3B).config)
    latent = (16, 21, 60, 104)
    lora, full = (configured(f"wan-1.3b-{kind}") for kind in ("lora", "full"))
    need = {c.training: training_memory(a, c, latent, cuda=True) for c in (lora, full)}
    assert need["full"].optimizer == 8 * weights(a) and need["full"].ema == 4 * weights(a)
    assert need["lora"].optimizer < need["full"].optimizer / 20
    unsaved = training_memory(a, lora.model_copy(update={"gradient_checkpointing": False}), latent, cuda=True)
    assert unsaved.activations > 10 * need["lora"].activations
    # 14B with adapters at 720p fits into 80 GB as its preset has it, and not without; what is proposed fits, too.
    with torch.device("meta"):
        big = Architecture.of(WanTransformer3DModel(num_attention_heads=40, ffn_dim=13824, num_layers=40).config)
    tall, preset = (16, 21, 90, 160), configured("wan-14b-720p-lora")
    plain = preset.model_copy(update={"offload_activations": False, "blocks_to_swap": 0})
    sizes = [training_memory(big, config, tall, cuda=True).total / 1e9 for config in (preset, plain)]
    assert sizes[0] < 0.85 * 80 and sizes[1] > 80
    found = what_fits(big, plain, tall, int(80e9), cuda=True)
    assert found is not None and found["offload_activations"] and "frozen_dtype" not in found
    assert training_memory(big, plain.model_copy(update=found), tall, cuda=True).total < 0.85 * 80e9
    assert waiting_memory(big, preset, tall) == pytest.approx(2 * (20 * block_matrices(big) + 40 * 75_600 * 5120))
    assert waiting_memory(big, plain, tall) == 0
    int8 = plain.model_copy(update={"frozen_dtype": "int8"})
    saved = training_memory(big, plain, tall, cuda=True).weights - training_memory(big, int8, tall, cuda=True).weights
    assert saved == pytest.approx(40 * block_matrices(big), rel=0.04)
    assert what_fits(big, plain, tall, int(1e9), cuda=True) is None
    refused = check_memory(lora.model_copy(update={"train_batch_size": 4096}), a, latent, torch.device("cpu"))
    assert refused.verdict == "fail" and "train_batch_size (4096)" in refused.advice
    tight = check_memory(lora.model_copy(update={"gradient_checkpointing": False}), a, latent, torch.device("cpu"))
    assert tight.verdict == "pass" or "gradient_checkpointing" in tight.advice


def test_verdicts_on_good_and_bad_runs(tmp_path):
    base, samples = tiny_base(tmp_path / "b" / "pipeline"), made_up_samples(tmp_path / "samples")
    frames = np.random.default_rng(0).integers(0, 255, (5, 32, 48, 3), dtype=np.uint8)
    np.save(tmp_path / "clip.npy", frames)
    job = tiny_job(tmp_path, base, samples).model_copy(update={"probe_clip": tmp_path / "clip.npy"})
    found = {check.name: check for check in preflight(job)}
    assert list(found) == [
        "split", "captions", "samples", "latents", "buckets", "disk", "memory", "vae_round_trip", "first_loss",
        "overfit_probe",
    ]  # fmt: skip
    assert found.pop("vae_round_trip").verdict == "fail"  # this VAE is untrained, and the clip is noise
    assert {check.verdict for check in found.values()} == {"pass"}, found
    assert not (job.folder / "checkpoints").exists() and not (job.folder / "losses.jsonl").exists()

    loud = made_up_samples(tmp_path / "loud")
    from safetensors.torch import load_file, save_file

    for sample in loud:
        save_file({**load_file(sample.path), "latents": load_file(sample.path)["latents"] * 9}, str(sample.path))
    loud[0].path.write_bytes(b"spoiled")
    checks = list(preflight(tiny_job(tmp_path, base, loud)))
    verdicts = {check.name: check.verdict for check in checks}
    assert verdicts["latents"] == "fail" and verdicts["samples"] == "warn"
    with pytest.raises(PreflightFailed, match=r"latents: mean .* deviation .*another VAE"):
        require(checks)
    seen = [sample.model_copy(update={"captioner_kind": "vision_language_model"}) for sample in samples[1:]]
    mixed = (samples[0].model_copy(update={"captioner_kind": "template"}), *seen)
    for allowed, verdict in ((False, "fail"), (True, "pass")):
        checked = preflight(tiny_job(tmp_path, base, mixed, allow_stand_in_captions=allowed))
        (captions,) = (check for check in islice(checked, 2) if check.name == "captions")
        assert captions.verdict == verdict and captions.measured.startswith(f"1 of {len(mixed)} clips have captions")
    one_video = {c.name: c for c in preflight(tiny_job(tmp_path, base, samples[:1]))}
    assert one_video["split"].verdict == "warn"


def test_single_verdicts(tmp_path):
    assert check_first_loss(2.3, 2.0, from_scratch=True).verdict == "pass"
    assert check_first_loss(9.0, 2.0, from_scratch=True).verdict == "fail"
    assert check_first_loss(0.3, 2.0, from_scratch=False).verdict == "pass"
    assert check_first_loss(2.1, 2.0, from_scratch=False).verdict == "warn"
    assert check_first_loss(float("nan"), 2.0, from_scratch=False).verdict == "fail"
    assert check_probe([2.0, 1.9, 1.8, 1.5], 1e-3).verdict == "pass"
    assert check_probe([2.0, 2.0, 2.0, 2.0], 1e-3).verdict == "fail"
    assert check_probe([2.0, 2.0, 9.0, float("inf")], 1e-3).verdict == "fail"
    vast = Architecture(10**6, 8192, 30000, 4096, 256, 16, 16, (1, 2, 2), True)
    assert check_disk(tiny_config(), vast, tmp_path / "run").verdict == "fail"
    assert SHAPE
