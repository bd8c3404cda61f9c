"""What models cost in inference processes: frames, clips and captions a second on each device, and how busy it is.

    python -m bench.inference [--out docs/performance.md]     # needs a CUDA GPU; the CPU is measured beside it
    python -m bench.inference --toy                           # the same code with tiny models, on the CPU
    python -m bench.inference --dover FILE.onnx               # DOVER too, from its export

Models have random weights at true size (CLIP ViT-L/14; MUSIQ; a LLaVA of CLIP ViT-L/14 and a Llama of 1.1 billion
weights), which cost what trained ones do. Several worker processes ask at once, as those of a refresh do, so that the
way of pictures to the device counts. Each device is measured by a process of its own, after a warm-up.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from pebble import ProcessPool

from bench.train_gpu import write_page
from medgen.inference import ask, close_inference
from medgen.inference_process import Loaded, Served
from medgen.worker_processes import worker_pool
from models.captioning.chat import Question
from models.captioning.local_chat import LocalChat
from models.encoders import ServedEncoder
from models.quality.dover import ServedDover
from models.quality.pyiqa_metric import PyiqaMetric

MARKERS = ("<!-- bench.inference: begin -->", "<!-- bench.inference: end -->")
HEIGHT, WIDTH = 480, 854  # pixels: of the frames that segment keeps
BUSY_EVERY_S = 0.05
CAPTION_TOKENS = 128
WORDS = ("patient", "heart", "valve", "probe", "surgeon", "needle", "scan", "shows")
NOT_MEASURED = "not yet measured"


@dataclass(frozen=True)
class Size:
    """What is measured: shapes of the models and how much they are asked, by how many worker processes."""

    vision: dict[str, int]
    text: dict[str, int]
    frames: int
    clips: int
    captions: int
    askers: int


TRUE = Size(
    {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
     "image_size": 224, "patch_size": 14},
    {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
     "num_key_value_heads": 4},
    frames=8192, clips=64, captions=32, askers=4,
)  # fmt: skip
TOY = Size(
    {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
     "image_size": 28, "patch_size": 14},
    {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
     "num_key_value_heads": 2},
    frames=64, clips=2, captions=2, askers=2,
)  # fmt: skip


def make_models(folder: Path, size: Size) -> None:
    """Writes a CLIP, a LLaVA and a MUSIQ with random weights below the folder."""
    import torch
    import transformers
    from pyiqa.archs.musiq_arch import MUSIQ
    from tokenizers import Tokenizer, models, pre_tokenizers

    t: Any = transformers

    torch.manual_seed(0)
    side = size.vision["image_size"]
    pictures = t.CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    clip = t.CLIPConfig(
        text_config={**TOY.vision, "vocab_size": 64}, vision_config=size.vision, projection_dim=min(768, 16 * side)
    )
    t.CLIPModel(clip).save_pretrained(folder / "clip")
    pictures.save_pretrained(folder / "clip")
    words = {word: number for number, word in enumerate(("<pad>", "<s>", "</s>", "<image>", *WORDS))}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = t.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    template = (
        "{% for m in messages %}{% for c in m['content'] %}{{ '<image> ' if c['type'] == 'image' else c['text'] }}"
    )
    processor = t.LlavaProcessor(
        image_processor=pictures, tokenizer=tokenizer, patch_size=size.vision["patch_size"],
        vision_feature_select_strategy="default", chat_template=template + "{% endfor %}{% endfor %}",
        num_additional_image_tokens=1,
    )  # fmt: skip
    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**size.vision), image_token_index=words["<image>"], vision_feature_layer=-1,
        text_config=t.LlamaConfig(
            **size.text, vocab_size=len(words), max_position_embeddings=8192, pad_token_id=0, bos_token_id=1,
            eos_token_id=None,  # random weights would end anywhere
        ),
    )  # fmt: skip
    t.LlavaForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder / "llava")
    processor.save_pretrained(folder / "llava")
    torch.save(MUSIQ(pretrained=False).state_dict(), folder / "musiq.pth")


def make_dover(file: Path) -> None:
    """Writes a graph with DOVER's inputs and outputs that only takes means: it has none of DOVER's work."""
    import onnx
    from onnx import TensorProto, helper

    views = {"aes_view": 1, "tech_view": 4}
    given = [helper.make_tensor_value_info(v, TensorProto.FLOAT, [n, 3, 32, 224, 224]) for v, n in views.items()]
    gives = [helper.make_tensor_value_info(f"{view}_mean", TensorProto.FLOAT, None) for view in views]
    nodes = [helper.make_node("ReduceMean", [view], [f"{view}_mean"], keepdims=0) for view in views]
    graph = helper.make_graph(nodes, "means", given, gives)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)


def load_musiq(device: str, file: str) -> Loaded:
    """MUSIQ with the weights of a file of our own: answers frames with scores."""
    import torch
    from pyiqa.archs.musiq_arch import MUSIQ

    net = MUSIQ(pretrained=False)
    net.load_state_dict(torch.load(file, weights_only=True))
    net.lower_better, net.score_range = False, "0, 100"
    metric = PyiqaMetric("musiq", net.to(device).eval(), "random weights", device)
    return Loaded(lambda frames: [metric.score(frame) for frame in frames])


def frames_of(seed: int, count: int) -> list[np.ndarray]:
    """Random frames, uint8 RGB (H, W, 3)."""
    noise = np.random.default_rng(seed).integers(0, 256, (count, HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    return [np.ascontiguousarray(frame.repeat(8, 0).repeat(8, 1)) for frame in noise]


def ask_encoder(folder: str, seed: int, count: int) -> int:
    """Embeds frames in groups of 16, as classify has them of one video."""
    encoder = ServedEncoder(f"{folder}/clip")
    for start in range(0, count, 16):
        encoder.embed(frames_of(seed + start, 16))
    return count


def ask_musiq(folder: str, seed: int, clips: int) -> int:
    """Scores five frames of each clip."""
    model = Served(load_musiq, (f"{folder}/musiq.pth",), most=16)
    for clip in range(clips):
        ask(model, frames_of(seed + clip, 5))
    return clips


def ask_dover(file: str, seed: int, clips: int) -> int:
    """Scores clips of ten seconds."""
    dover = ServedDover(Path(file))
    for clip in range(clips):
        views = dover.views(250)
        (frame,) = frames_of(seed + clip, 1)
        for index in sorted(views.wanted):
            views.add(index, frame)
        dover.scores(views)
    return clips


def ask_captioner(folder: str, seed: int, captions: int) -> int:
    """Describes eight frames, again and again."""
    chat = LocalChat(f"{folder}/llava", batch=8)
    for caption in range(captions):
        pictures = tuple(frames_of(seed + caption, 8))
        chat.answer(Question("patient scan", "heart valve shows", pictures, max_tokens=CAPTION_TOKENS))
    return captions


def together(pool: ProcessPool, askers: int, ask_it: Callable[[str, int, int], int], where: str, count: int) -> float:
    """Units a second when so many worker processes of a pool ask for so many units in all."""
    for share in (1, max(1, count // askers)):  # the first is the warm-up: imports, loading, first kernels
        began = time.perf_counter()
        done = [pool.schedule(ask_it, args=(where, 1000 * asker, share)) for asker in range(askers)]
        units = sum(future.result() for future in as_completed(done))
        seconds = time.perf_counter() - began
    return units / seconds


class Busy:
    """The share of time in which a GPU worked, as its driver says; None for the CPU."""

    def __init__(self, device: str) -> None:
        self._device, self._over, self._seen = device, threading.Event(), list[int]()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Busy":
        if self._device != "cpu":
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _look(self) -> None:
        import torch

        while not self._over.wait(BUSY_EVERY_S):
            try:
                self._seen.append(torch.cuda.utilization(self._device))
            except (ModuleNotFoundError, RuntimeError):  # without NVIDIA's library for it
                return

    @property
    def share(self) -> float | None:
        """0 to 1."""
        return sum(self._seen) / len(self._seen) / 100 if self._seen else None


ENCODER, MUSIQ_ROW, DOVER_ROW, CAPTIONER = (
    "frame encoder, CLIP ViT-L/14: frames",
    "MUSIQ, five frames a clip: clips",
    "DOVER, ten seconds a clip: clips",
    f"captioner, 8 frames, {CAPTION_TOKENS} tokens, 1.4 billion weights: captions",
)


def measured(folder: Path, size: Size, device: str, dover: str) -> list[dict[str, Any]]:
    """A row for each kind of model, on the device that `MEDGEN_DEVICES` names."""
    kinds: list[tuple[str, Callable[[str, int, int], int], str, int]] = [
        (ENCODER, ask_encoder, str(folder), size.frames),
        (MUSIQ_ROW, ask_musiq, str(folder), size.clips),
        (CAPTIONER, ask_captioner, str(folder), size.captions),
    ]
    if dover:
        kinds.append((DOVER_ROW, ask_dover, dover, size.clips))
    rows = []
    pool = worker_pool(size.askers)
    try:
        for what, ask_it, where, count in kinds:
            with Busy(device) as busy:
                rows.append(
                    {
                        "what": what,
                        "a_second": round(together(pool, size.askers, ask_it, where, count), 3),
                        "busy": busy.share,
                    }
                )
    finally:
        pool.stop()  # type: ignore[no-untyped-call]  # pebble says so itself
        pool.join()
        close_inference()
    return rows


def page(rows: dict[str, Sequence[dict[str, Any]]], name: str, *, toy: bool) -> str:
    """Markdown."""
    devices = list(rows)
    lines = [
        "## Models in inference processes, random weights" + (", toy" if toy else ""),
        "",
        f"{name}; asked by {(TOY if toy else TRUE).askers} worker processes at once, frames of {WIDTH} × {HEIGHT}."
        + (" At this size the figures show that all of it runs, no more." if toy else ""),
        "",
        f"| a second | {' | '.join(f'{device} | busy' for device in devices)} |",
        f"| --- | {' | '.join('---: | ---:' for _ in devices)} |",
    ]
    for number, row in enumerate(rows[devices[0]]):
        cells = []
        for device in devices:
            here = rows[device][number]
            cells += [f"{here['a_second']:,}", "–" if here["busy"] is None else f"{here['busy']:.0%}"]
        lines.append(f"| {row['what']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def planned() -> str:
    """The table of a GPU where none was at hand."""
    lines = [
        "## Models in inference processes, random weights at true size",
        "",
        "No GPU was at hand: run `python -m bench.inference --out docs/performance.md`.",
        "",
        "| a second | GPU | busy | CPU |",
        "| --- | ---: | ---: | ---: |",
        *(f"| {what} | {NOT_MEASURED} | {NOT_MEASURED} | {NOT_MEASURED} |"
          for what in (ENCODER, MUSIQ_ROW, CAPTIONER, DOVER_ROW)),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def bench(
    out: Annotated[Path | None, typer.Option("--out", help="Page whose table is replaced.")] = None,
    dover: Annotated[str, typer.Option("--dover", help="DOVER's ONNX export.")] = "",
    toy: Annotated[bool, typer.Option("--toy", help="Tiny models, on the CPU.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="Only see whether it runs: as --toy.")] = False,
    on: Annotated[str, typer.Option("--on", hidden=True, help="Measure one device with the models of a folder.")] = "",
    folder: Annotated[Path | None, typer.Option("--folder", hidden=True)] = None,
) -> None:
    """Measures and prints a table."""
    size = TOY if toy or smoke else TRUE
    if on and folder:
        sys.stdout.write(json.dumps(measured(folder, size, on, dover)))
        return
    import torch

    if size is TRUE and not torch.cuda.is_available():
        raise typer.BadParameter("no CUDA GPU here: use --toy, or run on a machine that has one")
    devices = ["cpu"] if size is TOY else ["cuda:0", "cpu"]
    rows: dict[str, Sequence[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="mi-") as scratch:
        make_models(Path(scratch), size)
        if size is TOY:
            dover = f"{scratch}/dover.onnx"
            make_dover(Path(dover))
        for device in devices:
            command = [sys.executable, "-m", "bench.inference", "--on", device, "--folder", scratch, "--dover", dover]
            settings = {"MEDGEN_DEVICES": device, "MEDGEN_HOME": f"{scratch}/home"}
            done = subprocess.run(
                [*command, *(["--toy"] if size is TOY else [])],
                env=os.environ | settings, stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            rows[device] = json.loads(done.stdout)
    name = torch.cuda.get_device_name() if size is TRUE else platform.processor() or platform.machine()
    written = page(rows, f"On {name}; torch {torch.__version__}", toy=size is TOY)
    sys.stdout.write(written)
    if out:
        write_page(out, [planned(), written] if size is TOY else [written], MARKERS)


if __name__ == "__main__":
    typer.run(bench)
