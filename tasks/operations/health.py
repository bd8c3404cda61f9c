"""Health: is everything that this installation needs there and working? What to do about what is not."""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import text

from medgen.errors import RunStopped
from medgen.home import private_home
from medgen.settings import current

GIB = 2**30
LITTLE_SPACE, NO_SPACE = 20 * GIB, 2 * GIB  # free bytes on the data folder's disk: warn, fail
CODECS = ("h264", "vp9", "av1", "hevc")
ANSWER_S = 5.0
TRANSCRIPTS, FEW_TRANSCRIPTS = 1000, 0.5  # clips that are looked at; the share without a transcript to warn from


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Args:
        verdict: ok; weak, when it works with less; broken.
        advice: what to do; empty when it is ok.
    """

    name: str
    verdict: Literal["ok", "weak", "broken"]
    found: str
    advice: str = ""


def findings() -> Iterator[Finding]:
    """One finding after the other; a check that fails in an unforeseen way is a finding too."""
    for name, check in CHECKS.items():
        try:
            yield check()
        except RunStopped as error:
            found, _, advice = str(error).partition("\n")
            yield Finding(name, "broken", found, advice or "see the message")
        except Exception as error:  # noqa: BLE001  (a doctor reports, whatever it is)
            yield Finding(name, "broken", f"{type(error).__name__}: {error}", "see the message")


def _database() -> Finding:
    from medgen.catalog import CatalogUnreachable, open_catalog

    try:
        engine = open_catalog()
    except CatalogUnreachable as error:
        found, _, advice = str(error).partition("\n")
        return Finding("database", "broken", found, advice or "start Postgres, or correct MEDGEN_DATABASE_URL")
    with engine.connect() as connection:
        version, size = connection.execute(
            text("SELECT current_setting('server_version'), pg_database_size(current_database())")
        ).one()
        revision = connection.scalar(text("SELECT version_num FROM alembic_version"))
    kind = "embedded" if current().database_url is None else engine.url.host
    return Finding("database", "ok", f"Postgres {version} ({kind}), tables at {revision}, {size / 2**20:.0f} MiB")


def _store() -> Finding:
    from medgen.errors import ItemFailed
    from medgen.store import Store

    place = current().s3_endpoint or str(current().store_folder)
    try:
        store = Store(current())
        probe = store.put_bytes(os.urandom(64), "application/octet-stream")
        try:
            right = store.actual_digest(probe.sha256) == probe.sha256
        finally:
            store.remove(probe.sha256)
    except ItemFailed as error:
        return Finding("store", "broken", str(error), "start the S3 server, or correct MEDGEN_S3_*")
    if not right:
        return Finding("store", "broken", f"{place} returned other bytes than were written", "check the disk")
    return Finding("store", "ok", f"{place}: an object written, read back and removed")


def _disk() -> Finding:
    home = private_home(current().home)
    with tempfile.TemporaryFile(dir=home):
        pass
    free = shutil.disk_usage(home).free
    space = f"{free / GIB:.1f} GiB free at {home}"
    if free < NO_SPACE:
        return Finding("disk", "broken", space, "free space, or point MEDGEN_HOME at a larger disk; `medgen gc` helps")
    if free < LITTLE_SPACE:
        return Finding("disk", "weak", space, "a night of downloads may need more; set store_quota_bytes")
    return Finding("disk", "ok", space)


def _models() -> Finding:
    from models import ModelUnavailable
    from models.encoders import MOBILENET, features_digest
    from models.privacy.faces import faces_digest
    from models.quality.technical import technical_digest
    from models.quality.text_reader import text_reader_digest
    from models.relevance.classifier import text_classifier_digest
    from models.relevance.dictionary import dictionary_digest
    from models.segmentation.shots import shots_digest

    checks: dict[str, Callable[[], str]] = {
        "dictionary": dictionary_digest,
        "text classifier": text_classifier_digest,
        "shots": shots_digest,
        "frame encoder": lambda: features_digest(MOBILENET),
        "faces": faces_digest,
        "OCR": lambda: text_reader_digest("rapidocr"),
        "technical quality": technical_digest,
    }
    for name, digest in checks.items():
        try:
            digest()
        except ModelUnavailable as error:
            return Finding("models", "broken", f"{name}: {error}", "run `make setup` again")
    return Finding("models", "ok", f"the offline defaults are there: {', '.join(checks)}")


def _video() -> Finding:
    import av

    missing = [name for name in CODECS if not _has(name, "r")]
    if missing or not _has("libx264", "w"):
        absent = ", ".join([*missing, *([] if _has("libx264", "w") else ["libx264 (encoder)"])])
        return Finding("video codecs", "broken", f"PyAV {av.__version__} lacks {absent}", "reinstall av: `make setup`")
    return Finding("video codecs", "ok", f"PyAV {av.__version__} (FFmpeg inside): {', '.join(CODECS)}, libx264")


def _has(codec: str, mode: Literal["r", "w"]) -> bool:
    import av

    try:
        av.codec.Codec(codec, mode)
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def _transcripts() -> Finding:
    """Of the clips captioned last: how many have no words that are spoken in them, and for want of what."""
    from sqlalchemy import select
    from sqlalchemy.orm import Session

    from medgen.catalog import StepRun, open_catalog

    newest = (
        select(StepRun.detail)
        .where(StepRun.step == "caption", StepRun.status == "kept", StepRun.reason.is_(None), ~StepRun.superseded)
        .order_by(StepRun.id.desc())
        .limit(TRANSCRIPTS)
    )
    with Session(open_catalog()) as session:
        sources = [detail.get("transcript_source", "none") for detail in session.scalars(newest)]
    if not sources:
        return Finding("transcripts", "ok", "no clip is captioned yet")
    without = sources.count("none")
    found = f"of the {len(sources):,} clips captioned last {without:,} have no transcript"
    if without < len(sources) * FEW_TRANSCRIPTS:
        return Finding("transcripts", "ok", found)
    return Finding(
        "transcripts", "weak", found,
        "captions lean on titles alone: set speech_model (and with_audio), whisper_base hears without a network",
    )  # fmt: skip


def _tesseract() -> Finding:
    import pytesseract

    try:
        version = pytesseract.get_tesseract_version()
    except pytesseract.TesseractNotFoundError:
        return Finding(
            "tesseract", "weak", "not installed", "only text_model=tesseract needs it: apt-get install tesseract-ocr"
        )
    return Finding("tesseract", "ok", f"Tesseract {version}")


def _prefect() -> Finding:
    import httpx

    folder = current().home / "prefect"
    own = _own_server(folder / "server")
    url = os.environ.get("PREFECT_API_URL") or own
    if url is None:
        return Finding(
            "prefect", "weak", "no server runs", "commands start one for themselves; `medgen up` keeps one running"
        )
    try:
        answer = httpx.get(f"{url}/health", timeout=ANSWER_S)
    except httpx.HTTPError as error:
        advice = f"`medgen up` starts it again; {folder / 'server.log'} says why it ended"
        if url != own:
            advice = "start it, or correct PREFECT_API_URL"
        return Finding("prefect", "broken", f"{url}: {type(error).__name__}", advice)
    if answer.status_code != 200:
        return Finding("prefect", "broken", f"{url} answers {answer.status_code}", "look at the server's log")
    return Finding("prefect", "ok", url)


def _own_server(path: Path) -> str | None:
    """URL of the API of the installation's server, as it stands on record."""
    try:
        return str(json.loads(path.read_text())["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _retention() -> Finding:
    from medgen.catalog import open_catalog
    from medgen.source_terms import retention_ended

    over = Counter(source for _, _, source in retention_ended(open_catalog()))
    if not over:
        return Finding("retention", "ok", "no video has been kept for longer than was stated of its source")
    told = ", ".join(f"{count} of {source}" for source, count in over.most_common(5))
    return Finding(
        "retention", "weak", f"{sum(over.values())} videos are kept for longer than was stated: {told}",
        "`medgen forget --retention-ended --dry-run` says what would go",
    )  # fmt: skip


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return Finding(
            "device", "ok", f"{torch.cuda.get_device_name()}, {free / GIB:.0f} of {total / GIB:.0f} GiB free"
        )
    return Finding(
        "device",
        "weak",
        f"no GPU, {os.cpu_count()} CPU cores",
        "curation and the preset `nano` need none; other presets of `medgen train` do",
    )


CHECKS: dict[str, Callable[[], Finding]] = {
    "database": _database,
    "store": _store,
    "disk": _disk,
    "prefect": _prefect,
    "models": _models,
    "video codecs": _video,
    "transcripts": _transcripts,
    "tesseract": _tesseract,
    "retention": _retention,
    "device": _device,
}
