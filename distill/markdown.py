"""Tables in Markdown, whose source reads as a table, too, and the numbers in them."""

from collections.abc import Sequence


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with its columns aligned; a bar in a cell does not end it. No newline at the end."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (head, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    aligned = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in aligned)


def show_value(value: float | None, spec: str) -> str:
    """A value by a format specification, `-` for one that was not measured."""
    return "-" if value is None else format(value, spec)
