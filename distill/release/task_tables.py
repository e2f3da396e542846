"""The tables that the models' comparison on tasks left, as far as they tell of the weights that are there now."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.downstream.run import TAUGHT, digest_model, model_name
from distill.release.run_folder import RunFolder

TABLES_FILE = "report/tables.json"
Tables = dict[str, list[dict[str, str]]]
"""Name -> rows, which are column -> cell; a row has the model's name under "Model"."""


def read_task_tables(run: RunFolder) -> Tables:
    """The rows of models that still are what was fine-tuned and timed; none at all if the teacher is another now.

    A model that the run made has to be there. One that was given and is not at hand is believed to be the same.
    """
    found = run.json(TABLES_FILE)
    tables, digests = found.get("tables"), found.get("models")
    if not isinstance(tables, dict):
        return {}
    if not isinstance(digests, dict):
        run.problems.append(f"{run.path / TABLES_FILE}: does not say of which weights it is, and is left out; the same "
                            f"`distill train` writes it again")  # fmt: skip
        return {}
    changed = _changed_models(run, digests)
    if str(found.get("teacher")) in changed:
        return {}
    kept = {}
    for name, rows in tables.items():
        if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
            cells = [{column: str(value) for column, value in row.items()} for row in rows]
            own = [row for row in cells if _model_of(row) not in changed]
            is_difference = any(_model_of(row) not in digests for row in own)
            if own and not (is_difference and len(own) < len(rows)):  # a difference takes both of its models
                kept[name] = own
    return kept


def table_name(run: RunFolder, name: str) -> str:
    """What a model of the recipe is called in the tables."""
    return name if name in _made(run) else model_name(name, run.model(name) or Path(name))


def is_compared(run: RunFolder) -> bool:
    """Whether the tables have every model and as many tasks of each as the recipe's section "finetune" asks for."""
    section = run.recipe["finetune"]
    tasks: dict[str, set[str]] = {}
    for row in read_task_tables(run).get("details", []):
        tasks.setdefault(row.get("Model", ""), set()).add(row.get("Task", ""))
    names = [table_name(run, name) for name in section["models"] or _made(run)]
    return all(len(tasks.get(name, ())) >= len(section["tasks"] or [1]) for name in names)


def _changed_models(run: RunFolder, digests: Mapping[str, Any]) -> set[str]:
    """Those of the tables' models that are not the same any more."""
    given = [stage["teacher"] for stage in run.stages if stage["teacher"]]
    given += (run.recipe["finetune"] or {}).get("models") or []
    folders = {table_name(run, name): run.model(name) for name in [*given, *_made(run)]}
    changed = {name for name in digests if name in _made(run)}
    for name, folder in folders.items():
        if folder and name in digests:
            changed.add(name)
            with run.noting():
                if digest_model(folder) == digests[name]:
                    changed.remove(name)
    return changed


def _made(run: RunFolder) -> list[str]:
    return [name for stage in run.stages for name in stage["students"]]


def _model_of(row: Mapping[str, str]) -> str:
    return row.get("Model", "").removesuffix(TAUGHT)
