"""What `distill train` and `distill compare` share on the command line: recipe fields as options, and plugins."""

from pathlib import Path
from typing import Annotated, Any

import typer

from distill.errors import InputError

RECIPE_COMMAND = {"help_option_names": ["-h", "--help"], "allow_extra_args": True, "ignore_unknown_options": True}
"""Context settings of a command that takes `--field value` for any field of a recipe."""

RecipeFile = Annotated[Path, typer.Argument(help="recipe JSON; see jsons/recipes")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="check everything, print the plan, train nothing")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="set one field: stages.NAME.students.NAME.FIELD=VALUE; repeatable")
]
AllowChanges = Annotated[
    bool, typer.Option("--allow-changes", help="continue a stage that has begun even if recipe or files changed")
]
MaxRestarts = Annotated[
    int, typer.Option(min=0, help="how often a stage whose processes died is restarted from its last checkpoint")
]
Plugin = Annotated[
    list[Path] | None, typer.Option(help="Python file that registers your own losses, see docs/methods.md; repeatable")
]


def check_recipe_first(recipe: Path) -> None:
    """InputError if an option was taken for the recipe."""
    if str(recipe).startswith("-"):
        raise InputError(f"command line: the recipe comes first, then --field value; found '{recipe}' in its place")


def parse_fields(arguments: list[str]) -> dict[str, Any]:
    """`--learning-rate 1e-4 --steps=100` as {"learning_rate": 1e-4, "steps": 100}."""
    from distill.recipe_file import parse_value

    fields: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--"):
            raise InputError(f"command line: '{name}' is not an option; fields are given as --field value")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise InputError(f"command line: {name} has no value; fields are given as --field value")
            value = rest.pop(0)
        fields[name[2:].replace("-", "_")] = parse_value(value)
    return fields
