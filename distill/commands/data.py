"""The commands around text and packed data: `distill ref`, `pack`, `inspect`, `sample`. Heavy imports stand inside."""

import os
from pathlib import Path
from typing import Annotated

import typer

from distill.commands.segmenter import SEGMENTER_HELP, Dictionary, SkipBad

TEXT_HELP = (
    "text file (also .gz, .xz, .zst, .jsonl, .parquet), folder, glob pattern, folder of `datasets`, or hf:OWNER/NAME; "
    "#FIELD after it names the field of its records; repeatable"
)
Text = Annotated[list[Path], typer.Option(help=TEXT_HELP)]
Tokenizer = Annotated[str, typer.Option(help="folder with vocab.txt, or hub id")]
Processes = Annotated[int, typer.Option(min=1, help="number of processes")]
Ray = Annotated[str | None, typer.Option(help='work on this Ray cluster: its address, or "auto"; needs the extra ray')]


def add_data_commands(app: typer.Typer) -> None:
    """Adds the commands to the main one."""
    app.command()(ref)
    app.command()(pack)
    app.command("inspect")(inspect_packed)
    app.command()(sample)


def ref(
    text: Text,
    output: Annotated[Path, typer.Option(help="folder for the reference files, which mirrors the text's folders")],
    tokenizer: Tokenizer,
    segmenter: Annotated[str, typer.Option(help=SEGMENTER_HELP)],
    dictionary: Dictionary = None,
    skip_bad: SkipBad = False,
    processes: Processes = os.cpu_count() or 1,
    ray: Ray = None,
) -> None:
    """Write reference files for whole-word masking.

    They say which tokens of each line continue a word. `python run_chinese_ref.py` without options makes those of
    dataset/train and dataset/dev.
    """
    from distill.corpus.prepare import prepare_references
    from distill.corpus.ray_workers import check_ray
    from distill.corpus.segment import add_dictionary, check_segmenter
    from distill.modeling.models import find_model
    from distill.places import check_writable
    from distill.progress import show_progress

    segmenter = add_dictionary(segmenter, dictionary)
    check_segmenter(segmenter)
    check_ray(ray)
    check_writable(output)
    counts = prepare_references(
        text, output=output, tokenizer=find_model(tokenizer, weights=False), segmenter=segmenter, skip_bad=skip_bad,
        processes=processes, progress=show_progress, report=lambda line: typer.echo(line, err=True), ray=ray,
    )  # fmt: skip
    typer.echo(
        f"{output}: references of {counts['files']} file(s), {counts['lines']:,} lines, {counts['words']:,} words, "
        f"{counts['marks']:,} tokens continue a word"
    )


def pack(
    data: Annotated[Path, typer.Option(help="training-data JSON in MiniRBT's format")],
    tokenizer: Tokenizer,
    max_seq_length: Annotated[int, typer.Option(min=8, help="tokens a row, [CLS] and [SEP] included")],
    output: Annotated[Path, typer.Option(help="the packed dataset becomes a folder in this one")] = Path("saves/data"),
    segmenter: Annotated[str | None, typer.Option(help="for texts without reference files: " + SEGMENTER_HELP)] = None,
    dictionary: Dictionary = None,
    packing: Annotated[
        str, typer.Option(help="chunks, documents, full_sentences, doc_sentences or lines; see docs/data.md")
    ] = "chunks",
    mask: Annotated[
        str, typer.Option(help="whole_word, token or span; the last two need no references")
    ] = "whole_word",
    skip_bad: SkipBad = False,
    processes: Processes = os.cpu_count() or 1,
    ray: Ray = None,
) -> None:
    """Pack text and references into a dataset ahead of training."""
    from distill.corpus.prepare import check_data, prepare_dataset
    from distill.corpus.ray_workers import check_ray
    from distill.modeling.models import find_model
    from distill.places import check_writable
    from distill.progress import show_progress
    from distill.recipe_file import check_data_fields

    check_writable(output)
    source = check_data_fields(
        "pack", files=str(data), segmenter=segmenter, dictionary=dictionary and str(dictionary), mask=mask,
        packing=packing, skip_bad=skip_bad,
    )  # fmt: skip
    check_data(source, where="pack")
    check_ray(ray)
    packed = prepare_dataset(
        source, tokenizer=find_model(tokenizer, weights=False), max_seq_length=max_seq_length, folder=output,
        processes=processes, progress=show_progress, report=lambda line: typer.echo(line, err=True),
        ray=ray,
    )  # fmt: skip
    typer.echo(str(packed))


def inspect_packed(
    dataset: Annotated[Path, typer.Argument(help="folder of a packed dataset, or of one of its splits")],
    n: Annotated[int, typer.Option("--n", min=0, help="rows to show")] = 5,
    seed: Annotated[int, typer.Option(help="seed of the choice of rows and masks")] = 0,
    html: Annotated[Path | None, typer.Option(help="also write an HTML page to this file")] = None,
) -> None:
    """Show rows of a packed dataset.

    They are shown with words and one draw of masks, and with statistics of the tokens.
    """
    from rich.console import Console

    from distill.corpus.inspection import inspect_dataset
    from distill.corpus.inspection_page import write_page
    from distill.corpus.inspection_terminal import print_inspection
    from distill.places import check_writable_file

    if html is not None:
        check_writable_file(html)
    inspection = inspect_dataset(dataset, num_rows=n, seed=seed)
    print_inspection(inspection, Console())
    if html is not None:
        write_page(inspection, html)
        typer.echo(str(html))


def sample(
    output: Annotated[Path, typer.Option(help="folder to write")] = Path("saves/sample-world"),
    seed: Annotated[int, typer.Option(help="seed of the random sentences")] = 0,
) -> None:
    """Write the embedded sample world.

    It is Chinese text, the same split into words, a vocabulary and four labelled tasks.
    """
    from distill.sample import write_sample_world

    counts = write_sample_world(output, seed=seed)
    typer.echo(
        f"{output}: {counts['distinct_sentences']:,} distinct sentences in {counts['documents']:,} documents, "
        f"{counts['characters']:,} characters, {counts['vocabulary']:,} tokens of vocabulary, 4 labelled tasks"
    )
