"""A look into a packed dataset as one HTML file: no network, no script, light and dark."""

from html import escape
from pathlib import Path

from distill.corpus.inspection import MASK_PROBABILITY, Inspection, ShownRow, ShownToken
from distill.corpus.statistics import Statistics, figures
from distill.durable import write_whole

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --paper: #fdfdfb; --soft: #6b6b70; --line: #d9d9d4; --bar: #5b84b1; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ea; --paper: #18181a; --soft: #9a9aa0; --line: #3a3a3e;
  --bar: #7ba6d6; } }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.9 system-ui, "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
.small { color: var(--soft); font-size: .85em; }
table { border-collapse: collapse; } td, th { text-align: left; padding: 0 1rem 0 0; font-weight: normal; }
th { color: var(--soft); } .bar { display: inline-block; height: .7em; background: var(--bar); }
.tokens span { display: inline-block; margin-right: 1rem; }
"""
ROW_STYLE = """
:root { --masked: #f6c9c4; --replaced: #f5e2a0; --kept: #c4e6c4; }
@media (prefers-color-scheme: dark) { :root { --masked: #7c2d26; --replaced: #6b5512; --kept: #24592b; } }
p.row { margin: .3rem 0; overflow-wrap: anywhere; }
.w { border-left: 1px solid var(--line); padding: 0 .12em; }
.special { color: var(--soft); font-size: .85em; }
.unknown { color: var(--soft); text-decoration: wavy underline; }
.masked { background: var(--masked); } .replaced { background: var(--replaced); } .kept { background: var(--kept); }
.masked, .replaced, .kept { border-radius: .2em; padding: 0 .1em; }
.replaced ins { text-decoration: none; font-weight: 600; } .replaced ins::before { content: "\\2192"; }
.d::before { content: "\\00b6"; color: var(--bar); font-weight: 600; }
"""
"""What `row_html` and `legend_html` need, besides the colours --ink, --soft, --line and --bar of the page."""


def write_page(inspection: Inspection, file: Path) -> None:
    """Writes the page; whole or, if the disk fails, not at all."""
    write_whole(file, page(inspection))


def page(inspection: Inspection) -> str:
    """The HTML text."""
    title = f"Packed dataset {escape(inspection.dataset)}"
    rows = "".join(
        f"<h2>{escape(inspection.split)} row {row.number:,}</h2>\n{row_html(row)}\n" for row in inspection.rows
    )
    statistics = "".join(_statistics(split, of_split) for split, of_split in inspection.statistics.items())
    return (
        f'<!doctype html>\n<html lang="zh">\n<head><meta charset="utf-8"><title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}{ROW_STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n"
        f"<p>One draw of whole-word masks, {MASK_PROBABILITY:.0%}: {legend_html()}</p>\n{rows}{statistics}"
        "</body>\n</html>\n"
    )


def legend_html() -> str:
    """What the colours and signs of `row_html` mean."""
    names = " ".join(
        f'<span class="{name}" style="margin-right:1rem">{name}{extra}</span>'
        for name, extra in (("masked", ""), ("replaced", "<ins>by</ins>"), ("kept", ""), ("unknown", ""))
    )
    return f'{names} <span class="w">word</span> <span class="d"></span> a document begins'


def row_html(row: ShownRow) -> str:
    """A row's tokens as a paragraph, words apart and masks in colour."""
    parts: list[str] = []
    is_open = False
    for token in row.tokens:
        if token.starts_word or token.starts_document or not is_open:
            begin = '<span class="w d">' if token.starts_document else '<span class="w">'
            parts.append(("</span>" if is_open else "") + begin)
            is_open = True
        parts.append(_token(token))
    parts.append("</span>" if is_open else "")
    return f'<p class="row">{"".join(parts)}</p>'


def _token(token: ShownToken) -> str:
    text = escape(token.text)
    if token.fate == "plain":
        return text
    added = f"<ins>{escape(token.replacement)}</ins>" if token.replacement is not None else ""
    return f'<span class="{token.fate}" title="{token.fate}">{text}{added}</span>'


def _statistics(split: str, statistics: Statistics) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>\n" for name, value in figures(statistics))
    rows += "".join(
        f'<tr><th>{escape(name)}</th><td><span class="bar" style="width:{12 * share:.2f}rem"></span> {share:.1%}</td>'
        "</tr>\n"
        for name, share in statistics.scripts.items()
    )
    tokens = "".join(
        f'<span>{escape(token)} <span class="small">{share:.1%}</span></span>' for token, share in statistics.frequent
    )
    return (
        f"<h2>{escape(split)}</h2>\n<table>\n{rows}</table>\n"
        f'<p class="tokens"><span class="small">frequent tokens</span> {tokens}</p>\n'
    )
