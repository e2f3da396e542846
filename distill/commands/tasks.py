"""The commands around tasks: `distill tasks`, `finetune`, `predict`, `grid`, `clue`. Heavy imports stand inside."""

import functools
import math
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from distill.commands.models import Model
from distill.errors import InputError

DATA = "dataset/tasks"
OUTPUT = Path("saves/finetune")

Data = Annotated[
    str,
    typer.Option(
        help="folder with a folder for each task, the folder of one task, or hf:OWNER/NAME[:CONFIG]; "
        "hf: alone is each task's own dataset on the hub"
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(min=1, help="runs at a time, spread over the visible GPUs; default: one for each GPU, or 1"),
]
Output = Annotated[Path, typer.Option(help="folder; a run is OUTPUT/MODEL/TASK/HASH")]


def add_task_commands(app: typer.Typer) -> None:
    """Adds the commands to the main one."""
    for command in (tasks, finetune, predict, grid, clue):
        app.command()(command)


def tasks(
    name: Annotated[str | None, typer.Argument(help="print this task as JSON, to copy for your own")] = None,
) -> None:
    """List the known tasks, or print one.

    Of each: kind, metrics, text columns, where to get its data.
    """
    from distill.downstream.scores import Table, to_markdown
    from distill.downstream.task import all_tasks, load_task

    if name is not None:
        typer.echo(load_task(name).model_dump_json(indent=1))
        return
    rows = [(task.name, task.kind, ", ".join(task.metrics), task.describe_texts(), task.source) for task in all_tasks()]
    typer.echo(to_markdown(Table(("task", "kind", "metrics", "texts", "source"), tuple(rows))), nl=False)


def finetune(
    context: typer.Context,
    model: Model,
    task: Annotated[str, typer.Option(help="name of a task (see `distill tasks`), or JSON file of your own")],
    data: Data = DATA,
    output: Output = OUTPUT,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="seed of the new head, the order of the examples and dropout")
    ] = 0,
    learning_rate: Annotated[float | None, typer.Option(help="peak learning rate; default: the task's")] = None,
    epochs: Annotated[float | None, typer.Option(help="passes over train; default: the task's")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="examples in a step; default: the task's")] = None,
    max_length: Annotated[int | None, typer.Option(min=16, help="tokens of an example; default: the task's")] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="distil from this model, fine-tuned on the task: folder 'model' of its run")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="with --teacher: softens the scores of teacher and student; default: 4")
    ] = None,
    kd_weight: Annotated[
        float | None,
        typer.Option(
            min=0, help="with --teacher: weight of the KD term, which is multiplied by temperature^2; default: 1"
        ),
    ] = None,
    hard_weight: Annotated[
        float | None, typer.Option(min=0, help="with --teacher: weight of the labels; default: 1")
    ] = None,
    match: Annotated[
        list[str] | None,
        typer.Option(help="with --teacher: layer matches as in a recipe, e.g. uniform; repeatable; default: none"),
    ] = None,
    augment: Annotated[
        int | None,
        typer.Option(min=0, help="with --teacher: copies of each text with replaced tokens, labelled by the teacher"),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="processes that share the run's batches, each on its own GPU if there are any")
    ] = 1,
) -> None:
    """Fine-tune a model on a task with one seed.

    The best epoch on dev is kept, with its metrics and answers. With --teacher the model also learns from a fine-tuned
    teacher: from its scores, its layers (--match) and more texts (--augment).
    """
    from distill.downstream.grid import Run
    from distill.downstream.run import Distillation, model_name, run_folder, with_defaults
    from distill.downstream.search import finetune_run
    from distill.downstream.task import load_task
    from distill.downstream.task_data import load_task_data
    from distill.launch.processes import CHILD

    if "TORCHELASTIC_RUN_ID" in os.environ and CHILD not in os.environ:
        raise InputError(f"command line: start `distill finetune` without torchrun; --processes "
                         f"{os.environ.get('WORLD_SIZE', 'N')} does the same")  # fmt: skip
    for option, value in (("--learning-rate", learning_rate), ("--epochs", epochs), ("--temperature", temperature)):
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"command line: {option} must be a number above 0, found {value:g}")
    for option, value in (("--kd-weight", kd_weight), ("--hard-weight", hard_weight)):
        if value is not None and not math.isfinite(value):
            raise InputError(f"command line: {option} must be a number, found {value:g}")
    asked = {"temperature": temperature, "kd_weight": kd_weight, "hard_weight": hard_weight, "augment": augment,
             "matches": tuple(match) if match else None}  # fmt: skip
    given: dict[str, Any] = {field: value for field, value in asked.items() if value is not None}
    if given and teacher is None:
        option = next(iter(given)).replace("_", "-").replace("matches", "match")
        raise InputError(f"command line: --{option} needs a --teacher")
    chosen = load_task(task)
    hyperparameters = with_defaults(
        chosen, seed, learning_rate=learning_rate, epochs=epochs, batch_size=batch_size, max_length=max_length
    )
    load_task_data(chosen, data, ["dev"])  # what is wrong with the data is said before torch is imported
    from distill.downstream.task_model import check_model
    from distill.modeling.models import find_model
    from distill.places import check_writable

    folder = find_model(model)
    check_model(folder, hyperparameters.max_length)
    check_writable(output)
    distillation = None
    if teacher is not None:
        from distill.downstream.distillation import check_teacher

        distillation = Distillation(teacher, **given)
        check_teacher(distillation, folder, chosen)
    name = model_name(model, folder)
    place = run_folder(output, name, folder, chosen, data, hyperparameters, distillation)
    run = Run(name, folder, chosen, data, hyperparameters, place, keep_model=True, distillation=distillation)
    train = None
    if processes > 1:
        from distill.launch.shared_run import check_processes, train_as_child, train_in_processes

        if CHILD in os.environ:
            raise typer.Exit(train_as_child(run))
        check_processes(run, processes)
        train = functools.partial(train_in_processes, num_processes=processes, arguments=context.obj)
    found = finetune_run(run, show=lambda line: typer.echo(line, err=True), train=train)
    for split in ("dev", "test"):
        if split in found:
            typer.echo(f"{split}: {_told(found[split]['metrics'])} on {found[split]['num_examples']:,} examples")
    typer.echo(f"{place}: model/, metrics.json, predictions; best epoch {found['best_epoch']:g}")


def predict(
    model: Annotated[Path, typer.Argument(help="folder 'model' of a run of `distill finetune`")],
    output: Annotated[Path, typer.Option(help="file for the answers, one JSON object a line, in the rows' order")],
    data: Data = DATA,
    split: Annotated[str, typer.Option(help="split to answer")] = "test",
    rows: Annotated[
        str | None,
        typer.Option("--input", help="answer this file instead, in the task's format; - reads JSON lines from stdin"),
    ] = None,
    scores: Annotated[
        bool, typer.Option("--scores", help="also write probabilities and logits of labels or choices")
    ] = False,
    submission: Annotated[
        Path | None, typer.Option(help="also write the file to submit to CLUE or GLUE into this folder, and check it")
    ] = None,
) -> None:
    """Answer a split or a file with a fine-tuned model.

    If the labels are known, metrics are printed, too, and precision, recall and F1 of every label or entity type.
    """
    from distill.downstream.run import read_task_file
    from distill.downstream.submission import submission_file, write_submission
    from distill.downstream.task import SCORED_KINDS
    from distill.downstream.task_data import load_input, load_task_data
    from distill.places import check_writable, check_writable_file

    task, labels, _ = read_task_file(model)
    if scores and task.kind not in SCORED_KINDS:
        raise InputError(f"command line: --scores writes the scores of labels and choices, but {task.name} is a "
                         f"{task.kind} task; leave it out")  # fmt: skip
    if submission is not None:
        submission_file(submission, task)  # a task of no benchmark is said before torch is imported
        check_writable(submission)
    split = "input" if rows is not None else split
    found = load_input(task, rows, labels) if rows is not None else load_task_data(task, data, [split], labels=labels)
    check_writable_file(output)
    from distill.downstream.finetune import predict as answer
    from distill.downstream.finetune import write_records
    from distill.downstream.label_report import label_reports
    from distill.downstream.scores import to_markdown

    for line in found.splits[split].notes:
        typer.echo(f"{task.name}, {split}: {line}", err=True)
    records, metrics = answer(model, found, split, with_scores=scores)
    write_records(output, records)
    typer.echo(f"{output}: {len(records):,} answers" + (f"; {_told(metrics)}" if metrics else ""))
    examples = found.splits[split].examples
    for table in label_reports(task.kind, labels, examples, records) if metrics else ():
        typer.echo(to_markdown(table), nl=False)
    if submission is not None:
        path = write_submission(submission, task, records, [example.id for example in examples], labels)
        typer.echo(f"{path}: checked, {len(records):,} rows")


def grid(
    grid: Annotated[
        str, typer.Argument(help="minirbt, minirbt-teacher, uer, clue, clue-run, glue, sample, or a JSON file")
    ],
    model: Annotated[list[str], typer.Option(help="model folder or hub id; repeatable")],
    data: Data = DATA,
    output: Output = OUTPUT,
    task: Annotated[list[str] | None, typer.Option(help="only these tasks of the grid; repeatable")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="name of the model to compare the others with; default: the first")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="two models to compare in a table of their own, NAME:NAME; repeatable")
    ] = None,
    processes: Processes = None,
    ray: Annotated[
        str | None,
        typer.Option(help='work on this Ray cluster: its address, or "auto"; its machines must share all folders'),
    ] = None,
    keep_models: Annotated[bool, typer.Option("--keep-models", help="keep every run's weights")] = False,
    no_speed: Annotated[bool, typer.Option("--no-speed", help="do not time the models")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check everything and count the runs, but do none")
    ] = False,
) -> None:
    """Fine-tune models on tasks with every setting of a grid.

    Runs that are finished are not repeated. Tables compare the models; they are also written to OUTPUT/report, as
    Markdown, CSV, JSON and pictures.
    """
    from distill.corpus.ray_workers import check_ray
    from distill.downstream.grid import load_grid, with_tasks
    from distill.finetuning import Plan, check_plan, name_models, run_plan
    from distill.modeling.models import find_model
    from distill.places import check_writable
    from distill.recipe_tasks import Speed

    check_ray(ray)
    chosen = with_tasks(load_grid(grid), task or [])
    pairs = [pair.split(":") for pair in against or []]
    if any(len(pair) != 2 for pair in pairs):
        raise InputError(f"command line: --against {', '.join(against or [])}: expected two names, as in deep:shallow")
    if len(set(model)) < len(model):
        raise InputError("command line: one --model is given twice")
    models = name_models({name: find_model(name) for name in model})
    plan = Plan(
        chosen, models, data, output, output / "report", teacher or next(iter(models)), pairs, processes, keep_models,
        None if no_speed else Speed(), ray=ray,
    )  # fmt: skip
    check_writable(output)
    check_plan(plan)
    if dry_run:
        typer.echo(plan.describe())
        return
    tables, failed, _ = run_plan(plan, lambda line: typer.echo(line, err=True))
    typer.echo(tables)
    _leave_if(failed)


def clue(
    model: Model,
    data: Data = DATA,
    output: Annotated[
        Path, typer.Option(help="folder of the runs, with report/ for tables and submission/ for answers")
    ] = Path("saves/clue"),
    task: Annotated[list[str] | None, typer.Option(help="only these tasks; repeatable")] = None,
    grid: Annotated[str, typer.Option(help="settings: clue-run (CLUE's script), clue (its advice), or a JSON file")] = (
        "clue-run"
    ),
    processes: Processes = None,
) -> None:
    """Run the six tasks of CLUE's script and write the submissions.

    Of each run the best epoch on dev answers the test split.
    """
    from distill.downstream.grid import load_grid, with_tasks
    from distill.finetuning import Plan, check_plan, name_models, run_plan
    from distill.modeling.models import find_model
    from distill.places import check_writable

    models = name_models({model: find_model(model)})
    name = next(iter(models))
    plan = Plan(with_tasks(load_grid(grid), task or []), models, data, output, output / "report", name, (), processes,
                speed=None)  # fmt: skip
    check_writable(output)
    check_plan(plan)
    tables, failed, runs = run_plan(plan, lambda line: typer.echo(line, err=True))
    typer.echo(tables)
    from distill.downstream.submission import submit_best

    for line in submit_best(runs, output / "submission"):
        typer.echo(line)
    _leave_if(failed)


def _told(metrics: dict[str, float] | None) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in metrics.items()) if metrics else "no labels, not scored"


def _leave_if(failed: list[str]) -> None:
    """Exit code 1 if runs have failed, with a line about each."""
    for line in failed:
        typer.echo(f"error: {line}", err=True)
    if failed:
        raise typer.Exit(1)
