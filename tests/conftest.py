"""Fixtures that test modules share. The builders they use, and others, are plain functions in tiny.py."""

import os
import signal
import sys
from pathlib import Path

# Before anything imports torch: two workers on two cores run best with one thread each, and no test needs the hub.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("LTP_EXTENSION_PARALLELISM", "false")  # else each fork is told of on stderr
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a background job of a shell; what tests start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="module")
def short_peak():
    """A test that trains does not spend its time measuring the machine."""
    with pytest.MonkeyPatch.context() as patch:
        if accounting := sys.modules.get("distill.training.accounting"):
            patch.setattr(accounting, "PEAK_SECONDS", 0.0)
        yield


@pytest.fixture
def forked(monkeypatch):
    """The processes that commands of this test start are forks of this one: all but the seconds of imports is real."""
    from faults.forked import fork_from_now_on

    fork_from_now_on(monkeypatch.setattr)


@pytest.fixture
def world(tmp_path, monkeypatch):
    """The folder that tiny.write_world writes; it is the working folder."""
    from tiny import write_world

    write_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command_environment():
    """Environment of a subprocess that runs `python -m distill` anywhere: this checkout, one thread, no hub."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def clean_environment():
    """Environment in which nothing of this checkout can be imported by PYTHONPATH."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return {**kept, "PYTHONSAFEPATH": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def python():
    return sys.executable
