"""A chat model's answer that should be a JSON object, in a code fence or not."""

import json
import re
from typing import TypeVar

from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)


def json_answer(text: str, kind: type[M]) -> M:
    """The object in an answer. Raises ValueError, which names the field, for anything but such an object."""
    body = re.sub(r"^```(?:json)?\s*|\s*```$", "", text.strip())
    try:
        return kind.model_validate(json.loads(body))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON object: {error}") from error
