"""One to four processes, fp32 and bf16, with dropout: a run that is stopped goes on to the same weights, bit for bit,
and a student beside others has those of the one alone.

The processes are forks of this one, with gloo between them.
"""

import os
import socket

import pytest
import torch
import torch.utils.tensorboard  # noqa: F401  # once, not in each fork
from faults.disturbance import end, fork
from test_stage import ATTENTION, HIDDEN, LABELS, SPEED, make_paths, make_stage, metrics, weights
from tiny import NeverStop, StopBeforeStep

from distill.training.loop import StageStopped
from distill.training.metrics import StatusFile
from distill.training.processes import join_processes, leave_processes
from distill.training.stage import train_stage

pytestmark = pytest.mark.slow
STEPS = 5
STOPPED = 9


def in_processes(size, world, action, *, code=0):
    """Calls `action(processes)` in `size` processes that know of each other; all must end with that code."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def run(rank):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
        torch.set_num_threads(1)
        processes = join_processes()
        try:
            return action(processes)
        finally:
            leave_processes(processes)

    log = world / "log.txt"
    pids = [fork(lambda rank=rank: run(rank), log) for rank in range(size)]
    assert {end(pid) for pid in pids} == {code}, log.read_text()[-4000:]


def train_in(size, world, stage, output, *, stop_before=None, first_step=0):
    """Trains a stage in `size` processes, to the end or until before a step."""
    paths, names = make_paths(world, output), list(stage.students)

    def run(processes):
        stop = NeverStop() if stop_before is None else StopBeforeStep(stop_before, first_step)
        try:
            train_stage(stage, names, paths, dict.fromkeys(names, ""), processes, stop, StatusFile(paths.status))
        except StageStopped:
            return STOPPED
        return 0

    in_processes(size, world, run, code=0 if stop_before is None else STOPPED)
    return paths


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_stopped_run_is_bit_for_bit_the_one_that_was_not_stopped(world, size, precision):
    students = {"a": HIDDEN, "b": ATTENTION}
    stage = make_stage(students, steps=STEPS, global_batch_size=9, precision=precision, save_every=2, eval_every=STEPS)
    whole = train_in(size, world, stage, "whole")
    train_in(size, world, stage, "stopped", stop_before=4)
    stopped = train_in(size, world, stage, "stopped")
    assert weights(whole, "a") != weights(whole, "b")
    for name in students:
        assert weights(whole, name) == weights(stopped, name)
    assert metrics(whole) == metrics(stopped)


def test_at_three_processes_a_student_beside_others_is_bit_for_bit_the_one_alone(world):
    """gloo adds the parts of a buffer in an order that depends on where in the buffer they are."""
    students = {"a": LABELS, "b": HIDDEN, "c": ATTENTION}
    together = train_in(3, world, make_stage(students, global_batch_size=7), "together")
    alone = train_in(3, world, make_stage({"b": HIDDEN}, global_batch_size=7), "alone")
    assert weights(together, "b") == weights(alone, "b")


COUNTED = ("step", "samples", "tokens", "split", "student", "masked_tokens")


@pytest.mark.parametrize("sizes, micro_batches", [([2, 3, 1], [2, 2, 2]), ([4, 1, 2], [1, 9, 3])])
def test_processes_and_micro_batches_may_change_on_the_way(world, sizes, micro_batches):
    """Order and masks stay exactly; without dropout the losses differ by rounding alone."""

    def stage(micro_batch_size):
        return make_stage({"a": {**HIDDEN, "dropout": 0.0}}, steps=6, global_batch_size=9, eval_every=2,
                          micro_batch_size=micro_batch_size)  # fmt: skip

    whole = train_in(1, world, stage(3), "whole")
    for size, micro, before, first in zip(sizes, micro_batches, (3, 5, None), (0, 2, 4), strict=True):
        changed = train_in(size, world, stage(micro), "changed", stop_before=before, first_step=first)
    # What is measured of the terms' gradients belongs to the first process's first micro-batch.
    ours, theirs = ([line for line in metrics(paths) if line["split"] != "gradients"] for paths in (changed, whole))
    assert len(ours) == len(theirs) == 6 + 4  # steps, and dev before them and every other one
    for a, b in zip(ours, theirs, strict=True):
        assert {key: a.get(key) for key in COUNTED} == {key: b.get(key) for key in COUNTED}
        for key in a.keys() - {*COUNTED, *SPEED}:
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-6), (a["step"], key)
