"""`distill vocab`: the commands around vocabularies, thin. Heavy modules are imported inside the command."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from distill.commands.models import Model
from distill.errors import InputError

vocab_app = typer.Typer(help="Train, prune, replace, check and repair vocabularies.", no_args_is_help=True)


class NewRows(StrEnum):
    """How the row of a new token begins."""

    mean = "mean"
    random = "random"


Output = Annotated[Path, typer.Option(help="new folder")]
ModelOption = Annotated[str, typer.Option(help="model folder or hub id")]
SomeText = Annotated[list[Path] | None, typer.Option(help="text files, folders or glob patterns; repeatable")]
Seed = Annotated[int, typer.Option(help="seed of random rows")]


@vocab_app.command("train")
def train(
    text: Annotated[list[Path], typer.Option(help="text files, folders or glob patterns; repeatable")],
    size: Annotated[int, typer.Option(min=6, help="largest number of tokens, the five special ones included")],
    output: Output,
    cased: Annotated[bool, typer.Option("--cased", help="keep capitals and accents; default: lower-case")] = False,
) -> None:
    """Train a WordPiece vocabulary from text.

    The folder has vocab.txt and tokenizer_config.json, as BertTokenizer reads them.
    """
    from distill.corpus.text import estimate_characters, expand_text
    from distill.corpus.vocabulary import refuse_existing, train_vocabulary, write_tokenizer_folder
    from distill.progress import show_progress

    refuse_existing(output)
    files = expand_text(text)
    with show_progress("vocabulary", 2 * estimate_characters(files)) as advance:
        tokens = train_vocabulary(files, size=size, cased=cased, progress=advance)
    settings = {"do_lower_case": not cased, "strip_accents": None, "tokenize_chinese_chars": True}
    write_tokenizer_folder(output, tokens, settings)
    short = "" if len(tokens) >= size else f"; the text gives no more than that, asked were {size:,}"
    typer.echo(f"{output}: {len(tokens):,} tokens from {len(files)} file(s){short}")


@vocab_app.command("prune")
def prune(
    model: ModelOption,
    output: Output,
    text: SomeText = None,
    keep: Annotated[Path | None, typer.Option(help="file of tokens to keep, one a line")] = None,
    min_count: Annotated[int, typer.Option(min=1, help="keep tokens that occur at least this often")] = 1,
    size: Annotated[
        int | None, typer.Option(min=6, help="largest number of tokens; the most frequent are kept")
    ] = None,
) -> None:
    """Reduce a model's vocabulary to what a text uses.

    Tokens that --keep lists stay, too, and the special tokens always.
    """
    from distill.corpus.text import estimate_characters, expand_text
    from distill.corpus.tokenizing import load_tokenizer
    from distill.corpus.vocabulary import count_tokens, read_vocabulary, refuse_existing
    from distill.modeling.models import find_model
    from distill.modeling.vocabulary import prune_vocabulary
    from distill.progress import show_progress

    if not text and keep is None:
        raise InputError("distill vocab prune: nothing says what stays; give --text, --keep or both")
    refuse_existing(output)
    folder = find_model(model)
    listed = read_vocabulary(keep) if keep else []
    counts = None
    if text:
        files = expand_text(text)
        with show_progress("counting", estimate_characters(files)) as advance:
            counts = count_tokens(files, load_tokenizer(folder), progress=advance)
    done = prune_vocabulary(folder, output, counts=counts, listed=listed, min_count=min_count, size=size)
    typer.echo(f"{output}: {done['tokens_after']:,} of {done['tokens_before']:,} tokens stay")
    if "kept_share" in done:
        typer.echo(f"they are {done['kept_share']:.3%} of the text's tokens")
    if done["unknown_listed"]:
        typer.echo(f"{keep}: {done['unknown_listed']:,} listed tokens are not in the model's vocabulary", err=True)


@vocab_app.command("replace")
def replace(
    model: ModelOption,
    vocab: Annotated[Path, typer.Option(help="vocab.txt (lower-casing stays the model's), or a tokenizer folder")],
    output: Output,
    new_rows: Annotated[
        NewRows, typer.Option(help="start of a new token's row: mean of its old pieces, or random")
    ] = NewRows.mean,
    seed: Seed = 0,
) -> None:
    """Give a model another vocabulary.

    Tokens that both have keep their rows; new ones start as --new-rows says.
    """
    from distill.modeling.models import find_model
    from distill.modeling.vocabulary import replace_vocabulary

    done = replace_vocabulary(find_model(model), vocab, output, new_rows=new_rows.value, seed=seed)
    typer.echo(
        f"{output}: {done['shared']:,} tokens kept their rows, {done['mean']:,} new ones got the mean of their pieces, "
        f"{done['random']:,} random rows; {done['dropped']:,} old tokens dropped"
    )


@vocab_app.command("clue")
def clue(
    google_vocab: Annotated[Path, typer.Option(help="vocab.txt of Google's Chinese BERT")],
    t2s: Annotated[Path, typer.Option(help="lines 'traditional simplified', such as OpenCC's TSCharacters.txt")],
    output: Output,
    drop: Annotated[list[Path] | None, typer.Option(help="tokens to drop, one a line; repeatable")] = None,
) -> None:
    """Make CLUE's small vocabulary from Google's by CLUE's rules."""
    from distill.corpus.clue_vocabulary import apply_clue_rules, read_simplification
    from distill.corpus.vocabulary import read_vocabulary, write_tokenizer_folder

    dropped = {token for path in drop or [] for token in read_vocabulary(path)}
    tokens, counts = apply_clue_rules(
        read_vocabulary(google_vocab), simplified=read_simplification(t2s), dropped=dropped
    )
    settings = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
    write_tokenizer_folder(output, tokens, settings)
    typer.echo(f"{output}: {len(tokens):,} tokens; {', '.join(f'{n:,} {kind}' for kind, n in counts.items())}")


@vocab_app.command("check")
def check(model: Model) -> None:
    """Check that a model's tokens, embedding rows and config agree.

    Exit code 1 if they do not.
    """
    from distill.modeling.models import find_model
    from distill.modeling.vocabulary_check import check_vocabulary_files

    findings = check_vocabulary_files(find_model(model))
    for problem in findings.problems:
        typer.echo(f"{model}: {problem}")
    for note in findings.notes:
        typer.echo(f"{model}: note: {note}")
    if findings.problems:
        typer.echo(f"mend it with: distill vocab repair {model} --output NEW_FOLDER")
        raise typer.Exit(1)
    typer.echo(f"{model}: every token has exactly one row")


@vocab_app.command("repair")
def repair(model: Model, output: Output, seed: Seed = 0) -> None:
    """Write a copy of a model with what `vocab check` finds repaired."""
    from distill.modeling.models import find_model
    from distill.modeling.vocabulary_check import repair_vocabulary

    actions = repair_vocabulary(find_model(model), output, seed=seed)
    for action in actions:
        typer.echo(f"{output}: {action}")
    if not actions:
        typer.echo(f"{model}: nothing to repair, nothing written")
