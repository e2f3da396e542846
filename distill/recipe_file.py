"""From a recipe file to a checked `Recipe`: defaults and command-line values merged into every stage and student.

Order: field default < defaults < stage < student < command line. A `method` counts as if its fields stood where its
name stands, each below a value written beside it. What the fields are stands in recipe.py.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distill.errors import InputError
from distill.json_file import nearest, parse_json, read_json, short
from distill.recipe import Data, Recipe, Stage, Student, TeacherCache
from distill.recipe_tasks import Distil, FineTune, GridValues, Speed
from distill.recipe_types import Section, describe_problem
from distill.shipped import or_shipped

STAGE_FIELDS = set(Stage.model_fields) - {"name", "students"}
STUDENT_FIELDS = set(Student.model_fields)
SHARED_FIELDS = STUDENT_FIELDS - STAGE_FIELDS
"""Student fields that a stage, `defaults` or the command line may give for all; a `seed` there is the stage's."""
METHOD_FIELDS = SHARED_FIELDS - {"method"}
_SECTIONS: dict[str, type[Section]] = {
    "data": Data, "teacher_cache": TeacherCache, "finetune": FineTune, "grid": GridValues, "speed": Speed,
    "distil": Distil,
}  # fmt: skip
METHODS = "distill_configs/methods"
FIELDS = "docs/recipe.md"
"""The page that explains every field."""


def load_recipe(path: str | Path, overrides: Mapping[str, Any] = {}, settings: Sequence[str] = ()) -> Recipe:
    """Reads a recipe file, merges defaults and command line into every stage and student, and checks all values.

    Args:
        path: JSON file; jsons/recipes/NAME.json is found from anywhere.
        overrides: field -> value, for every stage (or every student, if it is a student's field).
        settings: "stages.NAME.students.NAME.field=value", one place each.
    Raises:
        InputError: naming file, place and the nearest known key.
    """
    path = or_shipped(path)
    return resolve_recipe(read_json(path), where=str(path), overrides=overrides, settings=settings)


def resolve_recipe(raw: Any, *, where: str, overrides: Mapping[str, Any] = {}, settings: Sequence[str] = ()) -> Recipe:
    """A recipe's JSON value as a checked `Recipe`: field default < defaults < stage < student < command line."""
    if not isinstance(raw, dict):
        raise InputError(f"{where}: a recipe is a JSON object, found {type(raw).__name__}")
    raw = json.loads(json.dumps(raw))
    _check_keys(raw, {"output_dir", "defaults", "stages", "finetune", "report"}, where)
    defaults = _expect_object(raw.pop("defaults", {}), f"{where}: defaults")
    _check_keys(defaults, STAGE_FIELDS | STUDENT_FIELDS, f"{where}: defaults")
    if not isinstance(raw.get("stages"), list):
        raise InputError(f"{where}: 'stages' must be a list of stages, found {short(raw.get('stages'))}")
    overrides = dict(overrides)
    if "output_dir" in overrides:
        raw["output_dir"] = str(overrides.pop("output_dir"))  # a folder may be called 2024
    _check_keys(overrides, STAGE_FIELDS | STUDENT_FIELDS, "command line", prefix="--")
    raw["stages"] = [_merge_stage(stage, i, defaults, overrides, where) for i, stage in enumerate(raw["stages"])]
    for setting in settings:
        _apply_setting(raw, setting)
    if "\\u0000" in json.dumps(raw):
        raise InputError(f"{where}: a string holds a NUL character (\\u0000), which no name can; take it out")
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{where}: {_first_problem(error, raw)}") from None


def check_data_fields(where: str, **fields: Any) -> Data:
    """A `Data` from plain values; InputError if they do not fit."""
    try:
        return Data.model_validate({key: value for key, value in fields.items() if value is not None})
    except ValidationError as error:
        raise InputError(f"{where}: {_first_problem(error, {})}") from None


def _merge_stage(stage: Any, index: int, defaults: dict, overrides: dict, where: str) -> dict:
    """One stage with its defaults written out and student fields moved into its students."""
    stage = _expect_object(stage, f"{where}: stages[{index}]")
    name = stage.get("name", f"[{index}]")
    where = f"{where}: stage '{name}'"
    _check_keys(stage, STAGE_FIELDS | STUDENT_FIELDS | {"name", "students"}, where)
    students = _expect_object(stage.get("students", {}), f"{where}: students")
    layers = [defaults, stage]
    shared = [with_method(layer, where) for layer in layers]
    merged: dict[str, Any] = {"name": stage.get("name"), "students": {}}
    for field in STAGE_FIELDS:
        values = [layer[field] for layer in [*layers, overrides] if field in layer]
        if values:
            merged[field] = _merge_data(values) if field == "data" else values[-1]
    lengths = [layer for layer in [*layers, overrides] if layer.keys() & {"steps", "epochs"}]
    for field in {"steps", "epochs"} & merged.keys():
        if field not in lengths[-1]:
            del merged[field]
    for student_name, student in students.items():
        place = f"{where}, student '{student_name}'"
        student = _expect_object(student, place)
        _check_keys(student, STUDENT_FIELDS, place)
        student = with_method(student, place)
        fields: dict[str, Any] = {}
        for layer in [*shared, student, with_method(overrides, "command line")]:
            known = STUDENT_FIELDS if layer is student else SHARED_FIELDS
            fields |= {field: value for field, value in layer.items() if field in known}
        if merged.get("teacher") is None and not student.get("matches") and not shared[1].get("matches"):
            fields.pop("matches", None)
        merged["students"][student_name] = {field: _listed(field, value) for field, value in fields.items()}
    return merged


def with_method(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """Student fields with those of their `method` below them.

    Raises:
        InputError: no such method; a file that is no object of student fields.
    """
    name = fields.get("method")
    if name is None or fields.keys() >= METHOD_FIELDS:
        return fields  # a resolved student does not depend on the file any more
    return {**_read_method(str(name), where), **fields}


def _read_method(name: str, where: str) -> dict[str, Any]:
    """The student fields of a shipped method, or of the JSON file that a path names."""
    path = Path(name)
    if path.suffix != ".json":
        folder = or_shipped(METHODS)
        path = folder / f"{name}.json"
        known = [file.stem for file in folder.glob("*.json")]
        if name not in known:
            raise InputError(f"{where}: unknown method '{name}'{nearest(name, known)} (or the path of a .json file)")
    fields = _expect_object(read_json(path), str(path))
    _check_keys(fields, METHOD_FIELDS, str(path))
    return fields


def _merge_data(values: Iterable[Any]) -> Any:
    """Later `data` objects add to earlier ones; a string is a data JSON's path; text and files exclude each other."""
    merged: dict[str, Any] = {}
    for value in values:
        value = {"files": value} if isinstance(value, str) else value
        if not isinstance(value, dict):
            return value
        for source, other in (("files", "text"), ("text", "files")):
            if source in value:
                merged.pop(other, None)
        if "files" in value:
            merged.pop("dev", None)
        merged.update(value)
    for field in ("text", "dev"):
        if isinstance(merged.get(field), str):
            merged[field] = [merged[field]]
    return merged


def _apply_setting(raw: dict, setting: str) -> None:
    """Writes one `--set path=value` into the merged recipe."""
    path, equals, text = setting.partition("=")
    if not equals:
        raise InputError(f"--set {setting}: expected PATH=VALUE, e.g. stages.NAME.students.NAME.temperature=4")
    target: Any = raw
    *parents, last = path.split(".")
    for part in parents:
        if target is raw["stages"]:
            found = {str(stage["name"]): stage for stage in target}
        else:
            found = target if isinstance(target, dict) else {}
        if part not in found:
            raise InputError(f"--set {path}: no '{part}'; there are: {', '.join(map(str, found)) or 'no keys'}")
        target = found[part]
    if parents == ["finetune"] and isinstance(target, dict):
        _check_keys({last: None}, set(FineTune.model_fields), f"--set {path}")
        target[last] = parse_value(text)
        return
    depth = len(parents)  # stages.NAME = 2, stages.NAME.data = 3, stages.NAME.students.NAME = 4
    places = {2: STAGE_FIELDS | STUDENT_FIELDS, 3: set(Data.model_fields), 4: STUDENT_FIELDS}
    if depth not in places or parents[0] != "stages" or (depth == 3) != (parents[-1] == "data"):
        raise InputError(f"--set {path}: name a field of one stage or student, e.g. stages.NAME.steps=100")
    if not isinstance(target, dict):
        raise InputError(f"--set {path}: '{parents[-1]}' is {short(target)}, which has no fields")
    if last in STAGE_FIELDS and last not in places[depth]:
        raise InputError(f"--set {path}: '{last}' is a field of the stage; set stages.{parents[1]}.{last}")
    _check_keys({last: None}, places[depth], f"--set {path}")
    _write_field(target, last, parse_value(text), f"--set {path}")


def _write_field(target: dict, field: str, value: Any, where: str) -> None:
    """Sets a field of a merged stage, of its `data`, or of a student; a stage's student field reaches its students."""
    if field in Data.model_fields:
        merged = _merge_data([target, {field: value}])
        target.clear()
        target.update(merged)
    elif field in SHARED_FIELDS or "students" not in target:
        for student in target["students"].values() if "students" in target else [target]:
            fields = with_method({field: value}, where)
            student.update({name: _listed(name, value) for name, value in fields.items()})
    else:
        target[field] = _merge_data([target.get("data", {}), value]) if field == "data" else value
    if field in ("steps", "epochs"):
        target.pop("epochs" if field == "steps" else "steps", None)


def _listed(field: str, value: Any) -> Any:
    """`matches` may be written as one entry instead of a list."""
    return [value] if field == "matches" and isinstance(value, (str, dict)) else value


def parse_value(text: str) -> Any:
    """A command-line value: JSON where it is JSON, otherwise the string itself, which the field's check refuses."""
    try:
        return parse_json(text)
    except ValueError:
        return text


def _check_keys(found: Mapping[str, Any], known: set[str], where: str, prefix: str = "") -> None:
    for key in found:
        if key not in known:
            raise InputError(f"{where}: unknown key '{prefix}{key}'{nearest(key, known)}; see {FIELDS}")


def _expect_object(value: Any, where: str) -> dict:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object in braces, found {short(value)}")
    return value


def _first_problem(error: ValidationError, raw: dict) -> str:
    """The first of pydantic's complaints as one line, with stage names instead of list positions."""
    problem = error.errors(include_url=False)[0]
    loc = list(problem["loc"])
    if len(loc) > 1 and loc[0] == "stages" and isinstance(loc[1], int):
        loc[:2] = [f"stage '{raw['stages'][loc[1]].get('name')}'"]
    if "students" in loc[:-1]:
        at = loc.index("students")
        loc[at : at + 2] = [f"student '{loc[at + 1]}'"]
    section = _SECTIONS.get(str(loc[-2])) if len(loc) > 1 else None
    place = ", ".join(str(part) for part in loc if part not in ("list[str]", "str", "(number)", "(schedule)", "(word)"))
    if problem["type"] == "extra_forbidden":
        return f"{place}: unknown key{nearest(str(loc[-1]), section.model_fields) if section else ''}; see {FIELDS}"
    return describe_problem(problem, place)
