"""`distill train` on two stages, three students and a task, with SIGKILL to its processes at random moments.

    python tests/faults/launcher.py FOLDER --count 100 --nproc 2 --seed 1

It is the real launcher: a parent, torchrun, the processes of a stage. They are forks (forked.py), with --cold fresh
interpreters, of which a run takes half a minute. A run is killed up to three times: all of its processes at once, the
parent alone, or one other process alone. Then the same command must end with the models, metrics and report of an
undisturbed run. Prints one line of JSON.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
for name, value in {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}.items():
    os.environ.setdefault(name, value)

from faults.chain import result, write_chain  # noqa: E402
from faults.disturbance import descendants  # noqa: E402
from faults.forked import ForkedProcess  # noqa: E402

from distill.training.metrics import read_metrics  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 300
"""A guard; half a minute is usual."""
LONGER = {"one": {"steps": 16, "save_every": 4, "eval_every": 8}, "two": {"steps": 6}}
"""The chain's stages with more steps, so that a kill can come between them."""


class Run:
    """One `distill train` of the recipe in the working folder, started."""

    def __init__(self, nproc: int, *arguments: str, cold: bool = False, log: str = "log.txt") -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "NPROC": str(nproc)}
        command = [sys.executable, "-m", "distill", "train", "out.json", *arguments]
        self.log = Path(log)
        start: Any = subprocess.Popen if cold else ForkedProcess
        with self.log.open("wb") as log:
            self.process = start(command, env=environment, stdout=log, stderr=log)

    def wait_for(self, records: int) -> bool:
        """Returns when the metrics of all stages have so many records; False if the run ended before."""
        deadline = time.monotonic() + LIMIT_S
        while count_records() < records:
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, self.kill_all()
            time.sleep(0.01)
        return True

    def others(self) -> list[int]:
        """The processes that it has started and that have started none: those of the stage, if it is at work."""
        return [pid for pid in descendants(self.process.pid) if not descendants(pid)]

    def kill_all(self) -> None:
        """SIGKILL to all processes of the run, the parent first."""
        pids = [self.process.pid, *descendants(self.process.pid)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def finish(self) -> tuple[int, str]:
        """Exit code and output."""
        try:
            code = self.process.wait(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise
        return code, self.log.read_text(errors="replace")


def count_records() -> int:
    return sum(len(read_metrics(Path("out/stages") / name / "metrics.jsonl")) for name in LONGER)


def end_by(run: Run, signum: int) -> tuple[int, str, float]:
    """Sends a signal to the parent. Returns exit code, output, and the seconds it took."""
    start = time.monotonic()
    run.process.send_signal(signum)
    code, output = run.finish()
    return code, output, time.monotonic() - start


def stop_in_the_middle() -> None:
    """A run that SIGTERM ends in its first stage, with a checkpoint written."""
    run = Run(1)
    assert run.wait_for(12)
    code, output, _ = end_by(run, signal.SIGTERM)
    assert code == 143, output


def goes_on_to(expected: dict[str, Any]) -> None:
    """Runs to the end, which must be this `result()`."""
    code, output = Run(1).finish()
    assert code == 0, output
    found = result()
    assert [key for key, value in expected.items() if found.get(key) != value] == []


def kill_once(run: Run, who: str, choice: random.Random) -> None:
    """One of: all, parent, child."""
    if who == "all":
        run.kill_all()
    elif who == "parent":
        run.process.send_signal(signal.SIGKILL)
    elif children := run.others():
        with contextlib.suppress(ProcessLookupError):
            os.kill(choice.choice(children), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=10, help="kills")
    parser.add_argument("--nproc", type=int, default=2, help="processes of a stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cold", action="store_true", help="fresh interpreters instead of forks")
    arguments = parser.parse_args()
    choice = random.Random(arguments.seed)
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    write_chain(folder, LONGER)
    start = time.monotonic()
    code, output = Run(arguments.nproc, cold=arguments.cold).finish()
    assert code == 0, output
    expected, records = result(), count_records()
    counts = {"kills": 0, "runs": 0, "lost": 0, "differing": 0, "children": 0, "messages": 0}
    while counts["kills"] < arguments.count:
        shutil.rmtree("out")
        counts["runs"] += 1
        for _ in range(choice.randint(1, 3)):
            who = choice.choice(["all", "parent", "child"])
            run = Run(arguments.nproc, cold=arguments.cold)
            if not run.wait_for(choice.randint(0, records)):
                run.finish()
                continue
            time.sleep(choice.uniform(0, 0.2))
            kill_once(run, who, choice)
            code, output = run.finish()
            counts["kills"] += code != 0
            if who == "child" and code:
                counts["children"] += 1
                is_told = output.count("error: ") == 1 and "was ended by SIGKILL" in output
                counts["messages"] += is_told
                if not is_told:
                    print(f"code {code}, without its message:\n{output[-3000:]}", file=sys.stderr, flush=True)
        code, output = Run(arguments.nproc, cold=arguments.cold).finish()
        found = result() if code == 0 else {}
        counts["lost"] += code != 0
        differing = [key for key, value in expected.items() if found.get(key) != value]
        counts["differing"] += bool(differing)
        if differing:
            print(f"code {code}, differing: {differing}\n{output[-3000:]}", file=sys.stderr, flush=True)
    print(json.dumps({"nproc": arguments.nproc, "seed": arguments.seed, **counts,
                      "seconds": round(time.monotonic() - start)}))  # fmt: skip


if __name__ == "__main__":
    main()
