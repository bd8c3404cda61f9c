"""Folders in the store: what goes in comes out, and a manifest can't lead out of its folder."""

from pathlib import Path

import pytest

from medgen.canonical import canonical_json
from medgen.errors import ItemFailed
from medgen.folders import materialize, put_folder
from medgen.settings import current
from medgen.store import Store


def test_a_folder_comes_back_as_it_was_and_has_one_digest(home: Path, tmp_path: Path) -> None:
    store = Store(current())
    folder = tmp_path / "model"
    (folder / "vae").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "vae" / "weights.safetensors").write_bytes(b"\x00" * 100)
    (folder / "link").symlink_to("/etc/hostname")
    first, second = put_folder(store, folder), put_folder(store, folder)
    assert first == second
    assert set(first.outputs()) == {"manifest", "model_index.json", "vae/weights.safetensors"}
    out = materialize(store, first.manifest.sha256, tmp_path / "out" / "model")
    assert (out / "vae" / "weights.safetensors").read_bytes() == b"\x00" * 100
    assert put_folder(store, out) == first
    only = put_folder(store, folder, lambda path: path.endswith(".json"))
    assert set(only.files) == {"model_index.json"}


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../b", "", "a\\b"])
def test_a_manifest_cannot_lead_out_of_its_folder(home: Path, tmp_path: Path, path: str) -> None:
    store = Store(current())
    inner = store.put_bytes(b"x", "text/plain")
    manifest = store.put_bytes(canonical_json({"files": [{"path": path, "sha256": inner.sha256}]}), "application/json")
    with pytest.raises(ItemFailed, match="bad_manifest"):
        materialize(store, manifest.sha256, tmp_path / "out")
    assert not (tmp_path / "out").exists()
