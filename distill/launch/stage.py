"""The processes of one stage: started by the parent, started again if they died, and their end in one line."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from distill.errors import InputError
from distill.launch.processes import OUT_OF_MEMORY, Cluster, Ended, Interrupted, StageFailed, run_to_end, torchrun


def run_stage_processes(
    recipe_file: Path, stage: str, *, cluster: Cluster, status_file: Path, log_file: Path, show: Callable[[str], None],
    lock: int | None = None, max_restarts: int = 0, plugins: Sequence[Path] = (),
    give_up: Callable[[], Exception | None] = lambda: None,
) -> None:  # fmt: skip
    """Runs `distill train RECIPE --stage NAME` in all processes of this node until it has finished.

    Args:
        lock: descriptor of the run's lock, which the processes hold, too.
        max_restarts: times to start again after processes died; several processes are started again by torchrun.
        plugins: files of a user's losses, which every process imports.
        give_up: why the processes should be ended before they have finished, asked now and then; None: they should not.
    Raises:
        InputError: the user's input was wrong.
        Interrupted: after SIGINT or SIGTERM, of this node or another.
        StageFailed: anything else, but for what `give_up` says.
    """
    own = [sys.executable, "-m", "distill", "train", str(recipe_file), "--stage", stage]
    own += [argument for plugin in plugins for argument in ("--plugin", str(plugin))]
    command = own if cluster.world_size == 1 else [*torchrun(cluster, max_restarts), *own[1:]]
    restarts = 0
    while True:
        ended = run_to_end(command, stage, cluster, status_file, log_file, show, lock=lock, give_up=give_up)
        try:
            return _tell_end(ended, stage, log_file)
        except StageFailed as error:
            if cluster.world_size > 1 or error.is_final or restarts >= max_restarts:
                raise
            restarts += 1
            show(f"{error}; starting again, {restarts} of {max_restarts}")


def _tell_end(ended: Ended, stage: str, log_file: Path) -> None:
    """Returns if the processes have finished; else raises as `run_stage_processes` does."""
    status, message = ended.status, ended.message
    if ended.signum:
        default = "has finished" if ended.is_finished else "was stopped, nothing of it is lost that a checkpoint holds"
        raise Interrupted(ended.signum, message or f"stage '{stage}' {default}; the same command goes on from there")
    if ended.is_finished:
        return
    if status.get("state") == "stopped":  # by a signal that another node received
        raise Interrupted(int(status["exit_code"]) - 128, message)
    if status.get("exit_code") == 2:
        raise InputError(message)
    if ended.reason:
        raise ended.reason
    if ended.dead and (not message or status.get("is_lost")):
        hint = ": lower micro_batch_size" if ended.dead.endswith(OUT_OF_MEMORY) else ""
        raise StageFailed(f"stage '{stage}': {ended.dead}{hint}; the same command goes on from the last checkpoint "
                          f"(details: {log_file})")  # fmt: skip
    if message:
        raise StageFailed(f"{message} (details: {log_file})", is_final=bool(status.get("is_final")),
                          is_lost=bool(status.get("is_lost")))  # fmt: skip
    raise StageFailed(
        f"stage '{stage}': a process ended with code {ended.code} without a message; see {log_file}", is_lost=True
    )
