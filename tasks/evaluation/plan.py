"""What an evaluation compares: systems, their videos or how these are generated, prompts and training clips.

All is settled before any video is made, so that what can't work is an error at once.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from medgen.errors import RunStopped
from medgen.ledger import Ledger
from models.generation.prompt_set import (
    MEDICAL,
    ORIGINS,
    PROMPT_SET_VERSION,
    Prompt,
    load_prompts,
    prompt_origin,
    prompts_digest,
    spread,
)
from models.generation.video_generator import OptionUnavailable
from tasks.evaluation import generate
from tasks.evaluation.generate import GenerateParams, GenerationParams
from tasks.evaluation.measure_video import MeasureParams, Video
from tasks.evaluation.measure_video import step as measure_step
from tasks.evaluation.measured import System
from tasks.evaluation.mllm_judge import MllmJudgeParams, mllm_judge_step, video_score_step
from tasks.evaluation.sampling import Rule, check_same, shared_params
from tasks.evaluation.video_folders import folder_videos, named_folder
from tasks.training.released import ReleasedClip, released_clips


class PromptSet(TypedDict):
    """Which prompts videos were made from.

    Args:
        origin: who wrote them.
        prompts, of: how many were taken, and how many the set has.
    """

    name: str
    version: str
    digest: str
    origin: str
    prompts: int
    of: int


@dataclass(frozen=True)
class EvaluationPlan:
    """What is compared.

    Args:
        systems: folders, then models in order, the baseline last unless it is one of them.
        folder_videos: the videos of the systems that are folders.
        models: name of a system → how its videos are generated.
        sampling: by which rule the models' settings were chosen; `settings`: name of a system → what came of it.
        baseline: name of the system that the others are tested against, or "".
        prompts: that videos are generated of.
        prompt_file: name of the set or path of the file that they come from; `prompt_total`: how many it holds;
            `prompt_origin`: as `models.generation.prompt_set.prompt_origin` tells.
        clips: of the training release, if one is given.
        labels: clip id → label that stands for the clip's category.
    """

    systems: tuple[System, ...]
    folder_videos: tuple[Video, ...]
    models: Mapping[str, GenerateParams]
    sampling: Rule
    settings: Mapping[str, Mapping[str, Any]]
    baseline: str
    prompts: tuple[Prompt, ...]
    prompt_file: str
    prompt_total: int
    prompt_origin: str
    clips: tuple[ReleasedClip, ...]
    labels: Mapping[str, str]

    def prompt_set(self, videos: Sequence[Video]) -> PromptSet:
        """Name, version and digest of the prompts that the videos were made from, as the report tells them."""
        if not {prompt.id for prompt in self.prompts} & {video.prompt_id for video in videos}:
            own = {video.prompt_id: Prompt(video.prompt_id, video.prompt, video.category) for video in videos}
            return {
                "name": "the folders' own",
                "version": "",
                "digest": prompts_digest([own[name] for name in sorted(own)]),
                "origin": "come with the videos",
                "prompts": len(own),
                "of": len(own),
            }
        return {
            "name": self.prompt_origin or Path(self.prompt_file).name,
            "version": PROMPT_SET_VERSION if self.prompt_origin == MEDICAL else "",
            "digest": prompts_digest(self.prompts),
            "origin": ORIGINS[self.prompt_origin],
            "prompts": len(self.prompts),
            "of": self.prompt_total,
        }


def plan_evaluation(
    ledger: Ledger,
    *,
    models: Sequence[str],
    folders: Sequence[str],
    baseline: str,
    prompt_file: str,
    limit: int,
    against: str,
    labels_file: str,
    generation: GenerationParams,
    sampling: Rule,
) -> EvaluationPlan:
    """Finds systems, prompts and training clips.

    Args:
        models: medgen:NAME, a diffusers folder or a hub name of each.
        folders: of other systems' videos, NAME=FOLDER.
        baseline: a model as above, or the name of a folder; "" for none.
        limit: only so many prompts, spread over categories; 0: all.
        against: training release; "" for none.
        labels_file: CSV with clip_id and label; "" for none.
        sampling: same: the first model's settings, where nothing is asked for, hold for all; own: each at its own.

    Raises:
        RunStopped: nothing to evaluate; two systems of one name; models that can't be sampled alike; as
            `folder_videos` and `read_labels`.
        ItemFailed: as `load_prompts`, `tasks.evaluation.generate.plan` and `released_clips`.
        ModelUnavailable: as `tasks.evaluation.generate.plan`.
    """
    if not models and not folders:
        raise RunStopped("nothing to evaluate: name models, or folders of videos as NAME=FOLDER")
    prompts = load_prompts(prompt_file)
    systems: list[System] = []
    videos: list[Video] = []
    for folder in folders:
        name, path = named_folder(folder)
        _add(systems, System(name))
        videos += folder_videos(name, path, prompts)
    asked = baseline
    extra = [baseline] if baseline and all(system.name != baseline for system in systems) else []
    generated: dict[str, GenerateParams] = {}
    settings: dict[str, Mapping[str, Any]] = {}
    for model in dict.fromkeys([*models, *extra]):
        params = GenerateParams(model=model, **dict(generation))
        if settings and sampling == "same":
            params = shared_params(next(iter(settings.values())), params)
        generation_plan = _generation_plan(ledger, params, sampling)
        if any(system.digest == generation_plan.digest for system in systems):
            continue  # named twice in two ways
        taken = any(system.name == generation_plan.shown for system in systems)
        name = f"{generation_plan.shown}@{generation_plan.digest[:8]}" if taken else generation_plan.shown
        _add(systems, System(name, generation_plan.digest, generation_plan.version is not None))
        generated[name], settings[name] = params, generation_plan.settings
        baseline = name if model == asked else baseline
    if sampling == "same":
        check_same(settings)
    return EvaluationPlan(
        systems=tuple(systems),
        folder_videos=tuple(videos),
        models=generated,
        sampling=sampling,
        settings=settings,
        baseline=baseline,
        prompts=tuple(spread(prompts, limit)),
        prompt_file=prompt_file,
        prompt_total=len(prompts),
        prompt_origin=prompt_origin(prompts),
        clips=tuple(released_clips(ledger, against)[0]) if against else (),
        labels=read_labels(labels_file) if against else {},
    )


def _generation_plan(ledger: Ledger, params: GenerateParams, sampling: Rule) -> generate.Plan:
    """Raises as `tasks.evaluation.generate.plan`."""
    try:
        return generate.plan(ledger, params)
    except OptionUnavailable as error:
        if sampling == "own":
            raise
        raise OptionUnavailable(f"{error}; or take each model at its own settings with sampling=own") from error


def check_metrics(measuring: MeasureParams, judging: MllmJudgeParams) -> None:
    """Whether every metric's model is to be had.

    Raises:
        RunStopped: a name or parameter is wrong.
        ModelUnavailable: as the steps.
    """
    try:
        measure_step(measuring)
        if judging.judge_model:
            mllm_judge_step(judging)
        if judging.video_score_model:
            video_score_step(judging)
    except ValueError as error:
        raise RunStopped(f"bad model or parameter: {error}") from error


def read_labels(path: str) -> dict[str, str]:
    """clip id → label of a CSV file; none without a path. Raises RunStopped: no such file, or a column is missing."""
    if not path:
        return {}
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            return {row["clip_id"]: row["label"] for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise RunStopped(
            f"against_labels: {path} is no CSV file with clip_id and label ({type(error).__name__}: {error})"
        ) from error


def _add(systems: list[System], system: System) -> None:
    if any(other.name == system.name for other in systems):
        raise RunStopped(f"two systems are called {system.name!r}: give one of them another name, as NAME=FOLDER")
    systems.append(system)
