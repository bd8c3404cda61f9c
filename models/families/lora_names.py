"""What other tools call the modules that adapters sit on: a family's own names beside diffusers'.

A family's authors name the modules of their transformer in another way than diffusers, and put some of its projections
side by side in one matrix, as HunyuanVideo does with query, key and value. ComfyUI, DiffSynth-Studio and musubi-tuner
follow the authors. The pairs below are those of diffusers' own converters of whole checkpoints
(loaders/single_file_utils.py, diffusers 0.42).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """Modules of diffusers and the one of the authors that holds their rows, one below the other.

    Args:
        diffusers: names with `{}` for the number of a block, in order of rows.
        original: the authors' name, with the same `{}`.
    """

    diffusers: tuple[str, ...]
    original: str


class ModuleNames:
    """The pairs of a family, both ways."""

    def __init__(self, pairs: Iterable[Pair]) -> None:
        self.pairs = tuple(pairs)
        self._patterns = [
            (re.compile(re.escape(name).replace(r"\{\}", r"(\d+)")), pair)
            for pair in self.pairs
            for name in pair.diffusers
        ]

    def original(self, module: str) -> tuple[str, tuple[str, ...]] | None:
        """(the authors' module, all of diffusers' modules in it in order of rows) of one of diffusers'; None: none."""
        for pattern, pair in self._patterns:
            if found := pattern.fullmatch(module):
                return pair.original.format(*found.groups()), tuple(n.format(*found.groups()) for n in pair.diffusers)
        return None


def _of(pairs: dict[str, str | tuple[str, ...]], diffusers: str = "", original: str = "") -> list[Pair]:
    """Pairs {authors' name: diffusers' name or names}, each below a prefix."""
    return [
        Pair(tuple(diffusers + name for name in ((names,) if isinstance(names, str) else names)), original + theirs)
        for theirs, names in pairs.items()
    ]


WAN_MODULES = ModuleNames(
    [
        *_of({"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}, "blocks.{}.attn1.", "blocks.{}.self_attn."),
        *_of(
            {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "k_img": "add_k_proj", "v_img": "add_v_proj"},
            "blocks.{}.attn2.",
            "blocks.{}.cross_attn.",
        ),
        *_of({"0": "net.0.proj", "2": "net.2"}, "blocks.{}.ffn.", "blocks.{}.ffn."),
        *_of(
            {
                "time_embedding.0": "time_embedder.linear_1",
                "time_embedding.2": "time_embedder.linear_2",
                "time_projection.1": "time_proj",
                "text_embedding.0": "text_embedder.linear_1",
                "text_embedding.2": "text_embedder.linear_2",
                "img_emb.proj.1": "image_embedder.ff.net.0.proj",
                "img_emb.proj.3": "image_embedder.ff.net.2",
            },
            "condition_embedder.",
        ),
        *_of({"head.head": "proj_out", "patch_embedding": "patch_embedding"}),
    ]
)

HUNYUAN_MODULES = ModuleNames(
    [
        *_of(
            {
                "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
                "img_attn_proj": "attn.to_out.0",
                "img_mlp.fc1": "ff.net.0.proj",
                "img_mlp.fc2": "ff.net.2",
                "img_mod.linear": "norm1.linear",
                "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
                "txt_attn_proj": "attn.to_add_out",
                "txt_mlp.fc1": "ff_context.net.0.proj",
                "txt_mlp.fc2": "ff_context.net.2",
                "txt_mod.linear": "norm1_context.linear",
            },
            "transformer_blocks.{}.",
            "double_blocks.{}.",
        ),
        *_of(
            {
                "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
                "linear2": "proj_out",
                "modulation.linear": "norm.linear",
            },
            "single_transformer_blocks.{}.",
            "single_blocks.{}.",
        ),
    ]
)
