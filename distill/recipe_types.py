"""The kinds of values that a recipe's sections share: strict numbers, names, and the model they are fields of."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def whole(value: Any) -> Any:
    """1e5 is a whole number, too, however JSON's readers take it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Positive = Annotated[int, Field(gt=0, le=10**9), BeforeValidator(whole)]
Seed = Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(whole)]
NonNegative = Annotated[float, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, true is no number, "1" neither, and 1 no truth value."""

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)
