"""How the parameters of steps become the arguments of a flow."""

import inspect
import re
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
    "fid": "FID",
    "fps": "FPS",
    "frechet": "Fréchet",
    "fvd": "FVD",
    "lora": "LoRA",
    "mllm": "MLLM",
    "onnx": "ONNX",
    "vae": "VAE",
}


def subset(parameters: BaseModel, kind: type[P]) -> P:
    """The parameters of one step out of those of a flow."""
    return kind(**{name: getattr(parameters, name) for name in kind.model_fields})


def flow_signature(model: type[BaseModel], first: Sequence[str]) -> inspect.Signature:
    """A flat signature with a model's fields, which Prefect's forms show best.

    Of a model that inherits several groups of parameters, fields of a group stand together, each with the group before
    its title: forms that nest them would hand nested parameters to runs.

    Args:
        first: fields that come first; then the model's own, then those that it inherits.
    """
    own = list(dict.fromkeys([*first, *(field for field in model.__annotations__ if field in model.model_fields)]))
    groups = dict.fromkeys(own, "") | {n: _group(n, model) for n in model.model_fields if n not in own}
    if len(set(groups.values()) - {""}) == 1:
        groups = dict.fromkeys(groups, "")
    order = list(dict.fromkeys(groups.values()))
    return inspect.Signature(
        [
            inspect.Parameter(
                field,
                inspect.Parameter.KEYWORD_ONLY,
                default=_titled(field, groups[field], model.model_fields[field]),  # Prefect takes default, description
                annotation=Annotated[model.model_fields[field].annotation, model.model_fields[field]],
            )
            for field in sorted(groups, key=lambda name: order.index(groups[name]))
        ]
    )


def _group(field: str, model: type[BaseModel]) -> str:
    """The name for people of the parameters that a field belongs to: `Funnel guard` of `FunnelGuardParams`."""
    owner = next(kind for kind in reversed(model.__mro__) if field in inspect.get_annotations(kind))
    words = re.sub(r"Param(eter)?s$", "", owner.__name__)
    return _written(re.sub(r"(?<!^)(?=[A-Z])", " ", words).lower())


def _titled(name: str, group: str, field: FieldInfo) -> FieldInfo:
    """The field with a title for people, which Prefect's forms show in place of the name."""
    titled = copy(field)
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    title = _written(name.replace("_per_s", "_per_second").replace("_", " "))
    titled.json_schema_extra = {"title": f"{group}: {title}" if group else title, **extra}
    return titled


def _written(text: str) -> str:
    words = " ".join(WRITTEN.get(word, word) for word in text.split(" "))
    return words[0].upper() + words[1:]
