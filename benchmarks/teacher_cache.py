"""The teacher cache of a logits-only stage: size on disk, time to fill, and what it does to speed and losses.

    python benchmarks/teacher_cache.py           # RBT6 -> MiniRBT-h256, random weights; some minutes on two cores
    python benchmarks/teacher_cache.py --teacher saves/sample/models/teacher --data saves/sample/data/HASH \\
        --student path/of/config.json --steps 400 --rows 32      # a trained teacher, so that the losses mean something

The same stage, through the real loop, with its teacher (none) and with the cache made by each method; same start,
rows and masks, taking turns. Size and fill are those of whole shards of 256 samples. Two measures of what is learned:
the training loss of each step beside that of "none" (its target differs by chance for sample, by design for top_k),
and after the last step the KL divergence of the student from the whole teacher at the stage's temperature, on dev rows
or, without a dev part, on training rows under other masks. With random weights neither says anything about a real
teacher, whose probabilities are far from even. Prints a table and one JSON line.
"""

import argparse
import contextlib
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
import transformers
from distill_step import CONFIGS, print_table
from random_world import make_stage, run_stage, write_random_rows, write_random_teacher

from distill.corpus.batches import DevBatches
from distill.corpus.masking import MaskVocabulary
from distill.corpus.rows import PackedRows
from distill.modeling.models import load_config, load_masked_lm, load_tokenizer
from distill.training import stage as stage_module
from distill.training.encoder import Needs, encode
from distill.training.processes import Processes
from distill.training.teacher_shards import load_shard

ALONE = Processes(0, 1, torch.device("cpu"))
EVALUATION_ROWS = 64


@dataclass
class Measured:
    """What the runs of one variant gave."""

    speeds: list[float] = field(default_factory=list)  # tokens/s, the median step of each run
    losses: list[float] = field(default_factory=list)  # of each step of the last run
    divergence: float = 0.0
    fill_s: float = 0.0  # of the first run; later ones find the cache
    cache: dict[str, float] = field(default_factory=dict)


def run_variant(method: str, folder: Path, world: dict[str, Path], arguments: argparse.Namespace, to: Measured) -> None:
    """Trains the stage once more and adds what it gave."""
    cache = {} if method == "none" else {"teacher_cache": {"method": method, "size": arguments.size}}
    student = {"config": str(world["student"]), "matches": [], "temperature": arguments.temperature, "dropout": 0.0}
    stage = make_stage(
        world["teacher"], {"student": student}, global_batch_size=arguments.rows, micro_batch_size=arguments.rows,
        max_seq_length=arguments.length, steps=arguments.steps, **cache,
    )  # fmt: skip
    output = folder / method
    for left in ("stages", "models"):  # the cache stays
        shutil.rmtree(output / left, ignore_errors=True)
    with time_filling() as seconds:
        records = run_stage(stage, output, ALONE, teacher=world["teacher"], dataset=world["data"])["student"]
    to.fill_s = to.fill_s or sum(seconds)
    to.speeds.append(statistics.median(record["tokens_per_second"] for record in records[1:]))
    to.losses = [record["kd"] for record in records]
    to.divergence = divergence(output / "models" / "student", world, arguments.temperature)
    if cache:
        to.cache = weigh_cache(output / "teacher_cache", arguments)


@contextlib.contextmanager
def time_filling() -> Iterator[list[float]]:
    """The seconds that the stage spends on its cache before the first step."""
    seconds: list[float] = []
    cache_teacher = stage_module.cache_teacher

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        files = cache_teacher(*args, **kwargs)
        seconds.append(time.perf_counter() - start)
        return files

    with mock.patch.object(stage_module, "cache_teacher", timed):
        yield seconds


def weigh_cache(root: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Bytes a masked token, and MB a million tokens of text."""
    shards = sorted(root.rglob("*.npz"))
    size = sum(shard.stat().st_size for shard in shards)
    loaded = [load_shard(shard, size=arguments.size) for shard in shards]
    masked = sum(int(shard.num_masked.sum()) for shard in loaded)
    tokens = sum(len(shard.num_masked) for shard in loaded) * arguments.length
    return {"bytes": size, "tokens": tokens, "bytes_per_masked_token": size / masked, "mb_per_million": size / tokens}


@torch.no_grad()
def divergence(student: Path, world: dict[str, Path], temperature: float) -> float:
    """KL divergence of a student from the whole teacher in nats, mean over masked tokens."""
    models = [load_masked_lm(folder).eval() for folder in (world["teacher"], student)]
    split = "dev" if (world["data"] / "dev").exists() else "train"
    batches = DevBatches(
        PackedRows(world["data"] / split), seed=1, batch_size=8, rank=0, world_size=1, probability=0.15, mask="token",
        vocabulary=MaskVocabulary.from_tokenizer(load_tokenizer(world["teacher"])),
    )  # fmt: skip
    total, count = 0.0, 0
    for number in range(min(len(batches), EVALUATION_ROWS // 8)):
        logits = [encode(model, batches[number], Needs()).logits for model in models]
        teacher, own = (F.log_softmax(found.float() / temperature, dim=-1) for found in logits if found is not None)
        total += float(F.kl_div(own, teacher, log_target=True, reduction="sum"))
        count += len(own)
    return total / count


def describe(method: str, one: Measured, none: Measured) -> list[str]:
    """The row of a variant."""
    pairs = list(zip(one.losses, none.losses, strict=True))
    apart = statistics.mean(abs(a - b) for a, b in pairs)
    speed = statistics.median(one.speeds)
    cells = [method, "-", "-", "-", f"{speed:,.0f}", f"{speed / statistics.median(none.speeds):.2f}",
             f"{one.losses[-1]:.4f}", f"{apart:.4f}", f"{one.divergence:.4f}"]  # fmt: skip
    if one.cache:
        cells[1:4] = [f"{one.cache['bytes_per_masked_token']:.0f}", f"{one.cache['mb_per_million']:.1f}",
                      f"{one.cache['tokens'] / one.fill_s:,.0f}"]  # fmt: skip
    return cells


def find_world(folder: Path, arguments: argparse.Namespace) -> dict[str, Path]:
    """Folders of teacher and packed rows, and the student's config; what is not given is made up."""
    teacher = Path(arguments.teacher)
    if not (teacher / "config.json").exists():
        teacher = write_random_teacher(folder / "teacher", arguments.teacher)
    data = Path(arguments.data) if arguments.data else None
    if data is None:
        vocab_size = load_config(teacher).vocab_size
        data = write_random_rows(folder / "data", rows=512, length=arguments.length, vocab_size=vocab_size)
    student = Path(arguments.student)
    return {"teacher": teacher, "data": data, "student": student if student.exists() else CONFIGS / f"{student}.json"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="RBT6", help="model folder, or name of a config: random weights")
    parser.add_argument("--student", default="MiniRBT-h256", help="config JSON, or name of one of distill_configs")
    parser.add_argument("--data", help="packed dataset (`distill pack`); default: random rows")
    parser.add_argument("--rows", type=int, default=8, help="sequences of a step")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence; those of --data, if given")
    parser.add_argument("--steps", type=int, default=32, help="optimiser steps of a run")
    parser.add_argument("--size", type=int, default=64, help="draws or kept tokens a masked token")
    parser.add_argument("--temperature", type=float, default=8.0)
    parser.add_argument("--methods", nargs="+", choices=("sample", "top_k"), default=["sample", "top_k"])
    parser.add_argument("--repeats", type=int, default=2, help="runs of each variant, taking turns")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if arguments.data:
        arguments.length = PackedRows(Path(arguments.data) / "train").max_seq_length
    measured = {method: Measured() for method in ("none", *arguments.methods)}
    with tempfile.TemporaryDirectory() as folder:
        world = find_world(Path(folder), arguments)
        for repeat in range(arguments.repeats):
            for method, to in measured.items():
                run_variant(method, Path(folder), world, arguments, to)
                print(f"{repeat + 1}. {method}: {to.speeds[-1]:,.0f} tokens/s", file=sys.stderr, flush=True)
    print(f"{arguments.teacher} -> {arguments.student}, {arguments.steps} steps of {arguments.rows} x "
          f"{arguments.length} tokens, size {arguments.size}, temperature {arguments.temperature:g}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}")  # fmt: skip
    print_table(
        ["cache", "bytes a masked token", "MB a million tokens", "fill, tokens/s", "steps, tokens/s", "speed-up",
         "last loss", "mean loss difference", "KL to the teacher"],
        [describe(method, one, measured["none"]) for method, one in measured.items()],
    )  # fmt: skip
    print(json.dumps({"benchmark": "teacher_cache", **vars(arguments),
                      **{method: vars(one) for method, one in measured.items()}}))  # fmt: skip


if __name__ == "__main__":
    main()
