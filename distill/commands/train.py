"""`distill train`: the stages of a recipe, one after the other."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

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


def add_train_command(app: typer.Typer) -> None:
    """Adds `train` to the commands."""
    app.command(context_settings=RECIPE_COMMAND)(train)


def train(
    context: typer.Context,
    recipe: RecipeFile,
    stage: Annotated[str | None, typer.Option(help="only this stage")] = None,
    dry_run: DryRun = False,
    show_recipe: Annotated[
        bool, typer.Option("--show-recipe", help="print the recipe with every value filled in, and end")
    ] = False,
    settings: Settings = None,
    allow_changes: AllowChanges = False,
    max_restarts: MaxRestarts = 0,
    plugin: Plugin = None,
) -> None:
    """Train the stages of a recipe, or continue where they stopped.

    --FIELD VALUE sets a field of stages or students everywhere: --steps 100, --learning-rate 1e-4. --output-dir sets
    the output folder. docs/recipe.md lists the fields. `python train.py` also takes MiniRBT's flags.

    Environment variables: NPROC, processes on this machine (default: one for each visible GPU, or 1). For several
    machines: NNODES, their number; NODE_RANK, the number of this one, from 0; MASTER_ADDR and MASTER_PORT of machine 0.
    """
    from distill.recipe_file import load_recipe

    check_recipe_first(recipe)
    loaded = load_recipe(recipe, parse_fields(context.args), settings or [])
    if stage is not None:
        loaded.stage(stage, where=str(recipe))  # an unknown name is said before torch is imported
    if show_recipe:
        typer.echo(loaded.model_dump_json(indent=1))
        return
    run_loaded_recipe(
        loaded, stage, dry_run, allow_changes=allow_changes, max_restarts=max_restarts, plugins=plugin or []
    )


def run_loaded_recipe(
    recipe: Any, stage: str | None, dry_run: bool, *, allow_changes: bool = False, max_restarts: int = 0,
    plugins: Sequence[Path] = (),
) -> None:  # fmt: skip
    """Runs a checked recipe as worker or as parent."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from distill.launch.processes import Cluster, is_worker

    if is_worker():
        if stage is None:
            raise InputError("under torchrun one stage is trained; name it with --stage, or start without torchrun")
        from distill.training.signals import StopRequest

        stop = StopRequest()  # before torch, which takes seconds to import
        from distill.training.plugins import load_plugins
        from distill.worker import run_worker

        load_plugins(plugins)
        raise typer.Exit(run_worker(recipe, stage, stop, allow_changes=allow_changes))
    from distill.pipeline import describe_plan, run_recipe
    from distill.training.plugins import load_plugins

    load_plugins(plugins)
    cluster = Cluster.from_environment()
    if dry_run:
        typer.echo(describe_plan(recipe, cluster, only_stage=stage, allow_changes=allow_changes))
        return
    run_recipe(
        recipe, cluster=cluster, only_stage=stage, show=typer.echo, allow_changes=allow_changes,
        max_restarts=max_restarts, plugins=plugins,
    )  # fmt: skip
