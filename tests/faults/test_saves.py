"""SIGKILL before each call that one save of a checkpoint makes: every run goes on to the weights of an undisturbed one.

The stage has two students, is killed in the save of its last step or an earlier one, and is started again. All are
forks of this process.
"""

import os
import shutil
import signal

import pytest
import torch.utils.tensorboard  # noqa: F401  # once, not in each fork
from faults.disturbance import Disturbance, end, fork, kill_oneself
from test_stage import HIDDEN, LABELS, make_paths, make_stage, metrics, stop_before, train, weights

from distill.training import bookkeeping
from distill.training.checkpoint import find_damage, list_checkpoints

STUDENTS = {"a": HIDDEN, "b": LABELS}
FIRST, LAST = 1, 2  # a checkpoint is there already, and the save removes it afterwards
STAGE = make_stage(STUDENTS, steps=LAST, save_every=FIRST, micro_batch_size=4, keep_checkpoints=1)


def run(world, output):
    """Trains to the last step, from a checkpoint if there is one."""
    train(world, STAGE, output)


def run_disturbed(world, output, at, act=kill_oneself):
    """The same; `act` comes before the `at`-th call of the second save. Returns the calls it made."""
    calls = Disturbance(at, act, is_counting=False)
    save = bookkeeping.save_checkpoint

    def save_counting(folder, step, *arguments, **fields):
        calls.is_counting = step == LAST
        path = save(folder, step, *arguments, **fields)
        calls.is_counting = False
        return path

    bookkeeping.save_checkpoint = save_counting
    run(world, output)
    return calls.calls


@pytest.mark.slow
def test_a_run_killed_before_any_call_of_a_save_ends_with_the_same_weights(world, capsys):
    shutil.rmtree(world / "data" / "dev")  # to be quick
    log = world / "log.txt"
    reader, writer = os.pipe()
    assert end(fork(lambda: os.write(writer, bytes([run_disturbed(world, "whole", 0)])) and None, log)) == 0
    (calls,) = os.read(reader, 1)
    whole = make_paths(world, "whole")
    expected = {name: weights(whole, name) for name in STUDENTS}
    assert calls > 25 and len(set(expected.values())) == 2
    assert end(fork(lambda: stop_before(world, STAGE, "first", FIRST + 1) and None, log)) == 0
    for at in range(1, calls + 1):
        shutil.copytree(world / "first", world / "out")
        code = end(fork(lambda at=at: run_disturbed(world, "out", at) and None, log))
        assert code == -signal.SIGKILL, f"call {at}: {log.read_text()[-3000:]}"
        paths = make_paths(world, "out")
        sound = [path.name for path in list_checkpoints(paths.checkpoints) if find_damage(path) is None]
        assert sound and set(sound) <= {f"step-{FIRST:08d}", f"step-{LAST:08d}"}, f"call {at} left {sound}"
        assert end(fork(lambda: run(world, "out"), log)) == 0, f"after call {at}: {log.read_text()[-3000:]}"
        assert {name: weights(paths, name) for name in STUDENTS} == expected, f"call {at}"
        assert metrics(paths) == metrics(whole), f"call {at}"
        left = {path.name for path in paths.checkpoints.iterdir()} - {f"step-{FIRST:08d}"}
        assert left == {f"step-{LAST:08d}"}, f"call {at} left {left}"
        shutil.rmtree(world / "out")
    with capsys.disabled():
        print(f"\nkills in a save: {calls}, lost runs: 0, differing weights: 0")
