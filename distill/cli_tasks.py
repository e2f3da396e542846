"""The commands around tasks: `distill tasks`, `finetune`, `predict`, `grid`. Heavy modules are imported inside."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from distill.errors import InputError

DATA = "dataset/tasks"
OUTPUT = Path("saves/finetune")


class Form(StrEnum):
    """What tables are printed as."""

    markdown = "markdown"
    csv = "csv"
    json = "json"


Data = Annotated[
    str, typer.Option(help="folder with a folder for each task, or the task's own, or hf:OWNER/NAME[:CONFIG]")
]
Output = Annotated[Path, typer.Option(help="runs go into OUTPUT/MODEL/TASK/HASH")]


def add_task_commands(app: typer.Typer) -> None:
    """Adds the commands to the main one."""
    for command in (tasks, finetune, predict, grid):
        app.command()(command)


def tasks(name: Annotated[str | None, typer.Argument(help="one task, as JSON; copy it for your own")] = None) -> None:
    """List the tasks that are known: kind, metrics, text columns, where their data can be had."""
    from distill.downstream.scores import Table, to_markdown
    from distill.downstream.task import all_tasks, load_task

    if name is not None:
        typer.echo(load_task(name).model_dump_json(indent=1))
        return
    rows = [(task.name, task.kind, ", ".join(task.metrics), task.describe_texts(), task.source) for task in all_tasks()]
    typer.echo(to_markdown(Table(("task", "kind", "metrics", "texts", "source"), tuple(rows))), nl=False)


def finetune(
    model: Annotated[str, typer.Argument(help="model folder or hub id")],
    task: Annotated[
        str, typer.Option(help="name of a task (see `distill tasks`), or a JSON file that describes yours")
    ],
    data: Data = DATA,
    output: Output = OUTPUT,
    seed: Annotated[int, typer.Option(min=0, help="decides the new head, the order of the examples, dropout")] = 0,
    learning_rate: Annotated[float | None, typer.Option(help="peak; default: the task's")] = None,
    epochs: Annotated[float | None, typer.Option(help="default: the task's")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="examples a step; default: the task's")] = None,
    max_length: Annotated[int | None, typer.Option(min=16, help="tokens; default: the task's")] = None,
) -> None:
    """Fine-tune a model on a task with one seed; the best epoch on dev stays, with its metrics and answers."""
    from distill.downstream.grid import Run, finetune_run
    from distill.downstream.run import run_folder, with_defaults
    from distill.downstream.task import load_task
    from distill.downstream.task_data import load_task_data

    for option, value in (("--learning-rate", learning_rate), ("--epochs", epochs)):
        if value is not None and not value > 0:
            raise InputError(f"command line: {option} must be above 0, found {value:g}")
    chosen = load_task(task)
    hyperparameters = with_defaults(
        chosen, seed, learning_rate=learning_rate, epochs=epochs, batch_size=batch_size, max_length=max_length
    )
    load_task_data(chosen, data, ["dev"])  # what is wrong with the data is said before torch is imported
    from distill.changes import check_writable
    from distill.downstream.task_model import check_model
    from distill.modeling.models import find_model

    folder = find_model(model)
    check_model(folder, hyperparameters.max_length)
    check_writable(output)
    place = run_folder(output, folder, chosen, data, hyperparameters)
    run = Run(folder, chosen, data, hyperparameters, place)
    found = finetune_run(run, keep_model=True, show=lambda line: typer.echo(line, err=True))
    for split in ("dev", "test"):
        if split in found:
            typer.echo(f"{split}: {_told(found[split]['metrics'])} on {found[split]['num_examples']:,} examples")
    typer.echo(f"{place}: model/, metrics.json, predictions; best epoch {found['best_epoch']:g}")


def predict(
    model: Annotated[Path, typer.Argument(help="folder 'model' that `distill finetune` left")],
    output: Annotated[Path, typer.Option(help="file for the answers, one JSON object a line")],
    data: Data = DATA,
    split: Annotated[str, typer.Option(help="split to answer")] = "test",
) -> None:
    """Answer a split with a fine-tuned model; measures it, too, where the labels are known."""
    from distill.downstream.finetune import predict as answer
    from distill.downstream.finetune import write_records
    from distill.downstream.run import read_task_file
    from distill.downstream.task_data import load_task_data

    task, labels, _ = read_task_file(model)
    found = load_task_data(task, data, [split], labels=labels)
    records, metrics = answer(model, found, split)
    write_records(output, records)
    typer.echo(f"{output}: {len(records):,} answers" + (f"; {_told(metrics)}" if metrics else ""))


def grid(
    grid: Annotated[str, typer.Argument(help="minirbt, minirbt-teacher, uer, clue, glue, sample, or a JSON file")],
    model: Annotated[list[str], typer.Option(help="model folder or hub id; repeatable")],
    data: Data = DATA,
    output: Output = OUTPUT,
    task: Annotated[list[str] | None, typer.Option(help="only these tasks of the grid; repeatable")] = None,
    teacher: Annotated[str | None, typer.Option(help="name of the model that the others are compared with")] = None,
    processes: Annotated[int, typer.Option(min=1, help="runs at a time")] = 1,
    keep_models: Annotated[bool, typer.Option("--keep-models", help="keep every run's weights")] = False,
    form: Annotated[Form, typer.Option("--format", help="what tables are printed as")] = Form.markdown,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything, count the runs, do none")] = False,
) -> None:
    """Fine-tune models on tasks with every hyper-parameter and seed of a grid, or go on; then print the tables."""
    from distill.downstream.grid import list_runs, load_grid, run_grid, with_tasks
    from distill.downstream.results import as_cells, best_results, details_table, read_runs
    from distill.downstream.scores import FORMATS, absolute_table, relative_table, rule_for
    from distill.downstream.task import load_task
    from distill.downstream.task_data import load_task_data

    chosen = with_tasks(load_grid(grid), task or [])
    for name in chosen.tasks:
        load_task_data(load_task(name), data, ["dev"])
    from distill.changes import check_writable
    from distill.downstream.task_model import check_model
    from distill.modeling.models import find_model

    folders = [find_model(name) for name in model]
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise InputError(f"command line: two models are named alike ({', '.join(names)}); rename a folder")
    if teacher is not None and teacher not in names:
        raise InputError(f"command line: --teacher {teacher} is none of the models: {', '.join(names)}")
    check_writable(output)
    runs = list_runs(chosen, folders, data, output)
    for folder, length in {(run.model, run.hyperparameters.max_length): None for run in runs}:
        check_model(folder, length)
    if dry_run:
        typer.echo(
            f"{len(runs)} runs: {len(folders)} model(s), {len(chosen.tasks)} task(s), {len(chosen.seeds)} seed(s)"
        )
        return
    failed = run_grid(runs, processes=processes, keep_models=keep_models, show=lambda line: typer.echo(line, err=True))
    results = best_results(read_runs(run.folder for run in runs))
    cells = as_cells(results)
    tables = {"results": absolute_table(cells, rule=rule_for(cells)), "details": details_table(results)}
    if teacher in cells:
        tables["relative"] = relative_table(cells, teacher)
    for table in tables.values():
        typer.echo(FORMATS[form.value](table))
    if failed:
        typer.echo("\n".join(f"error: {line}" for line in failed), err=True)
        raise typer.Exit(1)


def _told(metrics: dict[str, float] | None) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in metrics.items()) if metrics else "no labels, not scored"
