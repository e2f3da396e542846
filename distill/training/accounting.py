"""How fast a stage trains, in the field's terms: tokens/s, and the share of this machine's own matrix peak (MFU).

Model FLOPs are those that the objective needs: the teacher's forward as far as it runs, three forwards' worth for a
student (forward, and twice that backward), the prediction head on the masked share of the tokens, projections. Padding
counts as nothing, recomputation would. The peak is measured, not read from a data sheet: every process multiplies
matrices at the same time, at the start of the stage, in the stage's dtype.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from transformers import BertConfig

from distill.corpus.batches import MicroBatch
from distill.modeling.counting import flops_per_token
from distill.recipe import Student
from distill.training.encoder import needs_by_attention, needs_of
from distill.training.matches import Match
from distill.training.processes import Processes, sum_over_processes, wait_for_all

PEAK_SECONDS = 0.4
"""How long matrix products are timed."""
_SLOW_PRODUCT = 0.02  # seconds; a product that takes as long fills the device
_LARGEST = 8192


def pass_flops(
    teacher: BertConfig | None,
    students: Iterable[tuple[BertConfig, list[Match], Student]],
    *,
    length: int,
    head_share: float,
) -> float:
    """Model FLOPs a token of a stage's pass over all its students, forward and backward.

    Args:
        students: config, resolved matches and settings of each.
        length: tokens a row.
        head_share: masked share of the tokens.
    """
    students = list(students)
    flops = 0.0
    if teacher is not None:
        needs = (needs_of(matches, "T", logits=settings.kd_weight > 0) for _, matches, settings in students)
        for need in needs_by_attention(needs).values():
            head, layers = (head_share, None) if need.logits else (0.0, need.layers)
            flops += flops_per_token(teacher, length, head_share=head, layers=layers)
    for config, matches, settings in students:
        has_logits = teacher is None or settings.kd_weight > 0 or settings.mlm_weight > 0
        forward = flops_per_token(config, length, head_share=head_share if has_logits else 0.0)
        forward += sum(_projection_flops(match) for match in matches if match.get("proj"))
        flops += 3 * forward
    return flops


def _projection_flops(match: Match) -> float:
    states = len(match["layer_S"]) if isinstance(match["layer_S"], list) else 1
    return 2.0 * states * match["proj"][1] * match["proj"][2]


def measure_peak(dtype: torch.dtype, processes: Processes) -> float:
    """FLOP/s of large square matrix products over all processes, which measure at the same time."""
    wait_for_all(processes)
    mine = torch.tensor([_matmul_rate(dtype, processes.device)], dtype=torch.float64)
    return float(sum_over_processes(mine, processes))


def _matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """The best rate seen, of products large enough to fill the device."""
    end, size = time.perf_counter() + PEAK_SECONDS, 512
    seconds = _time_product(size, dtype, device)
    while seconds < _SLOW_PRODUCT and size < _LARGEST and time.perf_counter() < end:
        size *= 2
        seconds = _time_product(size, dtype, device)
    while time.perf_counter() < end:
        seconds = min(seconds, _time_product(size, dtype, device))
    return 2 * size**3 / seconds


def _time_product(size: int, dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of one product, the second of two."""
    # Numbers of a generator of its own: training's random state stays, and zeros would flatter a GPU's clock.
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(size, size, generator=generator, device=device).to(dtype)
    for _ in range(2):
        _wait_for(device)
        start = time.perf_counter()
        a @ a
        _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Clock:
    """Seconds of training since the last log line, and how many of them went by waiting for data."""

    def __init__(self) -> None:
        self._started, self._waited = time.perf_counter(), 0.0

    def time_waiting(self, steps: Iterable[list[MicroBatch]]) -> Iterator[list[MicroBatch]]:
        """The same steps; the time until each is there counts as waiting."""
        iterator = iter(steps)
        while True:
            before = time.perf_counter()
            batches = next(iterator, None)
            self._waited += time.perf_counter() - before
            if batches is None:
                return
            yield batches

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Time spent in here (evaluation, checkpoints) is no training time."""
        before = time.perf_counter()
        yield
        self._started += time.perf_counter() - before

    def read(self, tokens: int) -> dict[str, float]:
        """`tokens_per_second` and `data_wait` (a share of the time) since the last reading; then starts again."""
        elapsed = time.perf_counter() - self._started
        values = {"tokens_per_second": tokens / elapsed, "data_wait": self._waited / elapsed}
        self._started, self._waited = time.perf_counter(), 0.0
        return values


class Throughput:
    """Tokens, seconds and waiting of the steps that this process has seen, and the share of the peak they reached."""

    def __init__(self, *, flops_per_token: float, peak: float) -> None:
        """
        Args:
            flops_per_token: of the whole pass.
            peak: FLOP/s over all processes.
        """
        self.flops_per_token, self.peak = flops_per_token, peak
        self._tokens, self._seconds, self._waited = 0, 0.0, 0.0

    def add(self, tokens: int, values: Mapping[str, float]) -> float:
        """Takes the steps since the last log line in. Returns their share of the peak.

        Args:
            tokens: in these steps, over all processes.
            values: of the log line, with tokens_per_second and data_wait.
        """
        seconds = tokens / values["tokens_per_second"]
        self._tokens, self._seconds = self._tokens + tokens, self._seconds + seconds
        self._waited += values["data_wait"] * seconds
        return values["tokens_per_second"] * self.flops_per_token / self.peak

    def summary(self) -> str:
        """One line for the end of a stage; empty if there were no steps."""
        if not self._seconds:
            return ""
        speed = self._tokens / self._seconds
        reached = speed * self.flops_per_token
        line = (
            f"{speed:,.0f} tokens/s x {self.flops_per_token / 1e6:,.1f} MFLOPs a token = {reached / 1e9:,.1f} GFLOP/s "
            f"of model work, {reached / self.peak:.0%} of the {self.peak / 1e9:,.0f} GFLOP/s that this machine "
            f"multiplies matrices with"
        )
        waited = self._waited / self._seconds
        return f"{line}; {waited:.0%} of the time went by waiting for data" if waited > 0.05 else line
