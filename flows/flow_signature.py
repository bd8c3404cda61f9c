"""How the parameters of steps become the arguments of a flow."""

import inspect
from collections.abc import Sequence
from copy import copy
from typing import Annotated, TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo

P = TypeVar("P", bound=BaseModel)
# Words of parameters' names as people write them.
WRITTEN = {
    "s": "(s)",
    "crf": "CRF",
    "dover": "DOVER",
    "dtype": "Number type",
    "fps": "FPS",
    "onnx": "ONNX",
    "vae": "VAE",
}


def subset(parameters: BaseModel, kind: type[P]) -> P:
    """The parameters of one step out of those of a flow."""
    return kind(**{name: getattr(parameters, name) for name in kind.model_fields})


def flow_signature(model: type[BaseModel], first: Sequence[str]) -> inspect.Signature:
    """A flat signature with a model's fields, which Prefect's forms show best.

    Args:
        first: fields that come first; then the model's own, then those that it inherits.
    """
    own = [*first, *(field for field in model.__annotations__ if field in model.model_fields)]
    return inspect.Signature(
        [
            inspect.Parameter(
                field,
                inspect.Parameter.KEYWORD_ONLY,
                default=_titled(field, model.model_fields[field]),  # whole: Prefect takes default and description
                annotation=Annotated[model.model_fields[field].annotation, model.model_fields[field]],
            )
            for field in dict.fromkeys([*own, *model.model_fields])
        ]
    )


def _titled(name: str, field: FieldInfo) -> FieldInfo:
    """The field with a title for people, which Prefect's forms show in place of the name."""
    titled = copy(field)
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    words = " ".join(WRITTEN.get(word, word) for word in name.replace("_per_s", "_per_second").split("_"))
    titled.json_schema_extra = {"title": words[0].upper() + words[1:], **extra}
    return titled
