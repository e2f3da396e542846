"""Launchers of several machines: what they believe of each other's files, and two of them on one run for real."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from test_processes import LIMIT_S, finish, start_command, write_recipe

from distill.errors import InputError
from distill.launch.interruption import Terminated
from distill.launch.nodes import Follower, Leader
from distill.launch.processes import StageFailed
from distill.training.metrics import read_status

RECIPE = "the recipe"
QUICK = {"beat_seconds": 0.02, "silence_seconds": 30.0, "reason_seconds": 0.5}
IMPATIENT = {**QUICK, "silence_seconds": 3.0}  # a busy machine holds a beat back for a second now and then


def until(condition, *, limit_s=10):
    """The first true answer of `condition`, which must come soon."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def test_turns_reach_a_follower_in_order_each_once(tmp_path):
    with Leader(tmp_path, 2, **QUICK) as leader, Follower(tmp_path, 1, **QUICK) as follower:
        leader.hand_over("one", ["a", "b"], RECIPE)
        turn = follower.next_turn(RECIPE)
        assert (turn.stage, turn.students) == ("one", ["a", "b"])
        leader.hand_over("two", ["c"], RECIPE)
        assert until(follower.failure).is_lost, "the first turn is over"
        assert follower.next_turn(RECIPE).stage == "two"
        assert follower.failure() is None and leader.failure() is None
        leader.__exit__(None, None, None)
        assert follower.next_turn(RECIPE) is None


@pytest.mark.parametrize("state", ["training", "finished", "failed"])
def test_what_an_earlier_run_left_is_not_believed(tmp_path, state):
    with Leader(tmp_path, 2, **QUICK) as earlier:
        earlier.hand_over("one", ["old"], RECIPE)
    path = tmp_path / "nodes" / "node-0.json"
    note = {**json.loads(path.read_text()), "state": state, "message": "old", "exit_code": 1}
    path.write_text(json.dumps(note))
    with Follower(tmp_path, 1, **IMPATIENT) as follower:
        with pytest.raises(StageFailed, match="node 0: no sign of life .* NODE_RANK=0, the same command"):
            follower.next_turn(RECIPE)
        with Leader(tmp_path, 2, **QUICK) as leader:
            leader.hand_over("one", ["new"], RECIPE)
            follower.others[0].expect()
            assert follower.next_turn(RECIPE).students == ["new"]


@pytest.mark.parametrize(
    "error, kind, message",
    [(InputError("no text"), InputError, "no text"), (StageFailed("it broke"), StageFailed, "it broke"),
     (Terminated(15), StageFailed, "stopped by a signal")],
)  # fmt: skip
def test_a_leader_that_fails_before_any_turn_takes_its_followers_along(tmp_path, error, kind, message):
    with Follower(tmp_path, 1, **QUICK) as follower:
        with pytest.raises(type(error)), Leader(tmp_path, 2, **QUICK):
            until(lambda: follower.others[0].said)
            raise error
        with pytest.raises(kind, match=f"^node 0: {message}$"):
            follower.next_turn(RECIPE)


@pytest.mark.parametrize("error, kind", [(StageFailed("it broke"), StageFailed), (InputError("bad"), InputError)])
def test_a_follower_that_fails_ends_the_turn_with_its_words_and_not_the_next_one(tmp_path, error, kind):
    with Leader(tmp_path, 3, **QUICK) as leader:
        with Follower(tmp_path, 1, **QUICK) as one, Follower(tmp_path, 2, **QUICK) as two:
            leader.hand_over("one", ["a"], RECIPE)
            one.next_turn(RECIPE), two.next_turn(RECIPE)
            two.say_failed(error)
            found = until(leader.failure)
            assert isinstance(found, kind) and str(found) == f"node 2: {error}"
            assert str(leader.explain(StageFailed("a process was lost", is_lost=True))) == f"node 2: {error}"
            assert str(leader.explain(StageFailed("own reason"))) == "own reason"
            leader.hand_over("one", ["a"], RECIPE)
            assert leader.failure() is None
            two.next_turn(RECIPE)


def test_a_lost_process_that_nobody_explains_stays_as_it_is(tmp_path):
    with Leader(tmp_path, 2, **QUICK) as leader, Follower(tmp_path, 1, **QUICK) as follower:
        leader.hand_over("one", ["a"], RECIPE)
        follower.next_turn(RECIPE)
        lost = StageFailed("a process was lost", is_lost=True)
        assert leader.explain(lost) is lost


@pytest.mark.slow
def test_a_node_that_never_came_or_falls_silent_ends_the_turn(tmp_path):
    with Leader(tmp_path, 3, **IMPATIENT) as leader, Follower(tmp_path, 1, **IMPATIENT) as follower:
        time.sleep(3.2)  # preparing may take longer than a node may be silent
        leader.hand_over("one", ["a"], RECIPE)
        assert leader.failure() is None
        assert "node 2: no sign of life" in str(until(leader.failure))
        follower.next_turn(RECIPE)
        leader._ended.set()  # as if the machine had gone
        assert "node 0: no sign of life" in str(until(follower.failure))


def test_a_node_with_another_recipe_is_refused(tmp_path):
    with Leader(tmp_path, 2, **QUICK) as leader:
        with pytest.raises(InputError, match="other options"), Follower(tmp_path, 1, **QUICK) as follower:
            leader.hand_over("one", ["a"], RECIPE)
            follower.next_turn("another")
        assert isinstance(until(leader.failure), InputError)


def test_a_disk_that_is_full_for_a_while_ends_nothing(tmp_path, monkeypatch, caplog):
    with Leader(tmp_path, 2, **QUICK) as leader:
        with monkeypatch.context() as patch:
            patch.setattr("distill.launch.nodes.write_json", lambda *_: (_ for _ in ()).throw(OSError(28, "no space")))
            until(lambda: "no space" in caplog.text)
        with Follower(tmp_path, 1, **QUICK) as follower:
            leader.hand_over("one", ["a"], RECIPE)
            assert follower.next_turn(RECIPE)


# ---- two nodes on this machine


STAGES = [
    {"name": "one", "teacher": "teacher", "steps": 80, "global_batch_size": 5, "micro_batch_size": 2, "save_every": 5,
     "eval_every": 1000, "log_every": 10, "dropout": 0.1,
     "students": {"a": {"config": "student.json", "matches": ["uniform"]}}},
]  # fmt: skip


def leave_stale_notes(output: Path) -> None:
    """What could be taken for this run's: node 0's note and a dataset's, of an earlier run."""
    note = {"launcher": "old", "beat": 7, "state": "training", "turn": ["old", 1], "stage": "one", "students": ["b"]}
    (output / "nodes").mkdir(parents=True)
    (output / "nodes" / "node-0.json").write_text(json.dumps(note))
    (output / "stages" / "one").mkdir(parents=True)
    (output / "stages" / "one" / "dataset.json").write_text(json.dumps({"path": "gone"}))


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def train_as_under_torchrun(world, recipe, environment) -> None:
    """Two processes without a launcher of ours, the first of which prepares the data."""
    shared = {"TORCHELASTIC_RUN_ID": "own", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    group = [
        start_command(world, recipe, environment, "--stage", "one", **shared, RANK=rank, LOCAL_RANK=rank)
        for rank in ("0", "1")
    ]
    for process in group:
        code, output = finish(process)
        assert code == 0, output


def worker_of(launcher: int) -> int:
    """The process that trains below a launcher and its torchrun."""
    pid = launcher
    for _ in range(2):
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        pid = int(child)
    return pid


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes through /proc")
def test_a_run_of_two_nodes_that_loses_one_goes_on_as_one_to_the_same_weights(world, command_environment):
    """The reference is made by two processes under a torchrun of the user's own."""
    whole = write_recipe(world, output="whole", stages=STAGES)
    leave_stale_notes(world / "whole")
    train_as_under_torchrun(world, whole, command_environment)

    recipe = write_recipe(world, output="nodes", stages=STAGES)
    leave_stale_notes(world / "nodes")
    shared = {"NPROC": "1", "NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    follower, leader = (
        start_command(world, recipe, command_environment, NODE_RANK=rank, **shared) for rank in ("1", "0")
    )
    checkpoints = world / "nodes" / "stages" / "one" / "checkpoints"
    until(lambda: any(checkpoints.glob("step-*")) or leader.poll() is not None, limit_s=LIMIT_S)
    victim = worker_of(follower.pid)
    os.kill(victim, signal.SIGKILL)
    (code_0, said_0), (code_1, said_1) = finish(leader), finish(follower)
    assert (code_0, code_1) == (1, 1), said_0 + said_1
    reason = f"stage 'one': process 1 (pid {victim}) was ended by SIGKILL"
    assert f"error: node 1: {reason}" in said_0 and f"error: {reason}" in said_1, said_0 + said_1
    assert "Traceback" not in said_0 + said_1 and not (world / "nodes/models").exists()

    train_as_under_torchrun(world, recipe, command_environment)
    told = read_status(world / "nodes" / "stages" / "one" / "status.json")["messages"]
    assert told[0].startswith("training on cpu in float32, from step ") and not told[0].endswith("step 0")
    files = [world / run / "models" / "a" / "model.safetensors" for run in ("whole", "nodes")]
    assert files[0].read_bytes() == files[1].read_bytes()
