"""Runs a chain of two stages and three students in processes that are ended, or whose disk fails, at a chosen call.

    python tests/faults/chain.py FOLDER --mode kill --count 120 --seed 1

Everything is imported once; each run is a fork, so that one costs a second. A run makes some hundred calls that change
the disk (create, write, flush, rename, remove). Modes:
    kill    SIGKILL before a random call, half of a write included; a third of the runs that go on are killed again
    every   SIGKILL before the 1st, 2nd, ... call, each once
    time    SIGKILL from outside after a random time
    full    from a random call on nothing can be created or written: ENOSPC
    glitch  one random call fails with EIO
After each, the same command must end with the models, the metrics and the report of an undisturbed run, bit for bit.
Prints one line of JSON.
"""

import argparse
import contextlib
import errno
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
for name, value in {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}.items():
    os.environ.setdefault(name, value)

import torch  # noqa: E402
import torch.utils.tensorboard  # noqa: E402, F401
from test_processes import write_recipe  # noqa: E402
from tiny import NeverStop, write_world  # noqa: E402

from distill import pipeline  # noqa: E402
from distill.launch import CHILD, Cluster, StageFailed  # noqa: E402
from distill.recipe_file import load_recipe  # noqa: E402
from distill.training.metrics import read_metrics  # noqa: E402
from distill.worker import run_worker  # noqa: E402

STAGES = [
    {"name": "one", "teacher": "teacher", "steps": 4, "save_every": 1, "students": {
        "a": {"config": "student.json", "matches": ["uniform"]},
        "b": {"config": "student.json", "matches": ["uniform:attention_mse"]}}},
    {"name": "two", "teacher": "a", "steps": 3, "save_every": 2, "keep_checkpoints": 1, "students": {
        "c": {"config": "student.json", "mlm_weight": 1.0}}},
]  # fmt: skip
TIMES = ("tokens_per_second", "data_wait")
CREATING = ("open", "write", "os.mkdir", "os.rename", "fsync")
LEFTOVERS = (".partial-", ".removed-", ".replaced-")


def run_chain() -> None:
    """`distill train`, with the stages in this process."""
    recipe = load_recipe("out.json")
    pipeline.run_recipe(recipe, cluster=Cluster(), only_stage=None, show=lambda line: print(line, flush=True))


def run_stage_here(recipe_file: Path, stage: str, *, status_file: Path, **_: Any) -> None:
    """Stands in for launch.run_stage_processes."""
    status_file.unlink(missing_ok=True)
    os.environ[CHILD] = str(os.getpid())
    if run_worker(load_recipe(recipe_file), stage, NeverStop()):  # type: ignore[arg-type]
        raise StageFailed(status_file.read_text())
    del os.environ[CHILD]


class Disturbance:
    """Counts the calls that change the disk below the working folder, and does something at one of them."""

    def __init__(self, at: int, act: Callable[[str], None]) -> None:
        self.at, self.act, self.calls, self.root = at, act, 0, os.getcwd()
        self._write, self._fsync = os.write, os.fsync
        os.write, os.fsync = self.write, self.fsync  # type: ignore[assignment]
        sys.addaudithook(self.hear)

    def hear(self, event: str, args: tuple) -> None:
        if event == "open":
            flags = args[2] if isinstance(args[2], int) else 0
            is_change = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
            if is_change and isinstance(args[0], (str, os.PathLike)) and os.path.abspath(args[0]).startswith(self.root):
                self.tick("open")
        elif event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"):
            self.tick(event)

    def write(self, descriptor: int, content: Any) -> int:
        self.tick("write")
        if self.calls + 1 == self.at and len(content) > 1:
            self._write(descriptor, content[: len(content) // 2])
        self.tick("write")
        return self._write(descriptor, content)

    def fsync(self, descriptor: int) -> None:
        self.tick("fsync")
        self._fsync(descriptor)

    def tick(self, event: str) -> None:
        self.calls += 1
        self.act(event) if self.calls == self.at or self.at < 0 and self.calls >= -self.at else None


def kill_oneself(_event: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_with(number: int) -> Callable[[str], None]:
    def fail(event: str) -> None:
        if event in CREATING:
            raise OSError(number, os.strerror(number))

    return fail


def fork(action: Callable[[], None], log: Path) -> int:
    """Starts `action` in a new process. Returns its number."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        action()
        code = 0
    except StageFailed as error:
        print(f"error: {error}", flush=True)
    except OSError as error:
        print(f"error: {type(error).__name__}: {error}", flush=True)  # as distill.cli does
    except BaseException:
        traceback.print_exc()
        code = 3
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)


def end(pid: int) -> int:
    """The exit code of a process, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def result() -> dict[str, Any]:
    """All that a finished run is compared by."""
    out = Path("out")
    found: dict[str, Any] = {
        f"{model.name}/{file.name}": file.read_bytes() for model in sorted(out.glob("models/[!.]*"))
        for file in model.iterdir()
    }  # fmt: skip
    for stage in STAGES:
        records = read_metrics(out / "stages" / str(stage["name"]) / "metrics.jsonl")
        kept = [{key: value for key, value in record.items() if key not in TIMES} for record in records]
        found[f"metrics of {stage['name']}"] = sorted(kept, key=lambda r: (r["step"], r["split"], r["student"]))
    for name in ("recipe.json", "report/results.json"):
        found[name] = (out / name).read_bytes()
    left = [str(path) for path in [*out.glob("models/*"), *out.glob("stages/*/checkpoints/*")]
            if path.name.startswith(LEFTOVERS)]  # fmt: skip
    found["left over"] = left
    return found


class Campaign:
    """Many disturbed runs, and what came of them."""

    def __init__(self, folder: Path, mode: str, seed: int) -> None:
        self.folder, self.mode, self.random = folder, mode, random.Random(seed)
        self.log = folder / "log.txt"
        self.counts = {"runs": 0, "disturbed": 0, "lost": 0, "differing": 0}
        start = time.perf_counter()
        self.calls = self.count_calls()
        self.seconds = time.perf_counter() - start
        self.expected = result()
        assert not self.expected["left over"]

    def count_calls(self) -> int:
        """Runs undisturbed. Returns how many calls that took."""
        reader, writer = os.pipe()

        def count() -> None:
            calls = Disturbance(0, kill_oneself)
            run_chain()
            os.close(reader)
            calls._write(writer, str(calls.calls).encode())

        code = end(fork(count, self.log))
        assert code == 0, self.log.read_text()[-3000:]
        return int(os.read(reader, 100))

    def disturb(self, at: int) -> int:
        """One run with its disturbance. Returns its exit code."""
        if self.mode == "time":
            pid = fork(run_chain, self.log)
            time.sleep(self.random.uniform(0, self.seconds))
            os.kill(pid, signal.SIGKILL)
            return end(pid)
        act = {"full": fail_with(errno.ENOSPC), "glitch": fail_with(errno.EIO)}.get(self.mode, kill_oneself)

        def run() -> None:
            Disturbance(-at if self.mode == "full" else at, act)
            run_chain()

        return end(fork(run, self.log))

    def try_at(self, at: int) -> None:
        """A disturbed run, perhaps more of them, then one to the end, which is compared."""
        shutil.rmtree("out", ignore_errors=True)
        self.log.unlink(missing_ok=True)
        self.counts["runs"] += 1
        codes = [self.disturb(at)]
        while self.mode == "kill" and codes[-1] == -signal.SIGKILL and self.random.random() < 1 / 3:
            codes.append(self.disturb(self.random.randint(1, self.calls)))
        self.counts["disturbed"] += sum(code != 0 for code in codes)
        is_lost = any(code in (3, -signal.SIGSEGV) for code in codes) or end(fork(run_chain, self.log)) != 0
        self.counts["lost"] += is_lost
        if not is_lost:
            found = result()
            differing = [key for key, value in self.expected.items() if found.get(key) != value]
            self.counts["differing"] += bool(differing)
            is_lost = bool(differing)
            if differing:
                print(f"differing: {differing}", file=sys.stderr)
        if is_lost:
            print(f"call {at}, codes {codes}:\n{self.log.read_text()[-4000:]}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mode", choices=["kill", "every", "time", "full", "glitch"], default="kill")
    parser.add_argument("--count", type=int, default=10, help="runs to disturb; every: every so many-th call")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    torch.set_num_threads(1)
    write_world(folder)
    write_recipe(folder, output="out", stages=STAGES, global_batch_size=4, micro_batch_size=2, eval_every=2)
    os.cpu_count = lambda: 1  # type: ignore[assignment]  # text is prepared in the process itself
    pipeline.run_stage_processes = run_stage_here  # type: ignore[assignment]
    start = time.perf_counter()
    campaign = Campaign(folder, arguments.mode, arguments.seed)
    points = range(1, campaign.calls + 1)
    if arguments.mode == "every":
        chosen = list(points)[:: arguments.count]
    else:
        chosen = campaign.random.choices(points, k=arguments.count)
    for at in chosen:
        campaign.try_at(at)
    print(json.dumps({"mode": arguments.mode, "seed": arguments.seed, "calls_of_a_run": campaign.calls,
                      **campaign.counts, "seconds": round(time.perf_counter() - start)}))  # fmt: skip


if __name__ == "__main__":
    main()
