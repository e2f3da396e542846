"""One optimiser step of distillation: stock TextBrewer + transformers beside ours. Tokens/s, ratio, share of the peak.

    python benchmarks/distill_step.py                    # the comparison; about ten minutes on two AVX2 cores
    python benchmarks/distill_step.py --students 3       # three students in one pass against three runs
    python benchmarks/distill_step.py --profile          # where the time of our step goes

Same models (random weights), same rows and masks, AdamW, clipping, micro-batch = batch; one process, taking turns:
stock's own loop runs, and whenever it asks for its next batch, our loop makes one step. Two comparisons:
 - identical: float32 and dropout 0.1 on both sides; before the timing the losses and gradients of both are compared
   without dropout, on the same weights.
 - best: stock without dropout, and in bf16 autocast where the machine has bf16 units; ours with its "auto" settings
   and dropout 0.
Stock is what MiniRBT does: GeneralDistiller with adaptors that give logits and all hidden states, labels passed into
both models, full logits of all positions, TextBrewer's loop with num_steps. Prints tables and one JSON line.
"""

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import textbrewer
import torch
import transformers
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from transformers import BertForMaskedLM, get_scheduler

from distill.corpus.batches import MicroBatch
from distill.modeling.models import build_model, load_config
from distill.recipe import Student
from distill.training.accounting import measure_peak, pass_flops
from distill.training.compiling import should_compile
from distill.training.loop import TeacherPass, run_steps
from distill.training.losses import UNITS
from distill.training.matches import resolve_matches
from distill.training.objective import Objective
from distill.training.precision import autocast_for, choose_dtype
from distill.training.processes import Processes
from distill.training.student import StudentRun

CONFIGS = Path(__file__).resolve().parent.parent / "distill_configs"
PAIRS = {"RoBERTa->RBT6": ("RoBERTa", "RBT6"), "RBT6->H256": ("RBT6", "MiniRBT-h256")}
THREE = ("MiniRBT-h256", "MiniRBT-h288", "RBT4-h312")
TEMPERATURE, LEARNING_RATE, MASKED_SHARE, IGNORE_INDEX = 8.0, 1e-4, 0.15, -100


@dataclasses.dataclass(frozen=True)
class Settings:
    """How our side of a comparison runs."""

    device: torch.device
    dtype: torch.dtype
    dropout: float
    compiled: bool
    attention: str = "sdpa"
    cast_teacher: bool = True

    @property
    def processes(self) -> Processes:
        return Processes(0, 1, self.device)


class NeverStop:
    """The loop asks it between steps and micro-batches."""

    signum = 0

    def interrupts(self) -> bool:
        return False


def best_settings(device: torch.device) -> Settings:
    """What a stage takes with everything on auto, and dropout 0."""
    return Settings(device, choose_dtype("auto", device), 0.0, should_compile("auto", device))


def make_batch(rows: int, length: int, vocab_size: int, *, seed: int = 0, masked: float = MASKED_SHARE) -> MicroBatch:
    """Full random rows of which the usual share, or `masked`, is masked."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(670, vocab_size, (rows, length), generator=generator)
    input_ids[:, 0], input_ids[:, -1] = 101, 102
    count = round(masked * length)
    inner = torch.stack([torch.randperm(length - 2, generator=generator)[:count].sort().values + 1
                         for _ in range(rows)])  # fmt: skip
    positions = (inner + torch.arange(rows)[:, None] * length).flatten()
    labels = input_ids.flatten()[positions]
    input_ids.view(-1)[positions] = 103
    lengths = torch.full((rows,), length)
    return MicroBatch(input_ids, None, positions, labels, lengths, num_tokens=rows * length, samples=range(rows))


def model_of(name: str, dropout: float, *, seed: int, attention: str = "sdpa") -> BertForMaskedLM:
    """A model of distill_configs with random weights."""
    config = load_config(CONFIGS / f"{name}.json")
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
    return build_model(config, seed=seed, attention=attention)


class Ours:
    """Our loop over one batch, a step at a time."""

    def __init__(self, teacher: str, students: tuple[str, ...], batch: MicroBatch, settings: Settings,
                 **fields: Any) -> None:  # fmt: skip
        """`fields` of a recipe's student come before those of MiniRBT's objective."""
        self.settings, self.fields = settings, fields
        device, dtype = settings.device, settings.dtype
        self.model = model_of(teacher, 0.0, seed=1).to(device)
        self.runs = [self._start(name, number) for number, name in enumerate(students)]
        autocast = autocast_for(dtype, device)
        if settings.cast_teacher:
            torch.nn.Module.to(self.model, dtype=dtype)
            autocast = contextlib.nullcontext
        needs = [run.objective.teacher_needs for run in self.runs]
        self.teacher = TeacherPass(self.model, needs, autocast, compiled=settings.compiled)
        if device.type == "cuda":
            batch = batch.pin_memory()
        self._reports = run_steps(
            self.runs, self.teacher, itertools.repeat([batch]), first_step=0, tokens=0, log_every=10,
            last_step=1 << 40, processes=settings.processes, stop=NeverStop(),
        )  # fmt: skip

    def _start(self, name: str, number: int) -> StudentRun:
        settings = self.settings
        model = model_of(name, settings.dropout, seed=2 + number, attention=settings.attention)
        default = {"matches": ["uniform"], "temperature": TEMPERATURE, "learning_rate": LEARNING_RATE}
        student = Student(config=name, **{**default, **self.fields})
        return StudentRun(
            name, model, student, matches=resolve_matches(student.matches, self.model.config, model.config),
            distilled=True, steps=10_000, seed_parts=(0,), device=settings.device, dtype=settings.dtype,
            compiled=settings.compiled,
        )  # fmt: skip

    def step(self) -> None:
        """One optimiser step of all students, done when this returns."""
        next(self._reports)
        wait_for(self.settings.device)

    def flops_per_token(self, length: int) -> float:
        """Model FLOPs; the same for both sides, since they are what the objective needs."""
        students = [(run.objective.student.config, run.objective.matches, run.settings) for run in self.runs]
        return pass_flops(self.model.config, students, length=length, head_share=MASKED_SHARE)


class _Enough(Exception):
    """Ends stock's loop, which knows no other way than a number of steps."""


class Stock:
    """GeneralDistiller as MiniRBT sets it up."""

    def __init__(self, ours: Ours, batch: MicroBatch, settings: Settings, folder: Path) -> None:
        run, device = ours.runs[0], settings.device
        labels = torch.full_like(batch.input_ids, IGNORE_INDEX)
        labels.view(-1)[batch.masked_positions] = batch.labels
        self.batch = {"input_ids": batch.input_ids, "labels": labels}
        self.teacher = build_model(ours.model.config, seed=1).to(device)
        self.student = build_model(run.objective.student.config, seed=2).to(device)
        self.student.load_state_dict(run.objective.student.state_dict())
        training = TrainingConfig(device=device, output_dir=str(folder), ckpt_steps=1 << 20)
        config = DistillationConfig(temperature=TEMPERATURE, intermediate_matches=run.objective.matches)
        self.distiller = GeneralDistiller(training, config, self.teacher, self.student, _adaptor, _adaptor)
        for number, projection in run.objective.projections.items():
            self.distiller.projs[int(number)].load_state_dict(projection.state_dict())
        self.autocast = autocast_for(settings.dtype, device)

    def train(self, batches: Iterator[dict[str, torch.Tensor]]) -> None:
        """TextBrewer's loop over `batches`, until they raise _Enough."""
        decaying = [p for p in self.student.parameters() if p.dim() >= 2]
        rest = [p for p in self.student.parameters() if p.dim() < 2]
        groups = [{"params": decaying, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, eps=1e-6)
        scheduler = {"name": "linear", "num_warmup_steps": 1000, "num_training_steps": 10_000}
        with self.distiller, self.autocast(), contextlib.suppress(_Enough):
            self.distiller.train(
                optimizer, batches, num_epochs=None, scheduler_class=get_scheduler, scheduler_args=scheduler,
                max_grad_norm=1.0, num_steps=1 << 20, output_hidden_states=True,
            )  # fmt: skip


def _adaptor(batch: dict[str, torch.Tensor], outputs: Any) -> dict[str, Any]:
    mask = batch["labels"] != IGNORE_INDEX
    return {"logits": (outputs.logits,), "logits_mask": (mask,), "hidden": outputs.hidden_states}


def compare(pair: str, rows: int, length: int, mode: str, device: torch.device, seconds: float) -> dict[str, Any]:
    """Median seconds of a step of both sides, taking turns for at least `seconds` and one step each."""
    teacher, student = PAIRS[pair]
    identical = Settings(device, torch.float32, 0.1, False)
    settings = identical if mode == "identical" else best_settings(device)
    batch = make_batch(rows, length, load_config(CONFIGS / f"{teacher}.json").vocab_size)
    ours = Ours(teacher, (student,), batch, settings)
    times: dict[str, list[float]] = {"stock": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder, silence():
        stock = Stock(ours, batch, settings, Path(folder))
        apart = compare_losses(ours, stock, rows, length) if mode == "identical" else None
        stock.train(_alternate(ours, stock.batch, times, seconds, device))
    del stock
    step = {side: statistics.median(taken) for side, taken in times.items()}
    return {
        "pair": pair, "shape": f"{rows}x{length}", "mode": mode, "tokens": rows * length,
        "flops_per_token": ours.flops_per_token(length), "repeats": len(times["ours"]), "difference": apart,
        "stock_s": step["stock"], "ours_s": step["ours"], "ratio": step["stock"] / step["ours"],
        "dtype": str(settings.dtype).removeprefix("torch."), "compiled": settings.compiled,
    }  # fmt: skip


def _alternate(
    ours: Ours, batch: dict[str, torch.Tensor], times: dict[str, list[float]], seconds: float, device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    """Stock's batches; each is handed out after a step of ours, and what stock does with it is timed."""
    own_precision = torch.autocast(device.type, enabled=False)  # not that which stock's loop runs in
    yield {name: value[: max(1, len(value) // 8)] for name, value in batch.items()}  # warms up: memory, moments, hooks
    with own_precision:
        ours.step()
    until = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        with own_precision:
            ours.step()
        times["ours"].append(time.perf_counter() - start)
        start = time.perf_counter()
        yield batch
        wait_for(device)
        times["stock"].append(time.perf_counter() - start)
        if time.perf_counter() > until:
            raise _Enough


def compare_losses(ours: Ours, stock: Stock, rows: int, length: int) -> float:
    """Largest relative difference of loss and gradients between both sides, without dropout, on two rows."""
    device = ours.settings.device
    batch = make_batch(2, length, ours.model.config.vocab_size, seed=1)
    labels = torch.full_like(batch.input_ids, IGNORE_INDEX)
    labels.view(-1)[batch.masked_positions] = batch.labels
    objective: Objective = ours.runs[0].objective.eval()
    stock.student.eval(), stock.teacher.eval()
    total, _ = stock.distiller.train_on_batch(
        {"input_ids": batch.input_ids, "labels": labels}, {"output_hidden_states": True}
    )
    total.backward()
    batch = batch.to(device)
    loss, _ = objective(batch, ours.teacher(batch)[False], dict.fromkeys(UNITS, 1.0))
    loss.backward()
    pairs = list(zip(objective.student.parameters(), stock.student.parameters(), strict=True))
    scale = max(float(theirs.grad.abs().max()) for _, theirs in pairs)
    apart = max(float((mine.grad - theirs.grad).abs().max()) for mine, theirs in pairs) / scale
    for parameter in [*objective.parameters(), *stock.student.parameters()]:
        parameter.grad = None
    for projection in stock.distiller.projs:
        if projection is not None:
            projection.zero_grad()
    objective.train()
    apart = max(apart, abs(float(loss) / float(total) - 1))
    assert apart < 1e-3, f"the two sides do not compute the same: {apart}"
    return apart


def take_turns(sides: dict[str, Callable[[], None]], seconds: float) -> dict[str, float]:
    """Median seconds of each, all taking turns, for `seconds` each and at least twice; the first turn warms up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    until = None
    while until is None or time.perf_counter() < until or len(next(iter(times.values()))) < 2:
        for name, step in sides.items():
            start = time.perf_counter()
            step()
            if until is not None:
                times[name].append(time.perf_counter() - start)
        until = until or time.perf_counter() + seconds * len(sides)
    return {name: statistics.median(taken) for name, taken in times.items()}


def compare_students(rows: int, length: int, device: torch.device, seconds: float) -> dict[str, Any]:
    """One pass over three students against three runs of one, at the best settings."""
    settings = best_settings(device)
    batch = make_batch(rows, length, load_config(CONFIGS / "RBT6.json").vocab_size)
    together = Ours("RBT6", THREE, batch, settings)
    alone = {name: Ours("RBT6", (name,), batch, settings) for name in THREE}
    times = take_turns({"together": together.step, **{name: side.step for name, side in alone.items()}}, seconds)
    flops = {name: side.flops_per_token(length) for name, side in alone.items()}
    separate = sum(times[name] for name in THREE)
    return {
        "shape": f"{rows}x{length}", "together_s": times["together"], "separate_s": separate,
        "each_s": {name: times[name] for name in THREE}, "ratio": separate / times["together"],
        "flops_ratio": sum(flops.values()) / together.flops_per_token(length),
    }  # fmt: skip


def profile(pair: str, rows: int, length: int, device: torch.device) -> str:
    """torch.profiler's table of our best step."""
    teacher, student = PAIRS[pair]
    batch = make_batch(rows, length, load_config(CONFIGS / f"{teacher}.json").vocab_size)
    ours = Ours(teacher, (student,), batch, best_settings(device))
    ours.step()
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    with torch.profiler.profile(activities=kinds) as profiler:
        ours.step()
    key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=key, row_limit=20, max_name_column_width=50)


def wait_for(device: torch.device) -> None:
    """Returns when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """TextBrewer's progress bar and log lines, and warnings of both packages, are not ours to print."""
    logging.getLogger("Distillation").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """A Markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for line in [head, ["-" * width for width in widths], *rows]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |", flush=True)


def print_comparison(cells: list[dict[str, Any]], peaks: dict[str, float]) -> None:
    rows = []
    for cell in cells:
        speed = {side: cell["tokens"] / cell[f"{side}_s"] for side in ("stock", "ours")}
        share = {side: value * cell["flops_per_token"] / peaks[cell["dtype"]] for side, value in speed.items()}
        how = cell["dtype"] + (", compiled" if cell["compiled"] else "")
        rows.append([
            cell["pair"], cell["shape"], f"{cell['mode']} ({how})", f"{speed['stock']:,.0f}", f"{speed['ours']:,.0f}",
            f"{cell['ratio']:.2f}", f"{share['stock']:.0%}", f"{share['ours']:.0%}", str(cell["repeats"]),
        ])  # fmt: skip
    print_table(["models", "batch", "comparison", "stock tokens/s", "ours tokens/s", "ratio", "stock MFU", "our MFU",
                 "steps"], rows)  # fmt: skip


def measure_peaks(dtypes: Iterable[torch.dtype], device: torch.device) -> dict[str, float]:
    """dtype -> FLOP/s of large matrix products now."""
    return {str(d).removeprefix("torch."): measure_peak(d, Processes(0, 1, device)) for d in dtypes}


def read_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line with the options that say what is measured and where; `shapes` and `device` ready for use."""
    parser.add_argument("--shapes", nargs="+", default=["8x512", "32x128"], help="sequences x tokens of a batch")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timed steps a cell, at least one step a side")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, help="torch's threads; default: its own choice")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    if arguments.device == "auto":
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments.device = torch.device(arguments.device)
    arguments.shapes = [tuple(map(int, shape.split("x"))) for shape in arguments.shapes]
    return arguments


def print_tables(doc: str, measure: Callable[..., dict[str, Any]], *, benchmark: str, key: str) -> None:
    """The program of a benchmark of one pair of models: `measure` prints a table for each shape, then one JSON line.

    Args:
        doc: the program's, whose first line --help shows.
        measure: takes pair, rows, length, device and seconds, and returns what the JSON line has under `key`.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--pair", choices=PAIRS, default=list(PAIRS)[-1], help="teacher and student")
    arguments = read_arguments(parser)
    tables = [measure(arguments.pair, *shape, arguments.device, arguments.seconds) for shape in arguments.shapes]
    print(json.dumps({"benchmark": benchmark, "device": str(arguments.device), key: tables}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS), help="teacher and student")
    parser.add_argument("--modes", nargs="+", choices=("identical", "best"), default=["identical", "best"])
    parser.add_argument("--students", type=int, choices=(1, 3), default=1, help="3: one pass against three runs")
    parser.add_argument("--profile", action="store_true", help="torch.profiler's table of our step")
    arguments = read_arguments(parser)
    device, shapes = arguments.device, arguments.shapes
    dtypes = {torch.float32, best_settings(device).dtype}
    peaks = measure_peaks(dtypes, device)
    told = ", ".join(f"{peak / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, peak in peaks.items())
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, transformers "
          f"{transformers.__version__}, textbrewer {getattr(textbrewer, '__version__', '')}; peak {told}")  # fmt: skip
    result: dict[str, Any] = {"benchmark": "distill_step", "device": str(device), "peak": peaks}
    if arguments.profile:
        print(profile(arguments.pairs[-1], *shapes[0], device))
    elif arguments.students == 3:
        cells = [compare_students(*shape, device, arguments.seconds) for shape in shapes]
        result["students"] = cells
        print_table(["batch", "one pass, s", "three runs, s", "ratio", "ratio of FLOPs"],
                    [[c["shape"], f"{c['together_s']:.2f}", f"{c['separate_s']:.2f}", f"{c['ratio']:.2f}",
                      f"{c['flops_ratio']:.2f}"] for c in cells])  # fmt: skip
    else:
        cells = []
        for pair, shape, mode in itertools.product(arguments.pairs, shapes, arguments.modes):
            cells.append(compare(pair, *shape, mode, device, arguments.seconds))
            print(f"{pair} {cells[-1]['shape']} {mode}: {cells[-1]['ratio']:.2f}", file=sys.stderr, flush=True)
        result["cells"] = cells
        for dtype, peak in measure_peaks(dtypes, device).items():  # a shared machine is not as fast at all times
            peaks[dtype] = max(peak, peaks[dtype])
        print_comparison(cells, peaks)
        apart = max((cell["difference"] for cell in cells if cell["difference"] is not None), default=None)
        if apart is not None:
            print(f"losses and gradients of both sides differ by at most {apart:.1e} (relative, without dropout)")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
