"""What a student's steps gave, kept on the device until a log line, and the rule for what counts as a spike."""

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.training.processes import Processes, sum_over_processes

WINDOW = 100
"""Steps that a loss is compared with."""
LEAST = 20
"""Steps to have seen before anything can be a spike."""
SIGMAS = 5.0


@dataclass(frozen=True)
class LogValues:
    """A student's values of the steps since the last log line. Steps whose update was left out do not count."""

    means: dict[str, float]
    losses: dict[int, float]  # step -> loss


class StudentLog:
    """Collects one student's values without waiting for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps: list[int] = []
        self._terms: list[Tensor] = []
        self._norms: list[Tensor] = []

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Adds one micro-batch's part of the step's loss and terms."""
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def close_step(self, step: int, norm: Tensor) -> None:
        """Ends a step, whose gradient norm over all processes was `norm`."""
        self._names = sorted(self._sums)
        self._steps.append(step)
        self._terms.append(torch.stack([self._sums[name] for name in self._names]))
        self._norms.append(norm)
        self._sums = {}

    def read(self, processes: Processes) -> LogValues | None:
        """Means over the steps, losses summed over the processes; None if no step counts. Then all is cleared."""
        terms = sum_over_processes(torch.stack(self._terms).cpu().double(), processes)
        table = torch.cat([terms, torch.stack(self._norms).cpu().double()[:, None]], dim=1)
        counts = table.isfinite().all(dim=1)
        steps = [step for step, is_good in zip(self._steps, counts.tolist(), strict=True) if is_good]
        names = [*self._names, "grad_norm"]
        self._steps, self._terms, self._norms = [], [], []
        if not steps:
            return None
        table = table[counts]
        losses = table[:, names.index("loss")].tolist()
        return LogValues(
            dict(zip(names, table.mean(dim=0).tolist(), strict=True)), dict(zip(steps, losses, strict=True))
        )


class SpikeWatch:
    """Tells losses that stand out from the last ones: more than SIGMAS above their median.

    The spread is the median distance from the median, so that one spike does not hide the next. A falling loss is
    below its median, so the start of a run raises nothing.
    """

    def __init__(self) -> None:
        self._seen: deque[float] = deque(maxlen=WINDOW)

    def usual(self, loss: float) -> float | None:
        """The median of the last losses if `loss` is a spike, else None; `loss` belongs to the last ones afterwards."""
        found = None
        if len(self._seen) >= LEAST:
            median = statistics.median(self._seen)
            spread = statistics.median(abs(value - median) for value in self._seen) * 1.4826  # = sigma of a Gaussian
            if loss > median + SIGMAS * max(spread, 1e-3 * abs(median)):
                found = median
        self._seen.append(loss)
        return found
