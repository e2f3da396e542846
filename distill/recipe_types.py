"""The kinds of values that a recipe's sections share: strict numbers, names, the model they are fields of, and what is
said of a value that is wrong.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from distill.json_file import short

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def whole(value: Any) -> Any:
    """1e5 is a whole number, too, however JSON's readers take it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Positive = Annotated[int, Field(gt=0, le=10**9), BeforeValidator(whole)]
Seed = Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(whole)]
TaskSeed = Annotated[int, Field(ge=0, lt=2**32), BeforeValidator(whole)]
"""Of fine-tuning, which seeds numpy, too; it takes no larger one."""
NonNegative = Annotated[float, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, true is no number, "1" neither, and 1 no truth value."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


def describe_problem(problem: Mapping[str, Any], place: str) -> str:
    """One of pydantic's complaints (ValidationError.errors()) as one line.

    Args:
        place: where the value stands; may be empty.
    """
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "model_type":
        message = "expected an object in braces"
    found = "" if problem["type"] in ("missing", "value_error") else f", found {short(problem['input'])}"
    return f"{place + ': ' if place else ''}{message[0].lower()}{message[1:]}{found}"


def is_hub_id(name: str) -> bool:
    """Whether a model's name is OWNER/NAME on the Hub and no path whose first folder is here."""
    return _HUB_ID.fullmatch(name) is not None and not Path(name.split("/")[0]).exists()
