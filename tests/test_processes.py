"""Several processes and the launcher: one process and two train the same, and a signal loses nothing.

All of it runs for real: torchrun, gloo, signals to the parent of `python -m distill train`; but the processes are forks
of this one, which have nothing to import. Fresh interpreters are started by tests/test_pipeline.py.
"""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from faults.forked import ForkedProcess
from tiny import ALONE, CHARACTERS, LENGTH
from torch import nn

from distill.training.metrics import read_metrics, read_status
from distill.training.processes import Processes, join_processes, sum_gradients, sum_over_processes

LIMIT_S = 300  # a guard; 20 s are usual


def write_text(path: Path, lines=40) -> None:
    """Passages of uneven length, in documents of four lines."""
    passages = []
    for line in range(lines):
        words = [CHARACTERS[(3 * line + 7 * i + i * i) % len(CHARACTERS)] for i in range(5 + (line * 5) % 23)]
        passages.append("".join(words) + ("\n" if line % 4 == 3 else ""))
    path.write_text("\n".join(passages) + "\n", encoding="utf-8")


def write_recipe(world: Path, *, output: str, stages, **defaults) -> Path:
    write_text(world / "text.txt")
    recipe = {
        "output_dir": output,
        "report": False,
        "defaults": {
            "data": {"text": ["text.txt"], "mask": "token", "dev": 0.2, "tokenizer": "teacher"}, "precision": "fp32",
            "max_seq_length": LENGTH, "log_every": 1, "max_grad_norm": 1.0, "learning_rate": 1e-3, **defaults,
        },
        "stages": stages,
    }  # fmt: skip
    path = world / f"{output}.json"
    path.write_text(json.dumps(recipe))
    return path


def start_command(world: Path, recipe: Path, environment, *options: str, **variables) -> ForkedProcess:
    """`distill train RECIPE`, of which `finish` gives the output."""
    command = ["python", "-m", "distill", "train", str(recipe), *options]
    return ForkedProcess(command, cwd=world, env={**environment, **variables}, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT)  # fmt: skip


def finish(process: subprocess.Popen | ForkedProcess) -> tuple[int, str]:
    """Exit code and output; the process is ended if it takes too long."""
    try:
        output, _ = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        raise
    return process.returncode, output


def test_alone_there_is_nothing_to_sum():
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.ones(3)
    sum_gradients([parameter, nn.Parameter(torch.zeros(2))], ALONE)
    assert parameter.grad.tolist() == [1, 1, 1]
    assert sum_over_processes(torch.tensor([2.0]), ALONE).item() == 2.0


def test_a_process_without_torchruns_environment_stands_alone(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    processes = join_processes()
    assert (processes.rank, processes.world_size, processes.is_first) == (0, 1, True)
    assert not Processes(1, 2, ALONE.device).is_first


ONE_AND_TWO = [
    {"name": "taught", "teacher": "teacher", "steps": 6, "global_batch_size": 5, "micro_batch_size": 2,
     "eval_every": 3, "dropout": 0.0,
     "students": {"a": {"config": "student.json", "matches": ["uniform", "uniform:mmd"], "mlm_weight": 0.5,
                        "balance_every": 2, "temperature_end": 2},
                  "b": {"config": "student.json", "matches": ["uniform:attention_mse", "uniform:pkd"],
                        "init_width": "pca", "ema": 0.5}}},
    {"name": "plain", "steps": 4, "global_batch_size": 4, "micro_batch_size": 3, "dropout": 0.0,
     "students": {"c": {"config": "student.json"}}},
]  # fmt: skip


@pytest.mark.slow
def test_two_processes_draw_the_same_samples_and_masks_and_lose_the_same(world, command_environment):
    """Five sequences a step go to two processes as 2 and 3, in micro-batches of 2, 1 and 2."""
    records = {}
    for nproc in ("1", "2"):
        recipe = write_recipe(world, output=f"out{nproc}", stages=ONE_AND_TWO)
        code, output = finish(start_command(world, recipe, command_environment, NPROC=nproc))
        assert code == 0, output
        for stage in ("taught", "plain"):
            folder = world / f"out{nproc}" / "stages" / stage
            records[nproc, stage] = read_metrics(folder / "metrics.jsonl")
            assert read_status(folder / "status.json")["state"] == "finished"
        assert (f"{nproc} process(es)") in output
    for stage in ("taught", "plain"):
        one, two = records["1", stage], records["2", stage]
        assert len(one) == len(two) > 4
        for a, b in zip(one, two, strict=True):
            # Another row or another mask anywhere would change the counts, or at least the losses.
            exact = {"step", "samples", "tokens", "split", "student", "masked_tokens", "accuracy", "learning_rate"}
            assert a.keys() == b.keys()
            assert {key: a.get(key) for key in exact} == {key: b.get(key) for key in exact}
            for key in a.keys() - exact - {"tokens_per_second", "data_wait", "mfu"}:
                assert a[key] == pytest.approx(b[key], rel=1e-5, abs=1e-7), (a["step"], a["student"], key)


@pytest.mark.slow
@pytest.mark.parametrize("nproc", ["1", "2"])
def test_sigterm_to_the_parent_writes_a_checkpoint_and_the_same_command_ends_alike(world, command_environment, nproc):
    stages = [{"name": "one", "teacher": "teacher", "steps": 40, "global_batch_size": 4, "micro_batch_size": 2,
               "log_every": 1, "save_every": 1000, "eval_every": 1000, "students": {
                   "a": {"config": "student.json", "matches": ["uniform"]},
                   "b": {"config": "student.json", "matches": ["uniform:attention_mse"]}}}]  # fmt: skip
    whole = write_recipe(world, output="whole", stages=stages)
    code, output = finish(start_command(world, whole, command_environment, NPROC=nproc))
    assert code == 0, output

    stopped = write_recipe(world, output="stopped", stages=stages)
    parent = start_command(world, stopped, command_environment, NPROC=nproc)
    log = world / "stopped" / "stages" / "one" / "metrics.jsonl"
    deadline = time.monotonic() + LIMIT_S
    while len(read_metrics(log)) < 4 and parent.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    parent.send_signal(signal.SIGTERM)
    code, output = finish(parent)
    assert code == 143, output
    saved = sorted(path.name for path in (world / "stopped" / "stages" / "one" / "checkpoints").glob("step-*"))
    assert len(saved) == 1 and 0 < int(saved[0].removeprefix("step-")) < 40, saved
    assert "stopped by SIGTERM after step" in output and "Traceback" not in output
    assert not (world / "stopped" / "models" / "a").exists()

    code, output = finish(start_command(world, stopped, command_environment, NPROC=nproc))
    assert code == 0, output
    for name in ("a", "b"):
        files = [world / run / "models" / name / "model.safetensors" for run in ("whole", "stopped")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_one_mistake_is_one_line_at_two_processes(world, command_environment):
    stages = [{"name": "one", "teacher": "teacher", "steps": 5, "global_batch_size": 1,
               "students": {"a": {"config": "student.json"}}}]  # fmt: skip
    recipe = write_recipe(world, output="out", stages=stages)
    code, output = finish(start_command(world, recipe, command_environment, NPROC="2"))
    assert code == 2, output
    lines = [line for line in output.splitlines() if "error" in line]
    assert len(lines) == 1 and "1 sequences cannot be dealt to 2 processes" in lines[0]
    assert "Traceback" not in output and os.linesep * 3 not in output
