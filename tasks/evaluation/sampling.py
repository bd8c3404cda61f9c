"""How each system's videos were sampled, and whether systems were sampled alike: only then is a comparison fair.

With `same`, the first model's settings, or what was asked for, hold for every model. With `own`, each model is sampled
as it says itself. Folders of videos come as they are: of these only what the files show is known.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from medgen.errors import RunStopped
from models.generation.video_generator import NO_NEGATIVE
from tasks.evaluation.generate import GenerateParams
from tasks.evaluation.measured import Measured, System

Rule = Literal["same", "own"]
# Setting of diffusers → parameter that asks for it. Tokens of a text are left out: they belong to a model's encoder.
SHARED = (
    "num_inference_steps",
    "guidance_scale",
    "flow_shift",
    "negative_prompt",
    "num_frames",
    "height",
    "width",
    "fps",
)
# What a table shows, and what of it a file shows by itself.
SHOWN = ("steps", "guidance", "shift", "negative_prompt", "size", "frames", "fps")
OF_FILES = ("size", "frames", "fps")


class SystemSampling(TypedDict):
    """How one system's videos came about.

    Args:
        generated: whether a model made them in this evaluation. For others' videos `steps` to `negative_prompt` are
            None, because nobody knows.
        steps, guidance, shift: None too where a pipeline has no such thing; `negative_prompt` is "" for none.
        size, frames, fps: of the files, each value that occurs, such as "832x480".
    """

    system: str
    generated: bool
    steps: int | None
    guidance: float | None
    shift: float | None
    negative_prompt: str | None
    size: list[str]
    frames: list[int]
    fps: list[float]


class Sampling(TypedDict):
    """Of all systems: by which rule models were sampled, and in which of SHOWN systems differ."""

    rule: Rule
    differ: list[str]
    systems: list[SystemSampling]


def shared_params(first: Mapping[str, Any], params: GenerateParams) -> GenerateParams:
    """Another model's parameters with the first model's settings.

    Args:
        first: settings of the first model, as `models.generation.video_generator.sampling_settings` gives them.
    """
    asked = {name: first[name] for name in SHARED if name in first}
    asked.setdefault("negative_prompt", NO_NEGATIVE)
    return params.model_copy(update=asked)


def check_same(settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Whether all models are sampled alike.

    Args:
        settings: model → its settings.

    Raises:
        RunStopped: they are not; it names the setting, the models and what to do.
    """
    for name in SHARED:
        values = {model: own.get(name) for model, own in settings.items()}
        if len({repr(value) for value in values.values()}) > 1:
            shown = "; ".join(f"{model}: {'its own' if value is None else value}" for model, value in values.items())
            raise RunStopped(
                f"the models can't be sampled alike: they differ in {name} ({shown}). Set {name} for all, or take each "
                "at its own settings with sampling=own"
            )


def sampling_of(
    rule: Rule, systems: Sequence[System], settings: Mapping[str, Mapping[str, Any]], measured: Sequence[Measured]
) -> Sampling:
    """How the systems' videos came about.

    Args:
        settings: system → settings, of those that are models.
    """
    rows = [
        _row(system.name, settings.get(system.name), [v for v in measured if v.video.system == system.name])
        for system in systems
    ]
    facts = [dict(row) for row in rows]
    made = [row for row in facts if row["generated"]]
    differ = [
        name
        for name in SHOWN
        if len({repr(row[name]) for row in (facts if name in OF_FILES else made) if row[name] != []}) > 1
    ]
    return {"rule": rule, "differ": differ, "systems": rows}


def _row(system: str, settings: Mapping[str, Any] | None, videos: Sequence[Measured]) -> SystemSampling:
    files = [video.detail for video in videos if video.detail]
    known = settings or {}
    return {
        "system": system,
        "generated": settings is not None,
        "steps": known.get("num_inference_steps"),
        "guidance": known.get("guidance_scale"),
        "shift": known.get("flow_shift"),
        "negative_prompt": None if settings is None else known.get("negative_prompt", ""),
        "size": sorted({f"{file['width']}x{file['height']}" for file in files}),
        "frames": sorted({file["frames"] for file in files}),
        "fps": sorted({file["fps"] for file in files}),
    }


def sampling_sentences(sampling: Sampling) -> list[str]:
    """What people must know before they compare the systems."""
    models = [row["system"] for row in sampling["systems"] if row["generated"]]
    others = [row["system"] for row in sampling["systems"] if not row["generated"]]
    differ = ", ".join(name.replace("_", " ") for name in sampling["differ"])
    told = []
    if len(models) > 1 and sampling["rule"] == "same":
        told.append("All models were sampled with one set of settings.")
    elif len(models) > 1:
        told.append("Each model was sampled at its own settings.")
    if others:
        told.append(f"How the videos of {', '.join(others)} were sampled is not known.")
    if differ:
        told.append(f"The systems' videos differ in {differ}: a difference in scores may come from that.")
    elif len(sampling["systems"]) > 1:
        told.append("The systems' videos have the same size, frames and rate.")
    return told


def sampling_rows(sampling: Sampling) -> list[dict[str, str]]:
    """A table of texts: one row for each system."""
    return [
        {"system": row["system"]}
        | {name.replace("_", " "): _shown(dict(row)[name], generated=row["generated"]) for name in SHOWN}
        for row in sampling["systems"]
    ]


def sampling_line(row: SystemSampling) -> str:
    """A system's settings in a line, such as "50 steps, guidance 5, shift 3; 832x480, 81 frames, 16 fps"."""
    cells = {name: _shown(dict(row)[name], generated=row["generated"]) for name in SHOWN}
    of_files = f"{cells['size']}, {cells['frames']} frames, {cells['fps']} fps"
    if not row["generated"]:
        return of_files
    negative = ", negative prompt" if row["negative_prompt"] else ""
    return f"{cells['steps']} steps, guidance {cells['guidance']}, shift {cells['shift']}{negative}; {of_files}"


def _shown(value: Any, *, generated: bool) -> str:
    if value is None:
        return "none" if generated else "not known"
    if isinstance(value, list):
        if len(value) > 3 and not isinstance(value[0], str):
            return f"{value[0]:g} to {value[-1]:g}"
        return ", ".join(each if isinstance(each, str) else f"{each:g}" for each in value) or "–"
    if isinstance(value, str):
        return value or "none"
    return f"{value:g}"
