"""SIGTERM and SIGINT: the first asks the loop to save and leave, a second one leaves at once."""

import os
import signal
from types import FrameType


class StopRequest:
    """Remembers the first signal; the loop looks at `signum` between steps."""

    def __init__(self) -> None:
        self.signum = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, signum: int, _frame: FrameType | None) -> None:
        if self.signum:
            os._exit(128 + signum)
        self.signum = signum
