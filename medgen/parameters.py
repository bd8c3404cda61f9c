"""Parameters of steps and flows: typed, frozen, and known by their former names for one version."""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

log = logging.getLogger(__name__)


class Parameters(BaseModel):
    """Base of all parameters.

    A subclass names what it calls differently since the last version in `former_names`: former name → name. The former
    name is accepted with a warning; in the version after, it is refused like any unknown name.
    """

    model_config = ConfigDict(frozen=True)

    former_names: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _accept_former_names(cls, values: Any) -> Any:
        return cls.with_current_names(values) if isinstance(values, dict) else values

    @classmethod
    def with_current_names(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """`values` with former names replaced, and a warning for each.

        Raises:
            ValueError: a parameter is given by both of its names.
        """
        current = dict(values)
        for former, name in cls._all_former_names().items():
            if former not in current:
                continue
            if name in current:
                raise ValueError(f"{former} is the former name of {name}: give one of them")
            log.warning("the parameter %s is called %s now; the next version will refuse its former name", former, name)
            current[name] = current.pop(former)
        return current

    @classmethod
    def _all_former_names(cls) -> dict[str, str]:
        """Former name → name, of this class and its bases."""
        names: dict[str, str] = {}
        for base in reversed(cls.__mro__):
            names |= vars(base).get("former_names", {})
        return names
