"""docs/recipe.md is what the recipe's models say."""

import runpy
from pathlib import Path

import pytest

from distill.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def writer():
    return runpy.run_path(str(ROOT / "scripts/write_recipe_reference.py"))


def test_the_reference_is_current(writer):
    written = writer["DOCUMENT"].read_text(encoding="utf-8")
    assert written == writer["render"](), "run `python scripts/write_recipe_reference.py`"


def test_every_field_has_a_meaning_and_a_link_leads_to_a_heading(writer):
    lines = writer["render"]().splitlines()
    assert not [line for line in lines if line.endswith("|  |")]
    schema = Recipe.model_json_schema()
    for section in schema["$defs"].values():
        for field in section["properties"]:
            assert any(line.startswith(f"| `{field}` |") for line in lines)
    headings = {line.removeprefix("## ").lower() for line in lines if line.startswith("## ")}
    linked = {part.partition(")")[0] for line in lines for part in line.split("](#")[1:]}
    assert linked <= headings and "stage" in linked
