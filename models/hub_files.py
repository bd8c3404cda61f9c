"""The files of a transformers model, by hub name or local folder; safetensors weights only.

No pickled weights and no code of a model's own are ever fetched or read.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from models import ModelUnavailable

SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<of>\d{5})\.safetensors")
MOST_SHARDS = 10_000


def model_folder(model: str, patterns: Sequence[str], label: str, without: str) -> Path:
    """The folder with a model's files: a local one, else the snapshot in the hub's cache, else fetched from the hub.

    Args:
        model: name on the hub, or folder.
        patterns: files to fetch, as of `fnmatch`.
        label: what messages call the model.
        without: what messages advise when it is not to be had.

    Raises:
        ModelUnavailable: names the model, where it was looked for and the choice without it.
    """
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    folder: Path | None = None
    reason: OSError | ValueError | None = None
    for cached_only in (True, False):
        try:
            folder = Path(snapshot_download(model, allow_patterns=list(patterns), local_files_only=cached_only))
        # The hub's errors are OSErrors, for a malformed name a ValueError.
        except (OSError, ValueError) as error:
            reason = error
            continue
        if any(folder.glob("*.safetensors")) and not missing_weights(folder):
            break
    if folder is not None and (missing := missing_weights(folder)):
        raise ModelUnavailable(interrupted(label, missing, reason, without))
    if folder is None:
        raise ModelUnavailable(
            f"{label} is no local folder, not in the hub's cache and not to be had from the hub "
            f"({type(reason).__name__}); {without}"
        ) from reason
    return folder


def missing_weights(folder: Path) -> list[str]:
    """Names of safetensors files that a model's folder should hold and does not, as after a download that was cut off.

    An index lists them; without it, `…-00001-of-00004.safetensors` tells of three others. A configuration without any
    weights lacks `*.safetensors`.
    """
    there = {path.name for path in folder.glob("*.safetensors") if path.exists()}  # not a link to nowhere
    wanted: set[str] = set()
    for index in folder.glob("*.safetensors.index.json"):
        try:
            wanted |= {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            wanted.add(index.name)
    for name in there:
        if numbered := SHARD.fullmatch(name):
            of = int(numbered["of"])
            wanted |= {
                f"{numbered['stem']}-{n:05d}-of-{of:05d}.safetensors" for n in range(1, min(of, MOST_SHARDS) + 1)
            }
    if not there and not wanted and (folder / "config.json").exists():
        wanted.add("*.safetensors")
    return sorted(wanted - there)


def interrupted(label: str, missing: Sequence[str], reason: Exception | None, without: str) -> str:
    """What is said of a download that was cut off and can't be finished now."""
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return (
        f"the download of {label} was interrupted: {missing[0]}{more} is missing from the hub's cache, and the hub "
        f"does not give it ({type(reason).__name__ if reason else 'nothing came'}). Run again with a connection, "
        f"which fetches what is missing; {without}"
    )


def is_here(model: str) -> bool:
    """Whether a model is a local folder, or its configuration is in the hub's cache. Asks no network."""
    if Path(model).is_dir():
        return True
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(model, "config.json"), str)
    except HFValidationError:  # no name of the hub's
        return False


@cache
def hub_files(model: str, patterns: tuple[str, ...], label: str, without: str) -> tuple[Path, ...]:
    """The files of a model that match `patterns`, sorted. Arguments as of `model_folder`; the patterns must take in
    config.json and the safetensors weights.

    Raises:
        ModelUnavailable: as `model_folder`; or config.json or the weights are missing.
    """
    folder = model_folder(model, patterns, label, without)
    if Path(model).is_dir():
        folder = folder.resolve()
    files = tuple(sorted({file for pattern in patterns for file in folder.glob(pattern)}))
    if not (folder / "config.json").is_file() or not any(file.suffix == ".safetensors" for file in files):
        raise ModelUnavailable(
            f"{label}: {folder} lacks config.json or safetensors weights (other formats are not read); {without}"
        )
    return files


def digests(files: Sequence[Path]) -> dict[str, str]:
    """File name → sha256 (hex). The same files give the same digests wherever they lie."""
    return {file.name: file_digest(file) for file in files}


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's bytes; remembered while size and time of change stay."""
    # The hub's cache names the blob of a large file by its sha256, so that gigabytes need not be read again.
    blob = path.resolve()
    if blob.parent.name == "blobs" and len(blob.name) == 64:
        return blob.name
    stat = blob.stat()
    return _digest_of_file(blob, stat.st_size, stat.st_mtime_ns)


@cache
def _digest_of_file(path: Path, size: int, changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
