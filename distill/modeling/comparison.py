"""The table that compares architectures: MiniRBT's "Model Comparison", from configs alone."""

from collections.abc import Sequence
from pathlib import Path

from distill.markdown import markdown_table
from distill.modeling.architectures import MINIRBT
from distill.modeling.counting import count_parameters, flops_per_token
from distill.modeling.models import load_config
from distill.shipped import or_shipped

LENGTH = 512


def shipped_configs() -> list[Path]:
    """The six models of MiniRBT's table, from the working directory's distill_configs or the shipped one."""
    return [or_shipped(f"distill_configs/{name}.json") for name in MINIRBT]


def comparison_table(paths: Sequence[Path]) -> str:
    """A Markdown table; percentages are relative to the first model.

    Model_size counts BertForMaskedLM with tied decoder, W/O embeddings leaves out word, position and type embeddings
    with their LayerNorm: the conventions that give MiniRBT's published numbers.
    """
    head = ["Model", "Layers", "Hidden_size", "FFN_size", "Head_num", "Model_size", "Model_size(W/O embeddings)",
            f"MFLOPs/token (L={LENGTH})"]  # fmt: skip
    rows = []
    first: tuple[int, int] | None = None
    for path in paths:
        config = load_config(path)
        counts = count_parameters(config)
        decimals = 2 if 50e6 < counts.masked_lm < 100e6 else 1  # as MiniRBT prints: 102.3M, 59.76M, 38.5M
        first = first or (counts.masked_lm, counts.without_embeddings)
        rows.append(
            [
                model_name(path),
                str(config.num_hidden_layers),
                str(config.hidden_size),
                str(config.intermediate_size),
                str(config.num_attention_heads),
                f"{_millions(counts.masked_lm, decimals)} ({counts.masked_lm / first[0]:.1%})",
                f"{_millions(counts.without_embeddings, decimals)} ({counts.without_embeddings / first[1]:.1%})",
                f"{flops_per_token(config, min(LENGTH, config.max_position_embeddings)) / 1e6:.1f}",
            ]  # fmt: skip
        )
    return markdown_table(head, rows)


def model_name(model: str | Path) -> str:
    """What a config file, a model folder or an architecture is called in a table."""
    path = Path(model)
    return path.stem if path.suffix == ".json" else path.name


def _millions(count: int, decimals: int) -> str:
    return f"{count / 1e6:.{decimals}f}M"
