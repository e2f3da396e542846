"""How training speeds up with processes: 1 and 2 of them, each pinned to a core of its own, on the same global batch.

    python benchmarks/scaling.py                 # RBT6 -> MiniRBT-h256, 8 x 128 tokens a step; some minutes
    python benchmarks/scaling.py --rows 32       # a larger batch: the exchange of gradients weighs less

Every process is what torchrun would start: its RANK and WORLD_SIZE in the environment, gloo, one thread, and the whole
stage as `distill train` runs it, on random weights and rows. Three set-ups take turns:

 1 process     all sequences of a step, in two micro-batches
 2 apart       two runs of one process at the same time, half the sequences each, which exchange nothing
 2 together    the product: half the sequences each, gradients summed once a step

Efficiency is the speed of two over twice the speed of one. What "2 apart" lacks to 100 % is not the software's: cores
of one machine share memory bandwidth, a cache and the clock's power. What "2 together" lacks to "2 apart" is the price
of working together. Linux only (CPU affinity). Prints a table and one JSON line.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
import transformers
from distill_step import CONFIGS, print_table
from random_world import make_stage, run_stage, write_random_rows, write_random_teacher

from distill.modeling.models import load_config
from distill.training.processes import join_processes, leave_processes

SETUPS = ("1 process", "2 apart", "2 together")


def train_in_this_process(
    folder: Path, output: Path, *, student: str, rows: int, micro: int, length: int, steps: int
) -> None:
    """A process of a set-up; the first prints the tokens/s of each step but the first."""
    transformers.logging.set_verbosity_error()
    processes = join_processes()
    config = {"config": str(CONFIGS / f"{student}.json"), "matches": ["uniform"], "dropout": 0.0}
    stage = make_stage(
        folder / "teacher", {"student": config}, global_batch_size=rows, micro_batch_size=micro, max_seq_length=length,
        steps=steps + 1,
    )  # fmt: skip
    records = run_stage(stage, output, processes, teacher=folder / "teacher", dataset=folder / "data")
    if processes.is_first:
        print(json.dumps([record["tokens_per_second"] for record in records["student"][1:]]))
    leave_processes(processes)


def measure(setup: str, folder: Path, cores: list[int], arguments: argparse.Namespace) -> float:
    """Tokens/s of a set-up: the median step, of two runs apart the sum of both medians."""
    half = arguments.rows // 2
    shape = {"student": arguments.student, "micro": half, "length": arguments.length, "steps": arguments.steps}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with tempfile.TemporaryDirectory(dir=folder) as output:
        group = []
        for number in range(1 if setup == "1 process" else 2):
            together = setup == "2 together"
            rank, world_size = (number, 2) if together else (0, 1)
            job = {**shape, "rows": half if setup == "2 apart" else arguments.rows,
                   "output": str(Path(output) / ("run" if together else f"run{number}"))}  # fmt: skip
            environment = {
                **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
            }  # fmt: skip
            group.append(subprocess.Popen(
                [sys.executable, __file__, "--job", json.dumps({**job, "folder": str(folder)})], env=environment,
                stdout=subprocess.PIPE, text=True, preexec_fn=partial(os.sched_setaffinity, 0, {cores[number]}),
            ))  # fmt: skip
        printed = [process.communicate()[0] for process in group]
    if any(process.returncode for process in group):
        raise SystemExit(f"{setup}: a process failed")
    return sum(statistics.median(json.loads(text)) for text in printed if text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="RBT6", help="name of a config of distill_configs")
    parser.add_argument("--student", default="MiniRBT-h256", help="name of a config of distill_configs")
    parser.add_argument("--rows", type=int, default=8, help="sequences of a step, over all processes; even")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a run, after one that is not")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each set-up, taking turns")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        job = json.loads(arguments.job)
        train_in_this_process(Path(job.pop("folder")), Path(job.pop("output")), **job)
        return
    if arguments.rows < 2 or arguments.rows % 2:
        parser.error(f"--rows {arguments.rows}: two processes need an even number")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error(f"two cores are needed, and this process may use {len(cores)}")
    speeds: dict[str, list[float]] = {setup: [] for setup in SETUPS}
    with tempfile.TemporaryDirectory() as folder:
        teacher = write_random_teacher(Path(folder) / "teacher", arguments.teacher)
        vocab_size = load_config(teacher).vocab_size
        write_random_rows(Path(folder) / "data", rows=256, length=arguments.length, vocab_size=vocab_size)
        for repeat in range(arguments.repeats):
            for setup in SETUPS:
                speeds[setup].append(measure(setup, Path(folder), cores[:2], arguments))
                print(f"{repeat + 1}. {setup}: {speeds[setup][-1]:,.0f} tokens/s", file=sys.stderr, flush=True)
    median = {setup: statistics.median(values) for setup, values in speeds.items()}
    one = median["1 process"]
    efficiency = {setup: median[setup] / one / (1 if setup == "1 process" else 2) for setup in SETUPS}
    print(f"{arguments.teacher} -> {arguments.student}, {arguments.rows} x {arguments.length} tokens a step, cores "
          f"{cores[0]} and {cores[1]} of {len(cores)}, one thread each, torch {torch.__version__}")  # fmt: skip
    print_table(
        ["set-up", "tokens/s", "from", "to", "efficiency"],
        [[setup, f"{median[setup]:,.0f}", f"{min(speeds[setup]):,.0f}", f"{max(speeds[setup]):,.0f}",
          f"{efficiency[setup]:.0%}"] for setup in SETUPS],
    )  # fmt: skip
    print(f"of what two processes apart reach, together they reach {median['2 together'] / median['2 apart']:.0%}")
    del arguments.job
    result = {"tokens_per_second": speeds, "efficiency": efficiency}
    print(json.dumps({"benchmark": "scaling", **vars(arguments), **result}))


if __name__ == "__main__":
    main()
