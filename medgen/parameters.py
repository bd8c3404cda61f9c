"""Parameters of steps and flows: typed, frozen, checked, and known by their former names for one version."""

import logging
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

log = logging.getLogger(__name__)

# Upper limits of what has none by its nature. They only keep out what can't be meant, before it ends in an overflow.
MOST_BYTES = 2**50  # 1 PiB
MOST_SECONDS = 30 * 86_400.0
MOST_PIXELS = 2**30  # of one picture; FFmpeg's own limit is about INT_MAX / 8 pixels of 4 bytes and more
MOST_PIXELS_A_SIDE = 2**16  # H.264 and AV1 end there
MOST_ITEMS = 10**9

_REFUSED = "refused"  # type of the errors that have been worded already
_SHOWN = 80  # characters of a refused value


class Parameters(BaseModel):
    """Base of all parameters. Unknown names, NaN and infinity are refused, with a `ValidationError` for people.

    A subclass names what it calls differently since the last version in `former_names`: former name → name. The former
    name is accepted with a warning; in the version after, it is refused like any unknown name. In `in_order` it names
    those whose values must not fall: ``(("min_clip_s", "max_clip_s"),)``. Other rules on values that must go together
    are `conflicts`, and `conflict_schemas` for who checks a JSON schema.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    former_names: ClassVar[Mapping[str, str]] = {}
    in_order: ClassVar[tuple[tuple[str, ...], ...]] = ()

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_in_words(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        values = cls.completed(cls.with_current_names(values)) if isinstance(values, dict) else values
        try:
            checked = handler(values)
        except ValidationError as error:
            raise ValidationError.from_exception_data(error.title, [cls._worded(e) for e in error.errors()]) from None
        if conflicts := [_refusal((n,), getattr(checked, n, None), text) for n, text in checked.conflicts()]:
            raise ValidationError.from_exception_data(cls.__name__, conflicts)
        return checked

    @classmethod
    def as_given(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values as a person gave them one by one, who meant each of them also where it is the default."""
        return cls.with_current_names(values)

    @classmethod
    def completed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Values with those filled in that follow from others, before they are checked."""
        return values

    @classmethod
    def refused(cls, name: str, value: Any, message: str) -> ValidationError:
        """The error that says what is wrong with one parameter."""
        return ValidationError.from_exception_data(cls.__name__, [_refusal((name,), value, message)])

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Values that do not go together: (name of the parameter, what is wrong with it)."""
        for names in self._all_orders():
            for lower, upper in pairwise(names):
                low, high = getattr(self, lower), getattr(self, upper)
                if low > high:
                    yield lower, f"{low} is more than {upper}={high}: they must be in order"

    @classmethod
    def conflict_schemas(cls) -> list[dict[str, Any]]:
        """JSON schemas that the parameters as a whole must hold to as well, as far as a schema can tell."""
        return []

    @classmethod
    def with_current_names(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """`values` with former names replaced, and a warning for each.

        Raises:
            ValidationError: a parameter is given by both of its names.
        """
        current = dict(values)
        for former, name in cls._all_former_names().items():
            if former not in current:
                continue
            if name in current:
                raise cls.refused(former, values[former], f"{former} is the former name of {name}: give one of them")
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

    @classmethod
    def _all_orders(cls) -> list[tuple[str, ...]]:
        return [names for base in reversed(cls.__mro__) for names in vars(base).get("in_order", ())]

    @classmethod
    def _worded(cls, error: ErrorDetails) -> InitErrorDetails:
        """One of pydantic's complaints, with the value that it is about and the name or value that may be meant."""
        kind, place, value, message = error["type"], error["loc"], error["input"], error["msg"]
        if kind == "extra_forbidden":
            return _refusal(place, value, "there is no such parameter" + suggestion(str(place[-1]), cls.model_fields))
        if kind == "missing":
            return _refusal(place, None, "is required")
        if kind in (_REFUSED, "value_error"):
            return _refusal(place, value, message.removeprefix("Value error, "))
        message = f"{message}, not {_shown(value)}"
        if kind == "literal_error" and place:
            message += suggestion(str(value), _choices(cls.model_fields[str(place[0])].annotation))
        return _refusal(place, value, message)


def complaints(error: ValidationError) -> list[str]:
    """A line for each parameter that is wrong: ``NAME: what is wrong with it``."""
    return [
        f"{'.'.join(map(str, e['loc'])) or 'parameters'}: {e['msg'].removeprefix('Value error, ')}"
        for e in error.errors()
    ]


def suggestion(given: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    """``; did you mean …?`` where something known is spelt nearly as what is given, else nothing."""
    near = get_close_matches(given.lower(), list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _refusal(place: tuple[int | str, ...], value: Any, message: str) -> InitErrorDetails:
    # The message as an argument: braces in it are not for pydantic to fill in.
    return InitErrorDetails(
        type=PydanticCustomError(_REFUSED, "{message}", {"message": message}), loc=place, input=value
    )


def _choices(annotation: Any) -> tuple[str, ...]:
    """The texts that a `Literal` names, wherever it stands in the annotation."""
    if get_origin(annotation) is Literal:
        return tuple(map(str, get_args(annotation)))
    return tuple(text for part in get_args(annotation) for text in _choices(part))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
