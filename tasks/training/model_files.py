"""Where a text-to-video model's files lie: one on record, in a local folder or on the hub."""

import logging
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from medgen.among import among
from medgen.canonical import digest_of
from medgen.catalog import Clip, ModelVersion, ReleaseClip, StepRun, Tombstone
from medgen.errors import ItemFailed
from medgen.folders import materialize
from medgen.ledger import Ledger
from medgen.settings import current
from models import ModelUnavailable
from models.families.assembled import assembled_folder, is_assembled
from models.generation.video_diffusion import pipeline_digest, pipeline_folder
from models.hub_files import file_digest
from models.training.job import LORA_FILE

log = logging.getLogger(__name__)

ON_RECORD = "medgen:"
KIND = "text_to_video"
ADAPTER = "text_to_video_adapter"  # a LoRA that was not merged: its base is needed beside it
SHOWN = 10  # models that a message names


def model_folder(ledger: Ledger, name: str) -> tuple[Path, str]:
    """(folder that diffusers opens, digest) of a model.

    Args:
        name: `medgen:` with the digest or name of a model on record, or the beginning of either; a local folder; or a
            name on the hub; or weights without their pipeline (see `models.families.assembled`).

    Returns:
        The digest is the sha256 of the manifest for a model on record, even when it is named by a copy of its folder;
        else `pipeline_digest`.

    Raises:
        ItemFailed: unknown_model says what is known; ambiguous_model; adapter_alone.
        ArtifactLost, StoreUnavailable: a model on record can't be had.
    """
    if name.startswith(ON_RECORD):
        version = model_on_record(ledger, name.removeprefix(ON_RECORD))
        if version.kind == ADAPTER:
            raise ItemFailed(
                "adapter_alone",
                f"{name} is an adapter without its base: generate with it (medgen generate --model {name}), or train "
                "with merge_lora=true to have a whole model",
            )
        _warn_of_takedowns(ledger, version)
        folder = materialize(ledger.store, str(version.checkpoint_sha256), models_folder() / version.digest)
        return folder, version.digest
    try:
        folder = assembled_folder(name) if is_assembled(name) else pipeline_folder(name)
        digest = pipeline_digest(folder)
    except ModelUnavailable as error:
        raise ItemFailed("unknown_model", f"{error}. {_known(ledger)}") from error
    if Path(name).is_dir() and (copied := _of_manifest(ledger, folder)):
        _warn_of_takedowns(ledger, copied)
        return folder, copied.digest
    return folder, digest


def adapter_on_record(ledger: Ledger, name: str) -> ModelVersion | None:
    """The adapter without base that `medgen:NAME` names; None where it names something else.

    Raises:
        ItemFailed: unknown_model, ambiguous_model.
    """
    if not name.startswith(ON_RECORD):
        return None
    version = model_on_record(ledger, name.removeprefix(ON_RECORD))
    return version if version.kind == ADAPTER else None


def base_of_adapter(ledger: Ledger, adapter: ModelVersion) -> str:
    """What the adapter was trained beside, as `model_folder` takes it.

    Raises:
        ItemFailed: unknown_base when its record does not say.
    """
    with Session(ledger.engine) as session:
        run = session.get(StepRun, adapter.step_run_id) if adapter.step_run_id else None
        detail = dict(run.detail) if run is not None else {}
        on_record = session.get(ModelVersion, str(detail.get("base", ""))) is not None
    if not detail.get("base_name"):
        raise ItemFailed("unknown_base", f"the record of {adapter.name} does not say what base it was trained beside")
    return f"{ON_RECORD}{detail['base']}" if on_record else str(detail["base_name"])


def adapter_file(ledger: Ledger, name: str) -> tuple[Path, ModelVersion | None]:
    """(LoRA file, its model on record) of a file's path, or of `medgen:NAME` of a model that was trained as a LoRA.

    Raises:
        ItemFailed: no_lora when there is no such file; as `model_on_record`.
        ArtifactLost, StoreUnavailable: a model on record can't be had.
    """
    if not name.startswith(ON_RECORD):
        if not Path(name).is_file():
            raise ItemFailed("no_lora", f"there is no LoRA file {name}")
        return Path(name), None
    version = model_on_record(ledger, name.removeprefix(ON_RECORD))
    _warn_of_takedowns(ledger, version)
    folder = materialize(ledger.store, str(version.checkpoint_sha256), models_folder() / version.digest)
    if not (folder / LORA_FILE).is_file():
        raise ItemFailed("no_lora", f"{name} was not trained as a LoRA: it is a whole model")
    return folder / LORA_FILE, version


def models_folder() -> Path:
    """Where models on record are laid out as ordinary folders."""
    return current().home / "models"


def models_on_record(ledger: Ledger) -> list[ModelVersion]:
    """All text-to-video models on record, and adapters for such, newest first."""
    with Session(ledger.engine) as session:
        query = select(ModelVersion).where(
            among(ModelVersion.kind, (KIND, ADAPTER)), ModelVersion.checkpoint_sha256.is_not(None)
        )
        versions = session.scalars(query.order_by(ModelVersion.created_at.desc(), ModelVersion.name)).all()
        session.expunge_all()
    return list(versions)


def model_on_record(ledger: Ledger, name: str) -> ModelVersion:
    """The model of that digest or name, or beginning of either; a whole name or digest goes before a beginning.

    Raises ItemFailed: unknown_model, ambiguous_model.
    """
    known = models_on_record(ledger)
    exact = [version for version in known if name in (version.digest, version.name)]
    begun = [
        version for version in known if name and (version.digest.startswith(name) or version.name.startswith(name))
    ]
    matches = exact or begun
    if not matches:
        raise ItemFailed("unknown_model", f"no text-to-video model on record goes by {name!r}. {_known(ledger)}")
    if len(matches) > 1:
        raise ItemFailed("ambiguous_model", f"{name!r} is the beginning of {_names(matches)}: write more of it")
    return matches[0]


def taken_down(ledger: Ledger, release: str | None) -> list[str]:
    """Ids of the videos of a release that were taken down, for what was made of it before."""
    if release is None:
        return []
    query = (
        select(Tombstone.video_id)
        .join(Clip, Clip.video_id == Tombstone.video_id)
        .join(ReleaseClip, ReleaseClip.clip_id == Clip.id)
        .where(ReleaseClip.release_name == release)
        .distinct()
        .order_by(Tombstone.video_id)
    )
    with Session(ledger.engine) as session:
        return list(session.scalars(query))


def _warn_of_takedowns(ledger: Ledger, version: ModelVersion) -> None:
    if gone := taken_down(ledger, version.release_name):
        log.warning(
            "the model %s comes from the release %s, %d videos of which were taken down since: %s",
            version.name, version.release_name, len(gone), ", ".join(gone[:SHOWN]),
        )  # fmt: skip


def on_record(ledger: Ledger, digest: str) -> ModelVersion | None:
    """The text-to-video model of that digest, if it is on record."""
    return next((version for version in models_on_record(ledger) if version.digest == digest), None)


def _of_manifest(ledger: Ledger, folder: Path) -> ModelVersion | None:
    """The model on record that a folder is a whole copy of."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    rows = [
        {"path": path.relative_to(folder).as_posix(), "sha256": file_digest(path), "bytes": path.stat().st_size}
        for path in files
    ]
    manifest = digest_of({"format": 1, "files": sorted(rows, key=lambda row: row["path"])})
    with Session(ledger.engine) as session:
        version = session.get(ModelVersion, manifest)
        if version is not None:
            session.expunge(version)
    return version


def _known(ledger: Ledger) -> str:
    known = models_on_record(ledger)
    if not known:
        return "No model is on record yet: `medgen train` makes one"
    return f"On record: {_names(known)}"


def _names(versions: Sequence[ModelVersion]) -> str:
    shown = ", ".join(f"{ON_RECORD}{version.name}" for version in versions[:SHOWN])
    return shown + (f" and {len(versions) - SHOWN} more" if len(versions) > SHOWN else "")
