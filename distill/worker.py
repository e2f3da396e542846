"""One process of one stage: what `distill train RECIPE --stage NAME` is under our parent or a user's torchrun."""

import contextlib
import json
import os
import signal
import sys
import traceback
from contextlib import AbstractContextManager
from pathlib import Path

from distill.durable import write_json
from distill.errors import InputError, describe_os_error
from distill.json_file import read_json
from distill.launch.processes import CHILD, tell_failure
from distill.pipeline import (
    dataset_note,
    hand_over,
    missing_students,
    plan_checked,
    prepare_data,
    status_path,
)
from distill.recipe import Recipe, Stage
from distill.release.card import first_cards, minimal_card
from distill.release.run_folder import RunFolder
from distill.run.changes import find_changes, record_changes
from distill.run.planning import StagePlan, plan_recipe
from distill.run.status import Work, at_work
from distill.training.loop import StageStopped, TrainingFailed
from distill.training.metrics import StatusFile, read_status
from distill.training.processes import (
    Processes,
    do_on_first,
    is_lost_connection,
    is_out_of_memory,
    is_same_everywhere,
    join_processes,
    leave_processes,
)
from distill.training.signals import StopRequest, stop_without
from distill.training.stage import StagePaths, train_stage


def run_worker(recipe: Recipe, stage_name: str, stop: StopRequest, *, allow_changes: bool = False) -> int:
    """Trains one stage as one of its processes. Returns the exit code; what happened stands in the status file."""
    output = Path(recipe.output_dir)
    status = StatusFile(status_path(output, recipe.stage(stage_name), int(os.environ.get("GROUP_RANK", 0))))
    if CHILD in os.environ:
        stop_without(int(os.environ[CHILD]))
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        before = read_status(status.path)
        if before.get("is_final"):
            return int(before["exit_code"])  # it would end in the same way once more
        status.go_on(before)
    try:
        with _at_work_without_parent(output):
            return _train_stage(recipe, recipe.stage(stage_name), stop, status, allow_changes)
    except StageStopped as error:
        name = signal.Signals(error.signum).name
        status.write("stopped", message=f"stopped by {name} after step {error.step:,}; a checkpoint was written, the "
                     f"same command goes on from it", exit_code=128 + error.signum)  # fmt: skip
        return 128 + error.signum
    except InputError as error:
        _tell(status, str(error), 2, is_final=True)
        return 2
    except TrainingFailed as error:
        if str(error):  # the others' is empty
            _tell(status, f"stage '{stage_name}', {error}", 1, is_final=True)
        return 1
    except Exception as error:
        traceback.print_exc()
        _tell(status, _explain(error, stage_name), 1, is_lost=is_lost_connection(error))
        return 1


def _is_first() -> bool:
    """Whether this is the first process of all nodes."""
    return int(os.environ.get("RANK", 0)) == 0


def _stands_for_parent() -> bool:
    """Whether this process does what our parent would: the first one under a user's own torchrun."""
    return CHILD not in os.environ and _is_first()


def _train_stage(recipe: Recipe, stage: Stage, stop: StopRequest, status: StatusFile, allow_changes: bool) -> int:
    if _stands_for_parent():
        plan = plan_checked(recipe, [stage], allow_changes=allow_changes)[stage.name]
    else:
        plan = plan_recipe(recipe)[stage.name]
    students = missing_students(plan)
    if students:
        _train(recipe, plan, students, stop, status)
    if _is_first() or CHILD in os.environ and int(os.environ.get("LOCAL_RANK", 0)) == 0:
        steps = read_status(status.path).get("steps", 0)
        status.write("finished", message="", step=steps, steps=steps)
    return 0


def _at_work_without_parent(output: Path) -> AbstractContextManager[Work | None]:
    """Without our parent, the first process holds the lock of the run and says that it is there."""
    if _stands_for_parent():
        return at_work(output, lambda line: print(line, file=sys.stderr))
    return contextlib.nullcontext()


def _train(recipe: Recipe, plan: StagePlan, students: list[str], stop: StopRequest, status: StatusFile) -> None:
    cards = _write_cards(students, RunFolder(plan.output, recipe.model_dump()), status) if _is_first() else {}
    processes = join_processes()
    try:
        if CHILD not in os.environ:  # without our parent, the first process prepares the data
            do_on_first(lambda: _prepare(recipe, plan, students), processes)
        dataset = Path(read_json(dataset_note(plan))["path"])
        _check_agreement(recipe, plan, students, dataset, processes)
        paths = StagePaths(
            dataset=dataset, tokenizer=plan.tokenizer, teacher=plan.teacher.folder if plan.teacher else None,
            inits={name: model.folder for name, model in plan.inits.items()},
            stage=plan.folder, models=plan.output / "models",
        )  # fmt: skip
        train_stage(plan.stage, students, paths, cards, processes, stop, status)
    finally:
        with contextlib.suppress(RuntimeError):
            leave_processes(processes)


def _write_cards(students: list[str], run: RunFolder, status: StatusFile) -> dict[str, str]:
    """student -> its model card. A card is no reason to train nothing, whatever is in the files that it tells of."""
    try:
        return first_cards(students, run)
    except Exception as error:
        traceback.print_exc()
        status.note(f"the model cards hold the names alone until the next report ({type(error).__name__}: {error})")
        return {name: minimal_card(name) for name in students}


def _prepare(recipe: Recipe, plan: StagePlan, students: list[str]) -> None:
    packed = prepare_data(plan, show=lambda line: print(line, file=sys.stderr))
    record_changes(plan.output, find_changes(recipe, {plan.stage.name: plan}))
    write_json(plan.output / "recipe.json", recipe.model_dump())
    hand_over(plan, students, packed)


def _check_agreement(recipe: Recipe, plan: StagePlan, students: list[str], dataset: Path, processes: Processes) -> None:
    """InputError unless all processes are about to do the same: a file system may show machines different files."""
    if not is_same_everywhere(json.dumps([recipe.model_dump(), students, str(dataset)]), processes):
        raise InputError(
            f"stage '{plan.stage.name}': the processes see different recipes, students or datasets; start all nodes "
            f"with the same command, and let them share the output folder {recipe.output_dir}"
        )


def _tell(status: StatusFile, message: str, code: int, *, is_final: bool = False, is_lost: bool = False) -> None:
    """Says a failure to the parent, or on stderr where there is none; see launch.processes."""
    tell_failure(status, message, code, is_final=is_final, is_lost=is_lost)
    if _stands_for_parent():
        print(f"error: {message}", file=sys.stderr)


def _explain(error: Exception, stage: str) -> str:
    """One line for an unexpected error; out of memory names the field to lower."""
    text = _first_line(error)
    if is_out_of_memory(error):
        return (
            f"stage '{stage}': out of memory; lower micro_batch_size (which changes rounding and the draws of dropout "
            f"alone), or max_seq_length"
        )
    if is_lost_connection(error):
        return f"stage '{stage}': another process was lost; the same command goes on from the last checkpoint"
    if isinstance(error, OSError):
        said = describe_os_error(error) if error.strerror else text
        return f"stage '{stage}': {said}; the same command goes on when that is mended"
    return f"stage '{stage}': {type(error).__name__}: {text[:300]}"


def _first_line(error: Exception) -> str:
    """What an error says. One of a process that prepares batches comes as a traceback, whose last line it is."""
    lines = str(error).strip().splitlines() or [""]
    return lines[-1].partition(": ")[2] if " in DataLoader worker process " in lines[0] else lines[0]
