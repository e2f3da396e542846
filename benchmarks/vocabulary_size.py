"""What a small vocabulary and a small model cost and bring: CLUE's speed table, for training and prediction.

    python benchmarks/vocabulary_size.py [--batch 2] [--length 128] [--rounds 3]

Random weights on one CPU thread; CPU time of the process, so that other work on the machine counts less. A training
step is forward, backward and AdamW with the head at 15 % of the tokens, a prediction the encoder's forward. Models take
turns; the medians are printed: a table relative to the first model, then one JSON line. CLUE's own table (TPU v3-8,
training alone) has 404, 350 and 50 s for 1,000 steps of BERT-base with Google's tokens, with its own, and of tiny.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from transformers import AlbertConfig, AlbertForMaskedLM, BertConfig, BertForMaskedLM

from distill.markdown import markdown_table
from distill.modeling.architectures import albert_tiny, named_config
from distill.modeling.counting import count_parameters

MODELS = {
    **{name: named_config(name) for name in ("BERT-base", "BERT-base-clue", "RoBERTa-tiny-clue")},
    "ALBERT-tiny": albert_tiny(),
    "chinese_roberta_L-2_H-128": named_config("chinese_roberta_L-2_H-128"),
}
MASKED = 0.15


def build(config: BertConfig | AlbertConfig) -> tuple[nn.Module, nn.Module, nn.Module]:
    """A model with its encoder and its prediction head."""
    if isinstance(config, AlbertConfig):
        albert = AlbertForMaskedLM(config)
        return albert, albert.albert, albert.predictions
    bert = BertForMaskedLM(config)
    return bert, bert.bert, bert.cls


def make_steps(
    config: BertConfig | AlbertConfig, batch: int, length: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    """A training step and a prediction."""
    model, encoder, head = build(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    input_ids = torch.randint(config.vocab_size, (batch, length))
    masked = torch.randperm(batch * length)[: round(MASKED * batch * length)]
    labels = input_ids.flatten()[masked]

    def train() -> None:
        model.train()
        logits = head(encoder(input_ids).last_hidden_state.flatten(0, 1)[masked])
        nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def predict() -> None:
        model.eval()
        encoder(input_ids)

    return train, predict


def cpu_seconds(step: Callable[[], object]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of models with large and small vocabularies.")
    for name, default in (("batch", 2), ("length", 128), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    steps = {name: make_steps(config, arguments.batch, arguments.length) for name, config in MODELS.items()}
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in MODELS}
    for round_number in range(arguments.rounds + 1):
        for name, kinds in steps.items():
            for step, seconds in zip(kinds, times[name], strict=True):
                taken = cpu_seconds(step)
                if round_number:  # the first one warms up
                    seconds.append(taken)
    medians = {name: [statistics.median(seconds) for seconds in kinds] for name, kinds in times.items()}
    first = next(iter(medians.values()))
    tokens = arguments.batch * arguments.length
    head = ["Model", "Tokens", "Parameters", "Training: s/step", "tokens/s", "times", "Prediction: tokens/s", "times"]
    rows = [
        [name, f"{MODELS[name].vocab_size:,}", f"{count_parameters(MODELS[name]).masked_lm:,}", f"{train:.3f}",
         f"{tokens / train:,.0f}", f"{first[0] / train:.2f}", f"{tokens / predict:,.0f}", f"{first[1] / predict:.2f}"]
        for name, (train, predict) in medians.items()
    ]  # fmt: skip
    print(markdown_table(head, rows))
    print(json.dumps({"batch": arguments.batch, "length": arguments.length, "seconds": medians}))


if __name__ == "__main__":
    main()
