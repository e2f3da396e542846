"""`distill segmenter`: training word segmenters and scoring them. Thin; the work is in distill/corpus."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

LICENCE_NOTE = "LTP is free for universities and individual research, paid for companies; jieba and words need no LTP."
SEGMENTER_HELP = (
    '"ltp:DIR" or "ltp:HUB_ID", "jieba", or "words" (text already split by spaces); #FILE after it adds a dictionary. '
    f"{LICENCE_NOTE}"
)

SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="skip lines that are not UTF-8 and records without text, with a warning")
]
Dictionary = Annotated[
    Path | None, typer.Option(help="file of words to keep whole, one a line (jieba's format); for ltp and jieba")
]


def add_segmenter_commands(app: typer.Typer) -> None:
    """Adds `train` and `score`."""
    app.command("train")(train)
    app.command("score")(score)


def train(
    text: Annotated[
        list[Path],
        typer.Option(
            help="segmented text: a sentence a line, words split by spaces; with --from: raw text; repeatable"
        ),
    ],
    output: Annotated[Path, typer.Option(help="folder of the new model, for --segmenter ltp:FOLDER")],
    from_: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="SPEC", help="segmenter that splits the raw text to learn from: ltp:DIR, jieba, ..."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="passes over the sentences")] = 2,
    threshold: Annotated[
        float, typer.Option(help="drop features whose weights sum to less; with 6 the model is under 1 MB")
    ] = 1e-3,
    max_sentences: Annotated[
        int | None,
        typer.Option(
            help="train on a sample of this many, to save memory (0.8 GB a million characters); default: all, or "
            "50,000 with --from"
        ),
    ] = None,
    skip_bad: SkipBad = False,
) -> None:
    """Train an LTP perceptron from segmented text.

    With --from, from raw text that another segmenter splits first.
    """
    from distill.corpus.perceptron_training import check_arguments, train_perceptron
    from distill.corpus.text import expand_text

    files = expand_text(text, skip_bad=skip_bad)
    options: dict[str, Any] = {"epochs": epochs, "threshold": threshold, "max_sentences": max_sentences}
    check_arguments(output, **options)
    if from_ is None:
        result = train_perceptron(files, output, **options)
    else:
        with tempfile.TemporaryDirectory(prefix="distill-labelled-") as folder:
            labelled = Path(folder) / "labelled.txt"
            _label(files, labelled, from_, max_sentences)
            result = train_perceptron(labelled, output, **options)
    kind = "word F1" if from_ is None else f"word F1 against {from_}"
    typer.echo(
        f"{output}: LTP perceptron from {result['sentences']:,} sentences, {result['words']:,} words in "
        f"{result['seconds']:.1f} s; {kind} {100 * result['held_out_f1']:.2f} on {result['held_out_sentences']:,} "
        f"held-out sentences; {result['model_bytes'] / 1e6:.1f} MB"
    )


def _label(files: list[Path], labelled: Path, spec: str, max_sentences: int | None) -> None:
    from distill.corpus.labelling import DEFAULT_SENTENCES, write_labelled
    from distill.corpus.segment import load_segmenter
    from distill.progress import show_progress

    most = max_sentences or DEFAULT_SENTENCES
    with show_progress(f"sentences split by {spec}", most, unit="sentence") as advance:
        write_labelled(files, labelled, segmenter=load_segmenter(spec), max_sentences=most, progress=advance)


def score(
    segmenter: Annotated[str, typer.Option(help=SEGMENTER_HELP)],
    gold: Annotated[
        list[Path], typer.Option(help="text split by spaces, or CoNLL-U (.conll, .conllu: second column); repeatable")
    ],
    dictionary: Dictionary = None,
    training_words: Annotated[
        Path | None,
        typer.Option(
            help="file of the words it was trained on (e.g. its training text), to report the recall of unknown words"
        ),
    ] = None,
) -> None:
    """Score a segmenter against gold text.

    Prints precision, recall and F1 of words, and the speed.
    """
    from distill.corpus.scoring import score_segmenter
    from distill.corpus.segment import add_dictionary

    found = score_segmenter(add_dictionary(segmenter, dictionary), gold, training_words=training_words)
    line = (
        f"{segmenter}: precision {100 * found.precision:.2f}, recall {100 * found.recall:.2f}, F1 {100 * found.f1:.2f} "
        f"on {found.gold_words:,} words in {found.sentences:,} sentences; "
        f"{found.sentences / found.seconds:,.0f} sentences/s, {found.characters / found.seconds:,.0f} characters/s"
    )
    if found.unknown_words is not None:
        share, recall = found.unknown_words / found.gold_words, found.unknown_recall
        line += f"; out-of-vocabulary words {100 * share:.1f} %" + (
            "" if recall is None else f", {100 * recall:.1f} % of them found"
        )
    typer.echo(line)
