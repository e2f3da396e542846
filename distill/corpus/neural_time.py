"""How long neural LTP will take, said before it starts: users gave up on it after hours without a word."""

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from distill.corpus.segment import Segmenter, is_neural, load_segmenter
from distill.corpus.text import estimate_characters, is_blank, iter_lines

TRIAL_SECONDS = 5.0
TRIAL_LINES = 2_000
HINT_ABOVE_SECONDS = 3600.0


def report_neural_time(spec: str, texts: Sequence[Path], report: Callable[[str], None]) -> None:
    """Tries a neural segmenter on the first lines of the texts and reports the time for all; else does nothing."""
    if not is_neural(spec):
        return
    rate = characters_per_second(load_segmenter(spec), texts)
    if rate:
        report(describe_time(spec, rate=rate, characters=estimate_characters(texts)))


def characters_per_second(
    segmenter: Segmenter, texts: Sequence[Path], clock: Callable[[], float] = time.perf_counter
) -> float:
    """Characters of text a second, from some seconds of work; 0 if there is no text.

    The batches double from 8 lines, so that the slowest CPU answers soon and a GPU is tried with full batches. The
    largest one counts.
    """
    lines = (line for text in texts for line in iter_lines(text) if not is_blank(line))
    trial = list(itertools.islice(lines, TRIAL_LINES))
    start, size, first, rate = clock(), 8, 0, 0.0
    while first < len(trial) and clock() - start < TRIAL_SECONDS:
        batch = [line[:1_000] for line in trial[first : first + size]]
        before = clock()
        segmenter.segment(batch)
        rate = sum(map(len, batch)) / max(clock() - before, 1e-9)
        first, size = first + size, 2 * size
    return rate


def describe_time(spec: str, *, rate: float, characters: int) -> str:
    """One line: how long it will take and, above an hour, what is faster."""
    seconds = characters / rate
    hours, minutes = divmod(round(seconds / 60), 60)
    duration = f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else "less than a minute"
    line = f"{spec}: {rate:,.0f} characters/s, about {duration} for {characters / 1e6:,.1f} million characters"
    if seconds <= HINT_ABOVE_SECONDS:
        return line
    return (
        f"{line}. A perceptron that learns from it is much faster (on a CPU about 400 times): `distill segmenter "
        f"train --from {spec} --text YOUR_TEXT --output DIR`, then --segmenter ltp:DIR"
    )
