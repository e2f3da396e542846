"""Two stages, three students and a fine-tuning in processes that are ended, or whose disk fails, at a chosen call.

    python tests/faults/chain.py FOLDER --mode kill full --count 100 --seed 1

Everything is imported once; each run is a fork, so that one costs a second. A run makes some hundred calls that change
the disk (create, write, flush, rename, remove). Modes:
    kill    SIGKILL before a random call, half of a write included; a third of the runs that go on are killed again
    every   SIGKILL before the 1st, 2nd, ... call, each once
    time    SIGKILL from outside after a random time
    full    from a random call on nothing can be created or written: ENOSPC
    glitch  one random call fails with EIO
After each, the same command must end with the models, the metrics and the report of an undisturbed run, bit for bit.
Prints one line of JSON for each mode.
"""

import argparse
import errno
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
for name, value in {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}.items():
    os.environ.setdefault(name, value)

import torch  # noqa: E402
import torch.utils.tensorboard  # noqa: E402, F401
from faults.disturbance import Disturbance, end, fail_with, fork, kill_oneself  # noqa: E402
from test_processes import write_recipe  # noqa: E402
from test_stage import SPEED  # noqa: E402
from tiny import NeverStop, write_world  # noqa: E402

import distill.downstream.finetune  # noqa: E402, F401  # once, not in each fork
from distill import pipeline  # noqa: E402
from distill.json_file import read_json  # noqa: E402
from distill.launch.processes import CHILD, Cluster, StageFailed  # noqa: E402
from distill.recipe_file import load_recipe  # noqa: E402
from distill.training.metrics import read_metrics  # noqa: E402
from distill.worker import run_worker  # noqa: E402

STAGES = [
    {"name": "one", "teacher": "teacher", "steps": 4, "save_every": 1, "eval_every": 2, "students": {
        "a": {"config": "student.json", "matches": ["uniform"], "optimizer": "muon", "ema": 0.9},
        "b": {"config": "student.json", "matches": ["uniform:attention_mse"], "balance_every": 2}}},
    {"name": "two", "teacher": "a", "steps": 3, "save_every": 2, "eval_every": 2, "keep_checkpoints": 1,
     "teacher_cache": {"size": 4}, "students": {
        "c": {"config": "student.json", "mlm_weight": 1.0}}},
]  # fmt: skip
TASK = {
    "name": "mine", "kind": "classification", "metrics": ["accuracy"], "texts": ["text"],
    "files": {"train": ["train.jsonl"], "dev": ["dev.jsonl"]},
    "defaults": {"learning_rate": 0.001, "epochs": 1, "batch_size": 8, "max_length": 16},
}  # fmt: skip
FINETUNE = {"data": ".", "tasks": ["mine.json"], "models": ["c"], "speed": None}
LEFTOVERS = (".partial-", ".removed-", ".replaced-")


def write_chain(folder: Path, changes: Mapping[str, Mapping[str, int]] = {}, *, finetune: bool = True) -> None:
    """Models, text, a task, and the recipe out.json that trains on all of them.

    Args:
        changes: stage -> fields.
        finetune: whether the task is part of it.
    """
    write_world(folder)
    stages = [{**stage, **changes.get(str(stage["name"]), {})} for stage in STAGES]
    path = write_recipe(folder, output="out", stages=stages, global_batch_size=4, micro_batch_size=2)
    if not finetune:
        return
    path.write_text(json.dumps({**json.loads(path.read_text()), "finetune": FINETUNE}))
    (folder / "mine.json").write_text(json.dumps(TASK))
    lines = (folder / "text.txt").read_text(encoding="utf-8").split()
    records = [json.dumps({"text": line, "label": str(number % 3)}) for number, line in enumerate(lines)]
    (folder / "train.jsonl").write_text("\n".join(records[:24]))
    (folder / "dev.jsonl").write_text("\n".join(records[24:]))


def run_chain() -> int:
    """`distill train`, with the stages in this process. Returns its exit code."""
    recipe = load_recipe("out.json")
    try:
        pipeline.run_recipe(recipe, cluster=Cluster(), only_stage=None, show=lambda line: print(line, flush=True))
    except (StageFailed, OSError) as error:
        print(f"error: {error}", flush=True)
        return 1
    return 0


def run_stage_here(recipe_file: Path, stage: str, *, status_file: Path, **_: Any) -> None:
    """Stands in for launch/stage.py's run_stage_processes."""
    status_file.unlink(missing_ok=True)
    os.environ[CHILD] = str(os.getpid())
    if run_worker(load_recipe(recipe_file), stage, NeverStop()):  # type: ignore[arg-type]
        raise StageFailed(status_file.read_text())
    del os.environ[CHILD]


def result() -> dict[str, Any]:
    """All that a finished run is compared by."""
    out = Path("out")
    found: dict[str, Any] = {
        f"{model.name}/{file.name}": file.read_bytes() for model in sorted(out.glob("models/[!.]*"))
        for file in model.iterdir()
    }  # fmt: skip
    for stage in STAGES:
        records = read_metrics(out / "stages" / str(stage["name"]) / "metrics.jsonl")
        kept = [{key: value for key, value in record.items() if key not in SPEED} for record in records]
        found[f"metrics of {stage['name']}"] = sorted(kept, key=lambda r: (r["step"], r["split"], r["student"]))
    for path in sorted(out.glob("finetune/c/mine/*/*.json*")):
        found[path.name] = path.read_text()
        if path.name == "metrics.json":
            found[path.name] = {key: value for key, value in read_json(path).items() if key != "train_seconds"}
    for path in (out / "recipe.json", out / "report/results.json", *out.glob("report/tables.md")):
        found[path.name] = path.read_bytes()
    left = [str(path) for path in [*out.glob("models/*"), *out.glob("stages/*/checkpoints/*")]
            if path.name.startswith(LEFTOVERS)]  # fmt: skip
    found["left over"] = left
    return found


class Campaign:
    """Many disturbed runs, and what came of them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.seed, self.log = seed, folder / "log.txt"
        start = time.perf_counter()
        self.calls = self.count_calls()
        self.seconds = time.perf_counter() - start
        self.expected = result()
        assert not self.expected["left over"]

    def count_calls(self) -> int:
        """Runs undisturbed. Returns how many calls that took."""
        reader, writer = os.pipe()

        def count() -> int:
            calls = Disturbance(0, kill_oneself)
            code = run_chain()
            calls._write(writer, str(calls.calls).encode())
            return code

        code = end(fork(count, self.log))
        assert code == 0, self.log.read_text()[-3000:]
        return int(os.read(reader, 100))

    def run(self, mode: str, count: int) -> dict[str, Any]:
        """Disturbs `count` runs, or with mode "every" one for every `count`-th call. Returns what came of them."""
        choice, start = random.Random(self.seed), time.perf_counter()
        points = range(1, self.calls + 1)
        counts = {"runs": 0, "disturbed": 0, "lost": 0, "differing": 0}
        for at in points[::count] if mode == "every" else choice.choices(points, k=count):
            shutil.rmtree("out", ignore_errors=True)
            self.log.unlink(missing_ok=True)
            codes = [self.disturb(mode, at, choice)]
            while mode == "kill" and codes[-1] == -signal.SIGKILL and choice.random() < 1 / 3:
                codes.append(self.disturb(mode, choice.choice(points), choice))
            counts["runs"] += 1
            counts["disturbed"] += sum(code != 0 for code in codes)
            is_lost = any(code in (3, -signal.SIGSEGV) for code in codes) or end(fork(run_chain, self.log)) != 0
            counts["lost"] += is_lost
            found = {} if is_lost else result()
            differing = [key for key, value in self.expected.items() if found.get(key) != value]
            counts["differing"] += bool(differing)
            if differing:
                print(f"{mode}, call {at}, codes {codes}, differing: {differing}\n{self.log.read_text()[-4000:]}",
                      file=sys.stderr, flush=True)  # fmt: skip
        seconds = round(time.perf_counter() - start)
        return {"mode": mode, "seed": self.seed, "calls_of_a_run": self.calls, **counts, "seconds": seconds}

    def disturb(self, mode: str, at: int, choice: random.Random) -> int:
        """One run with its disturbance. Returns its exit code."""
        if mode == "time":
            pid = fork(run_chain, self.log)
            time.sleep(choice.uniform(0, self.seconds))
            os.kill(pid, signal.SIGKILL)
            return end(pid)
        act = {"full": fail_with(errno.ENOSPC), "glitch": fail_with(errno.EIO)}.get(mode, kill_oneself)

        def run() -> int:
            Disturbance(-at if mode == "full" else at, act)
            return run_chain()

        return end(fork(run, self.log))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mode", choices=["kill", "every", "time", "full", "glitch"], default=["kill"], nargs="+")
    parser.add_argument("--count", type=int, default=10, help="runs to disturb in a mode; every: every so many-th call")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    torch.set_num_threads(1)
    write_chain(folder)
    os.cpu_count = lambda: 1  # type: ignore[assignment]  # text is prepared in the process itself
    pipeline.run_stage_processes = run_stage_here  # type: ignore[assignment]
    campaign = Campaign(folder, arguments.seed)
    for mode in arguments.mode:
        print(json.dumps(campaign.run(mode, arguments.count)), flush=True)


if __name__ == "__main__":
    main()
