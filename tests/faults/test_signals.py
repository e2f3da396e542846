"""SIGTERM and SIGINT wherever a run is, a process that dies, two runs on one folder: with the launcher's processes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults.chain import result
from faults.disturbance import descendants
from faults.launcher import Run, count_records, end_by, goes_on_to

from distill.training import bookkeeping, evaluate, loop
from distill.training.checkpoint import newest_checkpoint

pytestmark = pytest.mark.slow
SECONDS = 10
"""In which a run has ended after a signal; 1 is usual here."""


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def pause_in(monkeypatch, module, name, mark, seconds, when=lambda *_: True):
    """Replaces a function by one that leaves the file `mark` and sleeps before it works, in every process."""
    function = getattr(module, name)

    def pausing(*arguments, **fields):
        if when(*arguments):
            Path(mark).touch()
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                time.sleep(0.05)
        return function(*arguments, **fields)

    monkeypatch.setattr(module, name, pausing)


def test_during_dev_evaluation_the_step_is_saved_and_the_evaluation_made_up_for(chain, undisturbed, monkeypatch):
    with monkeypatch.context() as patched:
        pause_in(patched, evaluate, "encode", "evaluating", 0.5,
                 lambda model, *_: model.config.num_hidden_layers == 2)  # fmt: skip
        run = Run(1)
        wait_until(lambda: Path("evaluating").exists())
        code, output, seconds = end_by(run, signal.SIGTERM)
    assert code == 143 and "Traceback" not in output, output
    assert "stopped by SIGTERM after step 8; a checkpoint was written" in output
    assert seconds < SECONDS
    assert newest_checkpoint(Path("out/stages/one/checkpoints")).name == "step-00000008"
    goes_on_to(undisturbed)


def test_during_the_first_step_there_is_nothing_to_save_and_the_run_ends_at_once(chain, monkeypatch):
    """torch.compile takes a minute in it."""
    pause_in(monkeypatch, loop, "_forward_backward", "stepping", 60)
    run = Run(1)
    wait_until(lambda: Path("stepping").exists())
    code, output, seconds = end_by(run, signal.SIGINT)
    assert code == 130 and seconds < SECONDS and "Traceback" not in output, output
    assert newest_checkpoint(Path("out/stages/one/checkpoints")) is None


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_second_signal_ends_a_run_at_once_whatever_it_does(chain, monkeypatch, nproc):
    pause_in(monkeypatch, bookkeeping, "save_checkpoint", "saving", 60)
    run = Run(nproc)
    wait_until(lambda: Path("saving").exists())
    run.process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert run.process.poll() is None, "the first one waits for the save"
    pids = descendants(run.process.pid)
    code, output, seconds = end_by(run, signal.SIGTERM)
    assert code == 143 and seconds < SECONDS, output
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), SECONDS)


@pytest.mark.parametrize("signum, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("moment", [1.0, 3.0])
def test_during_the_start_of_a_fresh_process(chain, signum, code, moment):
    """The command line is being read, or torch imported; a fork would not show it."""
    process = subprocess.Popen([sys.executable, "-m", "distill", "train", "out.json"], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, env={**os.environ, "NPROC": "1"})  # fmt: skip
    time.sleep(moment)
    start = time.monotonic()
    process.send_signal(signum)
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - start < SECONDS
    assert process.returncode in (code, -signum) and "Traceback" not in output, output


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_during_an_import(tmp_path, signum):
    """An exception there aborts the process where the import is one of a C++ library's own."""
    (tmp_path / "slow_library.py").write_text(f"import signal\nsignal.raise_signal({int(signum)})\nprint('went on')\n")
    code = "from distill.cli import guard\nguard(lambda: __import__('slow_library'))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signum, "", "stopped\n")


def test_a_process_that_dies_ends_all_with_one_line_or_is_started_again(chain, monkeypatch):
    """Two processes; without --max-restarts the run ends, with it torchrun goes on from the last checkpoint."""
    whole = Run(2)
    assert whole.finish()[0] == 0
    expected = result()
    os.rename("out", "whole")
    run = Run(2)
    assert run.wait_for(12)
    start = time.monotonic()
    os.kill(run.others()[-1], signal.SIGKILL)
    code, output = run.finish()
    assert code == 1 and time.monotonic() - start < 2 * SECONDS
    (line,) = [line for line in output.splitlines() if "error" in line]
    assert re.match(
        r"error: stage 'one': process [01] \(pid \d+\) was ended by SIGKILL, most likely because memory "
        r"ran out: lower micro_batch_size; the same command goes on from the last checkpoint",
        line,
    )
    assert "Traceback" not in output
    reached = count_records()
    run = Run(2, "--max-restarts", "1")
    assert run.wait_for(reached + 8)
    os.kill(run.others()[0], signal.SIGKILL)
    code, output = run.finish()
    assert code == 0 and output.count("started again") == 1, output
    found = result()
    assert [key for key, value in expected.items() if found.get(key) != value] == []


def test_one_process_is_started_again_as_often_as_allowed(chain, undisturbed):
    run = Run(1, "--max-restarts", "1")
    assert run.wait_for(10)
    (pid,) = run.others()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: run.others() and run.others() != [pid])
    assert run.wait_for(20)
    os.kill(run.others()[0], signal.SIGKILL)
    code, output = run.finish()
    assert code == 1 and output.count("starting again, 1 of 1") == 1 and output.count("error: ") == 1, output
    goes_on_to(undisturbed)


def test_a_second_run_on_a_folder_is_refused_and_a_killed_one_leaves_no_lock(chain, undisturbed):
    first = Run(1)
    assert first.wait_for(10)
    code, output = Run(1, log="second.txt").finish()
    assert code == 2 and output.count("\n") == 1, output
    assert re.match(rf"error: out: process {first.process.pid} on \S+ is at work there; wait until it has", output)
    first.kill_all()
    assert first.finish()[0] == -signal.SIGKILL
    assert Path("out/.run.lock").exists(), "its file stays, its lock does not"
    goes_on_to(undisturbed)
    assert not Path("out/.run.lock").exists()


def test_after_the_parent_alone_was_killed_the_next_run_waits_for_its_process_to_save(chain, undisturbed):
    first = Run(1)
    assert first.wait_for(10)
    (child,) = first.others()
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    goes_on_to(undisturbed)
    assert not Path(f"/proc/{child}").exists()
