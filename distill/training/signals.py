"""SIGTERM and SIGINT in the processes of a stage, and the end of the process that started them.

Until the first step is done there is nothing to save: a signal ends the process at once, whatever it is doing
(importing, loading, compiling). From then on the first signal asks the loop to save and leave, a second one leaves at
once.
"""

import os
import signal
import threading
import time
from types import FrameType

import psutil

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOOK_SECONDS = 0.5


class StopRequest:
    """Remembers the first signal; the loop looks at `signum` between steps."""

    def __init__(self) -> None:
        self.signum = 0
        self._is_listening = False
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    def listen(self) -> None:
        """From now on a signal is remembered instead of ending the process."""
        if not self._is_listening:
            self._is_listening = True
            for number in SIGNALS:
                signal.signal(number, self._receive)

    def interrupts(self) -> bool:
        """Whether work that may take long, and can be done again, should be given up."""
        return self.signum > 0

    def _receive(self, signum: int, _frame: FrameType | None) -> None:
        if self.signum:
            os._exit(128 + signum)
        self.signum = signum


def stop_without(pid: int) -> None:
    """Sends this process SIGTERM once process `pid` or the own parent is gone.

    Otherwise the processes of a stage would train on without anybody who waits for them, and in the way of the next
    run on their folder.
    """
    if os.name == "nt":
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent and psutil.pid_exists(pid):
            time.sleep(_LOOK_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="stop_without").start()
