"""Profiles: named sets of models, rules and thresholds of a refresh.

`offline` is the default and names the parameters' own defaults, whose models need no download. `paper` is the
curation of MedGen (arXiv 2507.05675). A profile of one's own is a TOML file with ``parameter = value`` lines;
``profile = "paper"`` in it says what it starts from.

Values that are given beside a profile win over it. A form sends every parameter, also those that nobody touched: a
value that equals the parameter's default counts as untouched, unless `profile_exceptions` names the parameter.
"""

import tomllib
from collections.abc import Collection, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import Field
from pydantic.fields import FieldInfo

from medgen.parameters import Parameters, suggestion

OFFLINE = "offline"
PACKAGED = (OFFLINE, "paper")
MOST_BYTES = 1 << 16  # of a profile's file
# What a run is about, and the profile itself, are no part of a profile.
NOT_IN_PROFILES = frozenset({"sources", "release_prefix", "profile_exceptions", "retry_quarantined"})


class BadProfile(ValueError):
    """A profile can't be read or names what is no parameter."""


class ProfileParams(Parameters):
    """Parameters that choose a profile."""

    profile: str = Field(
        OFFLINE,
        pattern=rf"^({'|'.join(PACKAGED)}|.*\.toml)$",
        max_length=1000,
        description="Models, rules and thresholds: offline, paper, or a TOML file. Values that you set win over it.",
    )
    profile_exceptions: tuple[str, ...] = Field(
        (),
        exclude=True,  # what counts is on record already: the values
        description="Parameters that stay at their default where the profile says otherwise.",
    )

    @classmethod
    def as_given(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values as a person gave them: those that are the default count against the profile too."""
        given = super().as_given(values)
        try:
            kept = exceptions(given, cls.model_fields)
        except BadProfile as error:
            raise cls.refused("profile", given.get("profile"), str(error)) from None
        return given | ({"profile_exceptions": tuple(kept)} if kept else {})

    @classmethod
    def completed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Values with those of the profile filled in."""
        try:
            return completed(super().completed(values), cls.model_fields)
        except BadProfile as error:
            raise cls.refused("profile", values.get("profile"), str(error)) from None

    @classmethod
    def conflict_schemas(cls) -> list[dict[str, Any]]:
        """Those of the parameters' defaults hold where there is no other profile, whose file only a run reads."""
        of_defaults = super().conflict_schemas()
        offline = {"properties": {"profile": {"const": OFFLINE}}}  # or left out
        return [{"if": offline, "then": {"allOf": of_defaults}}] if of_defaults else []


def profile_values(profile: str, known: Collection[str]) -> Mapping[str, Any]:
    """Parameter → value of a profile.

    Args:
        profile: name of a packaged one, or a TOML file.
        known: names of the parameters that there are.

    Raises:
        BadProfile: with the thing and the reason.
    """
    values = dict(_read(profile))
    base = values.pop("profile", OFFLINE)
    if base not in PACKAGED:
        raise BadProfile(f"{profile} starts from {base!r}; a profile can start from {' or '.join(PACKAGED)}")
    if wrong := sorted(values.keys() & NOT_IN_PROFILES):
        raise BadProfile(f"{profile} sets {', '.join(wrong)}, which is for each run to say")
    if wrong := sorted(values.keys() - set(known)):
        hint = suggestion(wrong[0], tuple(known))
        raise BadProfile(f"{profile} sets {', '.join(wrong)}: there is no such parameter{hint}")
    return MappingProxyType(dict(_read(base)) | values)


def completed(values: Mapping[str, Any], fields: Mapping[str, FieldInfo]) -> dict[str, Any]:
    """The parameters with those that are at their default filled in from the profile. Raises BadProfile."""
    own = frozenset(values.get("profile_exceptions") or ())
    if unknown := sorted(own - fields.keys()):
        hint = suggestion(unknown[0], tuple(fields))
        raise BadProfile(f"profile_exceptions names {', '.join(unknown)}: there is no such parameter{hint}")
    filled = dict(values)
    for name, value in profile_values(str(values.get("profile", OFFLINE)), fields).items():
        default = fields[name].default
        if name not in own and values.get(name, default) == default:
            filled[name] = value
    return filled


def exceptions(values: Mapping[str, Any], fields: Mapping[str, FieldInfo]) -> list[str]:
    """`profile_exceptions` of values that a person gave one by one: what is given counts, the default too.

    Raises:
        BadProfile: as `profile_values`.
    """
    profile = profile_values(str(values.get("profile", OFFLINE)), fields)
    meant = {name for name in profile if name in values and values[name] == fields[name].default}
    return sorted(meant | set(values.get("profile_exceptions") or ()))


def name_on_record(profile: str) -> str:
    """A profile's name without folders. What it said is on record as the parameters' values."""
    return profile if profile in PACKAGED else Path(profile).name


def _read(profile: str) -> Mapping[str, Any]:
    if profile == OFFLINE:
        return {}
    if profile in PACKAGED:
        return _packaged(profile)
    try:
        path = Path(profile).expanduser()
        if not path.is_file():
            raise BadProfile(f"there is no profile {profile!r}{suggestion(profile, PACKAGED)}, and no such file")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise BadProfile(f"{profile} has more than {MOST_BYTES} bytes")
        return tomllib.loads(content.decode())
    except (OSError, ValueError) as error:
        if isinstance(error, BadProfile):
            raise
        raise BadProfile(f"{profile} can't be read as TOML: {error}") from error


@cache
def _packaged(name: str) -> Mapping[str, Any]:
    return MappingProxyType(tomllib.loads((files(__package__) / "profiles" / f"{name}.toml").read_text("utf-8")))
