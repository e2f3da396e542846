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
    """Write RUN/report/index.html: chain, results, curves, examples, data, time and configuration on one page.

    The page needs no network and opens from disk; curves are also written as PNG. It works while a run is going on and
    says what is not there yet; files that cannot be read are named on the page. A run writes it at its end by itself.
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
    once: Annotated[bool, typer.Option("--once", help="print the state once as JSON, for scripts, and leave")] = False,
) -> None:
    """Watch a run in the terminal: stages, steps, time left, losses, dev measurements, tokens/s, messages.

    It reads the run's files alone, so that it can be started and ended at any time, on any machine that sees the
    folder. It ends with the run (exit code 1 where that failed, was stopped or killed), and with Ctrl-C. --once prints
    {"state", "doing", "message", "stages", "tasks"}, where state is preparing, running, silent (no word for minutes),
    stopped, failed or finished.
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
    repo_id: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub; made if it is not there")],
    private: Annotated[bool, typer.Option("--private", help="a repository that is made is private")] = False,
) -> None:
    """Upload a model folder with its card to the Hugging Face Hub in one commit.

    Read its README.md first: it says what it was made of, and you choose its licence. The token is that of `hf auth
    login` or HF_TOKEN; HF_ENDPOINT names another server.
    """
    from distill.publishing import push_model

    typer.echo(push_model(model, repo_id, private=private))
