"""F1 and speed of word segmenters: a table, and the same as one JSON line.

    python benchmarks/segmenters.py --gold test.conll --segmenter jieba --segmenter ltp:DIR \\
        [--training-words SEGMENTED] [--speed-text RAW]

The segmenters take turns, so that a busy machine slows all of them alike. Speeds are medians over the repeats, by the
clock and by the processor's time of this process: the second is what a machine with nothing else to do would show.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from distill.corpus.scoring import join_words, read_gold, score_segmenter
from distill.corpus.segment import Segmenter, load_segmenter
from distill.corpus.text import is_blank, iter_lines

SHOWN = ("segmenter", "precision", "recall", "f1", "oov_recall", "chars_s", "sentences_s", "chars_cpu_s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gold", type=Path, nargs="+", required=True, help="split by spaces, or .conll/.conllu")
    parser.add_argument("--segmenter", action="append", required=True, help="ltp:DIR or jieba; repeatable")
    parser.add_argument("--training-words", type=Path, help="segmented text whose words count as known")
    parser.add_argument("--speed-text", type=Path, help="raw text to measure speed on; default: the gold sentences")
    parser.add_argument("--lines", type=int, default=20_000, help="of the speed text, at most")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    lines = read_lines(options.speed_text, options.gold, options.lines)
    segmenters = {spec: load_segmenter(spec) for spec in options.segmenter}
    times: dict[str, list[tuple[float, float]]] = {spec: [] for spec in segmenters}
    for _ in range(options.repeats):
        for spec, segmenter in segmenters.items():
            times[spec].append(time_lines(segmenter, lines))
    rows = [score(spec, options.gold, options.training_words) | speed(times[spec], lines) for spec in options.segmenter]
    print("\n".join(table(rows)))
    text = options.speed_text.name if options.speed_text else "gold"
    print(json.dumps({"gold": [file.name for file in options.gold], "speed_text": text, "lines": len(lines),
                      "characters": sum(map(len, lines)), "repeats": options.repeats, "segmenters": rows}))  # fmt: skip


def read_lines(text: Path | None, gold: Sequence[Path], most: int) -> list[str]:
    if text is None:
        return [join_words(words) for file in gold for words in read_gold(file)]
    return list(itertools.islice((line for line in iter_lines(text) if not is_blank(line)), most))


def time_lines(segmenter: Segmenter, lines: list[str]) -> tuple[float, float]:
    """Seconds by the clock and of processor time."""
    start, start_cpu = time.perf_counter(), time.process_time()
    for first in range(0, len(lines), 1_000):
        segmenter.segment(lines[first : first + 1_000])
    return time.perf_counter() - start, time.process_time() - start_cpu


def score(spec: str, gold: Sequence[Path], training_words: Path | None) -> dict[str, object]:
    found = score_segmenter(spec, gold, training_words=training_words)
    return {
        "segmenter": spec.removeprefix("ltp:").rstrip("/").rsplit("/", 1)[-1],
        "precision": round(100 * found.precision, 2),
        "recall": round(100 * found.recall, 2),
        "f1": round(100 * found.f1, 2),
        "oov_recall": None if found.unknown_recall is None else round(100 * found.unknown_recall, 1),
        "sentences": found.sentences,
        "words": found.gold_words,
    }


def speed(times: list[tuple[float, float]], lines: list[str]) -> dict[str, object]:
    seconds, cpu_seconds = (statistics.median(column) for column in zip(*times, strict=True))
    characters = sum(map(len, lines))
    return {
        "chars_s": round(characters / seconds),
        "sentences_s": round(len(lines) / seconds),
        "chars_cpu_s": round(characters / cpu_seconds),
    }


def table(rows: list[dict[str, object]]) -> list[str]:
    """A header and one line a segmenter, columns aligned."""
    cells = [list(SHOWN), *([str(row[name]) for name in SHOWN] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]


if __name__ == "__main__":
    main()
