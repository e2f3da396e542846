"""How fast encoders are, side by side: the time of a forward at stated batch sizes, lengths and numbers of threads.

Models take turns, one forward each, so that whatever else the machine does meets all of them alike. Inputs are random
tokens without padding; weights are float32 on a CPU and on a GPU. Only the encoder runs: heads of tasks are small.
"""

import multiprocessing
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import BertModel

from distill.downstream.scores import Table, to_cell
from distill.errors import InputError
from distill.machine import num_cores, processor_name
from distill.modeling.config import load_config
from distill.modeling.models import load_masked_lm

WARM_UP = 2
"""Forwards of each model that are not counted."""
MIN_ROUNDS = 5


@dataclass(frozen=True)
class Shape:
    """What is timed."""

    batch_size: int
    length: int
    threads: int
    """Of a forward on a CPU."""


@dataclass(frozen=True)
class Timing:
    """Forwards of one model in one shape."""

    model: str
    batch_size: int
    length: int
    threads: int
    p50_ms: float
    p95_ms: float
    tokens_per_second: float
    """At the median."""
    num_forwards: int


def make_shapes(batch_sizes: Iterable[int], lengths: Iterable[int], threads: Iterable[int]) -> list[Shape]:
    """Every combination, small ones first."""
    return [Shape(*values) for values in product(*(sorted(set(values)) for values in (batch_sizes, lengths, threads)))]


def measure_latency(
    models: Mapping[str, Path], shapes: Sequence[Shape], *, seconds: float = 1.0,
    progress: Callable[[int], object] = lambda done: None,
) -> list[Timing]:  # fmt: skip
    """Times every model in every shape.

    Args:
        models: name -> folder.
        seconds: how long each model is timed in each shape, at least; never fewer than MIN_ROUNDS forwards.
        progress: is told of each shape that is done.
    Raises:
        InputError: a length over a model's positions; see load_masked_lm for the rest.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name, folder in models.items():
        check_lengths(name, load_config(folder).max_position_embeddings, [shape.length for shape in shapes])
    encoders = {name: load_masked_lm(folder, need_head=False).bert.eval().to(device)
                for name, folder in models.items()}  # fmt: skip
    timings = []
    for shape in shapes:
        with using_threads(shape.threads):
            timings += time_shape(_forwards(encoders, shape, device), shape, seconds=seconds)
        progress(1)
    return timings


def check_lengths(name: str, positions: int, lengths: Sequence[int]) -> None:
    """InputError if sequences are longer than a model can read."""
    if max(lengths) > positions:
        raise InputError(f"{name}: length {max(lengths)} cannot be timed, the model has {positions} positions")


def _forwards(encoders: Mapping[str, BertModel], shape: Shape, device: torch.device) -> dict[str, Callable[[], object]]:
    """A forward of each encoder on random tokens."""
    generator = torch.Generator().manual_seed(0)

    def forward(encoder: BertModel, input_ids: torch.Tensor) -> None:
        with torch.inference_mode():
            encoder(input_ids)
        if input_ids.is_cuda:
            torch.cuda.synchronize()

    size = (shape.batch_size, shape.length)
    return {
        name: partial(forward, encoder, torch.randint(encoder.config.vocab_size, size, generator=generator).to(device))
        for name, encoder in encoders.items()
    }


def time_shape(forwards: Mapping[str, Callable[[], object]], shape: Shape, *, seconds: float) -> list[Timing]:
    """Times the forwards of several models in one shape, which take turns; see measure_latency."""
    times: dict[str, list[float]] = {name: [] for name in forwards}
    for forward in forwards.values():
        for _ in range(WARM_UP):
            forward()
    while any(len(found) < MIN_ROUNDS or sum(found) < seconds for found in times.values()):
        for name, forward in forwards.items():
            start = time.perf_counter()
            forward()
            times[name].append(time.perf_counter() - start)
    return [_timing(name, found, shape) for name, found in times.items()]


def _timing(name: str, times: Sequence[float], shape: Shape) -> Timing:
    p50, p95 = 1000 * median(times), 1000 * float(np.percentile(times, 95))
    rate = 1000 * shape.batch_size * shape.length / p50
    return Timing(name, **asdict(shape), p50_ms=round(p50, 4), p95_ms=round(p95, 4),
                  tokens_per_second=round(rate, 1), num_forwards=len(times))  # fmt: skip


@contextmanager
def using_threads(number: int) -> Iterator[None]:
    """Gives torch a number of threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_memory(folder: Path, batch_size: int, length: int) -> float:
    """MB that a fresh process needs more at its peak to load a model and run one forward: weights and activations.

    On a GPU, the memory that torch took there.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return round(pool.apply(_peak_memory_here, (str(folder), batch_size, length)), 1)


@torch.inference_mode()
def _peak_memory_here(folder: str, batch_size: int, length: int) -> float:
    before = _peak_memory_so_far()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = load_masked_lm(folder, need_head=False).bert.eval().to(device)
    encoder(torch.zeros((batch_size, length), dtype=torch.long, device=device))
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return _peak_memory_so_far() - before


def _peak_memory_so_far() -> float:
    """MB; on Linux since the last call, which makes room below the peak of the imports visible."""
    import resource

    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    if peak := next((line for line in lines if line.startswith("VmHWM")), None):  # sandboxes such as gVisor tell none
        with suppress(OSError):  # some containers forbid it
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins again
        return int(peak.split()[1]) / 2**10
    unit = 2**20 if platform.system() == "Darwin" else 2**10  # macOS counts bytes, others kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def describe_machine() -> dict[str, Any]:
    """What the times depend on besides the models. Touches the GPU."""
    return {**describe_processor(), "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}


def describe_processor() -> dict[str, Any]:
    """The part of `describe_machine` that touches no GPU."""
    return {"cpu": processor_name(), "cores": num_cores(), "torch": torch.__version__}


def latency_table(timings: Sequence[Timing], reference: str, memory: Mapping[str, float] | None = None) -> Table:
    """A row a shape and model; speed-up is the reference's median over the model's in the same shape."""
    medians = {(t.batch_size, t.length, t.threads, t.model): t.p50_ms for t in timings}
    rows = []
    for t in timings:
        speedup = medians[t.batch_size, t.length, t.threads, reference] / t.p50_ms
        rows.append((
            t.model, str(t.batch_size), str(t.length), str(t.threads), f"{t.p50_ms:.2f}", f"{t.p95_ms:.2f}",
            f"{t.tokens_per_second:,.0f}", f"{to_cell([speedup], 1)[0]}x",
            *([f"{memory[t.model]:.0f}"] if memory else []),
        ))  # fmt: skip
    head = ("Model", "Batch", "Length", "Threads", "p50 ms", "p95 ms", "Tokens/s", "Speedup")
    return Table((*head, "Memory MB") if memory else head, tuple(rows))
