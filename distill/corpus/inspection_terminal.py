"""A look into a packed dataset as coloured text; every colour has a sign beside it, for pipes and for all eyes."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from distill.corpus.inspection import MASK_PROBABILITY, Inspection, ShownRow, ShownToken
from distill.corpus.statistics import Statistics, figures

STYLES = {
    "plain": "",
    "special": "dim",
    "unknown": "bold magenta",
    "masked": "bold white on red",
    "replaced": "bold black on yellow",
    "kept": "bold black on green",
}


def print_inspection(inspection: Inspection, console: Console) -> None:
    """Rows, legend and statistics on the console."""
    console.print(legend())
    for row in inspection.rows:
        console.print(Text(f"\n{inspection.split} row {row.number:,}", style="bold"))
        console.print(row_text(row))
    for split, statistics in inspection.statistics.items():
        console.print()
        console.print(_table(split, statistics))
    console.print()


def legend() -> Text:
    """What the signs mean."""
    text = Text(f"one draw of whole-word masks, {MASK_PROBABILITY:.0%}: ")
    for sample in (
        ShownToken("masked", "masked", None, True, False),
        ShownToken("replaced", "replaced", "by", True, False),
        ShownToken("kept", "kept", None, True, False),
    ):
        text.append_text(token_text(sample)).append("  ")
    return text.append("| word border  ").append("\u00b6", style="bold cyan").append(" a document begins")


def row_text(row: ShownRow) -> Text:
    """The row in one paragraph, with a border before each word."""
    text = Text()
    for place, token in enumerate(row.tokens):
        if token.starts_document:
            text.append("\u00b6", style="bold cyan")
        elif token.starts_word and place:
            text.append("|", style="dim")
        text.append_text(token_text(token))
    return text


def token_text(token: ShownToken) -> Text:
    """[masked], {replaced>by}, <kept>."""
    written = {
        "masked": f"[{token.text}]",
        "replaced": f"{{{token.text}>{token.replacement}}}",
        "kept": f"<{token.text}>",
    }.get(token.fate, token.text)
    return Text(written, style=STYLES[token.fate])


def _table(split: str, statistics: Statistics) -> Table:
    table = Table(title=split, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in figures(statistics):
        table.add_row(name, Text(value))
    shares = ", ".join(f"{name} {share:.1%}" for name, share in statistics.scripts.items() if share)
    table.add_row("scripts", Text(shares))
    table.add_row("frequent tokens", Text("  ".join(f"{token} {share:.1%}" for token, share in statistics.frequent)))
    return table
