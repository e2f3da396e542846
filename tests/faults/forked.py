"""Processes that are forks of this one instead of fresh interpreters, for tests of what starts and watches processes.

`python -m distill ...` takes seconds to import what it needs, its fork none. All else is as with subprocess.Popen:
environment, session, descriptors, signals and exit codes. What a fork starts, torchrun and its processes, are forks,
too. A function that a test has replaced is replaced in all of them.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import resource_tracker
from subprocess import PIPE, STDOUT
from types import SimpleNamespace
from typing import Any

import torch.utils.tensorboard  # noqa: F401  # what the forks will not have to import
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
from tqdm import tqdm

from distill import worker  # noqa: F401
from distill.cli import main as distill
from distill.launch import processes

MODULES = {"distill": distill, "torch.distributed.run": torchrun.main}


class ForkedProcess:
    """The part of subprocess.Popen that launch/processes.py, torchrun and tests use, for `python -m MODULE ...`."""

    def __init__(
        self, args: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Any = None, stdin: Any = None,
        stdout: Any = None, stderr: Any = None, start_new_session: bool = False, pass_fds: Sequence[int] = (), **_: Any,
    ) -> None:  # fmt: skip
        self.args, self.returncode = list(args), None
        if stdout == PIPE:  # a file, so that nobody has to read it meanwhile
            stdout = self._output = tempfile.TemporaryFile()
        out = _descriptor(stdout, 1)
        err = out if stderr == STDOUT else _descriptor(stderr, 2)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            _become(self.args, env, cwd, out, err, start_new_session, pass_fds)

    def poll(self) -> int | None:
        if self.returncode is None:
            with contextlib.suppress(ChildProcessError):
                found, status = os.waitpid(self.pid, os.WNOHANG)
                if found:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (timeout if timeout is not None else 1e9)
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Waits for the end, then what was written to a standard output given as PIPE."""
        self.wait(timeout)
        with self._output as file:
            file.seek(0)
            return file.read().decode(errors="replace"), None

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _descriptor(file: Any, default: int) -> int:
    return default if file is None else file if isinstance(file, int) and file >= 0 else file.fileno()


def _become(
    args: list[str], env: Mapping[str, str] | None, cwd: Any, out: int, err: int, new_session: bool,
    pass_fds: Sequence[int],
) -> None:  # fmt: skip
    """What exec would do with this process, then the module's main function. Does not return."""
    code = 3
    try:
        if new_session:
            os.setsid()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        out, err = os.dup(out), os.dup(err)
        os.dup2(out, 1)
        os.dup2(err, 2)
        kept = sorted({0, 1, 2, *pass_fds})
        for low, high in zip(kept, [*kept[1:], 4096], strict=True):
            os.closerange(low + 1, high)
        resource_tracker._resource_tracker._fd = None  # type: ignore[attr-defined]  # closed; another file may get it
        logging.getLogger().handlers.clear()
        if cwd is not None:
            os.chdir(cwd)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        fork_from_now_on()
        at = args.index("-m")
        sys.argv = args[at + 1 :]
        code = _run(MODULES[args[at + 1]], args[at + 2 :])
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run(main: Callable[[list[str]], None], arguments: list[str]) -> int:
    try:
        main(arguments)
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def fork_from_now_on(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Lets the modules that start `python -m ...` start forks; `replace` sets an attribute."""
    replace(tqdm, "monitor_interval", 0)  # no thread that could hold a lock while another forks
    replace(os, "cpu_count", lambda: 1)  # text is prepared without a pool, whose processes would be fresh ones
    replace(subprocess_handler, "Popen", ForkedProcess)
    replace(processes, "subprocess", SimpleNamespace(Popen=ForkedProcess, DEVNULL=subprocess.DEVNULL))
