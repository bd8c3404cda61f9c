"""Videos that a model makes at the end of its training, to be looked at."""

from collections.abc import Sequence
from typing import TypedDict

from medgen.ledger import Ledger
from medgen.shard import ShardResult
from models.generation.prompt_set import Prompt
from tasks.training.released import ReleasedClip, stream_clips


class SampleVideo(TypedDict):
    """One video: sha256 of its file, or the reason why there is none."""

    prompt: str
    category: str
    video: str | None
    reason: str | None


def sample_prompts(ledger: Ledger, release: str, texts: Sequence[str]) -> list[Prompt]:
    """The given texts as prompts; without any, a brief caption of each category of the release.

    Raises ItemFailed as `stream_clips`.
    """
    if texts:
        return [Prompt(f"sample-{number}", text) for number, text in enumerate(texts)]
    first: dict[str, ReleasedClip] = {}
    for clip in stream_clips(ledger, release)[0]:
        if clip.brief.strip() and clip.clip_id <= first.setdefault(clip.category, clip).clip_id:
            first[clip.category] = clip
    return [Prompt(f"sample-{category}", clip.brief, category) for category, clip in sorted(first.items())]


def sample_videos(ledger: Ledger, prompts: Sequence[Prompt], result: ShardResult) -> list[SampleVideo]:
    """What generate made of the prompts, in their order."""
    records = ledger.load(result.records)
    return [
        {
            "prompt": prompt.text,
            "category": prompt.category,
            "video": records[run_id].outputs.get("video"),
            "reason": records[run_id].reason,
        }
        for prompt, run_id in zip(prompts, result.records, strict=True)
    ]
