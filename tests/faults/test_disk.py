"""A disk that is full, read-only or not ours, and a clock that was set back: one line, and nothing is lost.

What needs a mount runs in a fork with file systems of its own, where this user may mount; `chain.py --mode full` fails
the calls themselves everywhere.
"""

import os
import time
from pathlib import Path

import pytest
from faults.disturbance import end, fork
from faults.launcher import Run, goes_on_to, stop_in_the_middle
from faults.machine import make_read_only, mount_small, obey_permissions, resize, take_own_mounts

from distill.training.checkpoint import find_damage, list_checkpoints

pytestmark = pytest.mark.slow
NO_MOUNT = 77


def in_a_fork(action, *, mounts=False):
    """Runs `action`, whose assertions are the test's; skips where mounts are needed and not allowed."""

    def run():
        if mounts and not take_own_mounts():
            return NO_MOUNT
        return action()

    log = Path("fork.txt")
    code = end(fork(run, log))
    if code == NO_MOUNT:
        pytest.skip("this user cannot mount a file system")
    assert code == 0, log.read_text()[-6000:]


def refused(*, code=2):
    """The one line of a run that must end so."""
    found, output = Run(1, log="refused.txt").finish()
    lines = output.splitlines()
    assert found == code and sum("error" in line for line in lines) == 1 and "Traceback" not in output, (found, output)
    return lines[-1]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_nothing_half():
    for path in Path("out").glob("stages/*/checkpoints"):
        assert all(find_damage(checkpoint) is None for checkpoint in list_checkpoints(path))
    for model in Path("out").glob("models/[!.]*"):
        assert {"config.json", "model.safetensors", "vocab.txt", "README.md"} <= {path.name for path in model.iterdir()}


@pytest.mark.parametrize("kilobytes", [24, 250])
def test_a_full_disk_is_told_and_after_making_room_the_run_goes_on(chain, undisturbed, kilobytes):
    """One does not take the data, the other not the checkpoints."""

    def run():
        mount_small(Path("out"), kilobytes)
        line = refused(code=1)
        assert "No space left on device" in line, line
        check_nothing_half()
        resize(Path("out"), 50_000)
        goes_on_to(undisturbed)

    in_a_fork(run, mounts=True)


def test_a_read_only_folder_is_refused_before_anything(chain, undisturbed):
    def run():
        stop_in_the_middle()
        before = contents(Path("out"))
        make_read_only(Path("out"))
        assert "cannot be written" in (line := refused()) and "on a read-only file system" in line
        assert contents(Path("out")) == before

    in_a_fork(run, mounts=True)
    goes_on_to(undisturbed)


@pytest.mark.parametrize("folder", ["out", "out/models"])
def test_a_folder_that_may_not_be_written_is_refused_before_anything(chain, undisturbed, folder):
    stop_in_the_middle()
    Path(folder).mkdir(exist_ok=True)
    before = contents(Path("out"))
    Path(folder).chmod(0o555)

    def run():
        obey_permissions()
        assert f"{folder}: cannot be written, you have no permission" in refused()

    in_a_fork(run)
    Path(folder).chmod(0o755)
    assert contents(Path("out")) == before
    goes_on_to(undisturbed)


def test_a_checkpoint_that_may_not_be_read_is_not_taken_for_damaged(chain, undisturbed):
    """Set aside it would cost the steps since the one before."""
    stop_in_the_middle()
    newest = list_checkpoints(Path("out/stages/one/checkpoints"))[0]
    (newest / "a.safetensors").chmod(0)

    def run():
        obey_permissions()
        assert f"{newest}/a.safetensors: Permission denied" in refused()

    in_a_fork(run)
    assert newest.exists()
    (newest / "a.safetensors").chmod(0o644)
    goes_on_to(undisturbed)


def test_a_clock_that_was_set_back_changes_nothing(chain, undisturbed, monkeypatch):
    stop_in_the_middle()
    years = 10 * 365 * 86400
    for number, path in enumerate(sorted(Path("out").rglob("*"))):
        os.utime(path, (time.time() + years - number, time.time() + years - number))
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - years)
    goes_on_to(undisturbed)
