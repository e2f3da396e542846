"""What each measure of our training step brings: the best settings with one measure taken away at a time.

    python benchmarks/distill_ablation.py

Nothing in the product can be switched off for this; the variants replace functions from outside, while their own step
runs. Prints a table for each shape of a batch and one JSON line.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from distill_step import (
    CONFIGS,
    PAIRS,
    Ours,
    Settings,
    best_settings,
    make_batch,
    print_table,
    print_tables,
    take_turns,
)  # fmt: skip
from transformers import BertForMaskedLM

from distill.corpus.batches import MicroBatch
from distill.modeling.models import load_config
from distill.training import loop, objective
from distill.training.encoder import Features, Needs, encode

Patch = Callable[[], contextlib.AbstractContextManager]


def encode_everywhere(model: BertForMaskedLM, batch: MicroBatch, needs: Needs, *, with_loss: bool = False) -> Features:
    """`encode` with the prediction head over all positions, and on request the model's own loss, unused."""
    features = encode(model, batch, dataclasses.replace(
        needs, logits=False, hidden=needs.hidden | {model.config.num_hidden_layers}
    ))  # fmt: skip
    last = features.hidden[-1]
    assert last is not None
    logits = model.cls(last).float().reshape(-1, model.config.vocab_size)
    if with_loss:
        labels = torch.full_like(batch.input_ids, -100).flatten()
        F.cross_entropy(logits, labels.index_copy(0, batch.masked_positions, batch.labels))
    return Features(features.hidden, features.attention, logits.index_select(0, batch.masked_positions))


def encode_all_states(model: BertForMaskedLM, batch: MicroBatch, needs: Needs) -> Features:
    """`encode` that keeps every hidden state."""
    return encode(model, batch, dataclasses.replace(needs, hidden=frozenset(range(model.config.num_hidden_layers + 1))))


@contextlib.contextmanager
def encoding(function: Callable[..., Features]) -> Iterator[None]:
    """Teacher and students run by `function`; only what is not compiled can be replaced."""
    with mock.patch.object(objective, "encode", function):
        yield


@contextlib.contextmanager
def reading_every_loss() -> Iterator[None]:
    """Every term of every micro-batch goes to the host at once, as TextBrewer logs them."""
    add = loop.StudentLog.add

    def add_and_read(log: Any, values: dict[str, torch.Tensor]) -> None:
        for value in values.values():
            value.cpu().item()
        add(log, values)

    with mock.patch.object(loop.StudentLog, "add", add_and_read):
        yield


def start(pair: str, batch: MicroBatch, settings: Settings, *, optimizer: bool = True,
          encode_with: Callable[..., Features] | None = None) -> Ours:  # fmt: skip
    """Our side; with another optimiser or another `encode` than the product's on request."""
    teacher, student = PAIRS[pair]
    ours = Ours(teacher, (student,), batch, settings)
    if not optimizer:
        for run in ours.runs:
            run.optimizer = torch.optim.AdamW(run.optimizer.param_groups, eps=1e-6, foreach=False, fused=False)
            for group in run.optimizer.param_groups:
                group["fused"] = False
    if encode_with is not None:
        ours.teacher._encode = encode_with
    return ours


def variants(pair: str, batch: MicroBatch, best: Settings) -> dict[str, Callable[[], None]]:
    """Name -> one step of that variant."""

    def with_full_loss(model: BertForMaskedLM, batch: MicroBatch, needs: Needs) -> Features:
        return encode_everywhere(model, batch, needs, with_loss=True)

    def step(ours: Ours, patch: Patch = contextlib.nullcontext) -> Callable[[], None]:
        def run() -> None:
            with patch():
                ours.step()

        return run

    def replaced(function: Callable[..., Features]) -> Callable[[], None]:
        settings = dataclasses.replace(best, compiled=False)
        return step(start(pair, batch, settings, encode_with=function), lambda: encoding(function))

    change = dataclasses.replace
    sides = {"all measures": step(start(pair, batch, best))}
    if best.compiled:
        sides["without torch.compile"] = step(start(pair, batch, change(best, compiled=False)))
    else:
        sides["with torch.compile (off on this device)"] = step(start(pair, batch, change(best, compiled=True)))
    eager = " (and compile)" if best.compiled else ""
    sides |= {
        f"head on all positions instead of the masked{eager}": replaced(encode_everywhere),
        f"the same, and the models' own losses{eager}": replaced(with_full_loss),
        f"all hidden states kept{eager}": replaced(encode_all_states),
        "dropout 0.1": step(start(pair, batch, change(best, dropout=0.1))),
        "eager attention instead of SDPA": step(start(pair, batch, change(best, attention="eager"))),
        "optimiser not fused": step(start(pair, batch, best, optimizer=False)),
        "every loss read at once": step(start(pair, batch, best), reading_every_loss),
    }
    if best.dtype != torch.float32:
        sides["teacher cast in every forward"] = step(start(pair, batch, change(best, cast_teacher=False)))
        sides["float32"] = step(start(pair, batch, change(best, dtype=torch.float32)))
    return sides


def ablate(pair: str, rows: int, length: int, device: torch.device, seconds: float) -> dict[str, Any]:
    """Measures all variants in turn and prints the table of one shape."""
    batch = make_batch(rows, length, load_config(CONFIGS / f"{PAIRS[pair][0]}.json").vocab_size)
    times = take_turns(variants(pair, batch, best_settings(device)), seconds)
    best = times["all measures"]
    print(f"{pair}, {rows}x{length}")
    print_table(["step", "seconds", "times the best", "tokens/s"],
                [[name, f"{taken:.3f}", f"{taken / best:.2f}", f"{rows * length / taken:,.0f}"]
                 for name, taken in times.items()])  # fmt: skip
    return {"pair": pair, "shape": f"{rows}x{length}", "seconds": times}


if __name__ == "__main__":
    print_tables(__doc__, ablate, benchmark="distill_ablation", key="ablation")
