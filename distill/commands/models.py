"""The commands around model folders: `distill models`, `convert`, `fill-mask`, `features`; heavy imports inside."""

import io
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from distill.errors import InputError


class From(StrEnum):
    """Where weights may come from."""

    hf = "hf"
    uer = "uer"
    tencentpretrain = "tencentpretrain"
    textbrewer = "textbrewer"
    tf = "tf"


class To(StrEnum):
    """What is written."""

    hf = "hf"
    uer = "uer"
    tencentpretrain = "tencentpretrain"


class LayerNorm(StrEnum):
    """What becomes of UER's LayerNorm."""

    exact = "exact"
    compat = "compat"


class Pooling(StrEnum):
    """How the hidden states of a line become one vector."""

    cls = "cls"
    mean = "mean"
    max = "max"


_SAME = {"tencentpretrain": "uer", "textbrewer": "hf"}
"""Formats that name weights as another does."""

Model = Annotated[str, typer.Argument(help="model folder or hub id")]


def add_model_commands(app: typer.Typer) -> None:
    """Adds the commands to the main one."""
    app.command()(models)
    app.command()(convert)
    app.command("fill-mask")(fill)
    app.command()(features)


def models(
    configs: Annotated[
        list[Path] | None,
        typer.Argument(help="config JSONs, model folders, or architectures by name; default: MiniRBT's"),
    ] = None,
    counts: Annotated[
        bool, typer.Option("--counts", help="count parameters by every convention, and compare with published figures")
    ] = False,
) -> None:
    """Compare the sizes of models: layers, widths, parameters, FLOPs."""
    from distill.modeling.comparison import comparison_table, shipped_configs
    from distill.modeling.published import counts_tables, known_models

    if counts:
        typer.echo(counts_tables(configs or known_models()))
    else:
        typer.echo(comparison_table(configs or shipped_configs()))


def convert(
    source: Annotated[
        str, typer.Argument(help="file of weights (UER's model.bin, TextBrewer's gs*.pkl, ...), model folder or hub id")
    ],
    to: Annotated[To, typer.Option(help="what to write")],
    output: Annotated[Path, typer.Option(help="new folder")],
    source_format: Annotated[From | None, typer.Option("--from", help="default: as the weights' names say")] = None,
    config: Annotated[
        str | None,
        typer.Option(help="config file (Hugging Face's or UER's) or name of an architecture; default: the config "
                          "beside the weights, else sizes from the weights and a head for every 64 dimensions"),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="folder or vocab.txt; default: the one beside the weights")
    ] = None,
    layernorm: Annotated[
        LayerNorm, typer.Option(help="UER's LayerNorm; exact: folded, outputs are equal; compat: weights as they are")
    ] = LayerNorm.exact,
) -> None:  # fmt: skip
    """Convert model weights between formats.

    Weights of UER, TencentPretrain, TextBrewer and TensorFlow become model folders; folders become UER's files. The
    outputs are compared with the source's before the new folder is kept.
    """
    from distill.modeling.conversion import convert_model
    from distill.modeling.models import find_model
    from distill.places import check_writable

    check_writable(output)
    path = Path(source)
    if not path.exists() and not path.with_name(f"{path.name}.index").exists():
        if path.suffix in (".bin", ".pkl", ".pt", ".safetensors"):
            raise InputError(f"{path}: no such file; name a file of weights, a model folder or a hub id")
        path = find_model(source)
    done = convert_model(
        path, output, to=_SAME.get(to, to), source_format=source_format and _SAME.get(source_format, source_format),
        config=config, tokenizer=tokenizer, exact=layernorm is LayerNorm.exact,
    )  # fmt: skip
    found = done.config
    typer.echo(
        f"{output}: {done.kind} of {found.num_hidden_layers} layers x {found.hidden_size}, {found.num_attention_heads} "
        f"heads, {found.vocab_size:,} tokens, from {done.source_format}; outputs differ by {done.difference:.1e}"
    )


def fill(
    model: Model,
    texts: Annotated[list[str], typer.Argument(help="texts with [MASK]")],
    top_k: Annotated[int, typer.Option(min=1, help="number of answers for each [MASK]")] = 5,
) -> None:
    """Show the likeliest tokens for each [MASK].

    Each is a JSON object on a line: score, token, token_str, sequence.
    """
    from distill.modeling.inference import fill_mask
    from distill.modeling.models import find_model

    for masks in fill_mask(find_model(model), texts, top_k=top_k):
        for answer in (answer for answers in masks for answer in answers):
            typer.echo(json.dumps(answer, ensure_ascii=False))


def features(
    model: Model,
    text: Annotated[list[Path], typer.Option(help="text file, one text a line; blank lines are skipped; repeatable")],
    output: Annotated[Path, typer.Option(help=".npy file for the float32 array [lines, dimensions]")],
    pooling: Annotated[
        Pooling, typer.Option(help="cls: the vector of [CLS]; mean, max: over all tokens of the line")
    ] = Pooling.mean,
    max_length: Annotated[
        int | None,
        typer.Option(min=3, help="cut lines to this many tokens; default: a line that is too long is an error"),
    ] = None,
) -> None:
    """Write a vector for each line of text.

    It is pooled from the last hidden states of the line's tokens.
    """
    import numpy as np

    from distill.corpus.text import expand_text, is_blank, iter_lines
    from distill.durable import write_whole
    from distill.modeling.inference import text_features
    from distill.modeling.models import find_model
    from distill.places import check_writable_file
    from distill.progress import show_progress

    if output.suffix != ".npy":
        raise InputError(f"{output}: features are written as .npy; name such a file")
    check_writable_file(output)
    folder = find_model(model)
    lines = {
        f"{path}: line {number}": line
        for path in expand_text(text) for number, line in enumerate(iter_lines(path), start=1) if not is_blank(line)
    }  # fmt: skip
    if not lines:
        raise InputError(f"{', '.join(map(str, text))}: only blank lines; put text there, a text a line")
    with show_progress("features", len(lines), "line") as advance:
        vectors = text_features(
            folder,
            list(lines.values()),
            pooling=pooling.value,
            places=list(lines),
            max_length=max_length,
            progress=advance,
        )
    content = io.BytesIO()
    np.save(content, vectors)
    write_whole(output, content.getvalue())
    typer.echo(f"{output}: {len(vectors):,} lines x {vectors.shape[1]}")
