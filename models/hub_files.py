"""The files of a transformers model, by hub name or local folder; safetensors weights only.

No pickled weights and no code of a model's own are ever fetched or read.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from models import ModelUnavailable
from models.encoders import file_digest


@cache
def hub_files(model: str, patterns: tuple[str, ...], label: str, without: str) -> tuple[Path, ...]:
    """Files of a model that match `patterns`, sorted: of a folder, the hub's cache or the hub, in that order.

    Args:
        model: name on the hub, or folder.
        patterns: as of `fnmatch`; must take in config.json and the safetensors weights.
        label: what messages call the model.
        without: what messages advise when it is not to be had.

    Raises:
        ModelUnavailable: names the model, where it was looked for and the choice without it.
    """
    if Path(model).is_dir():
        folder = Path(model).resolve()
    else:
        from huggingface_hub import snapshot_download

        folder, reason = None, None
        for cached_only in (True, False):
            try:
                found = Path(snapshot_download(model, allow_patterns=list(patterns), local_files_only=cached_only))
            # The hub's errors are OSErrors, for a malformed name a ValueError.
            except (OSError, ValueError) as error:
                reason = error
                continue
            folder = found
            if any(found.glob("*.safetensors")):
                break
        if folder is None:
            raise ModelUnavailable(
                f"{label} is no local folder, not in the hub's cache and not to be had from the hub "
                f"({type(reason).__name__}); {without}"
            ) from reason
    files = tuple(sorted({file for pattern in patterns for file in folder.glob(pattern)}))
    if not (folder / "config.json").is_file() or not any(file.suffix == ".safetensors" for file in files):
        raise ModelUnavailable(
            f"{label}: {folder} lacks config.json or safetensors weights (other formats are not read); {without}"
        )
    return files


def digests(files: Sequence[Path]) -> dict[str, str]:
    """File name → sha256 (hex). The same files give the same digests wherever they lie."""
    return {file.name: file_digest(file) for file in files}
