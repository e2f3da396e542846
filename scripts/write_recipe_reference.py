"""docs/recipe.md: every field of a recipe with its type, default and meaning, from the models that check recipes.

    python scripts/write_recipe_reference.py

tests/test_recipe_reference.py fails while the file is not what this would write.
"""

import json
from pathlib import Path
from typing import Any

from distill.durable import write_whole
from distill.recipe import Recipe

DOCUMENT = Path(__file__).resolve().parent.parent / "docs/recipe.md"
INTRODUCTION = """# The recipe, field by field

Made by `python scripts/write_recipe_reference.py` from the models that check a recipe, so it is what this version
takes. A recipe is one JSON object. How its parts play together stands in the [README](../README.md#recipes).

Fields of a student may stand in `defaults`, in a stage (for all its students), or in the student; fields of a stage in
`defaults` or in the stage. The nearer place wins, and the command line wins over all: `--learning-rate 3e-4` reaches
every stage, `--set stages.NAME.students.NAME.learning_rate=3e-4` one place. An unknown key is an error that names its
place and the nearest known key. Whole numbers may be written `1e5`. Paths are relative to the working directory.
"""
SECTIONS = {
    "Recipe": "the whole file; beside these fields it has `defaults`, whose fields are those of stages and students",
    "Stage": "an item of `stages`", "Student": "a value of `students`; its key is the student's name",
    "Data": "`data`, of a stage", "MaskSchedule": "an object as `mask_probability`",
    "TrainSegmenter": "an object as `segmenter`", "TeacherCache": "`teacher_cache`, of a stage",
    "FineTune": "`finetune`, of the recipe", "GridValues": "`grid`, of `finetune`", "Distil": "`distil`, of `finetune`",
    "Speed": "`speed`, of `finetune`",
}  # fmt: skip
_TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}


def render() -> str:
    """The whole document.

    Raises:
        KeyError: a section of the recipe that SECTIONS does not place.
    """
    schema = Recipe.model_json_schema()
    sections = {**schema.pop("$defs"), "Recipe": schema}
    if missing := sections.keys() - SECTIONS.keys():
        raise KeyError(f"SECTIONS has no {sorted(missing)}")
    parts = [INTRODUCTION, *(_render_section(name, sections[name]) for name in SECTIONS)]
    return "\n".join(parts)


def _render_section(name: str, section: dict[str, Any]) -> str:
    required = section.get("required", [])
    rows = []
    for field, facts in section["properties"].items():
        default = "**needed**" if field in required else f"`{json.dumps(facts.get('default'), ensure_ascii=False)}`"
        if isinstance(facts.get("default"), dict):
            default = "its defaults"
        rows.append(f"| `{field}` | {_describe(facts)} | {default} | {_cell(facts.get('description', ''))} |")
    head = [f"## {name}", "", f"{section['description']} Where: {SECTIONS[name]}.", "",
            "| field | type | default | meaning |", "|---|---|---|---|"]  # fmt: skip
    return "\n".join([*head, *rows]) + "\n"


def _describe(facts: dict[str, Any]) -> str:
    """A type in words, with its range."""
    if "$ref" in facts:
        name = facts["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf"):
        if several in facts:
            return " or ".join(_describe(one) for one in facts[several] if one.get("type") != "null")
    if "enum" in facts or "const" in facts:
        return ", ".join(f"`{json.dumps(value)}`" for value in facts.get("enum", [facts.get("const")]))
    if facts.get("type") == "array":
        return f"list of {_describe(facts['items'])}" if "items" in facts else "list"
    if facts.get("type") == "object":
        inner = facts.get("additionalProperties")
        inner = inner if isinstance(inner, dict) else next(iter(facts.get("patternProperties", {}).values()), None)
        return f"name -> {_describe(inner)}" if inner else "object"
    if "type" not in facts:
        return "any value"
    return _TYPES[facts["type"]] + _range(facts)


def _range(facts: dict[str, Any]) -> str:
    words = {"minimum": "from {}", "exclusiveMinimum": "over {}", "exclusiveMaximum": "below {}", "maximum": "to {}"}
    given = [text.format(f"{facts[key]:g}") for key, text in words.items() if abs(facts.get(key, 1e9)) < 1e9]
    return f" {' '.join(given)}" if given else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    write_whole(DOCUMENT, render())
    print(f"{DOCUMENT.name}: written")
