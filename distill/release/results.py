"""The table at the end of a run, read from the files that the stages left."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from distill.errors import InputError
from distill.json_file import read_object
from distill.modeling.config import load_config
from distill.modeling.counting import Parameters, count_parameters
from distill.training.metrics import read_metrics


def collect_results(
    output: Path, recipe: Mapping[str, Any], *, noting: Callable[[], AbstractContextManager[None]] = nullcontext
) -> dict[str, Any]:
    """Every model of a run with its size and last dev measurement.

    Args:
        noting: takes the InputError of a file that cannot be read, whose values are then None.
    Returns: {"models": [{"name", "stage", "teacher", "parameters", "without_embeddings", "steps", "tokens",
        "dev_accuracy", "dev_loss"}], "most_common_share": {stage: share of masked dev tokens that guessing the
        commonest token would get right}}. A value that was not measured is None.
    """
    models: list[dict[str, Any]] = []
    shares: dict[str, float | None] = {}
    for stage in recipe["stages"]:
        folder = output / "stages" / stage["name"]
        records = read_dev_records(folder / "metrics.jsonl")
        shares[stage["name"]] = None
        with noting():
            shares[stage["name"]] = _most_common_share(folder / "dataset.json")
        if stage["teacher"] and stage["teacher"] not in {model["name"] for model in models}:
            models.append(_row(stage["teacher"], stage, records.get("teacher"), None, None))
        for name in stage["students"]:
            config = output / "models" / name / "config.json"
            if config.exists():
                counts = None
                with noting():
                    counts = count_parameters(load_config(config))
                models.append(_row(name, stage, records.get(name), counts, stage["teacher"]))
    return {"models": models, "most_common_share": shares}


def read_dev_records(path: Path) -> dict[str, dict[str, Any]]:
    """The last dev record of each student of a metrics.jsonl."""
    return {record["student"]: record for record in read_metrics(path) if record["split"] == "dev"}


def _row(
    name: str, stage: Mapping[str, Any], record: Mapping[str, Any] | None, counts: Parameters | None,
    teacher: str | None,
) -> dict[str, Any]:  # fmt: skip
    record = record or {}
    return {
        "name": name, "stage": stage["name"], "teacher": teacher,
        "parameters": counts.masked_lm if counts else None,
        "without_embeddings": counts.without_embeddings if counts else None,
        "steps": record.get("step"), "tokens": record.get("tokens"),
        "dev_accuracy": record.get("accuracy"), "dev_loss": record.get("mlm_loss"),
    }  # fmt: skip


def _most_common_share(note: Path) -> float | None:
    """What always guessing the commonest token of the training rows would get right on dev."""
    if not note.exists():
        return None
    path = read_object(note, what="where a dataset is").get("path")
    if not isinstance(path, str):
        raise InputError(f"{note}: does not say where the dataset is; the same `distill train` writes it again")
    info = read_object(Path(path) / "info.json", what="what is packed")
    share = info.get("most_common_token", {}).get("dev_share")
    return float(share) if share is not None else None


def format_results(results: Mapping[str, Any]) -> str:
    """The results as a Markdown table with a line about the baseline."""
    head = ["model", "teacher", "parameters", "w/o embeddings", "dev MLM accuracy", "dev MLM loss"]
    rows = [
        [
            model["name"],
            model["teacher"] or "-",
            _show(model["parameters"], ","),
            _show(model["without_embeddings"], ","),
            _show(model["dev_accuracy"], ".2%"),
            _show(model["dev_loss"], ".3f"),
        ]
        for model in results["models"]
    ]
    lines = format_table(head, rows)
    shares = {share for share in results["most_common_share"].values() if share is not None}
    if shares:
        lines.append("always guessing the commonest token: " + ", ".join(f"{share:.2%}" for share in sorted(shares)))
    return "\n".join(lines)


def format_table(head: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table whose columns are aligned as text."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [head, ["-" * width for width in widths], *rows]
    ]


def _show(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
