"""Downloads from the hub that were interrupted: mended where there is a connection, explained where there is none."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from diffusers import DiffusionPipeline

from models import ModelUnavailable
from models.generation.video_diffusion import pipeline_folder
from models.hub_files import missing_weights, model_folder

INDEX = "diffusion_pytorch_model.safetensors.index.json"
SHARDS = [f"diffusion_pytorch_model-{n:05d}-of-00002.safetensors" for n in (1, 2)]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A pipeline as the hub holds it; weights that nothing here reads."""
    folder = tmp_path / "hub"
    parts = {"transformer": ["diffusers", "T"], "text_encoder": ["transformers", "E"], "scheduler": ["diffusers", "S"],
             "transformer_2": [None, None]}  # fmt: skip
    files = {
        "model_index.json": json.dumps({"_class_name": "WanPipeline", **parts}),
        "scheduler/scheduler_config.json": "{}",
        "text_encoder/config.json": "{}",
        "text_encoder/model.safetensors": "weights",
        "transformer/config.json": "{}",
        f"transformer/{INDEX}": json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True))}),
        **{f"transformer/{name}": "weights" for name in SHARDS},
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    "cut", [f"transformer/{SHARDS[1]}", "text_encoder/model.safetensors", "scheduler/scheduler_config.json"]
)
def test_an_interrupted_download_is_mended_online_and_explained_offline(
    whole: Path, tmp_path: Path, cut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, online = tmp_path / "cache", False
    shutil.copytree(whole, cache)
    (cache / cut).unlink()
    asked: list[bool] = []

    def download(name: str, *, local_files_only: bool, **options: object) -> str:
        """As the hub's client: the cache as it is, or filled up."""
        asked.append(local_files_only)
        if not local_files_only:
            if not online:
                raise OSError("no route to the hub")
            shutil.copytree(whole, cache, dirs_exist_ok=True)
        return str(cache)

    monkeypatch.setattr(DiffusionPipeline, "download", download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *names, allow_patterns, **o: download(*names, **o))
    with pytest.raises(ModelUnavailable, match=r"was interrupted: .* is missing .*Run again with a connection"):
        pipeline_folder(f"some/{tmp_path.name}")
    online = True
    assert pipeline_folder(f"some/{tmp_path.name}") == cache and (cache / cut).exists()
    assert asked == [True, False, True, False]
    # Models of one folder, such as encoders, in the same way.
    cache, whole, online = cache / "transformer", whole / "transformer", False
    (cache / SHARDS[0]).unlink()
    assert missing_weights(cache) == [SHARDS[0]]
    (cache / INDEX).unlink()
    assert missing_weights(cache) == [SHARDS[0]]  # the other's name tells of it
    with pytest.raises(ModelUnavailable, match="was interrupted"):
        model_folder("some/encoder", ("*",), "the encoder", "choose another")
    online = True
    assert model_folder("some/encoder", ("*",), "the encoder", "choose another") == cache
