"""What loading and saving a model in shards (FSDP 2) takes of each process' memory, on the CPU.

    python -m bench.shard_memory           # two processes, a model of 270 MB
    python -m bench.shard_memory --smoke   # the same with a toy and forked processes, only to see whether it runs

accelerate shards over GPUs only, so the processes are shown to it as ones with a GPU; the rest is what it is on GPUs.
Peaks are of resident memory, above what a process held before; a copy is all weights in float32. Training all weights,
the optimiser keeps two more copies and the moving average another, in shards.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path
from typing import Any

PROCESSES = 2
SIZES = {"full": (8, 16), "smoke": (2, 2)}  # heads of width 64, layers
FSDP = {
    "ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false", "OMP_NUM_THREADS": "1",
}  # fmt: skip


def prepare(folder: Path, heads: int, layers: int) -> None:
    """A base with random weights, four encoded clips and a job."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
    from diffusers.pipelines.wan.pipeline_wan import WanPipeline
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
    from safetensors.torch import save_file

    from models.training.config import configured
    from models.training.job import Sample, TrainJob
    from models.training.nano import VAE

    transformer = WanTransformer3DModel(
        num_attention_heads=heads, attention_head_dim=64, text_dim=64, ffn_dim=256 * heads, num_layers=layers
    )
    pipeline = WanPipeline(
        tokenizer=None,  # type: ignore[arg-type]  # None is allowed, though not declared
        text_encoder=None,  # type: ignore[arg-type]  # as above
        vae=AutoencoderKLWan(**VAE),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=transformer,
    )
    pipeline.save_pretrained(folder / "base")
    samples = []
    for number in range(4):
        path = folder / f"{number}.safetensors"
        save_file(
            {"latents": torch.randn(16, 2, 4, 4), **{name: torch.zeros(2, 64) for name in ("brief", "detailed")}}, path
        )
        samples.append(Sample(path=path, clip_id=str(number), video_id=str(number)))
    save_file({"empty": torch.zeros(2, 64)}, folder / "empty.safetensors")
    changes = {
        "pretrained_model_name_or_path": "base", "buckets": "3x32x32", "num_processes": PROCESSES, "max_train_steps": 1,
        "train_batch_size": 1, "validation_samples": 0, "lr_warmup_steps": 0,
    }  # fmt: skip
    job = TrainJob(
        config=configured("nano", changes), base=str(folder / "base"), base_digest="b" * 64, samples=tuple(samples),
        empty=folder / "empty.safetensors", folder=folder / "run",
    )  # fmt: skip
    job.folder.mkdir()
    job.write(folder / "job.json")


def work(job_file: Path) -> None:
    """One of the processes: prints what loading, saving and loading from the checkpoint took."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    from models.training.job import TrainJob
    from models.training.trainer import Trainer

    job = TrainJob.read(job_file)
    facts: dict[str, float] = {}

    def measured(name: str, before: int) -> None:
        facts[f"{name}_peak"] = (status("VmHWM") - before) / 1e6
        facts[f"{name}_after"] = (status("VmRSS") - before) / 1e6

    before = reset()
    trainer = Trainer(job, resume=False)
    measured("load", before)
    batches = trainer._load(list(range(PROCESSES)), 0)
    trainer._train_step(batches)
    trainer.step = 1
    before = reset()
    trainer.save()
    measured("save", before)
    before = reset()
    trainer._resume()
    measured("resume", before)
    told = {"rank": trainer.accelerator.process_index, "weights": sum(p.numel() for p in trainer.model.parameters())}
    sys.stdout.write(json.dumps(told | facts) + "\n")
    sys.stdout.flush()


def reset() -> int:
    """Bytes that this process holds now; its peak is counted from here on."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(name: str) -> int:
    """Bytes, as Linux tells them of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status tells nothing of {name}")


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: megabytes, and copies of the weights."""
    copy = 4 * rows[0]["weights"] / 1e6
    lines = [
        f"A copy of the weights is {copy:,.0f} MB.\n",
        "| | process | peak MB | copies | held after MB |\n| --- | --- | ---: | ---: | ---: |",
    ]
    for phase in ("load", "save", "resume"):
        for row in rows:
            peak, after = row[f"{phase}_peak"], row[f"{phase}_after"]
            lines.append(f"| {phase} | {row['rank']} | {peak:,.0f} | {peak / copy:.2f} | {after:,.0f} |")
        both = sum(row[f"{phase}_peak"] for row in rows)
        lines.append(f"| {phase} | all | {both:,.0f} | {both / copy:.2f} | |")
    return "\n".join(lines)


def main() -> int:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a toy, only to see whether it runs")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work)
        return 0
    if arguments.smoke:
        os.environ |= FSDP  # before the libraries read them
    with tempfile.TemporaryDirectory() as made:
        prepare(Path(made), *SIZES["smoke" if arguments.smoke else "full"])
        told = (forked if arguments.smoke else launched)(Path(made) / "job.json")
    rows = [json.loads(line) for line in told.splitlines() if line.startswith("{") and '"rank"' in line]
    print(table(sorted(rows, key=lambda row: row["rank"])))
    return 0


def launched(job_file: Path) -> str:
    """What the processes print, each started by PyTorch's launcher."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    done = subprocess.run(
        [*command, "-m", "bench.shard_memory", "--work", str(job_file)],
        env=os.environ | FSDP, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def forked(job_file: Path) -> str:
    """What the processes print, each a fork of this one, as imports take longer than the toy. Peaks mean nothing."""
    import models.training.trainer  # noqa: F401 for all of them

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    forks, told = get_context("fork"), job_file.with_name("told")
    processes = [forks.Process(target=_fork, args=(job_file, told, rank, port)) for rank in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"the processes ended with {[process.exitcode for process in processes]}")
    return told.read_text(encoding="utf-8")


def _fork(job_file: Path, told: Path, rank: int, port: int) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with told.open("a", encoding="utf-8") as sys.stdout:
        work(job_file)


if __name__ == "__main__":
    sys.exit(main())
