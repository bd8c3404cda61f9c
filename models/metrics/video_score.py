"""VideoScore (He et al. 2024, arXiv 2406.15252; TIGER-Lab/VideoScore and VideoScore-v1.1): five ratings by a fine-tuned
multimodal model, an Idefics2 with a linear layer of five outputs in place of its vocabulary.

Transformers has no Idefics2 for sequence classification, so the published class is built here from its parts: the
weights' names (`model.…`, `score.weight`) are those of the published checkpoints.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from medgen.canonical import digest_of
from models import ModelUnavailable
from models.captioning.untrusted_text import clean
from models.hub_files import digests, hub_files

DIMENSIONS = (
    "visual_quality",
    "temporal_consistency",
    "dynamic_degree",
    "text_to_video_alignment",
    "factual_consistency",
)
# Frames that its authors show it (examples/run_videoscore.py of TIGER-AI-Lab/VideoScore, README of 2024-11-28).
FIRST_FRAMES = 16  # of VideoScore
SCORED_FRAMES = 48  # of VideoScore-v1.1
MAX_PROMPT_CHARS = 2_000
WITHOUT = "leave video_score_model empty to go without"
_FILES = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.*",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
# The question that the checkpoints were trained with (examples/run_videoscore.py of TIGER-AI-Lab/VideoScore, and the
# model card): other words, other scores.
QUESTION = """
Suppose you are an expert in judging and evaluating the quality of AI-generated videos,
please watch the following frames of a given video and see the text prompt for generating the video,
then give scores from 5 different dimensions:
(1) visual quality: the quality of the video in terms of clearness, resolution, brightness, and color
(2) temporal consistency, both the consistency of objects or humans and the smoothness of motion or movements
(3) dynamic degree, the degree of dynamic changes
(4) text-to-video alignment, the alignment between the text prompt and the video content
(5) factual consistency, the consistency of the video content with the common-sense and factual knowledge

for each dimension, output a float number from 1.0 to 4.0,
the higher the number is, the better the video performs in that sub-score, 
the lowest 1.0 means Bad, the highest 4.0 means Perfect/Real (the video is like a real video)
Here is an output example:
visual quality: 3.2
temporal consistency: 2.7
dynamic degree: 4.0
text-to-video alignment: 2.3
factual consistency: 1.8

For this video, the text prompt is "{prompt}",
all the frames of video are as follows:
"""  # noqa: W291


def scorer_class() -> Any:
    """The class of the published checkpoints: Idefics2 with `score`, a linear layer without bias on the last token."""
    import torch
    from transformers.models.idefics2.modeling_idefics2 import Idefics2Model, Idefics2PreTrainedModel

    class Idefics2ForSequenceClassification(Idefics2PreTrainedModel):  # type: ignore[no-untyped-call]  # its base's
        """Logits (N, num_labels) of the last token of each row."""

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.num_labels = config.num_labels
            self.model = Idefics2Model(config)
            self.score = torch.nn.Linear(config.text_config.hidden_size, self.num_labels, bias=False)
            self.post_init()  # type: ignore[no-untyped-call]  # as all models of transformers end

        def forward(self, attention_mask: Any, **inputs: Any) -> Any:
            hidden = self.model(attention_mask=attention_mask, **inputs).last_hidden_state
            last = attention_mask.shape[1] - 1 - attention_mask.flip(1).argmax(dim=1)
            return self.score(hidden[torch.arange(len(hidden), device=hidden.device), last])

    return Idefics2ForSequenceClassification


class VideoScore:
    """Loaded weights, on a GPU in bfloat16, on the CPU in float32."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        """On a device of PyTorch. Raises ModelUnavailable."""
        import torch
        from transformers import AutoConfig, AutoProcessor

        folder = video_score_files(name)[0].parent
        self.device = device
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            if config.model_type != "idefics2" or config.num_labels != len(DIMENSIONS):
                raise ModelUnavailable(
                    f"{name!r} is a {config.model_type} with {config.num_labels} outputs, no VideoScore (idefics2 with "
                    f"{len(DIMENSIONS)}); {WITHOUT}"
                )
            self.processor = AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]  # has no types
                folder, local_files_only=True, do_image_splitting=False
            )
            self.model, report = scorer_class().from_pretrained(
                folder, use_safetensors=True, local_files_only=True, dtype=dtype, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ModelUnavailable(f"VideoScore {name!r} in {folder} cannot be loaded: {error}") from error
        if report["missing_keys"]:
            missing = ", ".join(sorted(report["missing_keys"])[:3])
            raise ModelUnavailable(f"VideoScore {name!r} lacks weights ({missing}, …): it would score at random")
        self.model.eval().to(self.device)
        self.dtype = dtype

    def scores(self, frames: Sequence[np.ndarray], prompt: str) -> dict[str, float]:
        """dimension → rating, mostly 1 to 4.

        Args:
            frames: at the places that `scored_places` tells, uint8 RGB (H, W, 3), as they were decoded.
            prompt: what the video should show; untrusted, and not obeyed but rated.
        """
        import torch
        from PIL import Image

        text = QUESTION.format(prompt=clean(prompt, MAX_PROMPT_CHARS).replace("<", "(").replace(">", ")"))
        text += "<image> " * len(frames)
        inputs = self.processor(text=text, images=[[Image.fromarray(f) for f in frames]], return_tensors="pt")
        inputs = {k: v.to(self.device, self.dtype if v.is_floating_point() else None) for k, v in inputs.items()}
        with torch.inference_mode():
            logits = self.model(**inputs)[0].float().cpu().numpy()
        return {dimension: float(value) for dimension, value in zip(DIMENSIONS, logits, strict=True)}


def scored_frames(name: str) -> int:
    """How many frames the authors show a VideoScore of that hub name or folder."""
    return FIRST_FRAMES if Path(name).name.lower() == "videoscore" else SCORED_FRAMES


def scored_places(frames: int, most: int) -> list[int]:
    """Which of a video's frames VideoScore sees: all of a few, else `most` from the first on, at equal steps."""
    if frames <= most:
        return list(range(frames))
    return [int(place) for place in np.arange(0, frames, frames / most).astype(int)]


def video_score_digest(name: str, frames: int) -> str:
    """sha256 of the weights, the question and the settings.

    Args:
        frames: most frames that it sees.

    Raises ModelUnavailable.
    """
    settings = {"question": QUESTION, "frames": frames, "places": "from the first on", "resized": "by its processor"}
    return digest_of({"files": digests(video_score_files(name)), **settings})


def video_score_files(name: str) -> tuple[Path, ...]:
    """The files of a VideoScore by hub name or folder. Raises ModelUnavailable."""
    return hub_files(name, _FILES, f"VideoScore {name!r}", WITHOUT)
