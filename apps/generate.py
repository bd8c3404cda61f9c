"""`medgen generate`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from apps.console import Json, err, out, print_json, report_expected_errors

FAST = "Fast paths"


def generate(
    prompt: Annotated[str | None, typer.Argument(metavar="[PROMPT]", help="What the video should show.")] = None,
    prompts: Annotated[
        str,
        typer.Option(help="File of prompts (.txt, .csv, .jsonl), or `medical` for the packaged set."),
    ] = "",
    model: Annotated[
        str, typer.Option(help="medgen:NAME of a model on record, a diffusers folder, or a hub name.")
    ] = "",
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:WEIGHT]", help="LoRA beside the model; several: repeat. Also medgen:NAME."),
    ] = None,
    image: Annotated[str, typer.Option(help="Picture that the videos begin with, for models that take one.")] = "",
    target: Annotated[Path, typer.Option("--out", help="Folder for the videos.")] = Path("videos"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first video of each prompt.")] = 0,
    videos_per_prompt: Annotated[int, typer.Option(min=1, help="Videos of each prompt, with seeds in a row.")] = 1,
    limit: Annotated[int, typer.Option(min=0, help="Take so many of the prompts, from all categories; 0: all.")] = 0,
    steps: Annotated[int, typer.Option(min=0, help="Denoising steps; 0: the model's own.")] = 0,
    guidance: Annotated[float, typer.Option(help="Guidance scale; 1: none, negative: the model's own.")] = -1.0,
    frames: Annotated[int, typer.Option(min=0, help="Frames of a video; 0: the model's own.")] = 0,
    height: Annotated[int, typer.Option(min=0, help="Height in pixels; 0: the model's own.")] = 0,
    width: Annotated[int, typer.Option(min=0, help="Width in pixels; 0: the model's own.")] = 0,
    fps: Annotated[float, typer.Option(min=0, help="Frames per second of the files; 0: the model's own.")] = 0.0,
    flow_shift: Annotated[float, typer.Option(min=0, help="Shift of the schedule; 0: the model's own.")] = 0.0,
    negative_prompt: Annotated[
        str, typer.Option(help="What guidance leads away from; empty: the model's own, none: nothing.")
    ] = "",
    text_tokens: Annotated[int, typer.Option(min=0, help="Tokens that prompts are padded to; 0: own.")] = 0,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], typer.Option(help="Arithmetic; auto: bfloat16 on a GPU.")
    ] = "auto",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: the GPU where there is one.")] = "auto",
    compile_transformer: Annotated[
        bool, typer.Option("--compile", help="torch.compile: slow start, faster steps.", rich_help_panel=FAST)
    ] = False,
    attention_backend: Annotated[
        str, typer.Option(help="diffusers' attention backend: native, flash, sage, …", rich_help_panel=FAST)
    ] = "",
    cache: Annotated[
        Literal["none", "first_block", "pyramid_attention_broadcast", "faster", "taylorseer"],
        typer.Option(help="Reuse work between steps; videos differ slightly.", rich_help_panel=FAST),
    ] = "none",
    cache_threshold: Annotated[
        float, typer.Option(min=0, help="first_block: change below which blocks are skipped.", rich_help_panel=FAST)
    ] = 0.05,
    offload: Annotated[
        Literal["none", "model", "group"],
        typer.Option(help="Keep waiting parts in main memory; needs a GPU.", rich_help_panel=FAST),
    ] = "none",
    vae_tiling: Annotated[bool, typer.Option(help="Decode in tiles, with less memory.", rich_help_panel=FAST)] = False,
    vae_slicing: Annotated[bool, typer.Option(help="Decode videos one by one.", rich_help_panel=FAST)] = False,
    retry_quarantined: Annotated[bool, typer.Option(help="Try prompts again that failed for good.")] = False,
    as_json: Json = False,
) -> None:
    """Make videos of prompts. Kill it whenever you like; run it again to go on. Nothing is made twice."""

    with report_expected_errors():
        settings = {
            "model": model, "lora": tuple(lora or ()), "image": image,
            "num_frames": frames, "height": height, "width": width, "num_inference_steps": steps,
            "guidance_scale": guidance, "flow_shift": flow_shift,
            "negative_prompt": negative_prompt, "text_tokens": text_tokens, "fps": fps,
            "seed": seed, "videos_per_prompt": videos_per_prompt, "dtype": dtype, "device": device,
            "compile_transformer": compile_transformer, "attention_backend": attention_backend, "cache": cache,
            "cache_threshold": cache_threshold, "offload": offload, "vae_tiling": vae_tiling,
            "vae_slicing": vae_slicing,
        }  # fmt: skip
        failed = _generate(
            _prompts(prompt, prompts, limit), settings, target, retry_quarantined=retry_quarantined, as_json=as_json
        )
    if failed:
        raise typer.Exit(1)


def _generate(
    prompts: list[Any], settings: dict[str, Any], target: Path, *, retry_quarantined: bool, as_json: bool
) -> int:
    """Number of videos that could not be made."""
    with err.status("loading diffusers"):
        from medgen.ledger import open_ledger
        from medgen.shard import close_pools
        from tasks.evaluation import generate as step

    params = step.GenerateParams(**settings)
    ledger = open_ledger()
    with _progress(quiet=as_json) as show:
        try:
            result = step.generate_videos(ledger, prompts, params, retry_quarantined=retry_quarantined, progress=show)
        finally:
            close_pools()
    made = step.videos_of(ledger, result)
    files = step.export(ledger.store, made, target)
    records = ledger.load(result.records)
    failed = [records[run_id] for run_id in result.records if records[run_id].status != "kept"]
    _print(result, made, files, failed, as_json)
    return len(failed)


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yields a callback (done, total) that moves a bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, disable=quiet, transient=True) as bars:
        bar = bars.add_task("videos", total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


def _prompts(prompt: str | None, name: str, limit: int) -> list[Any]:
    from medgen.canonical import digest_of
    from medgen.errors import ItemFailed
    from models.generation.prompt_set import MAX_CHARS, Prompt, load_prompts, spread

    if (prompt is None) == (not name):
        raise ItemFailed("bad_prompts", "give one prompt, or a file by --prompts (`medical` is the packaged set)")
    if prompt is None:
        return spread(load_prompts(name), limit)
    text = " ".join(prompt.replace("\x00", "\ufffd").split())
    if not text or len(text) > MAX_CHARS:
        raise ItemFailed("bad_prompts", f"a prompt has 1 to {MAX_CHARS} characters, this one {len(text)}")
    return [Prompt(f"p-{digest_of(text)[:16]}", text)]


def _print(result: Any, made: Any, files: list[Path], failed: Any, as_json: bool) -> None:
    if as_json:
        videos = [
            {"subject": r.subject, "file": str(f.resolve()), "sha256": r.outputs["video"], **r.detail}
            for r, f in zip(made, files, strict=True)
        ]
        faults = [{"subject": r.subject, "reason": r.reason, "message": r.detail.get("message")} for r in failed]
        facts = {"executed": result.executed, "reused": result.reused, "videos": videos, "failed": faults}
        print_json(facts)
        return
    for file in files:
        out.print(escape(str(file)), highlight=False, soft_wrap=True)
    for reason, message in dict.fromkeys((r.reason, r.detail.get("message", "")) for r in failed):
        err.print(f"[red]not made[/] {reason}: {escape(message)}", highlight=False, soft_wrap=True)
    out.print(f"executed {result.executed}, reused {result.reused}", highlight=False)
