"""The sizes that the authors of published models state, each set beside what the architecture really has.

A figure is reproduced by a counting convention if the count, rounded to the figure's decimals, is that figure; failing
that, if it is so when cut off. Where none does, the figure carries the reason.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AlbertConfig, BertConfig

from distill.markdown import markdown_table
from distill.modeling.architectures import NAMES, albert_tiny, named_config
from distill.modeling.comparison import LENGTH, model_name, shipped_configs
from distill.modeling.config import load_config
from distill.modeling.counting import Parameters, count_parameters, flops_per_token

ALBERT = "ALBERT-tiny"
CONVENTIONS = {
    "encoder + pooler": "with_pooler", "encoder": "encoder", "masked LM": "masked_lm", "pre-training": "pretraining",
}  # fmt: skip
"""What is counted -> attribute of Parameters."""
_UNITS = {"M": (1e6, 2**20), "G": (1e9, 2**30)}
"""Of parameters, and of bytes."""
_OTHER_ROWS = "the file holds 21,128 embedding rows where the vocabulary has 8,021 tokens"


@dataclass(frozen=True)
class Figure:
    """One number of a model card."""

    model: str
    stated: str
    """As printed, e.g. 7.5M."""
    source: str
    of: str = "parameters"
    """Or "without embeddings", or "bytes" (of float32, in units of 2**20 or 2**30)."""
    reason: str = ""
    """Why no convention gives it."""

    def reproduced_by(self, counts: Parameters) -> list[str]:
        """The conventions under which the architecture has this size."""
        scale = _UNITS[self.stated[-1]][self.of == "bytes"]
        text = self.stated[:-1]
        factor = 10 ** len(text.partition(".")[2])
        values = {}
        for name, attribute in CONVENTIONS.items():
            count = getattr(counts, attribute) - (counts.embeddings if self.of == "without embeddings" else 0)
            values[name] = (4 * count if self.of == "bytes" else count) / scale * factor
        wanted = round(float(text) * factor)
        rounded = [name for name, value in values.items() if math.floor(value + 0.5) == wanted]
        return rounded or [name for name, value in values.items() if math.floor(value) == wanted]


FIGURES = (
    *(Figure(model, size, "MiniRBT", of)
      for model, *sizes in (("RoBERTa", "102.3M", "85.7M"), ("RBT6", "59.76M", "43.14M"), ("RBT3", "38.5M", "21.9M"),
                            ("RBT4-h312", "11.4M", "4.7M"), ("MiniRBT-h256", "10.4M", "4.8M"),
                            ("MiniRBT-h288", "12.3M", "6.1M"))
      for size, of in zip(sizes, ("parameters", "without embeddings"), strict=True)),
    *(Figure(f"RoBERTa-tiny-{kind}", size, "CLUE", of, reason)
      for kind in ("clue", "pair")
      for size, of, reason in (("7.5M", "parameters", ""),
                               ("28.3M", "bytes", "an encoder is 28.0 MiB, with pooler 28.4, with its head 28.5"))),
    Figure("RoBERTa-tiny3L312-clue", "24M", "CLUE", "bytes"),
    Figure("RoBERTa-tiny3L768-clue", "38M", "CLUE", reason="the count with 21,128 embedding rows; it has 8,021"),
    Figure("RoBERTa-tiny3L768-clue", "110M", "CLUE", "bytes"),
    *(Figure(f"RoBERTa-large-{kind}", size, "CLUE", of, reason)
      for kind in ("clue", "pair")
      for size, of, reason in (("290M", "parameters", "its 24 layers alone have 302.3M"),
                               ("1.20G", "bytes", _OTHER_ROWS),
                               ("92M", "parameters", "in the table of pair models: the base model's count"))),
    Figure("BERT-base-clue", "92M", "CLUE"),
    Figure("BERT-base", "102M", "CLUE"),
    Figure("BERT-base", "108M", "CLUE", reason="close to the English model's, whose 30,522 tokens give 108.9M"),
    Figure("RoBERTa-wwm-large", "325M", "CLUE"),
    Figure(ALBERT, "4M", "CLUE"),
    Figure("RoBERTa-tiny-cased", "28M", "its card"),
)  # fmt: skip


def known_models() -> list[str | Path]:
    """All that has a name: MiniRBT's files, the architectures, and ALBERT-tiny."""
    return [*shipped_configs(), *NAMES, ALBERT]


def counts_tables(models: Sequence[str | Path]) -> str:
    """Markdown: integers under every convention, bytes and FLOPs; then the published figures of these models."""
    head = ["Model", "Layers", "Hidden", "FFN", "Heads", "Tokens", *map(str.capitalize, CONVENTIONS), "Embeddings",
            "MB (float32)", f"MFLOPs/token (L={LENGTH})"]  # fmt: skip
    counted = {model_name(model): (config := _config_of(model), count_parameters(config)) for model in models}
    rows = [_row(name, config, counts) for name, (config, counts) in counted.items()]
    tables = [markdown_table(head, rows), "MB: a masked-LM file, 1 MB = 10^6 bytes. Embeddings: with their LayerNorm."]
    if figures := list(_figure_rows({name: counts for name, (_, counts) in counted.items()})):
        tables.append(markdown_table(["Model", "Published", "Of", "By", "Reproduced by"], figures))
    return "\n\n".join(tables)


def _config_of(model: str | Path) -> BertConfig | AlbertConfig:
    if str(model) == ALBERT:
        return albert_tiny()
    return named_config(str(model)) if str(model) in NAMES else load_config(model)


def _row(name: str, config: BertConfig | AlbertConfig, counts: Parameters) -> list[str]:
    shape = (config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads)
    flops = flops_per_token(config, min(LENGTH, config.max_position_embeddings))
    numbers = [
        config.vocab_size,
        *(getattr(counts, attribute) for attribute in CONVENTIONS.values()),
        counts.embeddings,
    ]
    return [name, *map(str, shape), *(f"{number:,}" for number in numbers), f"{4 * counts.masked_lm / 1e6:,.1f}",
            f"{flops / 1e6:,.1f}"]  # fmt: skip


def _figure_rows(counts: dict[str, Parameters]) -> Iterable[list[str]]:
    for figure in FIGURES:
        if figure.model in counts:
            found = figure.reproduced_by(counts[figure.model])
            told = ", ".join(found) if found else f"no: {figure.reason}"
            yield [figure.model, figure.stated, figure.of, figure.source, told]
