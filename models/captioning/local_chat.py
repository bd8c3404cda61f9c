"""A multimodal chat model of transformers on this machine, by hub name or local folder; safetensors weights only."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medgen.canonical import digest_of
from medgen.errors import ItemFailed
from medgen.inference import ask, ensure_loaded
from medgen.inference_process import Loaded, Served
from models import ModelUnavailable
from models.captioning.captioner import OFFLINE_CHOICE, TRANSFORMERS_PREFIX, CaptionUnavailable
from models.captioning.chat import Answer, Question
from models.hub_files import digests, hub_files

# Configuration, tokenizer, chat template, weights. No pickled weights and no code of the model's own.
_FILES = ("*.json", "*.jinja", "merges.txt", "vocab.txt", "*.model", "*.safetensors")
TOP_P = 0.9  # of questions that are asked again; fixed, so that a model's own generation settings don't decide


class LocalChat:
    """Answers in an inference process, see `medgen.inference`: on a GPU in bfloat16, on the CPU in float32.

    Questions that wait while the model is busy are answered together, at most `batch` at once. Alone, a question always
    gets the same answer on the same machine. In a batch the sums are padded, so that an answer can differ where two
    tokens are all but equally likely; 1 rules that out.
    """

    def __init__(self, model: str, batch: int = 1) -> None:
        """Loads nothing yet. Raises ModelUnavailable when the files are not to be had."""
        folder = model_files(model)[0].parent
        self.name = f"{TRANSFORMERS_PREFIX}{Path(model).resolve().name if Path(model).is_dir() else model}"
        self.digest = local_digest(model)
        self._model = Served(_served, (folder, self.name), most=batch)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def ensure_available(self) -> None:
        """Loads the model. Raises ModelUnavailable when it cannot be loaded or has no chat template."""
        ensure_loaded(self._model)

    def answer(self, question: Question) -> Answer:
        """See `Chat`. Raises CaptionUnavailable when the device has too little memory for it."""
        try:
            answer: Answer = ask(self._model, [question])[0]
        except (RuntimeError, MemoryError, ValueError, ItemFailed) as error:
            # Memory may be free later; the same question in a broken model fails again.
            short = isinstance(error, MemoryError) or "out of memory" in str(error).lower()
            passes = short or (isinstance(error, ItemFailed) and error.transient)
            raise CaptionUnavailable(f"{self.name}: {error}", transient=passes) from error
        return answer


def _served(device: str, folder: Path, name: str) -> Loaded:
    model = LocalModel(folder, name, device)
    # A drawn answer depends on its batch, so it goes alone.
    return Loaded(model.answer_batch, alone=lambda question: bool(question.temperature))


class LocalModel:
    """Processor and model in memory.

    Args:
        device: of PyTorch.

    Raises:
        ModelUnavailable: they can't be loaded, or the model has no chat template.
    """

    def __init__(self, folder: Path, name: str, device: str) -> None:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForImageTextToText, AutoProcessor

        torch.set_num_threads(1)
        try:
            self.processor: Any = AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]  # by transformers
                folder, local_files_only=True, trust_remote_code=False
            )
            model: Any = AutoModelForImageTextToText.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32 if device == "cpu" else torch.bfloat16,
            )
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            raise ModelUnavailable(
                f"{name} in {folder} cannot be loaded as an image-text-to-text model: {error}; {OFFLINE_CHOICE}"
            ) from error
        if not getattr(self.processor, "chat_template", None):
            raise ModelUnavailable(f"{name} in {folder} has no chat template; {OFFLINE_CHOICE}")
        self.model = model.eval().to(device)

    def answer_batch(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers to several questions in one pass, all at temperature 0, or to a single one at any."""
        import torch
        from PIL import Image

        processor, model = self.processor, self.model
        conversations = [
            [
                {"role": "system", "content": [{"type": "text", "text": question.system}]},
                {
                    "role": "user",
                    "content": [
                        *({"type": "image", "image": Image.fromarray(picture)} for picture in question.pictures),
                        {"type": "text", "text": question.text},
                    ],
                },
            ]
            for question in questions
        ]
        inputs = processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            # Left: an answer must follow its question, not the padding.
            processor_kwargs={"return_tensors": "pt", "padding": True, "padding_side": "left"},
        ).to(model.device)
        for name, values in inputs.items():
            if values.is_floating_point():
                inputs[name] = values.to(model.dtype)
        first = questions[0]
        drawn = {"do_sample": True, "temperature": first.temperature, "top_p": TOP_P, "top_k": 0}
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        longest = max(question.max_tokens for question in questions)
        with torch.inference_mode(), torch.random.fork_rng(enabled=bool(first.temperature)):
            if first.temperature:
                torch.manual_seed(first.seed or 0)
            made = model.generate(
                **inputs, max_new_tokens=longest, num_beams=1, **(drawn if first.temperature else greedy)
            )
        asked = inputs["input_ids"].shape[1]
        ends = _as_list(model.generation_config.eos_token_id)
        answers = []
        for question, row, mask in zip(questions, made[:, asked:].tolist(), inputs["attention_mask"], strict=True):
            stops = [index for index, token in enumerate(row) if token in ends]
            tokens = (row[: stops[0]] if stops else row)[: question.max_tokens]
            text = processor.tokenizer.decode(tokens, skip_special_tokens=True)
            answers.append(Answer(text, int(mask.sum()), len(tokens), cut_off=not stops))
        return answers


def local_digest(model: str) -> str:
    """sha256 (hex) over all files of a model. The same files give the same digest wherever they lie."""
    return digest_of({"files": digests(model_files(model)), "top_p": TOP_P})


def model_files(model: str) -> tuple[Path, ...]:
    """Files of a model, from a folder, the hub's cache or the hub, in that order. Raises ModelUnavailable."""
    return hub_files(model, _FILES, f"{TRANSFORMERS_PREFIX}{model}", OFFLINE_CHOICE)


def _as_list(value: int | list[int] | None) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]
