"""One fine-tuning run in several processes: the numbers of one, one line for a mistake, nothing half-written."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import finetune_driver
import pytest
import torch
from fixtures_cli import complaint, run
from safetensors.torch import load_file, save_file
from test_finetune import KINDS, make_task, write_encoder
from transformers import TrainingArguments

from distill import finetuning
from distill.downstream.finetune import finetune
from distill.downstream.grid import Grid, Run
from distill.downstream.run import with_defaults
from distill.downstream.task import load_task
from distill.downstream.task_data import load_task_data
from distill.downstream.trainer import on_one_gpu
from distill.errors import InputError
from distill.launch import shared_run
from distill.launch.processes import OUT_OF_MEMORY, Cluster, Ended, Interrupted, StageFailed, torchrun
from distill.training.metrics import read_status


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A task with 33 rows to learn, of which the last batch of 8 has one, and the arguments of a run on it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(shared_run, "visible_gpus", lambda: 0)
    make_task(tmp_path / "data", train=33)
    encoder = write_encoder(tmp_path / "encoder", width=16)
    return ["finetune", str(encoder), "--task", str(tmp_path / "data" / "task.json"), "--data", str(tmp_path / "data"),
            "--output", str(tmp_path / "out"), "--batch-size", "8", "--epochs", "1"]  # fmt: skip


def run_folder_of(tmp_path) -> Path:
    (folder,) = (tmp_path / "out" / "encoder" / "tiny-classification").iterdir()
    return folder


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="compares one process here with two on the CPU")
def test_two_processes_give_the_weights_and_answers_of_one(tmp_path, command_environment):
    for kind in KINDS:
        task = make_task(tmp_path / kind, kind, train=17)
        write_encoder(tmp_path / kind / "encoder", width=16)
        if kind in ("classification", "tags"):
            data = load_task_data(task, str(tmp_path / kind), ["train", "dev"])
            larger = write_encoder(tmp_path / kind / "larger", seed=1)
            finetune(larger, data, with_defaults(task, 0, epochs=1), tmp_path / kind / "teacher", show=print)
    finetune_driver.do_runs(tmp_path, "one")
    command = [*torchrun(Cluster(nproc=2)), finetune_driver.__file__, str(tmp_path), "two"]
    done = subprocess.run(command, env=command_environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for kind in KINDS:
        before = load_file(tmp_path / kind / "encoder" / "model.safetensors")
        for one in (tmp_path / kind).glob("one*"):
            two = one.with_name(one.name.replace("one", "two"))
            metrics = [json.loads((folder / "metrics.json").read_text("utf-8")) for folder in (one, two)]
            assert [found["num_processes"] for found in metrics] == [1, 2]
            assert metrics[0]["dev"]["metrics"] == pytest.approx(metrics[1]["dev"]["metrics"], abs=0.01)
            losses = [[epoch["loss"] for epoch in found["epochs"]] for found in metrics]
            assert losses[0] == pytest.approx(losses[1], rel=1e-4)
            for split, count in (("dev", 40), ("test", 10)):
                answers = [(folder / f"predictions-{split}.jsonl").read_text("utf-8") for folder in (one, two)]
                assert answers[0].count("\n") == answers[1].count("\n") == count
                if kind != "regression":  # numbers, which are equal to rounding
                    assert answers[0] == answers[1]
            weights = [load_file(folder / "model" / "model.safetensors") for folder in (one, two)]
            moved = max((weights[0][name] - before[name]).abs().max() for name in weights[0] if name in before)
            assert moved > 1e-3
            for name, values in weights[0].items():
                torch.testing.assert_close(weights[1][name], values, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_the_command_does_a_run_in_two_processes(place, forked, tmp_path, capfd):
    assert run(*place, "--processes", "2") == 0
    told = capfd.readouterr()
    assert "dev: accuracy " in told.out and "best epoch 1" in told.out
    start, epoch = told.err.splitlines()
    assert start == "tiny-classification: 5 steps in 1 epoch(s)"
    assert epoch.startswith("tiny-classification: epoch 1: dev accuracy ")
    folder = run_folder_of(tmp_path)
    assert {path.name for path in folder.iterdir()} == {
        "metrics.json", "model", "predictions-dev.jsonl", "predictions-test.jsonl"}  # fmt: skip
    assert json.loads((folder / "metrics.json").read_text("utf-8"))["num_processes"] == 2
    assert run(*place) == 0 and capfd.readouterr().out == told.out, "the same run, whatever does it"


@pytest.mark.slow
def test_a_signal_ends_all_processes_and_leaves_nothing(place, tmp_path, python, command_environment):
    command = [python, "-m", "distill", *place, "--epochs", "10000", "--processes", "2"]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    parent = subprocess.Popen(command, env=command_environment, text=True, **pipes)
    assert "steps in 10000 epoch(s)" in parent.stderr.readline() and "epoch 1: " in parent.stderr.readline()
    parent.send_signal(signal.SIGTERM)
    err = parent.communicate(timeout=120)[1].splitlines()
    assert parent.returncode == 143
    assert err[-1] == "stopped: tiny-classification: the same command does the run again from its start"
    assert all(line.startswith("tiny-classification: epoch ") for line in err[:-1])
    assert list(run_folder_of(tmp_path).iterdir()) == []


def fake_run(place, tmp_path, **given):
    task = load_task(str(tmp_path / "data" / "task.json"))
    return Run("encoder", tmp_path / "encoder", task, str(tmp_path / "data"), with_defaults(task, **given), tmp_path)


@pytest.fixture
def child(place, tmp_path, monkeypatch):
    """A run, and what a process that does it needs; without others, and without the parent's signals."""
    monkeypatch.setenv("DISTILL_CHILD", "1")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(shared_run, "stop_without", lambda pid: None)
    monkeypatch.setattr(shared_run, "end_signals", list)
    return fake_run(place, tmp_path, epochs=1)


def test_a_process_tells_its_parent_every_epoch(child, tmp_path):
    assert shared_run.train_as_child(child) == 0
    status = read_status(tmp_path / shared_run.STATUS_FILE)
    assert status["state"] == "finished"
    assert [message[:21] for message in status["messages"]] == ["3 steps in 1 epoch(s)", "epoch 1: dev accuracy"]


def test_what_only_a_process_finds_wrong_is_one_line(child, tmp_path):
    weights = tmp_path / "encoder" / "model.safetensors"
    broken = load_file(weights)
    broken["bert.embeddings.word_embeddings.weight"].fill_(float("nan"))
    save_file(broken, weights, metadata={"format": "pt"})
    assert shared_run.train_as_child(child) == 2
    status = read_status(tmp_path / shared_run.STATUS_FILE)
    assert status["exit_code"] == 2 and "word_embeddings.weight holds NaN or infinity" in status["message"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory\nmore"), "out of memory; more processes need less each"),
        (RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer"), "a process was lost"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
def test_an_unexpected_error_is_one_line(child, tmp_path, monkeypatch, error, message):
    def fail(*_args):
        raise error

    monkeypatch.setattr(shared_run, "train_run", fail)
    assert shared_run.train_as_child(child) == 1
    assert read_status(tmp_path / shared_run.STATUS_FILE)["message"] == message


@pytest.mark.parametrize(
    ("ended", "kind", "message"),
    [
        (Ended(1, {"exit_code": 2, "message": "weights are wrong"}), InputError, "^weights are wrong$"),
        (Ended(1, {"message": "ValueError: x"}), StageFailed, r"^tiny-class.*: ValueError: x \(details: .*log\)"),
        (Ended(1, {"message": "a process was lost", "is_lost": True}, dead=f"process 1{OUT_OF_MEMORY}"), StageFailed,
         "process 1, most likely because memory ran out: more processes need less each"),
        (Ended(1, {}), StageFailed, "a process ended with code 1 without a message"),
        (Ended(1, {}, signum=15), Interrupted, "the same command does the run again from its start"),
        (Ended(0, {"state": "finished"}, signum=2), Interrupted, "the run has finished"),
    ],
)  # fmt: skip
def test_every_end_is_one_line(place, tmp_path, monkeypatch, ended, kind, message):
    def end(*_args):
        (tmp_path / "checkpoints").mkdir()
        return ended

    monkeypatch.setattr(shared_run, "run_to_end", end)
    with pytest.raises(kind, match=message):
        shared_run.train_in_processes(fake_run(place, tmp_path), None, print, num_processes=2, arguments=[])
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "0"], "'--processes': Input should be greater than or equal to 1"),
        (["--processes", "3"],
         "--processes 3: a batch of 8 examples cannot be shared evenly; change one of them, as in --batch-size 9"),
        (["--processes", "16"], "as in --batch-size 16"),
        (["--processes", "4"], "--processes 4: each takes a GPU, and 2 are visible; give at most 2"),
    ],
)  # fmt: skip
def test_processes_that_cannot_share_a_run_are_refused(place, tmp_path, monkeypatch, capsys, arguments, message):
    if "GPU" in message:
        monkeypatch.setattr(shared_run, "visible_gpus", lambda: 2)
    assert message in complaint(capsys, *place, *arguments)
    assert not (tmp_path / "out").exists()


def test_a_users_own_torchrun_is_refused(place, monkeypatch, capsys):
    """Its processes would all do the whole run, in the same folder."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "start `distill finetune` without torchrun; --processes 2" in complaint(capsys, *place)


def test_one_process_uses_one_gpu_of_several(tmp_path):
    """Trainer would take them all, by nn.DataParallel."""
    arguments = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=32, report_to="none")
    assert arguments.device is not None
    arguments._n_gpu = 4
    assert on_one_gpu(arguments).n_gpu == 1 and arguments.train_batch_size == 32


@pytest.mark.parametrize(("given", "gpus", "expected"), [(None, 4, 4), (None, 0, 1), (2, 4, 2)])
def test_a_grid_does_as_many_runs_at_a_time_as_there_are_gpus(tmp_path, monkeypatch, given, gpus, expected):
    used = []
    monkeypatch.setattr(finetuning, "visible_gpus", lambda: gpus)
    monkeypatch.setattr(finetuning, "search", lambda *_args, processes, **_: (used.append(processes), sys.exit()))
    make_task(tmp_path / "data")
    grid = Grid.model_validate({"tasks": {str(tmp_path / "data" / "task.json"): {}}})
    plan = finetuning.Plan(grid, {"m": tmp_path}, "data", tmp_path, tmp_path, "m", processes=given)
    with pytest.raises(SystemExit):
        finetuning.run_plan(plan, lambda line: None)
    assert used == [expected]
