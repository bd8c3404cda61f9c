"""`medgen cut`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from apps.console import Json, err, finite, out, parse_settings, print_json, report_expected_errors, stop


def cut(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A video file.", exists=True, dir_okay=False)],
    start: Annotated[float, typer.Option(min=0, callback=finite, help="Seconds from the first picture.")],
    end: Annotated[float, typer.Option(min=0, callback=finite, help="Seconds from the first picture; exclusive.")],
    target: Annotated[Path, typer.Option("--out", help="The clip to write, MP4.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Set a parameter of cut or segment; see `medgen parameters`."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Cut one clip out of a video file, exactly as the pipeline cuts it. Nothing is written to the catalog."""
    with report_expected_errors():
        from pydantic import ConfigDict

        from tasks.curation.cut import CutParams
        from tasks.curation.segment import SegmentParams

        class Parameters(CutParams, SegmentParams):
            model_config = ConfigDict(frozen=True, extra="forbid")

        parameters = Parameters(**parse_settings(settings or []))
        with err.status(f"cutting {escape(file.name)}"):
            facts = cut_out(file, start, end, target, parameters)
    if as_json:
        print_json(facts)
        return
    crop = facts["crop"]
    out.print(
        f"{facts['frames']} frames from {facts['start_s']:.3f} to {facts['end_s']:.3f} s, {facts['width']}x"
        f"{facts['height']}, {facts['fps']:g} frames a second, "
        + (f"cropped to {crop[2]}x{crop[3]} at {crop[0]}, {crop[1]}" if crop else "not cropped")
    )
    out.print(escape(str(target)), soft_wrap=True)


def cut_out(path: Path, start: float, end: float, target: Path, parameters: Any) -> dict[str, Any]:
    """Cuts the pictures that are shown from `start` on and before `end`.

    Args:
        parameters: `CutParams` and `SegmentParams` in one.

    Raises:
        ItemFailed: as `medgen.video.cut.cut`; frames_missing when no picture lies there.
    """
    from medgen.errors import ItemFailed
    from medgen.video.container import open_video
    from medgen.video.cut import cut as cut_video
    from medgen.video.pictures import VideoReader, decode_jpeg
    from models.segmentation.borders import Borders, detect_borders
    from tasks.curation.cut import crop_of
    from tasks.curation.segment import FrameSampler

    if end <= start:
        stop(f"--end {end:g} is not after --start {start:g}", code=2)
    limits = parameters.limits
    sampler, times, samples, sizes = FrameSampler(parameters), list[int](), list[bytes](), set[tuple[int, int]]()
    with open_video(path, limits) as video:
        reader = VideoReader(video, limits)
        for picture in reader:
            jpeg = sampler.sample(picture)
            if start - 1e-6 <= picture.time_s < end - 1e-6:
                times.append(picture.pts)
                sizes.add((picture.frame.width, picture.frame.height))
                samples += [jpeg] if jpeg else []
                if picture.after_break and len(times) > 1:
                    change = f"{picture.after_break.replace('_', ' ')} at {picture.time_s:.3f} s"
                    err.print(f"[yellow]note:[/] {change}: the pipeline cuts no clip across it")
        base, clock_start = reader.timeline.time_base, reader.timeline.plain_start
    if not times:
        raise ItemFailed("frames_missing", f"no picture of {path.name} is shown from {start:g} to {end:g} s")
    pictures = [decode_jpeg(jpeg) for jpeg in samples]
    borders: Borders | None = detect_borders(pictures) if pictures and len(sizes) == 1 else None
    crop = crop_of(borders, pictures[0].shape, next(iter(sizes)), parameters) if borders else None
    part = target.with_name(f".{target.name}.part")
    try:
        made = cut_video(
            path, part, times=times, clock_start=clock_start, crop=crop, crf=parameters.crf,
            preset=parameters.x264_preset, limits=limits,
        )  # fmt: skip
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    start_s = float(times[0] * base)
    return {
        "file": path.name,
        "frames": made.frames,
        "width": made.width,
        "height": made.height,
        "fps": round(made.fps, 4),
        "start_s": round(start_s, 6),
        "end_s": round(start_s + float(made.duration_s), 6),
        "duration_s": round(float(made.duration_s), 6),
        "borders": borders.kind if borders else None,
        "crop": list(crop) if crop else None,
    }
