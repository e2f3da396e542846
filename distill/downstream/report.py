"""What a comparison prints and leaves: its tables in Markdown, CSV and JSON, and two pictures.

1. `summary`: a row a model with its size, its speed, and the mean of its tasks as percent of the teacher's.
2. `results`, `relative`: the seed documents' tables; a pair of models that is to be compared has one more.
3. `details`: means, deviations, settings; `latency`: every time that was measured.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from distill.downstream.latency import Timing, latency_table
from distill.downstream.results import Result, as_cells, details_table
from distill.downstream.run import TAUGHT
from distill.downstream.scores import (
    MISSING,
    Results,
    Table,
    absolute_table,
    comparison_table,
    relative_table,
    round_half_up,
    rule_for,
    to_csv,
    to_json,
    to_markdown,
)
from distill.durable import write_json, write_whole
from distill.modeling.config import load_config
from distill.modeling.counting import Parameters, count_parameters

CHINESE_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei", "PingFang SC",
                 "Heiti SC", "Microsoft YaHei", "SimHei")  # fmt: skip


@dataclass(frozen=True)
class TaskComparison:
    """What is known of some models: results on tasks, sizes, and times (none if speed was not measured)."""

    results: Sequence[Result]
    teacher: str
    sizes: Mapping[str, Parameters]
    timings: Sequence[Timing] = ()
    pairs: Sequence[Sequence[str]] = ()

    @property
    def cells(self) -> Results:
        """model -> task -> cell."""
        return as_cells(self.results)


def read_sizes(models: Mapping[str, Path]) -> dict[str, Parameters]:
    """Parameter counts of model folders."""
    return {name: count_parameters(load_config(folder)) for name, folder in models.items()}


def make_tables(comparison: TaskComparison) -> dict[str, Table]:
    """Every table there is something for, by name, in the order in which they are printed."""
    cells = comparison.cells
    tables = {"summary": summary_table(comparison), "results": absolute_table(cells, rule=rule_for(cells))}
    if comparison.teacher in cells:
        tables["relative"] = relative_table(cells, comparison.teacher)
    for first, second in comparison.pairs:
        if first in cells and second in cells:
            tables[f"{first} against {second}"] = comparison_table(cells, first, second)
    tables["details"] = details_table(comparison.results)
    if comparison.timings:
        tables["latency"] = latency_table(comparison.timings, comparison.teacher)
    return tables


def summary_table(comparison: TaskComparison) -> Table:
    """Sizes in millions of parameters as MiniRBT counts them, speed-up in the largest shape, mean of the tasks.

    The mean is over the tasks that every model has, in percent of the teacher's, metrics of a task averaged first.
    """
    shape = _largest_shape(comparison.timings)
    times = {t.model: t.p50_ms for t in comparison.timings if (t.batch_size, t.length) == shape}
    means = relative_means(comparison)
    rows = []
    for name, size in comparison.sizes.items():
        seconds = times.get(name.removesuffix(TAUGHT))
        faster = times[comparison.teacher] / seconds if seconds and comparison.teacher in times else None
        mean = means.get(name)
        rows.append((
            name, f"{size.masked_lm / 1e6:.1f}M", f"{size.without_embeddings / 1e6:.1f}M",
            *([MISSING if faster is None else f"{faster:.1f}x"] if shape else []),
            MISSING if mean is None else f"{mean}%",
        ))  # fmt: skip
    speedup = (f"Speedup ({shape[0]} x {shape[1]})",) if shape else ()
    return Table(("Model", "Parameters", "W/O embeddings", *speedup, "Mean of tasks"), tuple(rows))


def relative_means(comparison: TaskComparison) -> dict[str, Decimal]:
    """model -> mean over the common tasks as percent of the teacher's, with one decimal; empty without the teacher."""
    cells = comparison.cells
    teacher = cells.get(comparison.teacher, {})
    common = [task for task in teacher if all(task in row for row in cells.values()) and any(teacher[task])]
    if not common:
        return {}
    shares = {
        model: [sum(row[task], Decimal()) / sum(teacher[task], Decimal()) for task in common]
        for model, row in cells.items()
    }
    return {model: round_half_up(100 * sum(found, Decimal()) / len(found), 1) for model, found in shares.items()}


def write_report(
    comparison: TaskComparison, folder: Path, machine: Mapping[str, object], digests: Mapping[str, str]
) -> str:
    """Writes tables.md, tables.json, a CSV each table, and the pictures; returns the Markdown.

    Args:
        digests: model -> `digest_model` of what was compared, by which it is known whether the tables tell of it.
    """
    tables = make_tables(comparison)
    markdown = "\n".join(f"### {name}\n\n{to_markdown(table)}" for name, table in tables.items())
    write_whole(folder / "tables.md", markdown)
    found = {name: json.loads(to_json(table)) for name, table in tables.items()}
    value = {"tables": found, "machine": machine, "teacher": comparison.teacher, "models": digests}
    write_json(folder / "tables.json", value)
    for name, table in tables.items():
        write_whole(folder / f"{name.replace(' ', '-')}.csv", to_csv(table))
    if means := relative_means(comparison):
        sizes = {name: size.without_embeddings / 1e6 for name, size in comparison.sizes.items()}
        draw(means, sizes, "millions of parameters without embeddings", folder / "quality-size.png")
        if shape := _largest_shape(comparison.timings):
            times = {t.model: t.p50_ms for t in comparison.timings if (t.batch_size, t.length) == shape}
            label = f"ms a forward, {shape[0]} x {shape[1]} tokens"
            positions = {name: times[name.removesuffix(TAUGHT)] for name in means}
            draw(means, positions, label, folder / "quality-latency.png")
    return markdown


def draw(means: Mapping[str, Decimal], positions: Mapping[str, float], label: str, path: Path) -> None:
    """A picture with a point a model: mean of the tasks over a size or a time, which has a logarithmic axis."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.font_manager import get_font_names
    from matplotlib.ticker import FuncFormatter, NullFormatter

    # A model may be called in Chinese.
    fonts = ["DejaVu Sans", *(name for name in CHINESE_FONTS if name in get_font_names())]
    figure = Figure(figsize=(6, 4), layout="constrained")
    with matplotlib.rc_context({"font.family": fonts}):
        axes = figure.subplots()
        for model, mean in means.items():
            axes.scatter(positions[model], float(mean))
            axes.annotate(  # two dollar signs in a name are no formula
                model, (positions[model], float(mean)), textcoords="offset points", xytext=(6, 4), parse_math=False
            )
        axes.set(xscale="log", xlabel=label, ylabel="mean of the tasks, % of the teacher")
        lowest, highest = min(positions.values()), max(positions.values())
        axes.set_xlim(lowest / 1.3, highest * 1.5 * (highest / lowest) ** 0.3)  # room for the names, to the right
        axes.margins(y=0.15)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        few = FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else "")
        axes.xaxis.set_minor_formatter(few if highest < 20 * lowest else NullFormatter())
        axes.grid(alpha=0.3)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)


def _largest_shape(timings: Sequence[Timing]) -> tuple[int, int] | None:
    """(batch size, length) with the most tokens; its times are the most alike from run to run."""
    shapes = [(timing.batch_size, timing.length) for timing in timings]
    return max(shapes, key=lambda shape: (shape[0] * shape[1], shape)) if shapes else None
