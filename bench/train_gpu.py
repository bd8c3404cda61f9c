"""What training and generating cost: Wan 2.1 1.3B, then adapters of 14B at 720p, HunyuanVideo and TI2V-5B, at true size
with random weights on a GPU, or a toy on a CPU.

    python -m bench.train_gpu              # needs a CUDA GPU; at most 8 minutes
    python -m bench.train_gpu --toy        # the same code at nano size on the CPU
    python -m bench.train_gpu --smoke      # the same once each, without compiling, only to see whether it runs
    python -m bench.train_gpu --out docs/performance.md

Random weights cost what trained ones do: time and memory depend on shapes alone. Seconds are medians over steps after
a warm-up, with the device synchronised; memory is the allocator's peak; utilisation is the operations counted from the
architecture (`models.training.cost`, without recomputation) over those that the device could do in that time.
"""

import argparse
import gc
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import starmap
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

# From the modules that define them: what `diffusers` itself offers are stand-ins to a type checker.
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from models.families.family import Family
from models.families.hunyuan_video import HunyuanVideo
from models.families.wan import Wan
from models.generation.video_diffusion import encode_frames
from models.training.config import TrainConfig, configured
from models.training.cost import (
    GIB,
    Architecture,
    forward_flops,
    peak_flops,
    training_flops,
    training_memory,
    weights,
)
from models.training.errors import explain_out_of_memory
from models.training.frozen import shrink_frozen
from models.training.loss import losses_of
from models.training.nano import TRANSFORMER as NANO_TRANSFORMER
from models.training.nano import VAE as NANO_VAE
from models.training.optimizers import make_optimizer, set_rate
from models.training.recompute import recompute_blocks
from models.training.transformer import add_lora

STEPS, WARM_UP = 6, 2
NOT_MEASURED = "not yet measured"
MARKERS = ("<!-- bench.train_gpu: begin -->", "<!-- bench.train_gpu: end -->")

WAN_TRANSFORMER = {
    "patch_size": (1, 2, 2), "num_attention_heads": 12, "attention_head_dim": 128, "in_channels": 16,
    "out_channels": 16, "text_dim": 4096, "freq_dim": 256, "ffn_dim": 8960, "num_layers": 30,
}  # fmt: skip


ENCODE = "encode one clip, VAE in float32"
RECOMPUTED: dict[str, Any] = {"gradient_checkpointing": True}
COMPILED = "regional torch.compile"
# Training steps: what differs from the preset of that training. Those worth most come first, should time run out.
WAYS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("lora", RECOMPUTED),
    ("full", RECOMPUTED),
    ("lora", {"gradient_checkpointing": False}),
    ("lora", {**RECOMPUTED, "offload_activations": True}),
    ("lora", {**RECOMPUTED, "blocks_to_swap": 10_000}),
    ("lora", {**RECOMPUTED, "frozen_dtype": "int8"}),
    ("lora", {**RECOMPUTED, "frozen_dtype": "fp8"}),
    ("full", {**RECOMPUTED, "optimizer": "adamw8bit"}),
    ("full", {**RECOMPUTED, "optimizer": "adafactor"}),
    ("full", {"gradient_checkpointing": False}),
    ("lora", {**RECOMPUTED, "compile_blocks": True}),
)
NAMES = {
    "gradient_checkpointing": "gradient checkpointing", "offload_activations": "activations wait on the CPU",
    "blocks_to_swap": "frozen weights wait on the CPU", "compile_blocks": COMPILED,
}  # fmt: skip

# What others published for what comes nearest, with its device and source.
GENERATED_ELSEWHERE = (
    "about 240 s, RTX 4090, plain (README of Wan-Video/Wan2.1); about 300 s, A6000 (modelscope/DiffSynth-Studio#503)"
)
LORA_ELSEWHERE = (
    "none found of this size; 14B image-to-video, 63 frames at 480p: 120 to 180 s, A6000 (tdrussell/diffusion-pipe#152)"
)
NONE_FOUND = "none found"


FastPath = Callable[[WanPipeline, torch.device], None]


def _cached(pipeline: WanPipeline, device: torch.device) -> None:
    pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.05))


# Ways of diffusers to generate faster or in less memory.
FAST_PATHS: dict[str, FastPath] = {
    "plain": lambda pipeline, device: None,
    COMPILED: lambda pipeline, device: pipeline.transformer.compile_repeated_blocks(fullgraph=True),
    "first-block cache, threshold 0.05 (random weights: says little of trained ones)": _cached,
    "cuDNN attention": lambda pipeline, device: pipeline.transformer.set_attention_backend("_native_cudnn"),
    "model offload to the CPU": lambda pipeline, device: pipeline.enable_model_cpu_offload(device=device),
    "VAE tiling": lambda pipeline, device: pipeline.vae.enable_tiling(),
}


@dataclass(frozen=True)
class Size:
    """What is measured."""

    name: str
    transformer: dict[str, Any]
    vae: dict[str, Any]
    frames: int
    height: int
    width: int
    text_tokens: int
    inference_steps: int
    family: type[Family] = Wan
    preset: str = "wan-1.3b"  # beginning of the presets' names
    ways: tuple[tuple[str, dict[str, Any]], ...] = WAYS
    whole: bool = True  # encoding and generation too

    @property
    def latent(self) -> tuple[int, int, int, int]:
        """(C, F, H, W) of one video."""
        frames = (self.frames - 1) // self.vae.get("scale_factor_temporal", 4) + 1
        factor = self.vae.get("scale_factor_spatial", 8)
        return self.transformer["in_channels"], frames, self.height // factor, self.width // factor


WAN = Size("Wan 2.1 1.3B, random weights", WAN_TRANSFORMER, {}, 81, 480, 832, 512, 50)
TOY = Size("nano, random weights", NANO_TRANSFORMER, NANO_VAE, 17, 64, 96, 64, 4)
SMALLEST = replace(TOY, frames=5, height=32, width=32, inference_steps=2)
# LoRA alone, as one GPU of 80 GB can.
BIG_WAYS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("lora", {**RECOMPUTED, "offload_activations": True}),
    ("lora", {**RECOMPUTED, "offload_activations": True, "blocks_to_swap": 20}),
    ("lora", {**RECOMPUTED, "offload_activations": True, "frozen_dtype": "int8"}),
    ("lora", RECOMPUTED),
)
WAN_14B_TRANSFORMER = {**WAN_TRANSFORMER, "num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}
TI2V_TRANSFORMER = {
    **WAN_TRANSFORMER, "num_attention_heads": 24, "in_channels": 48, "out_channels": 48, "ffn_dim": 14336,
}  # fmt: skip
WAN_14B = Size(
    "Wan 2.1 14B, random weights", WAN_14B_TRANSFORMER, {}, 81, 720, 1280, 512, 50, Wan, "wan-14b-720p", BIG_WAYS, False
)
TI2V = Size(
    "Wan 2.2 TI2V-5B, random weights", TI2V_TRANSFORMER, {"scale_factor_spatial": 16}, 121, 704, 1280, 512, 50, Wan,
    "wan2.2-5b", BIG_WAYS, False,
)  # fmt: skip
# Its class's own defaults are the published size.
HUNYUAN = Size(
    "HunyuanVideo, random weights", {"in_channels": 16}, {}, 129, 544, 960, 256, 50, HunyuanVideo, "hunyuan", BIG_WAYS,
    False,
)  # fmt: skip
TINY_HUNYUAN = replace(
    HUNYUAN, name="HunyuanVideo's classes, toy", frames=5, height=32, width=32, ways=BIG_WAYS[1:3],
    transformer={
        "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1,
        "num_single_layers": 1, "num_refiner_layers": 1, "text_embed_dim": 16, "pooled_projection_dim": 8,
        "rope_axes_dim": (4, 6, 6),
    },
)  # fmt: skip
SIZES = (WAN, WAN_14B, HUNYUAN, TI2V)  # in the order in which they are worth the time


@dataclass
class Row:
    """One line of the table. None: not measured, with the reason in `note`."""

    what: str
    seconds: float | None = None
    peak_gib: float | None = None
    estimate_gib: float | None = None
    tflops_per_s: float | None = None
    utilisation: float | None = None
    baseline: str = ""
    note: str = ""


class Bench:
    """Measures one size on one device."""

    def __init__(
        self,
        size: Size,
        device: torch.device,
        *,
        steps: int = STEPS,
        warm_up: int = WARM_UP,
        fast_paths: Mapping[str, FastPath] = FAST_PATHS,
        ways: Sequence[tuple[str, dict[str, Any]]] | None = None,
        until: float = math.inf,
    ) -> None:
        self.size, self.device, self.until = size, device, until
        self.ways = size.ways if ways is None else ways
        self.steps, self.warm_up = steps, warm_up
        self.fast_paths = fast_paths if size.whole else {}
        self.cuda = device.type == "cuda"
        self.rows: list[Row] = []
        self.transformer_class: Any = getattr(diffusers, size.family.transformer_class)
        with torch.device("meta"):
            structure = self.transformer_class(**size.transformer).config
        self.architecture = Architecture.of(structure)
        self.family = size.family({}, structure, size.vae)
        self.device_name = platform.processor() or platform.machine()
        if self.cuda and torch.cuda.is_available():
            self.device_name = torch.cuda.get_device_name(device)
        self.peak = peak_flops(self.device_name) if self.cuda else None

    def planned(self) -> list[Row]:
        """The rows that `run` would fill."""
        steps = [
            Row(self.step_named(config), estimate_gib=self.estimate(config))
            for config in starmap(self.config, self.ways)
        ]
        rows = [
            *([Row(ENCODE)] if self.size.whole else []),
            *steps,
            *(Row(self.video_named(path)) for path in self.fast_paths),
        ]
        for row in rows:
            row.baseline = self.published(row.what)
        return [replace(row, note=NOT_MEASURED) for row in rows]

    def estimate(self, config: TrainConfig) -> float:
        """What pre-flight expects a training step to need, GiB."""
        return training_memory(self.architecture, config, self.size.latent, cuda=self.cuda).total / GIB

    def step_named(self, config: TrainConfig) -> str:
        """How a training step is called in the table."""
        kind = f"LoRA rank {config.rank}" if config.training == "lora" else "full"
        precision = "float32" if config.mixed_precision == "no" else config.mixed_precision
        told = [name for field, name in NAMES.items() if getattr(config, field)]
        told += [f"frozen weights in {config.frozen_dtype}"] if config.frozen_dtype != "same" else []
        told += [config.optimizer] if config.optimizer != "adamw" else []
        return ", ".join([f"{kind} step, batch 1, {precision}", *told])

    def published(self, what: str) -> str:
        """What others published for it; nothing of a toy."""
        if self.size not in SIZES:
            return ""
        return GENERATED_ELSEWHERE if "generate" in what else LORA_ELSEWHERE if "LoRA" in what else NONE_FOUND

    def video_named(self, path: str) -> str:
        """How making a video is called in the table."""
        return f"generate one video, {self.size.inference_steps} steps with guidance: {path}"

    def run(self) -> None:
        """All rows, in the order of the table. What does not fit says so and the rest goes on."""
        if self.size.whole:
            self.encode()
        paths = iter(self.fast_paths.items())
        first = next(paths, None)
        for number, (training, changes) in enumerate(self.ways):
            self.train(training, changes)
            if number == 1 and first:  # plain generation is worth more than the rest
                self.generate(*first)
        for name, prepare in paths:
            self.generate(name, prepare)
        order = {row.what: place for place, row in enumerate(self.planned())}
        self.rows.sort(key=lambda row: order[row.what])

    def late(self, row: Row) -> bool:
        """Whether the time is up; the row says so then."""
        row.baseline = self.published(row.what)
        if time.monotonic() < self.until:
            return False
        row.note = "left out: the time was up"
        self.rows.append(row)
        return True

    def measure(self, row: Row, step: Callable[[], object], flops: int | None = None, steps: int | None = None) -> None:
        """Times `step` and adds the row.

        Args:
            steps: times that count, at most as many as the bench takes; all of them by default.
        """
        steps = min(steps or self.steps, self.steps)
        try:
            if self.cuda:
                torch.cuda.reset_peak_memory_stats(self.device)
            times = []
            for turn in range(self.warm_up + steps):
                self._wait()
                began = time.perf_counter()
                step()
                self._wait()
                if turn >= self.warm_up:
                    times.append(time.perf_counter() - began)
            row.seconds = statistics.median(times)
            if self.cuda:
                row.peak_gib = torch.cuda.max_memory_allocated(self.device) / GIB
            if flops:
                row.tflops_per_s = flops / row.seconds / 1e12
                row.utilisation = flops / row.seconds / self.peak if self.peak else None
        except (torch.OutOfMemoryError, MemoryError):
            row.note = "does not fit this device"
        except Exception as error:  # noqa: BLE001 a fast path that a device lacks must not end the bench
            row.note = f"not possible here: {type(error).__name__}: {str(error).splitlines()[0][:120]}"
        self.rows.append(row)
        print(json.dumps(asdict(row)), flush=True)

    def encode(self) -> None:
        """One clip through the VAE's encoder."""
        row = Row(ENCODE)
        if self.late(row):
            return
        torch.manual_seed(0)
        vae = AutoencoderKLWan(**self.size.vae).eval().to(self.device)
        shape = (self.size.frames, self.size.height, self.size.width, 3)
        frames = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
        self.measure(row, lambda: encode_frames(vae, frames), steps=3)
        self._clear()

    def train(self, training: str, changes: Mapping[str, Any]) -> None:
        """One optimiser step at batch 1 with a moving average, as `models.training.trainer` does it."""
        config = self.config(training, changes)
        need = self.estimate(config)
        row = Row(self.step_named(config), estimate_gib=need)
        if self.late(row):
            return
        available = torch.cuda.mem_get_info(self.device)[0] / GIB if self.cuda else None
        if available and need > 1.15 * available:
            row.note = f"left out: about {need:.0f} GiB needed, {available:.0f} free"
            self.rows.append(row)
            return
        try:
            with explain_out_of_memory(config):
                step = self._step(config)
        except Exception as error:  # noqa: BLE001
            row.note = str(error).splitlines()[0][:160]
            self.rows.append(row)
            self._clear()
            return
        flops = training_flops(self.architecture, self.size.latent, self.size.text_tokens, lora=training == "lora")
        self.measure(row, step, flops)
        self._clear()

    def config(self, training: str, changes: Mapping[str, Any]) -> TrainConfig:
        """As the presets, at this size."""
        preset = configured(f"{self.size.preset}-{training}", {"offload_activations": False, "blocks_to_swap": 0})
        return preset.model_copy(
            update={
                **changes,
                "mixed_precision": "bf16" if self.cuda else "no",
                "max_sequence_length": self.size.text_tokens,
                "rank": preset.rank if self.cuda else 4,
            }
        )

    def _step(self, config: TrainConfig) -> Callable[[], None]:
        from diffusers.training_utils import EMAModel

        half = config.mixed_precision == "bf16"
        model = self.transformer(torch.bfloat16 if half and config.training == "lora" else torch.float32)
        if config.training == "lora":
            add_lora(model, config, self.family)
        if config.training == "lora":
            shrink_frozen(model, config.frozen_dtype, config.blocks_to_swap)
        if config.gradient_checkpointing:
            recompute_blocks(model, config.gradient_checkpointing_blocks, offload=config.offload_activations)
        if config.compile_blocks:
            model.compile_repeated_blocks()
        model.to(self.device)
        model.train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = make_optimizer(config, trained, sharded=False)
        set_rate(optimizer, 1e-6)
        ema = EMAModel(trained, decay=0.999)
        batch = {
            "latents": torch.randn(1, *self.size.latent),
            "noise": torch.randn(1, *self.size.latent),
            "sigma": torch.tensor([0.5]),
            **self.family.text_inputs(
                [torch.randn(self.size.text_tokens + 1, self.family.text_width)], self.size.text_tokens
            ),
        }

        def step() -> None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                loss = losses_of(model, batch, self.device, self.family).mean()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.step(trained)

        return step

    def transformer(self, dtype: torch.dtype) -> Any:
        """At random initialisation, made in the dtype that it is wanted in."""
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        try:
            with torch.device(self.device):
                return self.transformer_class(**self.size.transformer)
        finally:
            torch.set_default_dtype(torch.float32)

    def generate(self, name: str, prepare: FastPath) -> None:
        """One video with guidance, text already embedded."""
        size = self.size
        row = Row(self.video_named(name))
        if self.late(row):
            return
        try:
            dtype = torch.bfloat16 if self.cuda else torch.float32
            pipeline = WanPipeline(
                tokenizer=None,  # type: ignore[arg-type] # None is allowed, though not declared
                text_encoder=None,  # type: ignore[arg-type] # as above
                vae=AutoencoderKLWan(**size.vae).eval(),
                scheduler=UniPCMultistepScheduler(
                    prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
                ),
                transformer=self.transformer(dtype).eval(),
            )
            pipeline.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
            if "offload" not in name:
                pipeline.to(self.device)
            pipeline.transformer.set_attention_backend("native")  # the choice is global, and outlives a pipeline
            prepare(pipeline, self.device)
        except Exception as error:  # noqa: BLE001
            row.note = f"not possible here: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
            self.rows.append(row)
            print(json.dumps(asdict(row)), flush=True)
            self._clear()
            return
        texts = torch.randn(2, size.text_tokens, size.transformer["text_dim"], device=self.device, dtype=dtype)

        def make() -> None:
            pipeline(
                prompt_embeds=texts[:1], negative_prompt_embeds=texts[1:], height=size.height, width=size.width,
                num_frames=size.frames, num_inference_steps=size.inference_steps, guidance_scale=5.0,
                max_sequence_length=size.text_tokens, output_type="np",
            )  # fmt: skip

        flops = 2 * size.inference_steps * forward_flops(self.architecture, size.latent, size.text_tokens)
        self.measure(row, make, flops, steps=1)
        self._clear()

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def _clear(self) -> None:
        gc.collect()
        torch.compiler.reset()
        if self.cuda:
            torch.cuda.empty_cache()


def table(rows: list[Row]) -> str:
    """Markdown; what was not measured says so."""
    lines = [
        "| | s | peak GiB | estimated GiB | TFLOP/s | MFU | published | |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]

    def cell(value: float | None, places: int, note: str) -> str:
        return f"{value:.{places}f}" if value is not None else "" if note else "–"

    for row in rows:
        use = f"{100 * row.utilisation:.1f} %" if row.utilisation is not None else "–"
        lines.append(
            f"| {row.what} | {cell(row.seconds, 3, row.note)} | {cell(row.peak_gib, 2, row.note)} | "
            f"{cell(row.estimate_gib, 2, row.note)} | {cell(row.tflops_per_s, 2, row.note)} | {use} | "
            f"{row.baseline} | {row.note} |"
        )
    return "\n".join(lines)


def page(bench: Bench) -> str:
    """A section of docs/performance.md. Of a bench that has not run, each row says so."""
    size, a = bench.size, bench.architecture
    counted = (
        f"{weights(a):,} weights; {a.tokens(size.latent):,} tokens per video; "
        f"{forward_flops(a, size.latent, size.text_tokens) / 1e12:,.3f} TFLOP forward, "
        f"{training_flops(a, size.latent, size.text_tokens, lora=False) / 1e12:,.3f} per full training step, "
        f"{training_flops(a, size.latent, size.text_tokens, lora=True) / 1e12:,.3f} per LoRA step"
    )
    head = (
        f"## {size.name}, {size.frames} frames of {size.width} × {size.height}\n\n"
        f"Counted from the architecture: {counted}.\n"
    )
    if not bench.rows:
        return f"{head}\nNo GPU was at hand: run `python -m bench.train_gpu`.\n\n{table(bench.planned())}\n"
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}, Python {platform.python_version()}"
    device = bench.device_name + (
        f", CUDA {torch.version.cuda}" if bench.cuda else f", {torch.get_num_threads()} threads"
    )
    toy = "" if bench.cuda else " At this size the figures show that all of it runs, no more."
    return f"{head}\nOn {device}; {versions}.{toy}\n\n{table(bench.rows)}\n"


def write_page(path: Path, parts: list[str], markers: tuple[str, str] = MARKERS) -> None:
    """Writes the parts between the markers of the page, and leaves the rest of it as it is."""
    begin, end = markers
    text = path.read_text(encoding="utf-8") if path.exists() else f"# What it costs\n\n{begin}\n{end}\n"
    if begin not in text or end not in text:
        text = f"{text.rstrip()}\n\n{begin}\n{end}\n"
    before, rest = text.split(begin, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{before}{begin}\n{chr(10).join(parts)}{end}{rest.split(end, 1)[1]}", encoding="utf-8")


def main() -> int:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="nano's size on the CPU")
    parser.add_argument("--smoke", action="store_true", help="only see whether it runs: nano's size, each step once")
    parser.add_argument("--minutes", type=float, default=8.0, help="leave out what does not fit into so much time")
    parser.add_argument("--out", type=Path, default=None, help="write the tables into this page")
    arguments = parser.parse_args()
    on_cpu = arguments.toy or arguments.smoke
    if not on_cpu and not torch.cuda.is_available():
        print("no CUDA GPU here: use --toy, or run on a machine that has one", file=sys.stderr)
        return 2
    diffusers.utils.logging.set_verbosity_error()
    gc.freeze()  # what the libraries are made of takes half a second of each collection, and never goes
    cpu, until = torch.device("cpu"), time.monotonic() + 60 * arguments.minutes
    if arguments.smoke:
        plain = {name: path for name, path in FAST_PATHS.items() if name != COMPILED}
        ways = [way for way in WAYS if "compile_blocks" not in way[1]]
        benches = [
            Bench(SMALLEST, cpu, steps=1, warm_up=0, fast_paths=plain, ways=ways),
            Bench(TINY_HUNYUAN, cpu, steps=1, warm_up=0),
        ]
    elif arguments.toy:
        benches = [Bench(TOY, cpu, until=until)]
    else:
        benches = [Bench(size, torch.device("cuda"), until=until) for size in SIZES]
    for bench in benches:
        bench.run()
    parts = [page(bench) for bench in benches]
    if on_cpu:
        parts = [page(Bench(size, torch.device("cuda"))) for size in SIZES] + parts
    print("\n".join(parts))
    if arguments.out:
        write_page(arguments.out, parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
