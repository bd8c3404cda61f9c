"""What is downloaded at all: the policy for licence, duration and height, and what it turns down."""

from collections.abc import Mapping
from fnmatch import fnmatch
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, model_validator

from medgen.ledger import Outcome
from medgen.licences import creative_commons
from medgen.parameters import MOST_BYTES, MOST_PIXELS, MOST_PIXELS_A_SIDE, MOST_SECONDS
from medgen.video.limits import Limits
from medgen.video.probe import Probe
from medgen.web.session import WebParams


class DownloadParams(WebParams):
    """Parameters of download."""

    former_names = MappingProxyType({"with_sound": "with_audio"})
    in_order = (("min_duration_s", "max_duration_s"), ("min_height", "wanted_height", "max_height"))

    licence_policy: Literal["any", "creative_commons", "listed"] = Field(
        "any",
        description="Allowed licences: any (only those listed where some are), Creative Commons ones in any spelling "
        "and those listed, or only those listed, each in any spelling.",
    )
    licences: tuple[str, ...] = Field((), description="Allowed licences, with * as wildcard; see licence_policy.")
    min_duration_s: float = Field(
        6.0, ge=0, le=MOST_SECONDS, description="Shorter videos are rejected (no clip fits), seconds."
    )
    max_duration_s: float = Field(4 * 3600.0, gt=0, le=MOST_SECONDS, description="Longer videos are rejected, seconds.")
    with_audio: bool = Field(
        False,
        exclude_if=lambda wanted: not wanted,  # so that downloads without audio keep their keys
        description="Fetch the audio too, for speech_model. Files of folders come with theirs anyway.",
    )
    keep_page: bool = Field(
        False,
        exclude_if=lambda wanted: not wanted,  # as above
        description="Keep the page of each video, where its licence stands, as it was when the video was fetched.",
    )
    min_height: int = Field(
        480, ge=0, le=MOST_PIXELS_A_SIDE, description="Videos with a shorter side below this are rejected, pixels."
    )
    wanted_height: int = Field(
        720, ge=0, le=MOST_PIXELS_A_SIDE, description="The smallest format that reaches this is fetched, pixels."
    )
    max_height: int = Field(
        1080, ge=144, le=MOST_PIXELS_A_SIDE, description="Formats above this height are not fetched, pixels."
    )
    max_pixels: int = Field(
        4096 * 2304, gt=0, le=MOST_PIXELS, description="Videos with larger pictures are refused, pixels."
    )
    max_bytes: int = Field(4 * 2**30, gt=0, le=MOST_BYTES, description="Larger downloads are stopped, bytes.")
    download_limit_s: float = Field(
        3600.0, gt=0, le=MOST_SECONDS, exclude=True, description="Slower downloads are stopped, seconds."
    )
    min_speed: float = Field(
        4096.0,
        ge=0,
        le=MOST_BYTES,
        exclude=True,
        description="Downloads slower than this over the stall limit end, bytes/second.",
    )
    shard_budget_bytes: int = Field(
        0, ge=0, le=MOST_BYTES, exclude=True, description="Fetched by a shard at most; 0: no limit."
    )
    night_budget_bytes: int = Field(
        0, ge=0, le=MOST_BYTES, exclude=True, description="Fetched in a day (UTC) at most; 0: no limit."
    )
    store_quota_bytes: int = Field(
        0,
        ge=0,
        le=MOST_BYTES,
        exclude=True,
        description="Downloads that the store's folder can't hold within this wait; 0: no limit.",
    )

    @model_validator(mode="after")
    def _download_policy(self) -> "DownloadParams":
        if self.licence_policy == "listed" and not self.licences:
            raise ValueError("licence_policy=listed needs licences")
        return self

    @property
    def limits(self) -> Limits:
        """For decoding."""
        return Limits(max_pixels=self.max_pixels, max_duration_s=self.max_duration_s)


def early_rejection(row: Mapping[str, Any], params: DownloadParams, web: bool) -> Outcome | None:
    """By what the listing says of a video; None when that turns nothing down."""
    site_may_tell = web and params.licence_policy != "any"
    if (row["licence"] or not site_may_tell) and (rejection := licence_rejection(row["licence"], params)):
        return rejection
    return None if row["duration_s"] is None else duration_rejection(row["duration_s"], params)


def licence_rejection(licence: str | None, params: DownloadParams) -> Outcome | None:
    """By its licence: licence_unknown, licence_not_allowed."""
    if params.licence_policy == "any" and not params.licences:
        return None
    allowed = {"allowed": list(params.licences), "policy": params.licence_policy}
    if not licence:
        return Outcome("rejected", "licence_unknown", allowed)
    common = creative_commons(licence) if params.licence_policy != "any" else None
    if params.licence_policy == "creative_commons" and common:
        return None
    names = [name.lower() for name in (licence, common) if name]
    if any(fnmatch(name, pattern.lower()) for name in names for pattern in params.licences):
        return None
    return Outcome("rejected", "licence_not_allowed", {"licence": licence, **allowed})


def duration_rejection(seconds: float, params: DownloadParams) -> Outcome | None:
    """By its duration: too_short, too_long."""
    if seconds < params.min_duration_s:
        return Outcome("rejected", "too_short", {"score": seconds, "threshold": params.min_duration_s})
    if seconds > params.max_duration_s:
        return Outcome("rejected", "too_long", {"score": seconds, "threshold": params.max_duration_s})
    return None


def height_rejection(facts: Probe, params: DownloadParams) -> Outcome | None:
    """By the shorter side: a phone's upright 1080 × 1920 is "1080p" too."""
    height = min(facts.width, facts.height)
    return height_outcome("height_below_minimum", height, params.min_height) if height < params.min_height else None


def height_outcome(reason: str, height: float, threshold: float) -> Outcome:
    """The rejection of a picture of that height."""
    return Outcome("rejected", reason, {"metric": "height", "score": float(height), "threshold": float(threshold)})
