"""What levers of docs/quality.md cost a step: the time of a step with one over that of a step without.

    python benchmarks/levers.py

Our step at its best settings with MiniRBT's objective, and the same with one thing changed, taking turns. The balance
of the loss terms, which is measured every so many steps, is timed by itself. Starts, schedules and temperatures change
no step's work. Prints a table for each shape of a batch and one JSON line.
"""

from typing import Any

import torch
from distill_step import CONFIGS, PAIRS, Ours, best_settings, make_batch, print_table, print_tables, take_turns

from distill.corpus.batches import MicroBatch
from distill.modeling.models import load_config
from distill.training.gradients import term_gradient_norms

BASE, LABELS = "nothing", "mlm_weight 1"
LEVERS: dict[str, dict[str, Any]] = {
    BASE: {},
    "optimizer muon": {"optimizer": "muon"},
    "ema 0.999": {"ema": 0.999},
    LABELS: {"mlm_weight": 1.0},
    "no layer matches": {"matches": []},
    "last:relation instead of hidden states": {"matches": ["last:relation"]},
    "last:sample_relation besides": {"matches": ["uniform", "last:sample_relation"]},
    "last:cos besides": {"matches": ["uniform", "last:cos"]},
}
"""What is changed -> fields of the student."""
MORE_MASKS = 0.3


def time_levers(pair: str, rows: int, length: int, device: torch.device, seconds: float) -> dict[str, Any]:
    """Measures all levers in turn and prints the table of one shape."""
    teacher, student = PAIRS[pair]
    settings, vocab_size = best_settings(device), load_config(CONFIGS / f"{teacher}.json").vocab_size
    batch = make_batch(rows, length, vocab_size)
    sides = {name: Ours(teacher, (student,), batch, settings, **fields) for name, fields in LEVERS.items()}
    masks = f"{MORE_MASKS:.0%} of the tokens masked"
    sides[masks] = Ours(teacher, (student,), make_batch(rows, length, vocab_size, masked=MORE_MASKS), settings)
    steps = {name: side.step for name, side in sides.items()}
    steps["one balance of the terms, with mlm_weight 1"] = lambda: measure_terms(sides[LABELS], batch)
    times = take_turns(steps, seconds)
    how = "compiled" if settings.compiled else "not compiled"
    print(f"{pair}, {rows}x{length}, {device}, {torch.get_num_threads()} threads, {settings.dtype}, {how}")
    print_table(["what differs", "seconds", "times the step without"],
                [[name, f"{taken:.3f}", f"{taken / times[BASE]:.2f}"] for name, taken in times.items()])  # fmt: skip
    return {"pair": pair, "shape": f"{rows}x{length}", "seconds": times}


def measure_terms(side: Ours, batch: MicroBatch) -> None:
    """What is done every `balance_every` steps."""
    term_gradient_norms(side.runs[0].objective, batch.to(side.settings.device), side.teacher)


if __name__ == "__main__":
    print_tables(__doc__, time_levers, benchmark="levers", key="levers")
