"""Encoded clips where training reads them: links, or packs of which no byte is fetched twice."""

import json
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from medgen.store import open_store
from models.training.job import Sample
from models.training.samples import BadSample, read_sample, shape_of
from tasks.training import sample_files
from tasks.training.sample_files import check_room, materialize_samples


def put(store, number: int, **tensors: torch.Tensor) -> str:
    return store.put_bytes(save({**tensors, "n": torch.tensor([number])}), "application/octet-stream").sha256


def test_packs_are_made_once_and_read_like_files(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store()
    latents = [put(store, n, latents=torch.full((4, 1, 2, 2), float(n)).bfloat16()) for n in range(12)]
    texts = put(store, 99, brief=torch.ones(2, 3), detailed=torch.ones(4, 3))
    linked = materialize_samples(store, tmp_path / "links", [*latents, texts])
    assert all(place.path.stat().st_nlink > 1 and place.size is None for place in linked.values())
    monkeypatch.setattr(sample_files, "PACK_ABOVE", 3)
    monkeypatch.setattr(sample_files, "PACK_BYTES", 4000)
    monkeypatch.setattr(store, "remote", object())  # a server, whose files this store's folder has in its cache
    assert check_room(store, 2**60, 0).verdict == "fail" and check_room(store, 1000, 1000).verdict != "fail"
    asked: list[str] = []
    real = store.path
    monkeypatch.setattr(store, "path", lambda digest: asked.append(digest) or real(digest))
    packed = materialize_samples(store, tmp_path / "packs", [*latents, texts])
    archives = sorted((tmp_path / "packs").glob("*.tar"))
    assert (
        len(asked) == 13 and len(archives) > 1 and {p.suffix for p in archives[0].parent.iterdir()} == {".tar", ".json"}
    )
    assert all(load(packed[digest].read())["n"] == n for n, digest in enumerate(latents))
    with tarfile.open(archives[0]) as archive:  # an ordinary one
        assert len(archive.getnames()) == len(json.loads(archives[0].with_suffix(".json").read_text())["entries"])
    # A pack that was being written is written again; the others stay as they are.
    asked.clear()
    archives[-1].with_suffix(".json").unlink()
    again = materialize_samples(store, tmp_path / "packs", [*latents, texts])
    assert 0 < len(asked) < 13 and again.keys() == packed.keys()
    asked.clear()
    assert materialize_samples(store, tmp_path / "packs", [*latents, texts]) == again and not asked
    sample = Sample(**dict(again[latents[5]]), clip_id="c", video_id="v", texts=again[texts])
    assert shape_of(sample) == (4, 1, 2, 2) and float(read_sample(sample).latents.mean()) == 5.0
    with again[latents[5]].path.open("r+b") as file:
        file.seek(again[latents[5]].offset + again[latents[5]].size - 1)
        file.write(b"\xff")
    with pytest.raises(BadSample, match="not those of the digest"):
        read_sample(sample)
    bad = sample.model_copy(update={"offset": 1})
    with pytest.raises(BadSample, match=r"no header|cut off"):
        shape_of(bad)
