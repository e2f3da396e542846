"""SIGINT, SIGTERM and SIGHUP in a command: the first unwinds it in good order, a second one ends it at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn


class Terminated(BaseException):
    """SIGTERM or SIGHUP came. Like KeyboardInterrupt, no handler of errors takes it for one."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Within, the first of these signals raises KeyboardInterrupt or Terminated in the main thread.

    SIGHUP comes when a terminal is closed, and stays ignored where `nohup` has it ignored. While a module is imported
    the process ends at once instead: an exception inside the import of a C++ library (torch) would abort it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def receive(signum: int, frame: FrameType | None) -> NoReturn:
        if received:
            os._exit(128 + signum)
        if _is_importing(frame):
            os.write(2, b"stopped\n")
            os._exit(128 + signum)
        received.append(signum)
        if signum == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated(signum)

    with handling(receive):
        yield


@contextlib.contextmanager
def handling(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Within, `handler` gets the signals that ask a process to end, but for those that are ignored."""
    numbers = [number for number in end_signals() if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def end_signals() -> list[signal.Signals]:
    """The signals that ask a process to end, on this system."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]
