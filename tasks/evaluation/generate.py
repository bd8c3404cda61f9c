"""Generate: prompts become videos, each with its record in the catalog and in the file itself, marked synthetic.

The same model, prompt, seed and settings give the same bytes, so a video is made once; a run that was killed goes on
where it stopped.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NotRequired, TypedDict

from pydantic import Field, field_validator

from medgen import __version__
from medgen.canonical import digest_of
from medgen.catalog import ModelVersion
from medgen.devices import gpus
from medgen.errors import ItemFailed, RunStopped
from medgen.handover import Handover
from medgen.ledger import Ledger, Outcome, Record, StepIdentity, Work, open_ledger
from medgen.parameters import MOST_PIXELS_A_SIDE
from medgen.shard import ShardResult, Step, run_shard
from medgen.store import Store
from medgen.video_file import write_video
from models import ModelUnavailable
from models.encoders import shown_name
from models.generation.lora import Lora, parse_lora
from models.generation.prompt_set import Prompt
from models.generation.video_diffusion import read_sampling
from models.generation.video_generator import (
    GeneratorOptions,
    OptionUnavailable,
    OutOfMemory,
    VideoGenerator,
    free_memory,
    image_to_video_class,
    sampling_settings,
    text_to_video_class,
)
from models.hub_files import file_digest
from tasks.prefect_step import run_in_prefect, step_task
from tasks.training.model_files import (
    adapter_file,
    adapter_on_record,
    base_of_adapter,
    model_folder,
    on_record,
    taken_down,
)

VERSION = 2
MANY = 24  # a worker takes 12 s of a CPU to import diffusers, a nano video 1 or 2


class GenerationParams(GeneratorOptions):
    """How videos are generated, by whichever model. 0 (or empty, or a negative guidance) leaves a setting to it."""

    num_frames: int = Field(0, ge=0, le=100_000, description="Frames of a video; 0: the model's own.")
    height: int = Field(0, ge=0, le=MOST_PIXELS_A_SIDE, description="Height in pixels; 0: the model's own.")
    width: int = Field(0, ge=0, le=MOST_PIXELS_A_SIDE, description="Width in pixels; 0: the model's own.")
    num_inference_steps: int = Field(0, ge=0, le=10_000, description="Denoising steps; 0: the model's own.")
    guidance_scale: float = Field(
        -1.0, ge=-1000, le=1000, description="Classifier-free guidance; 1: none, negative: the model's own."
    )
    flow_shift: float = Field(
        0.0, ge=0, le=1000, description="Shift of the flow-matching schedule; 0: the model's own."
    )
    negative_prompt: str = Field(
        "", description="What guidance leads away from; empty: the model's own, none: nothing."
    )
    text_tokens: int = Field(0, ge=0, le=100_000, description="Tokens that prompts are padded to; 0: the model's own.")
    fps: float = Field(0.0, ge=0, le=1000, description="Frames per second of the files; 0: the model's own.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the first video of each prompt.")
    videos_per_prompt: int = Field(
        1, ge=1, le=100_000, description="Videos of each prompt, with seeds that follow one another."
    )


class GenerateParams(GenerationParams):
    """Parameters of generate."""

    model: str = Field(
        "", description="medgen:NAME of a model on record, a diffusers folder, or a hub name of a text-to-video model."
    )
    lora: tuple[str, ...] = Field(
        (), description="LoRA files beside the model, FILE[:WEIGHT] each; FILE may be medgen:NAME of a trained LoRA."
    )

    image: str = Field("", description="Picture that videos begin with, for models that take one (Wan 2.2 TI2V, I2V).")

    @field_validator("lora")
    @classmethod
    def _loras(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            parse_lora(text)
        return texts


class GenerateDetail(TypedDict):
    """Detail of a kept record.

    Args:
        settings: everything that decides on pixels, beside prompt and seed; and the rate of frames.
        model: digest; `model_name` is what people call it.
        frames, height, width, fps: of the file.
        versions: of the libraries that generated it.
        trained_on_taken_down: videos of the model's release that were taken down before this one was made.
    """

    prompt_id: str
    prompt: str
    category: str
    procedure: str
    seed: int
    settings: dict[str, Any]
    model: str
    model_name: str
    synthetic: bool
    frames: int
    height: int
    width: int
    fps: float
    versions: dict[str, str]
    trained_on_taken_down: NotRequired[list[str]]


class GenerateOutputs(TypedDict):
    """Outputs of a kept record, role → sha256."""

    video: str


GENERATE: Handover[GenerateDetail, GenerateOutputs] = Handover("generate")


@dataclass(frozen=True)
class Plan:
    """A model and its settings, checked and ready.

    Args:
        settings: everything that decides on pixels, beside prompt and seed; and the rate of frames.
        digest: of the model; where that is an adapter, `pipeline` is that of its base.
        version: the model's row in the catalog, if it is on record.
        loras: files beside the pipeline, with those of the catalog's models that they are of.
    """

    folder: Path
    digest: str
    shown: str
    settings: Mapping[str, Any]
    options: GeneratorOptions
    version: ModelVersion | None
    taken_down: tuple[str, ...]
    pipeline: str = ""
    loras: tuple[tuple[Lora, ModelVersion | None], ...] = ()
    image: Path | None = None


def plan(ledger: Ledger, params: GenerateParams) -> Plan:
    """Finds the model and settles every setting, before any weight is loaded.

    Raises:
        ItemFailed: no_model, unknown_model, ambiguous_model.
        ModelUnavailable: the model makes no videos of prompts, or an option or setting is not to be had.
    """
    if not params.model:
        raise ItemFailed("no_model", "name the model: medgen:NAME, a diffusers folder or a hub name")
    adapter = adapter_on_record(ledger, params.model)
    folder, pipeline = model_folder(ledger, base_of_adapter(ledger, adapter) if adapter else params.model)
    version = adapter or on_record(ledger, pipeline)
    loras = _loras(ledger, ([params.model] if adapter else []) + list(params.lora))
    image = _image(params.image)
    cls = (image_to_video_class if image else text_to_video_class)(folder, params.model)
    asked: dict[str, Any] = {
        "num_frames": params.num_frames,
        "height": params.height,
        "width": params.width,
        "num_inference_steps": params.num_inference_steps,
        "flow_shift": params.flow_shift,
        "negative_prompt": params.negative_prompt,
        "max_sequence_length": params.text_tokens,
        "fps": params.fps,
    }
    asked = {name: value for name, value in asked.items() if value}
    if params.guidance_scale >= 0:
        asked["guidance_scale"] = params.guidance_scale
    options = GeneratorOptions(**{name: getattr(params, name) for name in GeneratorOptions.model_fields}).resolved()
    trained = read_sampling(loras[0][0].path.parent) if adapter else None
    settings = sampling_settings(cls, folder, asked, trained)
    if loras:
        settings["lora"] = [{"sha256": lora.sha256, "weight": lora.weight} for lora, _ in loras]
    if image:
        settings["image"] = file_digest(image)
    releases = {known.release_name for known in (version, *(trained for _, trained in loras)) if known}
    return Plan(
        folder=folder,
        digest=adapter.digest if adapter else pipeline,
        shown=version.name if version else shown_name(params.model),
        settings=settings,
        options=options,
        version=version,
        taken_down=tuple(sorted({video for release in releases for video in taken_down(ledger, release)})),
        pipeline=pipeline,
        loras=loras,
        image=image,
    )


def _image(name: str) -> Path | None:
    """Raises ItemFailed no_image: there is no such file."""
    if name and not Path(name).is_file():
        raise ItemFailed("no_image", f"there is no picture {name}")
    return Path(name).resolve() if name else None


def _loras(ledger: Ledger, texts: Sequence[str]) -> tuple[tuple[Lora, ModelVersion | None], ...]:
    """The LoRA files of `FILE[:WEIGHT]`, with their models on record. Raises as `adapter_file`."""
    found = []
    for text in texts:
        name, weight = parse_lora(text)
        path, version = adapter_file(ledger, name)
        found.append((Lora(path, file_digest(path), weight), version))
    return tuple(found)


def generate(work: Work, store: Store, settings: Mapping[str, Any], options: GeneratorOptions) -> Outcome:
    """Makes the video of one prompt and seed.

    Output `video`: MP4, H.264, with the record in its comment.

    Raises:
        ItemFailed: out_of_memory, with advice; option_unavailable, generation_failed.
    """
    facts, access = work.context, work.access
    try:
        loras = tuple(Lora(Path(path), sha256, weight) for path, sha256, weight in access.get("loras", ()))
        image = Path(access["image"]) if access.get("image") else None
        generator = _generator(str(access["folder"]), options, loras, image)
        frames = generator.frames(facts["prompt"], facts["seed"], settings)
    except OutOfMemory as error:
        raise ItemFailed("out_of_memory", str(error), later=True) from error
    except OptionUnavailable as error:
        raise ItemFailed("option_unavailable", str(error), later=True) from error
    except ModelUnavailable as error:
        raise ItemFailed("model_unavailable", str(error), later=True) from error
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        # What a pipeline says of arguments that it does not like.
        raise ItemFailed("generation_failed", f"{type(error).__name__}: {error}", later=True) from error
    settings_used = {**settings, **options.pixel_settings()}
    embedded = {
        "generator": "medgen",
        "medgen": __version__,
        "synthetic": True,
        "model": access["digest"],
        "model_name": access["shown"],
        "prompt": facts["prompt"],
        "seed": facts["seed"],
        "settings": settings_used,
    }
    path = store.scratch(".mp4")
    write_video(path, frames, settings["fps"], embedded)
    count, height, width = frames.shape[:3]
    detail: GenerateDetail = {
        "prompt_id": facts["prompt_id"],
        "prompt": facts["prompt"],
        "category": facts["category"],
        "procedure": facts["procedure"],
        "seed": facts["seed"],
        "settings": settings_used,
        "model": access["digest"],
        "model_name": access["shown"],
        "synthetic": True,
        "frames": count,
        "height": height - height % 2,
        "width": width - width % 2,
        "fps": settings["fps"],
        "versions": _versions(),
    }
    if access["taken_down"]:
        detail["trained_on_taken_down"] = list(access["taken_down"])
    return Outcome("kept", detail=dict(detail), outputs={"video": store.put_file(path, "video/mp4")})


def step(plan: Plan, videos: int) -> Step:
    """Generate, ready to run with a plan for about so many videos."""
    params = {**plan.settings, **plan.options.pixel_settings()}
    models = {"pipeline": plan.pipeline or plan.digest}
    identity = StepIdentity("generate", VERSION, params, models)
    # On a CPU each worker would load a model of its own, which only many videos repay.
    several = plan.options.device == "cpu" and (videos >= MANY or gpus())
    where: Literal["device", "processes"] = "processes" if several else "device"
    return Step(identity, partial(generate, settings=dict(plan.settings), options=plan.options), runs_in=where)


def generate_videos(
    ledger: Ledger,
    prompts: Sequence[Prompt],
    params: GenerateParams,
    *,
    retry_quarantined: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ShardResult:
    """Makes the videos of prompts; those that are there already are not made again.

    The records' ids come in order of prompts, then seeds.

    Args:
        progress: called with (videos done, all); by default Prefect shows it.

    Raises:
        as `plan`.
    """
    ready = plan(ledger, params)
    wanted: dict[str, tuple[Prompt, int]] = {}
    for prompt in prompts:
        for seed in range(params.seed, params.seed + params.videos_per_prompt):
            wanted.setdefault(f"{prompt.id} {seed}", (prompt, seed))
    works = [_work(ready, prompt, seed) for prompt, seed in wanted.values()]
    generating = step(ready, len(works))
    if progress:
        return run_shard(generating, works, progress=progress, retry_quarantined=retry_quarantined, ledger=ledger)
    return run_in_prefect(generating, works, retry_quarantined=retry_quarantined)


def _subject(plan: Plan, prompt: Prompt, seed: int) -> str:
    facts = {
        "model": plan.digest,
        "prompt": prompt.text,
        "seed": seed,
        "settings": {**plan.settings, **plan.options.pixel_settings()},
    }
    return f"gen-{digest_of(facts)[:32]}"


def _work(plan: Plan, prompt: Prompt, seed: int) -> Work:
    stored = plan.version is not None
    inputs, parents = ({"model": plan.digest} if stored else {}), {}
    if plan.version and plan.version.step_run_id is not None:
        parents["model"] = plan.version.step_run_id
    for number, (_, trained) in enumerate(plan.loras):
        if trained and trained.digest != plan.digest:
            inputs[f"lora:{number}"] = trained.digest
            if trained.step_run_id is not None:
                parents[f"lora:{number}"] = trained.step_run_id
    return Work(
        _subject(plan, prompt, seed),
        inputs=inputs,
        parents=parents,
        context={
            "prompt": prompt.text,
            "prompt_id": prompt.id,
            "category": prompt.category,
            "procedure": prompt.procedure,
            "seed": seed,
        },
        access={
            "folder": str(plan.folder),
            "digest": plan.digest,
            "shown": plan.shown,
            "taken_down": list(plan.taken_down),
            "image": str(plan.image) if plan.image else "",
            "loras": [(str(lora.path), lora.sha256, lora.weight) for lora, _ in plan.loras],
        },
    )


def videos_of(ledger: Ledger, result: ShardResult) -> list[Record]:
    """Records of the videos that were made, in order; those that failed are left out."""
    records = ledger.load(result.records)
    return [records[run_id] for run_id in result.records if records[run_id].status == "kept"]


def export(store: Store, records: Sequence[Record], folder: Path) -> list[Path]:
    """Copies videos into a folder as PROMPT-seedN.mp4. Raises RunStopped: a file can't be written."""
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for record in records:
            detail = GENERATE.detail(record)
            target = folder / f"{detail['prompt_id']}-seed{detail['seed']}.mp4"
            making = target.with_name(f".{target.name}.making")
            shutil.copyfile(store.path(GENERATE.outputs(record)["video"]), making)
            making.replace(target)
            written.append(target)
    except OSError as error:
        raise RunStopped(f"the videos can't be written to {folder}: {error}. They stay in the store") from error
    return written


@step_task("generate", "gpu")
def generate_shard(
    label: str, prompts: Sequence[Prompt], params: GenerateParams, retry_quarantined: bool = False
) -> ShardResult:
    """Makes the videos of prompts."""
    return generate_videos(open_ledger(), prompts, params, retry_quarantined=retry_quarantined)


_held: dict[Any, VideoGenerator] = {}  # one at most
_held_lock = Lock()


def _generator(folder: str, options: GeneratorOptions, loras: tuple[Lora, ...], image: Path | None) -> VideoGenerator:
    """The model in memory; another one is let go before it is loaded, which must find the memory free."""
    wanted = (folder, options, loras, image)
    with _held_lock:
        if wanted not in _held:
            _held.clear()
            free_memory()
            _held[wanted] = VideoGenerator(Path(folder), options, loras, image)
        return _held[wanted]


@cache
def _versions() -> dict[str, str]:
    import diffusers
    import torch
    import transformers

    return {module.__name__: str(module.__version__) for module in (diffusers, torch, transformers)}
