"""The command line: every command, thin. Heavy modules are imported inside the command that needs them."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from distill.cli_segmenter import SEGMENTER_HELP, Dictionary, SkipBad, add_segmenter_commands
from distill.errors import InputError


def _plain(name: str) -> str:
    return name.replace("_", "-") if name.startswith("--") else name


SETTINGS = {"token_normalize_func": _plain, "help_option_names": ["-h", "--help"]}
app = typer.Typer(
    help="Small, fast Chinese BERT encoders by staged distillation.", no_args_is_help=True, add_completion=True,
    pretty_exceptions_enable=False, context_settings=SETTINGS, rich_markup_mode=None,
)  # fmt: skip
segmenter_app = typer.Typer(help="Word segmenters.", no_args_is_help=True, context_settings=SETTINGS)
add_segmenter_commands(segmenter_app)
app.add_typer(segmenter_app, name="segmenter")

TEXT_HELP = (
    "text files (also .gz, .xz, .zst, .jsonl, .parquet), folders, glob patterns, folders of `datasets`, hf:OWNER/NAME; "
    "#FIELD after it names the field of records; repeatable"
)
Text = Annotated[list[Path], typer.Option(help=TEXT_HELP)]
Tokenizer = Annotated[str, typer.Option(help="folder with vocab.txt, or hub id")]
Processes = Annotated[int, typer.Option(min=1, help="processes to work in")]


@app.command()
def ref(
    text: Text,
    output: Annotated[Path, typer.Option(help="folder for the reference files; the text's folders are mirrored below")],
    tokenizer: Tokenizer,
    segmenter: Annotated[str, typer.Option(help=SEGMENTER_HELP)],
    dictionary: Dictionary = None,
    skip_bad: SkipBad = False,
    processes: Processes = os.cpu_count() or 1,
) -> None:
    """Write reference files: which tokens of each line continue a word, for whole-word masking."""
    from distill.corpus.neural_time import report_neural_time
    from distill.corpus.reference import reference_paths, write_references
    from distill.corpus.segment import add_dictionary, check_segmenter, resolve_segmenter
    from distill.corpus.text import estimate_characters, expand_text, text_root
    from distill.modeling.models import find_model
    from distill.pipeline import show_progress

    segmenter = add_dictionary(segmenter, dictionary)
    check_segmenter(segmenter)
    files = expand_text(text, skip_bad=skip_bad)
    references = reference_paths(files, text_root(text), output)
    folder = find_model(tokenizer, weights=False)
    segmenter = resolve_segmenter(segmenter)
    report_neural_time(segmenter, files, lambda line: typer.echo(line, err=True))
    with show_progress("references", estimate_characters(files)) as advance:
        counts = write_references(files, references, segmenter=segmenter, tokenizer_dir=str(folder),
                                  processes=processes, progress=advance)  # fmt: skip
    typer.echo(
        f"{output}: references of {len(files)} file(s), {counts['lines']:,} lines, {counts['words']:,} words, "
        f"{counts['marks']:,} tokens continue a word"
    )


@app.command()
def pack(
    data: Annotated[Path, typer.Option(help="training-data JSON in MiniRBT's format")],
    tokenizer: Tokenizer,
    max_seq_length: Annotated[int, typer.Option(help="tokens a row, [CLS] and [SEP] included")],
    output: Annotated[Path, typer.Option(help="folder below which the packed dataset goes")] = Path("saves/data"),
    segmenter: Annotated[str | None, typer.Option(help="for texts without reference file. " + SEGMENTER_HELP)] = None,
    dictionary: Dictionary = None,
    mask: Annotated[str, typer.Option(help="whole_word or token; token needs no references")] = "whole_word",
    skip_bad: SkipBad = False,
    processes: Processes = os.cpu_count() or 1,
) -> None:
    """Pack text and references into a memory-mapped dataset, ahead of training."""
    from distill.corpus.prepare import check_data, prepare_dataset
    from distill.modeling.models import find_model
    from distill.pipeline import show_progress
    from distill.recipe import check_data_fields

    source = check_data_fields("pack", files=str(data), segmenter=segmenter, mask=mask, skip_bad=skip_bad,
                               dictionary=dictionary and str(dictionary))  # fmt: skip
    check_data(source, where=str(data))
    packed = prepare_dataset(
        source, tokenizer=find_model(tokenizer, weights=False), max_seq_length=max_seq_length, folder=output,
        processes=processes, progress=show_progress, report=lambda line: typer.echo(line, err=True),
    )  # fmt: skip
    typer.echo(str(packed))


@app.command(context_settings={**SETTINGS, "allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="recipe JSON; see jsons/recipes")],
    stage: Annotated[str | None, typer.Option(help="only this stage")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything, print the plan, train nothing")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="one place: stages.NAME.students.NAME.field=value; repeatable")
    ] = None,
) -> None:
    """Train the stages of a recipe, or go on where they stopped. --FIELD VALUE sets a field in every stage."""
    from distill.recipe import load_recipe

    run_loaded_recipe(load_recipe(recipe, parse_fields(context.args), settings or []), stage, dry_run)


def run_loaded_recipe(recipe: Any, stage: str | None, dry_run: bool) -> None:
    """Runs a checked recipe as worker or as parent."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from distill.launch import Cluster, is_worker

    if is_worker():
        from distill.worker import run_worker

        if stage is None:
            raise InputError("under torchrun one stage is trained; name it with --stage, or start without torchrun")
        raise typer.Exit(run_worker(recipe, stage))
    from distill.pipeline import describe_plan, run_recipe

    cluster = Cluster.from_environment()
    if dry_run:
        typer.echo(describe_plan(recipe, cluster))
        return
    run_recipe(recipe, cluster=cluster, only_stage=stage, show=typer.echo)


def parse_fields(arguments: list[str]) -> dict[str, Any]:
    """`--learning-rate 1e-4 --steps=100` as {"learning_rate": 1e-4, "steps": 100}."""
    from distill.recipe import parse_value

    fields: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--"):
            raise InputError(f"command line: '{name}' is not an option; fields are given as --field value")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise InputError(f"command line: {name} has no value; fields are given as --field value")
            value = rest.pop(0)
        fields[name[2:].replace("-", "_")] = parse_value(value)
    return fields


@app.command()
def models(
    configs: Annotated[list[Path] | None, typer.Argument(help="config JSONs or model folders; default: ours")] = None,
) -> None:
    """Compare models: layers, widths, parameters with and without embeddings, FLOPs."""
    from distill.modeling.comparison import comparison_table, shipped_configs

    typer.echo(comparison_table(configs or shipped_configs()))


@app.command()
def sample(
    output: Annotated[Path, typer.Option(help="folder to write")] = Path("saves/sample-world"),
    seed: Annotated[int, typer.Option(help="decides every sentence")] = 0,
) -> None:
    """Write the embedded sample world: Chinese text, its words, a vocabulary and four labelled tasks."""
    from distill.sample import write_sample_world

    counts = write_sample_world(output, seed=seed)
    typer.echo(f"{output}: " + ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items()))


def main(arguments: list[str] | None = None) -> None:
    """Runs a command; an InputError becomes one line and exit code 2, unless --debug asks for the traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    guard(lambda: app([argument for argument in arguments if argument != "--debug"], standalone_mode=False), debug)


def guard(command: Callable[[], Any], debug: bool = False) -> None:
    """Runs `command` and leaves the process with its exit code."""
    try:
        code = command()
    except InputError as error:
        _leave(f"error: {error}", 2, debug)
    except typer.Exit as done:
        code = done.exit_code
    except KeyboardInterrupt:
        _leave("stopped", 130, debug)
    except Exception as error:
        _leave_for(error, debug)
    sys.exit(code if isinstance(code, int) else 0)


def _leave_for(error: Exception, debug: bool) -> None:
    """Exit codes of the errors that come from libraries and stages."""
    import click

    if isinstance(error, click.ClickException):
        error.show()
        sys.exit(error.exit_code)
    if isinstance(error, click.exceptions.Abort):
        sys.exit(130)
    if type(error).__module__ == "distill.launch":
        signum = getattr(error, "signum", 0)
        _leave(f"{'stopped' if signum else 'error'}: {error}", 128 + signum if signum else 1, debug)
    if debug or not isinstance(error, (OSError, MemoryError)):
        raise error
    _leave(f"error: {type(error).__name__}: {error}", 1, debug)


def _leave(message: str, code: int, debug: bool) -> None:
    if debug:
        raise
    print(message.replace("\n", " "), file=sys.stderr)
    sys.exit(code)
