"""Charts as inline SVG. Colours are the page's (`--c0` to `--c7`, `--heat`): they follow its light or dark scheme.

Places are pixels of a drawing that is WIDTH wide and that the page scales to its column.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 24
NUM_COLOURS = 8
MOST_POINTS = 240
"""Of a line; neighbours are averaged where there are more."""
MOST_DOTS = 30
"""Lines of up to so many points show each of them, with its value."""
MOST_TICKS = 5
LOG_RATIO = 30
"""A positive quantity whose largest value is so many times its smallest gets a logarithmic axis."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """A drawing and what its colours mean."""

    svg: Markup
    legend: list[tuple[str, str]]
    """Name -> CSS class."""


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` on the pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def place(self, value: float) -> float:
        low, high, value = (math.log(v) if self.is_log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """About MOST_TICKS round numbers within the axis."""
        if self.is_log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for factors in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
                found = [f * 10.0**p for p in powers for f in factors if self.low <= f * 10.0**p <= self.high]
                if len(found) >= 3:
                    return found if len(found) <= MOST_TICKS + 2 else found[:: -(-len(found) // MOST_TICKS)]
        span = self.high - self.low
        unit = 10.0 ** math.floor(math.log10(span / MOST_TICKS))
        step = next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= MOST_TICKS)
        first = math.ceil(self.low / step - 1e-9)
        return [round(i * step, 12) for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def line_chart(
    series: Mapping[str, Points], *, percent: bool = False, from_zero: bool = False, mark: str = ""
) -> Chart | None:
    """Lines over steps; None if there is nothing to draw. Values that are no numbers are left out.

    Args:
        mark: the series that the others are compared with; it takes no colour of its own.
        percent: values are shares, shown as percent.
        from_zero: the axis of values begins at 0.
    """
    lines = {name: thin_out([p for p in points if math.isfinite(p[1])]) for name, points in series.items()}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return None
    x_axis = Axis(*_widened([x for points in lines.values() for x, _ in points], margin=0), LEFT, WIDTH - RIGHT)
    y_axis = _value_axis([y for points in lines.values() for _, y in points], from_zero=from_zero)
    parts = [_frame(x_axis, y_axis, percent=percent)]
    legend = []
    numbers = {name: number for number, name in enumerate(name for name in lines if name != mark)}
    for name, points in lines.items():
        style = "ref dash" if name == mark else _colour(numbers[name])
        legend.append((name, style))
        path = " ".join(f"{x_axis.place(x):.2f},{y_axis.place(y):.1f}" for x, y in points)
        parts.append(Markup('<polyline class="line {}" data-name="{}" points="{}"/>').format(style, name, path))
        if len(points) <= MOST_DOTS:
            parts += [_dot(x_axis.place(x), y_axis.place(y), style, f"{name}, {x:,g}: {show(y, percent=percent)}", 2.2)
                      for x, y in points]  # fmt: skip
    # The page's script reads values back from places, for the pointer.
    axes = json.dumps({"x": asdict(x_axis), "y": asdict(y_axis), "percent": percent})
    parts.append(Markup('<line class="cross" y1="{}" y2="{}"/>').format(TOP, HEIGHT - BOTTOM))
    return Chart(_svg(parts, HEIGHT, ", ".join(lines), axes), legend)


def scatter_chart(points: Mapping[str, tuple[float, float]]) -> Chart | None:
    """A named dot each: x is positive and has a logarithmic axis, y is a percentage. What is no number is left out."""
    points = {name: place for name, place in points.items() if all(map(math.isfinite, place))}
    if not points:
        return None
    xs = [x for x, _ in points.values()]
    x_axis = Axis(min(xs) / 1.6, max(xs) * 1.6, LEFT, WIDTH - RIGHT, is_log=True)
    low, high = _widened([y for _, y in points.values()], margin=0.12)
    y_axis = Axis(low, high, HEIGHT - BOTTOM, TOP)
    parts = [_frame(x_axis, y_axis, percent=False)]
    taken: list[tuple[float, float, float, float]] = []
    places = {name: (x_axis.place(x), y_axis.place(y)) for name, (x, y) in points.items()}
    taken += [(x - 4, y - 4, x + 4, y + 4) for x, y in places.values()]
    for number, (name, (x, y)) in enumerate(places.items()):
        value = points[name]
        parts.append(_dot(x, y, f"c{number % NUM_COLOURS}", f"{name}: {show(value[0])}, {show(value[1])}", 4.5))
        left, base = _place_label(name, x, y, taken)
        parts.append(Markup('<text class="name" x="{:.1f}" y="{:.1f}">{}</text>').format(left, base, name))
    return Chart(_svg(parts, HEIGHT, ", ".join(points)), [])


def heat_chart(matrix: Sequence[Sequence[float | None]], pairs: Sequence[Sequence[int]]) -> Chart | None:
    """Values from 0 to 1 or None, rows from the top; the cells (row, column) of `pairs` have a frame."""
    if not matrix or not matrix[0]:
        return None
    across, down = min(52.0, (WIDTH - 34) / len(matrix[0])), 22
    height = 24 + down * len(matrix)
    marked = {tuple(pair) for pair in pairs}
    parts = [Markup('<text class="tick" x="{:.1f}" y="14" text-anchor="middle">{}</text>').format(
        34 + across * (column + 0.5), column) for column in range(len(matrix[0]))]  # fmt: skip
    for row, values in enumerate(matrix):
        y = 20 + down * row
        parts.append(Markup('<text class="tick" x="26" y="{}" text-anchor="end">{}</text>').format(y + 15, row))
        for column, value in enumerate(values):
            style = "heat pair" if (row, column) in marked else "heat"
            x = 34 + across * column
            parts.append(Markup(
                '<rect class="{}" x="{:.1f}" y="{}" width="{:.1f}" height="{}" rx="2" fill-opacity="{:.3f}"/>'
                '<text class="cell" x="{:.1f}" y="{}">{}</text>'
            ).format(style, x + 1, y + 1, across - 2, down - 2, 0.8 * min(max(value or 0.0, 0.0), 1.0) ** 2,
                     x + across / 2, y + 15, "-" if value is None else f"{100 * value:.0f}"))  # fmt: skip
    return Chart(_svg(parts, height, f"{len(matrix)} x {len(matrix[0])}"), [])


def encoder_drawing(layers: int, width: int, *, most_layers: int, most_width: int) -> Markup:
    """An encoder to scale: a bar a layer, as long as the model is wide."""
    pitch = min(7.0, 60 / max(most_layers, 1))
    bars = [
        Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="1"/>').format(
            32 - 30 * width / most_width, 62 - pitch * (i + 1), 60 * width / most_width, pitch * 0.7)
        for i in range(layers)
    ]  # fmt: skip
    return Markup('<svg class="encoder" viewBox="0 0 64 64" aria-hidden="true">{}</svg>').format(Markup("").join(bars))


def show(value: float, *, percent: bool = False) -> str:
    """A value in few characters: 12.3k, 5.12, 1.5e-06, 45.1%."""
    if percent:
        return f"{100 * value:.3g}%"
    size = abs(value)
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{value / unit:.4g}{letter}"
    return f"{value:.4g}"


def thin_out(points: Points) -> list[tuple[float, float]]:
    """At most MOST_POINTS, each the mean of neighbours at the last one's place."""
    size = -(-len(points) // MOST_POINTS)
    if size <= 1:
        return list(points)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _widened(values: Sequence[float], *, margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * margin or (0.0 if high > low else max(abs(high), 1e-9) * 0.1)
    return low - room, high + room


def _value_axis(values: Sequence[float], *, from_zero: bool) -> Axis:
    low, high = _widened(values, margin=0.06)
    if from_zero and min(values) >= 0:
        return Axis(0.0, high if high > 0 else 1.0, HEIGHT - BOTTOM, TOP)
    if min(values) > 0 and max(values) / min(values) >= LOG_RATIO:
        return Axis(min(values) / 1.1, max(values) * 1.1, HEIGHT - BOTTOM, TOP, is_log=True)
    return Axis(low, high, HEIGHT - BOTTOM, TOP)


def _frame(x_axis: Axis, y_axis: Axis, *, percent: bool) -> Markup:
    """Grid lines and their numbers."""
    parts = []
    for tick in y_axis.ticks():
        y = y_axis.place(tick)
        parts.append(Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>'
            '<text class="tick" x="{}" y="{base:.1f}" text-anchor="end">{}</text>'
        ).format(LEFT, WIDTH - RIGHT, LEFT - 6, show(tick, percent=percent), y=y, base=y + 4))  # fmt: skip
    for tick in x_axis.ticks():
        x = x_axis.place(tick)
        anchor = "end" if x > WIDTH - RIGHT - 12 else "middle"
        parts.append(Markup(
            '<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{}" y2="{}"/>'
            '<text class="tick" x="{x:.1f}" y="{}" text-anchor="{}">{}</text>'
        ).format(HEIGHT - BOTTOM, HEIGHT - BOTTOM + 4, HEIGHT - 6, anchor, show(tick), x=x))  # fmt: skip
    return Markup("").join(parts)


def _colour(number: int) -> str:
    return f"c{number % NUM_COLOURS}" + (" dash" if number // NUM_COLOURS % 2 else "")


def _dot(x: float, y: float, style: str, title: str, radius: float) -> Markup:
    return Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}</title></circle>').format(
        style, x, y, radius, title
    )


def _place_label(name: str, x: float, y: float, taken: list[tuple[float, float, float, float]]) -> tuple[float, float]:
    """Left end and base line of a dot's name, where it covers nothing if that is possible; `taken` grows by it."""
    width = 7 * sum(1 if ord(c) < 0x2E80 else 2 for c in name)
    choices = [(x + 7, y + 4), (x - 7 - width, y + 4), (x - width / 2, y - 8), (x - width / 2, y + 17),
               (x + 7, y + 16), (x - 7 - width, y + 16), (x + 7, y - 8), (x - 7 - width, y - 8)]  # fmt: skip
    inside = [(a, b) for a, b in choices if a >= LEFT and a + width <= WIDTH - 2] or choices[:1]
    for left, base in inside:
        box = (left, base - 11, left + width, base + 3)
        if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            break
    else:
        left, base = inside[0]
    taken.append((left, base - 11, left + width, base + 3))
    return left, base


def _svg(parts: Sequence[Markup], height: float, label: str, axes: str = "") -> Markup:
    data = Markup(' data-axes="{}"').format(axes) if axes else ""
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}"{}>{}</svg>').format(
        WIDTH, height, label, data, Markup("").join(parts)
    )
