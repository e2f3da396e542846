"""What the units of a model do on some batches: means over tokens, collected by hooks while it runs."""

# H width; N tokens

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertForMaskedLM

from distill.corpus.batches import MicroBatch

Forward = Callable[[MicroBatch], Any]
"""Runs the model, prediction head included, on a micro-batch; what it returns is not used."""


@dataclass
class Means:
    """Means over tokens by name, in float64."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, total: Tensor, count: int) -> None:
        self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.counts[name] = self.counts.get(name, 0) + count

    def __getitem__(self, name: str) -> Tensor:
        return self.sums[name] / max(1, self.counts[name])

    def moment(self) -> Tensor:
        """[H, H]: the mean product of two units of the residual stream, each LayerNorm's output counting the same."""
        return torch.stack([self[name] for name in self.sums if name.endswith("LayerNorm")]).mean(dim=0)


def measure_units(teacher: BertForMaskedLM, batches: Iterable[MicroBatch], forward: Forward) -> Means:
    """By module: LayerNorms' outputs and second moments, matrices' inputs and squares, squares of queries and keys."""
    means = Means()

    def watch(name: str, inputs: Tensor, outputs: Tensor) -> None:
        count = len(inputs)
        if name.endswith("LayerNorm"):
            means.add(name, (outputs.T @ outputs).double(), count)
            means.add(f"{name} state", outputs.sum(0, dtype=torch.float64), count)
            return
        means.add(f"{name} input", inputs.sum(0, dtype=torch.float64), count)
        means.add(f"{name} square", inputs.square().sum(0, dtype=torch.float64), count)
        if name.endswith(("query", "key")):
            means.add(f"{name} output", outputs.square().sum(0, dtype=torch.float64), count)

    watch_rows(teacher, batches, forward, (nn.Linear, nn.LayerNorm), watch)
    return means


def watch_rows(
    model: BertForMaskedLM,
    batches: Iterable[MicroBatch],
    forward: Forward,
    kinds: tuple[type[nn.Module], ...],
    watch: Callable[[str, Tensor, Tensor], None],
) -> None:
    """Calls `watch(name, inputs [N, .], outputs [N, .])`, without padding, for the modules of these kinds."""

    def hook(name: str) -> Callable:
        def call(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            # The prediction head gets rows of tokens already.
            rows = [value[is_token] if value.dim() == 3 else value for value in (inputs[0], output)]
            watch(name, *rows)

        return call

    hooks = [
        module.register_forward_hook(hook(name)) for name, module in model.named_modules() if isinstance(module, kinds)
    ]
    try:
        for batch in batches:
            is_token = torch.arange(batch.input_ids.size(1)) < batch.lengths[:, None]
            forward(batch)
    finally:
        for handle in hooks:
            handle.remove()
