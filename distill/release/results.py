"""The table at the end of a run, read from the files that the stages left."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.errors import InputError
from distill.json_file import read_object
from distill.markdown import markdown_table, show_value
from distill.modeling.config import load_config
from distill.modeling.counting import Parameters, count_parameters
from distill.release.run_folder import RunFolder, number_or_none
from distill.training.metrics import read_metrics


def collect_results(run: RunFolder) -> dict[str, Any]:
    """Every model of a run with its size and last dev measurement; a file that cannot be read is noted.

    Returns: {"models": [{"name", "stage", "teacher", "parameters", "without_embeddings", "steps", "tokens",
        "dev_accuracy", "dev_loss"}], "most_common_share": {stage: share of masked dev tokens that guessing the
        commonest token would get right}}. A value that was not measured, or is no number, is None.
    """
    models: list[dict[str, Any]] = []
    shares: dict[str, float | None] = {}
    for stage in run.stages:
        records: dict[str, dict[str, Any]] = {}
        with run.noting():
            records = read_dev_records(run.stage_folder(stage) / "metrics.jsonl")
        shares[stage["name"]] = None
        with run.noting():
            shares[stage["name"]] = _most_common_share(run.dataset(stage))
        if stage["teacher"] and stage["teacher"] not in {model["name"] for model in models}:
            models.append(_row(stage["teacher"], stage, records.get("teacher"), None, None))
        for name in stage["students"]:
            config = run.path / "models" / name / "config.json"
            if config.exists():
                counts = None
                with run.noting():
                    counts = count_parameters(load_config(config))
                models.append(_row(name, stage, records.get(name), counts, stage["teacher"]))
    return {"models": models, "most_common_share": shares}


def read_dev_records(path: Path) -> dict[str, dict[str, Any]]:
    """The last dev record of each student of a metrics.jsonl."""
    return {str(record["student"]): record for record in read_metrics(path) if record["split"] == "dev"}


def _row(
    name: str, stage: Mapping[str, Any], record: Mapping[str, Any] | None, counts: Parameters | None,
    teacher: str | None,
) -> dict[str, Any]:  # fmt: skip
    record = {name: number_or_none(value) for name, value in (record or {}).items()}
    return {
        "name": name, "stage": stage["name"], "teacher": teacher,
        "parameters": counts.masked_lm if counts else None,
        "without_embeddings": counts.without_embeddings if counts else None,
        "steps": record.get("step"), "tokens": record.get("tokens"),
        "dev_accuracy": record.get("accuracy"), "dev_loss": record.get("mlm_loss"),
    }  # fmt: skip


def _most_common_share(dataset: Path | None) -> float | None:
    """What always guessing the commonest token of the training rows would get right on dev."""
    if dataset is None:
        return None
    found = read_object(dataset / "info.json", what="what is packed").get("most_common_token", {})
    share = found.get("dev_share") if isinstance(found, dict) else None
    if not isinstance(found, dict) or share is not None and number_or_none(share) is None:
        raise InputError(f"{dataset / 'info.json'}: damaged; remove the folder, and it is prepared again")
    return share


def format_results(results: Mapping[str, Any]) -> str:
    """The results as a Markdown table with a line about the baseline."""
    head = ["model", "teacher", "parameters", "w/o embeddings", "dev MLM accuracy", "dev MLM loss"]
    rows = [
        [
            model["name"],
            model["teacher"] or "-",
            show_value(model["parameters"], ","),
            show_value(model["without_embeddings"], ","),
            show_value(model["dev_accuracy"], ".2%"),
            show_value(model["dev_loss"], ".3f"),
        ]
        for model in results["models"]
    ]
    lines = [markdown_table(head, rows)]
    shares = {share for share in results["most_common_share"].values() if share is not None}
    if shares:
        lines.append("always guessing the commonest token: " + ", ".join(f"{share:.2%}" for share in sorted(shares)))
    return "\n".join(lines)
