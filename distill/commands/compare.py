"""`distill compare`: variations of one student of a recipe, trained side by side."""

import os
from pathlib import Path
from typing import Annotated

import typer

from distill.commands.fields import (
    RECIPE_COMMAND,
    AllowChanges,
    DryRun,
    MaxRestarts,
    Plugin,
    RecipeFile,
    Settings,
    check_recipe_first,
    parse_fields,
)
from distill.errors import InputError

Vary = Annotated[
    list[str] | None,
    typer.Option(help="student field and its values, FIELD=V1,V2,...; repeatable: every combination is trained"),
]


def add_compare_command(app: typer.Typer) -> None:
    """Adds `compare` to the commands."""
    app.command(context_settings=RECIPE_COMMAND)(compare)


def compare(
    context: typer.Context,
    recipe: RecipeFile,
    vary: Vary = None,
    stage: Annotated[str | None, typer.Option(help="stage to vary; default: the last one with a teacher")] = None,
    student: Annotated[str | None, typer.Option(help="student to vary; default: the stage's first")] = None,
    at_once: Annotated[
        int | None, typer.Option(min=1, help="train this many variations in one pass, to save memory; default: all")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="folder of the comparison; default: compare/ in the recipe's output folder")
    ] = None,
    dry_run: DryRun = False,
    settings: Settings = None,
    allow_changes: AllowChanges = False,
    max_restarts: MaxRestarts = 0,
    plugin: Plugin = None,
) -> None:
    """Train variations of a student in one pass and compare them.

    All learn from one teacher and the same tokens. --vary method=minirbt,distilbert,pkd --vary seed=0,1,2 trains nine
    students. --FIELD VALUE sets a field of the stage, as for train (--steps 2000), but not of earlier stages. See
    docs/methods.md.
    """
    from distill.compare import describe_comparison, plan_comparison, run_comparison
    from distill.launch.processes import Cluster, is_worker
    from distill.training.plugins import load_plugins

    check_recipe_first(recipe)
    if is_worker():
        raise InputError("compare starts its own processes; start it without torchrun, with NPROC in the environment")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    load_plugins(plugin or [])
    comparison = plan_comparison(
        recipe, vary or [], stage_name=stage, student_name=student, output=output,
        overrides=parse_fields(context.args), settings=settings or [],
    )  # fmt: skip
    cluster = Cluster.from_environment()
    if dry_run:
        typer.echo(describe_comparison(comparison, cluster))
        return
    run_comparison(
        comparison, cluster=cluster, at_once=at_once, show=typer.echo, allow_changes=allow_changes,
        max_restarts=max_restarts, plugins=plugin or [],
    )  # fmt: skip
