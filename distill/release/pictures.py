"""The curves of each stage as PNG, with Latin labels alone: no font of theirs lacks a character."""

import io
from collections.abc import Mapping
from pathlib import Path

from distill.durable import write_whole
from distill.recipe import TEACHER
from distill.release.charts import LOG_RATIO, thin_out
from distill.release.run_folder import RunFolder, Series

PANELS = (
    ("train", "loss", "training loss"),
    ("dev", "mlm_loss", "dev MLM loss"),
    ("dev", "accuracy", "dev MLM accuracy"),
    ("train", "tokens_per_second", "tokens/s"),
)


def draw_curves(run: RunFolder) -> list[Path]:
    """Writes report/curves-STAGE.png for every stage that has logged something, and returns the paths.

    Raises:
        OSError: the disk takes no picture.
    """
    drawn = []
    for stage in run.stages:
        curves = run.curves(stage)
        if curves["train"]:
            path = run.path / "report" / f"curves-{stage['name']}.png"
            write_whole(path, _draw(curves))
            drawn.append(path)
    return drawn


def _draw(curves: Mapping[str, Mapping[str, Series]]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6))
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.08, top=0.94, hspace=0.36, wspace=0.22)
    for axes, (split, value, title) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        lowest, highest = float("inf"), 0.0
        for student, series in curves[split].items():
            points = thin_out(series.get(value, []))
            if not points:
                continue
            number = list(curves["train"]).index(student) if student in curves["train"] else len(curves["train"])
            lowest, highest = min(lowest, *(y for _, y in points)), max(highest, *(y for _, y in points))
            if student == TEACHER and len(points) == 1:
                axes.axhline(points[0][1], color="gray", linestyle="--", label=TEACHER)
            else:
                axes.plot(*zip(*points, strict=True), color=f"C{number}", label=student)
        if 0 < lowest * LOG_RATIO <= highest:
            axes.set_yscale("log")
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    content = io.BytesIO()
    figure.savefig(content, dpi=110, format="png")
    return content.getvalue()
