"""The commands that look at runs: `distill report`, `distill watch`; heavy imports inside."""

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(help="folder of a run: the output_dir of its recipe")]


def add_report_commands(app: typer.Typer) -> None:
    """Adds the commands to the main one."""
    app.command()(report)


def report(run: Run) -> None:
    """Write RUN/report/index.html: chain, results, curves, examples, data, time and configuration on one page.

    The page needs no network and opens from disk; curves are also written as PNG. It works while a run is going on and
    says what is not there yet; files that cannot be read are named on the page. A run writes it at its end by itself.
    """
    from distill.reporting import report_run

    page, problems = report_run(run)
    for problem in problems:
        typer.echo(f"warning: {problem}", err=True)
    typer.echo(f"report: {page}")
