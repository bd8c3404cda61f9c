"""Settings of the installation: where data lives and which servers are used.

What a run should do (sources, thresholds, models) is a parameter of the flow, not a setting, because it is
part of every record's identity. Settings never are.
"""

import os
import re
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from medgen.memory_limit import fair_share

DRIVER = "postgresql+psycopg"
DEVICES = r"auto|cpu|cuda|cuda:(?P<numbers>\d+(,\d+)*)"


class Settings(BaseSettings):
    """Read from the environment (`MEDGEN_…`). Credentials come from here only and are never recorded."""

    model_config = SettingsConfigDict(env_prefix="MEDGEN_", extra="ignore")

    home: Path = Field(Path(".medgen"), description="Folder that holds all data of this installation.")
    database_url: SecretStr | None = Field(
        None, description="Postgres as postgresql://user:password@host/db; embedded server if unset."
    )
    s3_endpoint: str | None = Field(None, description="http(s)://host:port of MinIO or any S3 server.")
    s3_access_key: SecretStr | None = None
    s3_secret_key: SecretStr | None = None
    s3_bucket: str = "medgen"
    cache_bytes: int = Field(50 * 2**30, gt=0, description="Size of the local cache in front of S3, bytes.")
    workers: int = Field(
        default_factory=lambda: os.cpu_count() or 1,
        ge=1,
        description="Worker processes for decoding and models.",
    )
    worker_memory_bytes: int = Field(
        default_factory=lambda data: fair_share(data.get("workers", 1)),
        ge=256 * 2**20,
        description="Memory of one worker process; an item that needs more is quarantined, bytes.",
    )
    download_workers: int = Field(4, ge=1, description="Downloads under way at once.")
    devices: str = Field(
        "auto", description="Where models run: auto (the GPUs, else the CPU), cpu, cuda (all GPUs) or cuda:0,1."
    )
    runner: Literal["thread", "dask", "ray"] = Field("thread", description="Where Prefect runs the tasks.")
    runner_address: str | None = Field(None, description="Address of the Dask or Ray cluster; local if unset.")
    log_format: Literal["text", "json"] = Field("text", description="json: one object a line, on standard error.")
    caption_base_url: str | None = Field(None, description="OpenAI-compatible endpoint for captions.")
    caption_api_key: SecretStr | None = None
    c2pa_certificate: Path | None = Field(
        None, description="Certificates (PEM, own first) for content credentials; the installation's own if unset."
    )
    c2pa_key: Path | None = Field(None, description="Private key (PEM, PKCS #8, no password) of that certificate.")
    yt_dlp_cookies: Path | None = Field(None, description="Netscape cookie file handed to yt-dlp.")
    yt_dlp_proxy: SecretStr | None = Field(None, description="Proxy URL handed to yt-dlp.")

    @field_validator("database_url")
    @classmethod
    def _for_our_driver(cls, url: SecretStr | None) -> SecretStr | None:
        """The URL with the driver that we have, however its scheme is written."""
        if url is None:
            return None
        scheme, _, rest = url.get_secret_value().partition("://")
        if scheme not in ("postgres", "postgresql", DRIVER) or not rest:
            raise ValueError("must be postgresql://user:password@host/db")  # without the URL, which has the password
        try:
            make_url(f"{DRIVER}://{rest}")
        except (ArgumentError, ValueError):
            raise ValueError(
                "must be postgresql://user:password@host:port/db; write @ : / in a password as %40 %3A %2F"
            ) from None
        return SecretStr(f"{DRIVER}://{rest}")

    @field_validator("devices")
    @classmethod
    def _devices(cls, devices: str) -> str:
        if not re.fullmatch(DEVICES, devices):
            raise ValueError(f"must be auto, cpu, cuda or cuda:0,1, not {devices!r}")
        return devices

    @model_validator(mode="after")
    def _complete(self) -> "Settings":
        self.home = self.home.expanduser().resolve()
        if self.s3_endpoint and not (self.s3_access_key and self.s3_secret_key):
            raise ValueError("MEDGEN_S3_ENDPOINT needs MEDGEN_S3_ACCESS_KEY and MEDGEN_S3_SECRET_KEY")
        if bool(self.c2pa_certificate) != bool(self.c2pa_key):
            raise ValueError("MEDGEN_C2PA_CERTIFICATE and MEDGEN_C2PA_KEY belong together: set both or none")
        return self

    @property
    def store_folder(self) -> Path:
        """Local content-addressed folder."""
        return self.home / "store"

    @property
    def caption_key(self) -> str | None:
        """`caption_api_key` as the endpoint wants it."""
        return self.caption_api_key.get_secret_value() if self.caption_api_key else None

    @property
    def releases_folder(self) -> Path:
        """Where releases are laid out as ordinary files."""
        return self.home / "releases"


@cache
def current() -> Settings:
    """The settings of this process, read once."""
    return Settings()
