"""Which words are spoken in a stretch of sound? By a Whisper-class model of transformers (Radford et al. 2022).

For videos without subtitles. Words in the language that is spoken; what Whisper says where nobody speaks is dropped.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medgen.canonical import digest_of
from medgen.errors import ItemFailed
from medgen.inference import ask, ensure_loaded
from medgen.inference_process import Loaded, Served
from models import ModelUnavailable
from models.captioning.packaged_whisper import WHISPER_BASE, packaged_whisper
from models.captioning.transcript import cut_between_words
from models.hub_files import digests, hub_files

RATE = 16_000  # samples per second that Whisper hears
WINDOW_S = 30.0  # what it hears at once
MAX_S = 300.0  # of a longer stretch the beginning is heard: five minutes of speech fill a transcript
# Peak below which a window counts as silent (-60 dB of full scale): Whisper would make words up.
SILENT_BELOW = 1e-3
# Whisper's own rules (Radford et al. 2022, section 4.5): nobody speaks where the model holds that likely and its words
# unlikely; words that compress better than this go round in a loop.
NO_SPEECH = 0.6
LIKELY_WORDS = -1.0
MAX_COMPRESSION = 2.4

OFFLINE_CHOICE = (
    "without a network speech_model=whisper_base hears with the extra `speech`, or leave it empty: clips "
    "of videos without subtitles then have no transcript"
)

_FILES = ("*.json", "merges.txt", "vocab.txt", "*.safetensors")


class SpeechUnavailable(RuntimeError):
    """The model gave no answer. `transient`: whether asking again later may help."""

    def __init__(self, message: str, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class Whisper:
    """Hears in an inference process, see `medgen.inference`: on a GPU in bfloat16, on the CPU in float32.

    Windows that wait while the model is busy are heard together, at most `batch` at once. Alone, a window always gets
    the same words on the same machine; in a batch the sums are ordered otherwise, so that a word can differ where two
    are all but equally likely. The words are the likeliest ones, never drawn.
    """

    def __init__(self, model: str, batch: int = 1) -> None:
        """Loads nothing yet. Raises ModelUnavailable when the files are not to be had."""
        folder = _model_files(model)[0].parent
        self.name = Path(model).resolve().name if Path(model).is_dir() else model
        self.digest = speech_digest(model)
        self._model = Served(_served, (folder, self.name), most=batch)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def ensure_available(self) -> None:
        """Loads the model. Raises ModelUnavailable when it cannot be loaded."""
        ensure_loaded(self._model)

    def transcript(self, sound: np.ndarray) -> str:
        """The words on one line, at most 4,000 characters; empty where nobody speaks.

        Safe to call from several threads.

        Args:
            sound: float32 (n,), mono, -1..1, 16,000 samples per second. After 300 s it is not heard.

        Raises:
            ValueError: another dtype or shape.
            SpeechUnavailable: the device has too little memory, or the model is broken.
        """
        if sound.dtype != np.float32 or sound.ndim != 1:
            raise ValueError(f"need float32 samples (n,), got {sound.dtype} {sound.shape}")
        window = round(WINDOW_S * RATE)
        words = []
        for start in range(0, min(len(sound), round(MAX_S * RATE)), window):
            part = sound[start : start + window]
            if np.abs(part).max(initial=0.0) >= SILENT_BELOW:
                try:
                    words += ask(self._model, [part])
                except (RuntimeError, MemoryError, ValueError, ItemFailed) as error:
                    # Memory may be free later; the same sound in a broken model fails again.
                    short = isinstance(error, MemoryError) or "out of memory" in str(error).lower()
                    passes = short or (isinstance(error, ItemFailed) and error.transient)
                    raise SpeechUnavailable(f"{self.name}: {error}", transient=passes) from error
        return cut_between_words(" ".join(word for word in words if word))


def _served(device: str, folder: Path, name: str) -> Loaded:
    return Loaded(LoadedWhisper(folder, name, device).hear)


class LoadedWhisper:
    """Processor and model in memory.

    Args:
        device: of PyTorch.

    Raises:
        ModelUnavailable: they can't be loaded.
    """

    def __init__(self, folder: Path, name: str, device: str) -> None:
        import torch
        from safetensors import SafetensorError
        from transformers import WhisperForConditionalGeneration, WhisperProcessor

        torch.set_num_threads(1)
        try:
            self.processor: Any = WhisperProcessor.from_pretrained(folder, local_files_only=True)
            model: Any = WhisperForConditionalGeneration.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32 if device == "cpu" else torch.bfloat16,
            )
        except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError) as error:
            raise ModelUnavailable(
                f"speech model {name} in {folder} cannot be loaded as a Whisper: {error}; {OFFLINE_CHOICE}"
            ) from error
        self.model = model.eval().to(device)

    def hear(self, windows: Sequence[np.ndarray]) -> list[str]:
        """The words of windows of at most 30 s, float32 (n,), in one pass."""
        import torch

        processor, model = self.processor, self.model
        heard = processor(list(windows), sampling_rate=RATE, return_tensors="pt").input_features
        config = model.generation_config
        with torch.inference_mode():
            # Encoded once: `generate` by itself would do so anew to find the language and whether anybody speaks.
            encoded = model.get_encoder()(heard.to(model.device, model.dtype))
            begin = torch.full((len(windows), 1), config.decoder_start_token_id, device=model.device)
            first = model(encoder_outputs=encoded, decoder_input_ids=begin).logits[:, -1].float()
            # By its place, as transformers has it: the token has two names.
            nobody = first.softmax(-1)[:, config.no_timestamps_token_id - 1].tolist()
            task: dict[str, Any] = {}
            if getattr(config, "is_multilingual", False):  # an English-only model must be told neither
                ids = list(config.lang_to_id.values())
                names = list(config.lang_to_id)
                task = {"task": "transcribe", "language": [names[i] for i in first[:, ids].argmax(-1).tolist()]}
            made = model.generate(
                encoder_outputs=encoded,
                do_sample=False,
                num_beams=1,
                return_timestamps=False,
                return_dict_in_generate=True,
                output_scores=True,
                force_unique_generate_call=True,
                **task,
            )
        likely = _mean_log_probability(made.sequences, made.scores, config.eos_token_id)
        texts = processor.batch_decode(made.sequences, skip_special_tokens=True)
        return [
            "" if silent > NO_SPEECH and score < LIKELY_WORDS else spoken_words(text)
            for text, silent, score in zip(texts, nobody, likely, strict=True)
        ]


def speech_digest(model: str) -> str:
    """sha256 (hex) over a model's files and the settings above, wherever the files lie. Raises ModelUnavailable."""
    settings = [RATE, WINDOW_S, MAX_S, SILENT_BELOW, NO_SPEECH, LIKELY_WORDS, MAX_COMPRESSION]
    return digest_of({"files": digests(_model_files(model)), "settings": settings})


def _model_files(model: str) -> tuple[Path, ...]:
    folder = str(packaged_whisper()) if model == WHISPER_BASE else model
    return hub_files(folder, _FILES, f"speech model {model}", OFFLINE_CHOICE)


def _mean_log_probability(sequences: Any, scores: Any, end: int) -> list[float]:
    """Of the tokens made for each window, the end token included.

    Args:
        sequences: int (N, T), the tokens made last.
        scores: for each token made, float (N, V) logits.
    """
    import torch

    chances = torch.stack(scores, dim=1).float().log_softmax(-1)
    tokens = sequences[:, -chances.shape[1] :]
    chosen = chances.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    ended = (tokens == end).cumsum(-1)
    counts = ended - (tokens == end).long() == 0  # up to the first end
    return [float(row[kept].mean()) for row, kept in zip(chosen, counts, strict=True)]


def spoken_words(text: str) -> str:
    """The words on one line; empty when the model went round in a loop."""
    line = " ".join(text.split())
    data = line.encode()
    return "" if len(data) > MAX_COMPRESSION * len(zlib.compress(data)) else line
