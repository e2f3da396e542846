"""The commands that look at runs and publish models: `distill report`, `watch`, `push`; heavy imports inside."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

LOOK_SECONDS = 1.0
Run = Annotated[Path, typer.Argument(help="folder of a run: the output_dir of its recipe")]


def add_report_commands(app: typer.Typer) -> None:
    """Adds the commands to the main one."""
    app.command()(report)
    app.command()(watch)
    app.command()(push)


def report(run: Run) -> None:
    """Write the report of a run, an HTML page.

    RUN/report/index.html shows chain, results, curves, examples, data, time and configuration. It needs no network;
    curves are also written as PNG. It can be made during a run, and says what is not there yet or cannot be read. A run
    writes it at its end by itself.
    """
    from distill.release.run_folder import open_run

    open_run(run)  # what is no run is said before torch is imported
    from distill.reporting import report_run

    page, problems = report_run(run)
    for problem in problems:
        typer.echo(f"warning: {problem}", err=True)
    typer.echo(f"report: {page}")


def watch(
    run: Run,
    once: Annotated[bool, typer.Option("--once", help="print the state once, as JSON, and end")] = False,
) -> None:
    """Watch a run in the terminal.

    Shows stages, steps, time left, losses, dev measurements, tokens/s and messages. It only reads the run's files, so
    it can be started and ended at any time, on any machine that sees the folder. It ends with Ctrl-C or with the run;
    exit code 1 if that failed, was stopped or killed.

    --once prints {"state", "doing", "message", "stages", "tasks"}, where state is preparing, running, silent (no news
    for minutes), stopped, failed or finished.
    """
    from rich.console import Console
    from rich.live import Live

    from distill.release.watching import Watch, draw

    watched = Watch(run)
    view = watched.look()
    if once:
        typer.echo(json.dumps(view, ensure_ascii=False, indent=1))
        return
    # Nothing else is printed meanwhile; what Ctrl-C has to say while the view opens goes to stderr all the same.
    with Live(
        draw(view, run), console=Console(), auto_refresh=False, redirect_stdout=False, redirect_stderr=False
    ) as live:
        while view["state"] not in ("finished", "failed", "stopped"):
            time.sleep(LOOK_SECONDS)
            view = watched.look()
            live.update(draw(view, run), refresh=True)
    if view["state"] != "finished":
        raise typer.Exit(1)


def push(
    model: Annotated[Path, typer.Argument(help="model folder, e.g. saves/my-run/models/NAME")],
    repo_id: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub; created if missing")],
    private: Annotated[bool, typer.Option("--private", help="create the repository as private")] = False,
) -> None:
    """Upload a model folder with its card to the Hugging Face Hub.

    Read its README.md first and choose a licence. The token comes from `hf auth login` or HF_TOKEN; HF_ENDPOINT names
    another server.
    """
    from distill.commands.publishing import push_model

    typer.echo(push_model(model, repo_id, private=private))
