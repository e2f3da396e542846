"""What the tests of references and alignment look at: both line by line, where the package takes all lines in one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import BertTokenizer

from distill.corpus.alignment import align
from distill.corpus.shards import parse_positions
from distill.corpus.source import iter_references, scan_source


def continuation_of(
    lines: Sequence[str], words: Sequence[Sequence[str]], tokenizer: BertTokenizer
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each line its input_ids [L] and whether each token continues a word [L]."""
    input_ids, continuation, num_tokens = align(lines, words, tokenizer.backend_tokenizer)
    borders = np.cumsum(num_tokens)[:-1]
    return list(zip(np.split(input_ids, borders), np.split(continuation, borders), strict=True)) if len(lines) else []


def read_reference(path: Path, text_file: Path) -> list[list[int]]:
    """One list of positions a line of the text, [] for a blank one."""
    return [parse_positions(path, number, line) for number, line in iter_references(scan_source(text_file, path))]
