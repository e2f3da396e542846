"""`distill export`. Heavy imports stand inside."""

from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from distill.commands.models import Model, Pooling
from distill.errors import InputError

MOST_TEXTS = 256
"""Lines that parity is checked on where a task's data is not given."""
NUM_SAMPLE_TEXTS = 64


class Part(StrEnum):
    """What of a model is exported in place of what its folder holds."""

    encoder = "encoder"
    masked_lm = "masked-lm"


def add_export_command(app: typer.Typer) -> None:
    """Adds the command to the main one."""
    app.command()(export)


def export(
    model: Model,
    output: Annotated[Path, typer.Option(help="new folder; an earlier export there is replaced")],
    part: Annotated[
        Part | None, typer.Option("--as", help="default: a fine-tuned model with its head, any other as encoder")
    ] = None,
    pooling: Annotated[
        Pooling, typer.Option(help="for the encoder: how the output `pooled` is made from the tokens of a text")
    ] = Pooling.mean,
    int8: Annotated[
        bool, typer.Option("--int8", help="also write model_int8.onnx: a quarter of the size, and no slower")
    ] = False,
    int4: Annotated[
        bool, typer.Option("--int4", help="also write model_int4.onnx: smaller still, but less exact and not faster")
    ] = False,
    text: Annotated[
        list[Path] | None,
        typer.Option(help=f"text whose first {MOST_TEXTS} lines are used to check the export; repeatable; default: "
                          "sentences of the sample world"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="for a fine-tuned model: the task's data, as for `distill finetune`, to check the export and "
                          "compare metrics on"),
    ] = None,
    split: Annotated[str, typer.Option(help="with --data: the split, which must have labels")] = "dev",
    teacher: Annotated[
        str | None, typer.Option(help="a larger model of the same kind, to compare size and times with")
    ] = None,
    min_cosine: Annotated[
        float,
        typer.Option(min=0, max=1, help="smallest cosine of int8 and int4 outputs with the model's, less their means"),
    ] = 0.98,
    max_loss: Annotated[
        float, typer.Option(min=0, help="with --data: how many points of the task's score int8 and int4 may lose")
    ] = 1.0,
    threads: Annotated[int, typer.Option(min=1, help="threads of the timed forwards")] = 1,
    seconds: Annotated[float, typer.Option(min=0, max=3600, help="least time for each form in each shape")] = 0.5,
) -> None:  # fmt: skip
    """Export a model to ONNX, check it and time it.

    The export takes any batch size and length. Its folder can be served with onnxruntime and tokenizers alone
    (scripts/serve_onnx.py) and holds model.onnx, its quantised forms, tokenizer.json, config.json, and export.json with
    labels, differences, sizes and times. An export whose outputs differ too much from the model's is refused and
    removed. Needs the extra onnx. See docs/export.md.
    """
    from distill.downstream.run import TASK_FILE, read_task_file

    if data is not None and text:
        raise InputError("command line: --data and --text both name rows to check on; give one")
    is_finetuned = (Path(model) / TASK_FILE).is_file() and part is None
    if data is not None and not is_finetuned:
        raise InputError(f"command line: --data needs a fine-tuned model with its head; {model} is exported as "
                         f"{part or 'encoder'}: give --text")  # fmt: skip
    found: Any = None
    if data is not None:
        from distill.downstream.task_data import load_task_data, require_labels

        task, labels, _ = read_task_file(Path(model))
        found = load_task_data(task, data, [split], labels=labels).splits[split]
        require_labels(task, found)  # what is wrong with the data is said before torch is imported
    from distill.downstream.export import check_output, export_model, forms_table
    from distill.downstream.exportable import load_exportable, load_like
    from distill.downstream.latency import Timing, latency_table
    from distill.downstream.onnx_model import check_packages
    from distill.downstream.parity import Bounds, task_rows, text_rows
    from distill.downstream.scores import to_markdown
    from distill.modeling.models import find_model
    from distill.places import check_writable

    check_packages()
    check_output(output)
    check_writable(output)
    which: Any = part and part.value
    exportable = load_exportable(find_model(model), part=which, pooling=pooling.value)
    larger = load_like(exportable, find_model(teacher)) if teacher is not None else None
    rows = task_rows(exportable, found) if found else text_rows(exportable, *_texts(text))
    quantized = [form for form, wanted in (("int8", int8), ("int4", int4)) if wanted]
    done = export_model(
        exportable, output, rows, quantized=quantized, bounds=Bounds(min_cosine, max_loss), teacher=larger,
        threads=threads, seconds=seconds, show=lambda line: typer.echo(line, err=True),
    )  # fmt: skip
    timings = [Timing(**timing) for timing in done["timings"]]
    typer.echo(to_markdown(forms_table(done)), nl=False)
    typer.echo(to_markdown(latency_table(timings, timings[0].model)), nl=False)
    typer.echo(f"{output}: {done['kind']}, checked on {rows.count:,} rows of {rows.origin}")


def _texts(paths: list[Path] | None) -> tuple[list[str], str]:
    """Lines to check on and where they are from."""
    from distill.corpus.text import expand_text, is_blank, iter_lines
    from distill.sample.texts import sample_texts

    if not paths:
        return sample_texts(NUM_SAMPLE_TEXTS), "the sample world"
    lines = (line for path in expand_text(paths) for line in iter_lines(path) if not is_blank(line))
    found = list(islice(lines, MOST_TEXTS))
    if len(found) < 2:
        raise InputError(f"{', '.join(map(str, paths))}: {len(found)} line(s) of text; two are needed at least")
    return found, ", ".join(path.name for path in paths)  # goes into the export, which others will read
