"""The table of `distill compare`, read from the metrics that the variations' stage left."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.json_file import short
from distill.markdown import markdown_table, show_value
from distill.recipe import TEACHER
from distill.release.results import read_dev_records
from distill.training.metrics import read_metrics


def collect_variations(
    stage_folder: Path, variations: Mapping[str, Mapping[str, Any]], trained_heads: Mapping[str, bool]
) -> dict[str, Any]:
    """Last dev measurements of the variations, those that differ in their seed alone taken together.

    Args:
        variations: student -> varied field -> value.
        trained_heads: student -> whether its prediction head learned anything; the dev values of one that did not say
            nothing about the method.
    Returns: {"variations": [{"fields", "students", "dev_loss": {"values", "mean", "std"}, "dev_accuracy": likewise,
        "tokens", "tokens_per_second", "head_trained"}], "teacher_dev": {"dev_loss", "dev_accuracy"}}. `std` is the
        sample's; None with one seed. A value that was not measured is None. Losses in nats, accuracies as shares.
    """
    dev = read_dev_records(stage_folder / "metrics.jsonl")
    speeds: dict[str, list[float]] = {}
    for record in read_metrics(stage_folder / "metrics.jsonl"):
        if record["split"] == "train":
            speeds.setdefault(record["student"], []).append(record["tokens_per_second"])
    groups: dict[str, dict[str, Any]] = {}
    for name, values in variations.items():
        fields = {field: value for field, value in values.items() if field != "seed"}
        group = groups.setdefault(json.dumps(fields, sort_keys=True), {"fields": fields, "students": []})
        group["students"].append(name)
    for group in groups.values():
        names = group["students"]
        for key, measured in (("dev_loss", "mlm_loss"), ("dev_accuracy", "accuracy")):
            group[key] = _summarise([dev[name][measured] for name in names if name in dev])
        group["tokens"] = max((dev[name]["tokens"] for name in names if name in dev), default=None)
        rates = [statistics.median(speeds[name]) for name in names if name in speeds]
        group["tokens_per_second"] = statistics.mean(rates) if rates else None
        group["head_trained"] = all(trained_heads[name] for name in names)
    teacher = dev.get(TEACHER, {})
    return {
        "variations": list(groups.values()),
        "teacher_dev": {"dev_loss": teacher.get("mlm_loss"), "dev_accuracy": teacher.get("accuracy")},
    }


def short_label(fields: Mapping[str, Any]) -> str:
    """`method=pkd, temperature=4`."""
    return ", ".join(f"{field}={value if isinstance(value, str) else short(value)}" for field, value in fields.items())


def _summarise(values: Sequence[float]) -> dict[str, Any]:
    return {
        "values": list(values),
        "mean": statistics.mean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
    }


def format_variations(result: Mapping[str, Any]) -> str:
    """The comparison as a Markdown table with what one must know to read it."""
    head = ["variation", "seeds", "dev MLM loss", "dev MLM accuracy", "tokens", "tokens/s"]
    teacher = result["teacher_dev"]
    rows = [[f"teacher {result['teacher']}", "-", show_value(teacher["dev_loss"], ".3f"),
             show_value(teacher["dev_accuracy"], ".2%"), "-", "-"]]  # fmt: skip
    headless = []
    labels = [short_label(group["fields"]) for group in result["variations"]]
    for group, label in zip(result["variations"], labels, strict=True):
        # A long value is cut, and another may begin in the same way.
        label = group["students"][0] if labels.count(label) > 1 else label or result["student"]
        loss, accuracy = (_show_summary(group["dev_loss"], ".3f"), _show_summary(group["dev_accuracy"], ".2%"))
        if not group["head_trained"]:
            headless.append(label)
            loss = accuracy = "-"
        rows.append([label, str(len(group["students"])), loss, accuracy, show_value(group["tokens"], ","),
                     show_value(group["tokens_per_second"], ",.0f")])  # fmt: skip
    lines = [f"Variations of student {result['student']} in stage {result['stage']}:", ""]
    lines += [markdown_table(head, rows), ""]
    if any(len(group["students"]) > 1 for group in result["variations"]):
        lines.append("Mean and sample standard deviation over seeds.")
    lines.append("tokens/s is the whole pass's, whose variations are trained side by side.")
    if headless:
        lines.append(
            f"{'; '.join(headless)}: nothing trains the prediction head (kd_weight and mlm_weight are 0), so masked "
            f"tokens cannot measure it; compare by fine-tuning."
        )
    return "\n".join(lines)


def _show_summary(summary: Mapping[str, Any], spec: str) -> str:
    spread = "" if summary["std"] is None else f" ± {format(summary['std'], spec)}"
    return show_value(summary["mean"], spec) + spread
