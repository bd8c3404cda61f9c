"""Captions by a real, tiny, random vision-language model: through transformers here, and by `transformers serve`.

It answers gibberish, so the checks must turn it down; that its pictures arrive shows in the tokens and the words.
"""

import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models import ModelUnavailable
from models.captioning.captioner import CaptionRejected
from models.captioning.chat import Question, load_prompts
from models.captioning.loading import captioner_digest, load_captioner
from models.captioning.local_chat import LocalChat, LocalModel, local_digest
from models.captioning.openai_chat import OpenAIChat
from tests.conftest import free_port
from tests.test_captioner import EVIDENCE
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("models_here")
TEMPLATE = """{% for m in messages %}<s>{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}\
{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}\
{% endif %}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA (CLIP vision, Llama text) with two layers each, and a byte-level tokenizer; 0.3 MB."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("vlm") / "tiny-llava"
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1_200, special_tokens=special, initial_alphabet=alphabet)
    prompts = load_prompts("v1")  # learnt, so that they have hundreds of tokens instead of thousands
    pieces.train_from_iterator([prompts.detailed, prompts.brief] * 2, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=tokenizer, patch_size=14, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )  # fmt: skip
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**small, image_size=28, patch_size=14),
        text_config=LlamaConfig(
            **small, vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=16_384,
            pad_token_id=0, bos_token_id=1, eos_token_id=2,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-1,
    )  # fmt: skip
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, subprocess.Popen[bytes], Path]]:
    """`transformers serve` with the tiny model, started before the other tests so that it is up when it is needed."""
    port, log = free_port(), tmp_path_factory.mktemp("serve") / "log"
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(tiny_model), "--device", "cpu"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    yield f"http://127.0.0.1:{port}/v1", process, log
    process.kill()
    process.wait()


def pictures(count: int, level: int = 20) -> tuple[np.ndarray, ...]:
    return tuple(np.full((48, 64, 3), (level * (i + 1)) % 256, np.uint8) for i in range(count))


def question(count: int, level: int = 20, **settings) -> Question:
    return Question("Describe.", "What is this?", pictures(count, level), **{"max_tokens": 24} | settings)


def test_local_model_sees_its_pictures_and_repeats_itself(server, tiny_model: Path) -> None:
    chat = LocalChat(str(tiny_model), batch=4)
    assert chat.name == "transformers:tiny-llava"
    chat.ensure_available()
    none, two, eight = (chat.answer(question(count)) for count in (0, 2, 8))
    # A picture of 28 pixels in patches of 14 is 4 tokens.
    assert (two.tokens_in - none.tokens_in, eight.tokens_in - none.tokens_in) == (2 * 4, 8 * 4)
    assert eight.tokens_out == 24 and eight.cut_off
    assert chat.answer(question(8)) == eight
    # Random weights look hard at a picture, though not at every change of it.
    assert len({chat.answer(question(8, level)).text for level in (3, 20, 30, 31)}) > 1
    drawn = [chat.answer(question(2, temperature=1.0, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(chat.answer, [question(count) for count in (0, 2, 8) * 4]))
    assert together == [none, two, eight] * 4
    assert LocalModel(tiny_model, chat.name, "cpu").answer_batch([question(count) for count in (8, 0, 2)]) == [
        eight, none, two,
    ]  # fmt: skip


def test_gibberish_is_rejected_with_its_reason_and_cost(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.captioning.chat.MAX_ANSWER_TOKENS", 64)
    captioner = load_captioner(f"transformers:{tiny_model}", attempts=2)
    with pytest.raises(CaptionRejected) as raised:
        captioner.caption(EVIDENCE, pictures(8))
    # Sixty-four tokens are no sentence's end to a random model, whatever else is wrong with them.
    assert "detailed_cut_off" in {one.metric for one in raised.value.checks if not one.passed}
    assert raised.value.tokens_out == 2 * 64 and raised.value.text
    assert raised.value.questions == 2 and raised.value.tokens_in > 2 * 8 * 4


def test_digest_follows_the_files_not_the_folder(tiny_model: Path, tmp_path: Path) -> None:
    name, copy = f"transformers:{tiny_model}", tmp_path / "other-name"
    shutil.copytree(tiny_model, copy)
    assert local_digest(str(copy)) == local_digest(str(tiny_model))
    assert captioner_digest(name) == load_captioner(name).digest == captioner_digest(f"transformers:{copy}")
    changed = tmp_path / "changed"
    shutil.copytree(tiny_model, changed)
    weights = {key: value + 1 for key, value in load_file(changed / "model.safetensors").items()}
    save_file(weights, changed / "model.safetensors", {"format": "pt"})
    assert local_digest(str(changed)) != local_digest(str(tiny_model))


def test_models_that_cannot_be_had_are_named(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("no-such-owner/no-such-model", "not//a name"):
        with pytest.raises(ModelUnavailable, match=f"transformers:{name}.*hub.*evidence_template"):
            load_captioner(f"transformers:{name}")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(ModelUnavailable, match=r"pickled lacks .*safetensors.*evidence_template"):
        load_captioner(f"transformers:{pickled}")
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    (broken / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelUnavailable, match=r"transformers:broken in .* cannot be loaded.*evidence_template"):
        LocalChat(str(broken)).ensure_available()
    silent = tmp_path / "silent"
    shutil.copytree(tiny_model, silent)
    (silent / "chat_template.jinja").unlink()
    with pytest.raises(ModelUnavailable, match="no chat template"):
        LocalChat(str(silent)).ensure_available()


def answers(url: str) -> bool:
    """Whether the server at this address is ready."""
    with suppress(OSError), urllib.request.urlopen(f"{url.removesuffix('/v1')}/health", timeout=30):
        return True
    return False


def test_the_same_model_served_is_really_sent_the_pictures(server, tiny_model: Path, monkeypatch) -> None:
    url, process, log = server
    wait_until(lambda: answers(url) or process.poll() is not None, lambda: log.read_text()[-2000:], every_s=0.2)
    assert process.poll() is None, log.read_text()[-2000:]
    chat = OpenAIChat(str(tiny_model), url, "no-key-needed")
    chat.ensure_available()
    local = LocalChat(str(tiny_model))
    for count in (0, 2, 8):
        served, here = chat.answer(question(count)), local.answer(question(count))
        assert (served.tokens_in, served.tokens_out, served.cut_off) == (here.tokens_in, here.tokens_out, here.cut_off)
    monkeypatch.setattr("models.captioning.chat.MAX_ANSWER_TOKENS", 64)
    captioner = load_captioner(f"openai:{tiny_model}", attempts=2, base_url=url, api_key="no-key-needed")
    with pytest.raises(CaptionRejected) as raised:
        captioner.caption(EVIDENCE, pictures(8))
    assert raised.value.questions == 2 and raised.value.tokens_in > 2 * 8 * 4 and raised.value.tokens_out > 0
    with pytest.raises(ModelUnavailable, match=r"openai:another .*HTTP 4.*evidence_template"):
        OpenAIChat("another", url, "no-key-needed").ensure_available()
