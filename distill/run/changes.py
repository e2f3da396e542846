"""What a run's folder was made from, and what of it has changed since.

A stage that has begun takes no silent change: neither of the recipe, nor of what the files contain that it names.
recipe.json holds the recipe of the last run, `stages/<stage>/inputs.json` the content that a stage began with, and
changes.jsonl what was changed on purpose, with the step that was reached by then.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.corpus.prepare import find_dataset
from distill.durable import write_json, write_whole
from distill.errors import InputError
from distill.json_file import read_json, short
from distill.recipe import OPERATIONAL_FIELDS, Recipe
from distill.recipe_file import resolve_recipe
from distill.run.planning import PlannedModel, StagePlan
from distill.training.checkpoint import checkpoint_step, list_checkpoints, newest_checkpoint
from distill.training.plugins import loaded_plugins

INPUTS_FILE = "inputs.json"
_NESTED = ("data", "students")
"""Fields of a stage that have fields of their own."""

_WRITTEN_OUT = "method"
"""A field of students whose meaning stands in other fields."""

_NO_SHAPE = ("_name_or_path", "architectures", "dtype", "transformers_version")
"""Entries of a config that say nothing about the model."""


def check_unchanged(recipe: Recipe, plans: Mapping[str, StagePlan] | None = None) -> None:
    """Refuses an output folder of which something was trained from other settings or files.

    Stages and students may be added, a stage that has not begun may change or go, and so may fields that do not
    change the training.

    Args:
        plans: of the stages whose files are to be compared; None compares the recipe alone.
    Raises:
        InputError: with all differences.
    """
    differences = find_changes(recipe, plans)
    if differences:
        listed = "; ".join(line for lines in differences.values() for line in lines)
        raise InputError(
            f"{recipe.output_dir}: this folder was made by another recipe: {listed}; choose another output_dir, set it "
            f"back, or go on with the change by --allow-changes"
        )


def find_changes(recipe: Recipe, plans: Mapping[str, StagePlan] | None = None) -> dict[str, list[str]]:
    """Stage -> what would alter its training; only stages that have begun."""
    output = Path(recipe.output_dir)
    found: dict[str, list[str]] = {}
    recorded_file = output / "recipe.json"
    if recorded_file.exists():
        recorded = resolve_recipe(read_json(recorded_file), where=f"{recorded_file} (what made this folder)")
        now = {stage.name: stage.model_dump() for stage in recipe.stages}
        for old in (stage.model_dump() for stage in recorded.stages):
            if has_begun(output, old):
                found[old["name"]] = _recipe_differences(old, now.get(old["name"]))
    for name, plan in (plans or {}).items():
        inputs = plan.folder / INPUTS_FILE
        if inputs.exists() and has_begun(output, plan.stage.model_dump()):
            found[name] = found.get(name, []) + _input_differences(name, read_json(inputs), _inputs(plan))
    return {name: lines for name, lines in found.items() if lines}


def record_inputs(plan: StagePlan) -> None:
    """Writes down what a stage is trained from now; students that it had before and has not now are kept."""
    path = plan.folder / INPUTS_FILE
    before = read_json(path) if path.exists() else {}
    write_json(path, {**before, **_inputs(plan)})


def record_changes(output: Path, changes: Mapping[str, list[str]]) -> None:
    """Adds lines to changes.jsonl: stage, the step that its checkpoint had reached, and the differences."""
    if not changes:
        return
    path = output / "changes.jsonl"
    lines = path.read_text(encoding="utf-8") if path.exists() else ""
    for stage, differences in changes.items():
        newest = newest_checkpoint(output / "stages" / stage / "checkpoints")
        record = {"stage": stage, "step": checkpoint_step(newest) if newest else 0, "differences": differences}
        lines += json.dumps(record, ensure_ascii=False) + "\n"
    write_whole(path, lines)


def has_begun(output: Path, stage: Mapping[str, Any]) -> bool:
    """Whether something of a stage was trained: a finished model or a checkpoint."""
    made = any((output / "models" / name / "config.json").exists() for name in stage["students"])
    return made or bool(list_checkpoints(output / "stages" / stage["name"] / "checkpoints"))


def _recipe_differences(old: Mapping[str, Any], new: Mapping[str, Any] | None) -> list[str]:
    """All fields of a stage, or of a student in both, that change the training."""
    where = f"stage '{old['name']}'"
    if new is None:
        return [f"it has a {where}, this one has not"]
    lines = []
    without_effect = OPERATIONAL_FIELDS - ({"micro_batch_size"} if _depends_on_cut(old) else set())
    found = [(f"{field} ", old[field], new[field]) for field in sorted(old.keys() - {*without_effect, *_NESTED})]
    found += [(f"data.{field} ", value, new["data"][field]) for field, value in old["data"].items()]
    for student, fields in old["students"].items():
        if student not in new["students"]:
            lines.append(f"{where}, student '{student}' is missing now")
            continue
        found += [(f"student '{student}', {field} ", value, new["students"][student][field])
                  for field, value in fields.items() if field != _WRITTEN_OUT]  # fmt: skip
    return [f"{where}, {place}was {short(a)} and is now {short(b)}" for place, a, b in found if a != b] + lines


def _depends_on_cut(stage: Mapping[str, Any]) -> bool:
    """Whether the training depends on how a step is cut into micro-batches, beyond rounding and dropout."""
    return any(
        student.get("balance_every") or "sample_relation" in json.dumps(student.get("matches", []))
        for student in stage["students"].values()
    )


def _inputs(plan: StagePlan) -> dict[str, Any]:
    """Place -> value, or hash of what is in the files there."""
    stage = plan.stage
    packed = find_dataset(
        stage.data, tokenizer=plan.tokenizer, max_seq_length=stage.max_seq_length, folder=plan.output / "data"
    )
    found: dict[str, Any] = {"data": packed.name} if packed else {}
    if plan.teacher:
        found |= _hash_model("teacher", plan.teacher)
    for name, model in plan.students.items():
        config = model.config.to_dict()
        found |= {f"student '{name}', config {key}": value for key, value in config.items() if key not in _NO_SHAPE}
        found[f"student '{name}', matches"] = plan.matches[name]
    found |= {f"plugin {name}": content for name, content in loaded_plugins().items()}
    for name, model in plan.inits.items():
        found |= _hash_model(f"student '{name}', init", model)
    return json.loads(json.dumps(found))


def _hash_model(place: str, model: PlannedModel) -> dict[str, str]:
    """Hashes of config and weights; none of a model that is not made yet."""
    files = sorted(model.folder.iterdir()) if model.folder.is_dir() else []
    hashes = {}
    for path in files:
        if path.name == "config.json" or path.suffix in (".safetensors", ".bin"):
            with path.open("rb") as file:
                hashes[f"{place}, {path.name}"] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _input_differences(stage: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    lines = []
    for place in sorted(old.keys() & new.keys()):
        if old[place] != new[place]:
            is_content = place == "data" or place.endswith((".json", ".safetensors", ".bin", ".py"))
            told = (
                "contains something else now"
                if is_content
                else f"was {short(old[place])} and is now {short(new[place])}"
            )
            lines.append(f"stage '{stage}', {place} {told}")
    return lines
