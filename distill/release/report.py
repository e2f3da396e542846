"""The report of a run: one HTML page that needs nothing else, made from the files that the run left.

1. Every part is collected from files (run_folder.py, chain.py, results.py, stage_parts.py); what is not there yet is
   said on the page.
2. The template report.html puts them together; it escapes all text. Charts are inline SVG (charts.py).
3. The same curves go to PNG files (pictures.py), for places where no page can be shown.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from distill.corpus.inspection import Inspection, inspect_dataset
from distill.corpus.inspection_page import ROW_STYLE, legend_html, row_html
from distill.corpus.statistics import figures
from distill.durable import write_whole
from distill.release.chain import Model, read_chain, roots
from distill.release.charts import encoder_drawing, heat_chart, scatter_chart
from distill.release.results import collect_results, read_dev_records
from distill.release.run_folder import EXAMPLES_FILE, RunFolder, number_or_none
from distill.release.stage_parts import collect_stage, collect_times, show_duration
from distill.release.task_tables import Tables, read_task_tables

NUM_ROWS = 3
"""Rows of a dataset that are shown with their masks."""


def write_report(run: RunFolder) -> Path:
    """Writes report/index.html of a run, finished or not, and returns its path.

    Raises:
        OSError: the disk takes no page.
    """
    page = run.path / "report" / "index.html"
    write_whole(page, render(run))
    return page


def render(run: RunFolder) -> str:
    """The page's text."""
    environment = Environment(
        loader=PackageLoader("distill.release", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["count"] = lambda value: "-" if value is None else f"{value:,}"
    environment.filters["millions"] = lambda value: "-" if value is None else f"{value / 1e6:.3g} M"
    environment.filters["duration"] = show_duration
    parts = collect_parts(run)
    return environment.get_template("report.html").render(parts)


def collect_parts(run: RunFolder) -> dict[str, Any]:
    """Everything that the template shows, by the name it has there."""
    models = read_chain(run)
    results = collect_results(run)
    rows = _add_unfinished(run, results["models"], models)
    stages = [collect_stage(run, stage) for stage in run.stages]
    tables: Tables = {}
    with run.noting():
        tables = read_task_tables(run)
    times: list[dict[str, Any]] = []
    datasets: list[dict[str, Any]] = []
    quality: dict[str, Any] = {}
    with run.noting():
        times = [time for stage in run.stages for time in collect_times(run, stage)]
    with run.noting():
        datasets = collect_datasets(run)
    with run.noting():
        quality = collect_quality(tables)
    parts = {
        "name": run.path.resolve().name,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "roots": list(roots(models)), "cards": _describe_models(models, rows, stages), "models": models,
        "rows": rows, "shares": sorted({s for s in results["most_common_share"].values() if s is not None}),
        "stages": stages, "tables": _with_heads(tables), "quality": quality,
        "has_tasks": run.recipe["finetune"] is not None,
        "examples": collect_examples(run), "similarity": collect_similarity(run), "datasets": datasets,
        "times": times, "machines": _distinct(time["machine"] for time in times),
        "versions": _distinct(time["versions"] for time in times),
        "tokens": sum(row["tokens"] or 0 for row in rows),
        "recipe": json.dumps(run.recipe, indent=1, ensure_ascii=False),
        "row_style": Markup(ROW_STYLE), "row_legend": Markup(legend_html()),
    }  # fmt: skip
    return {**parts, "problems": list(dict.fromkeys(run.problems))}  # last: collecting finds them


def _add_unfinished(run: RunFolder, rows: Sequence[Mapping[str, Any]], models: Sequence[Model]) -> list[dict[str, Any]]:
    """The rows of collect_results, with the sizes of given teachers, and those of students that are being trained."""
    finished = {row["name"]: row for row in rows}
    records = {stage["name"]: read_dev_records(run.stage_folder(stage) / "metrics.jsonl") for stage in run.stages}
    shown = []
    for model in models:
        row = finished.get(model.name) if model.is_finished else None
        record = records.get(model.stage or "", {}).get(model.name)
        if row is None and record:
            row = {"steps": record.get("step"), "tokens": record.get("tokens"),
                   "dev_accuracy": record.get("accuracy"), "dev_loss": record.get("mlm_loss")}  # fmt: skip
        if row:
            values = {key: number_or_none(row[key]) for key in ("steps", "tokens", "dev_accuracy", "dev_loss")}
            counts = model.counts
            shown.append({
                "name": model.name, "teacher": model.teacher.name if model.teacher else None, **values,
                "parameters": counts.masked_lm if counts else None,
                "without_embeddings": counts.without_embeddings if counts else None, "is_finished": model.is_finished,
            })  # fmt: skip
    return shown


def _describe_models(
    models: Sequence[Model], rows: Sequence[Mapping[str, Any]], stages: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """name -> drawing, state and dev accuracy."""
    configs = [model.config for model in models if model.config]
    most_layers = max((config.num_hidden_layers for config in configs), default=1)
    most_width = max((config.hidden_size for config in configs), default=1)
    largest = max((model.counts.masked_lm for model in models if model.counts), default=1)
    accuracies = {row["name"]: row["dev_accuracy"] for row in rows}
    states = {stage["name"]: stage for stage in stages}
    found = {}
    for model in models:
        stage = states.get(model.stage or "", {})
        found[model.name] = {
            "state": "finished" if model.is_finished else stage.get("state", "waiting"),
            "progress": stage.get("progress"),
            "accuracy": accuracies.get(model.name),
            "share": model.counts.masked_lm / largest if model.counts else 0,
            "drawing": encoder_drawing(
                model.config.num_hidden_layers, model.config.hidden_size, most_layers=most_layers, most_width=most_width
            ) if model.config else "",
        }  # fmt: skip
    return found


def _with_heads(tables: Tables) -> list[dict[str, Any]]:
    """The fine-tuning tables as heads and rows."""
    found = []
    for name, rows in tables.items():
        head = list(rows[0])
        cells = [[row.get(key, "-") for key in head] for row in rows]
        found.append({"name": name, "head": head, "rows": cells})
    return found


def collect_quality(tables: Tables) -> dict[str, Any]:
    """Charts of the mean of the tasks over time and over size, from the tables' own cells; without those, empty."""
    try:
        summary, latency = tables.get("summary", []), tables.get("latency", [])
        shares = {row["Model"]: row["Mean of tasks"].rstrip("%") for row in summary}
        means = {name: float(share) for name, share in shares.items() if share != "-"}
        sizes = {row["Model"]: _number(row["W/O embeddings"].rstrip("M")) for row in summary}
        shapes = {(int(row["Batch"]) * int(row["Length"]), f"{row['Batch']} x {row['Length']}") for row in latency}
        shape = max(shapes)[1] if shapes else ""
        times = {row["Model"]: _number(row["p50 ms"]) for row in latency
                 if f"{row['Batch']} x {row['Length']}" == shape}  # fmt: skip
    except (KeyError, ValueError):
        return {}
    placed = [{name: (x[name], mean) for name, mean in means.items() if x.get(name, 0) > 0} for x in (times, sizes)]
    return {"latency": scatter_chart(placed[0]), "size": scatter_chart(placed[1]), "shape": shape}


def _number(cell: str) -> float:
    return float(cell.replace(",", ""))


def collect_examples(run: RunFolder) -> list[dict[str, Any]]:
    """Sentences with the words that each model fills in."""
    found: Any = run.json(EXAMPLES_FILE).get("fill_mask")
    shown = []
    with run.damage_noted(EXAMPLES_FILE):
        for number, sentence in enumerate(found["sentences"]) if found else ():
            rows = []
            for model, answers in found["answers"].items():
                masks = answers[number]
                guess = "".join(mask[0]["token"] for mask in masks)
                others = " / ".join(", ".join(f"{one['token']} {one['score']:.0%}" for one in mask) for mask in masks)
                score = sum(mask[0]["score"] for mask in masks) / len(masks)
                is_right = guess == "".join(sentence["word"])
                rows.append({"model": model, "guess": guess, "score": score, "is_right": is_right, "others": others})
            word = "".join(sentence["word"])
            shown.append({"before": sentence["before"], "word": word, "after": sentence["after"], "rows": rows})
    return shown


def collect_similarity(run: RunFolder) -> list[dict[str, Any]]:
    """Heat maps of student layers against teacher layers."""
    found = run.json(EXAMPLES_FILE).get("similarity") or []
    shown = []
    with run.damage_noted(EXAMPLES_FILE):
        for one in found:
            chart = heat_chart(one["cka"], one["pairs"])
            matched = [one["cka"][row][column] for row, column in one["pairs"]]
            values = [value for value in matched if value is not None]
            shown.append({"student": one["student"], "teacher": one["teacher"], "chart": chart, "tokens": one["tokens"],
                          "mean": sum(values) / len(values) if values else None})  # fmt: skip
    return shown


def collect_datasets(run: RunFolder) -> list[dict[str, Any]]:
    """Every packed dataset that stages read: what is in it, and rows with masks."""
    users: dict[Path, list[dict[str, Any]]] = {}
    for stage in run.stages:
        if dataset := run.dataset(stage):
            users.setdefault(dataset, []).append(stage)
    found = []
    for dataset, stages in users.items():
        info = run.json_at(dataset / "info.json")
        inspection = None
        with run.noting():
            inspection = inspect_dataset(dataset, num_rows=NUM_ROWS)
        found.append({
            "name": dataset.name, "stages": [stage["name"] for stage in stages], "data": stages[0]["data"],
            "splits": {name: info[name] for name in ("train", "dev") if isinstance(info.get(name), dict)},
            "rows": [Markup(row_html(row)) for row in inspection.rows] if inspection else [],
            "statistics": _statistics(inspection) if inspection else [],
        })  # fmt: skip
    return found


def _statistics(inspection: Inspection) -> list[dict[str, Any]]:
    return [
        {"split": split, "figures": figures(statistics), "scripts": statistics.scripts, "frequent": statistics.frequent}
        for split, statistics in inspection.statistics.items()
    ]


def _distinct(values: Any) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    for value in values:
        if value and value not in found:
            found.append(value)
    return found
