"""Lines of text -> token ids and one continuation bit a token, in several processes, in the order of the lines.

The tokenizer is the Rust one behind transformers' BertTokenizer. Worker processes rebuild it from its JSON, so that
they import neither transformers nor torch. How lines become documents is in source.py, tokens rows in packer.py.
"""

import itertools
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distill.errors import InputError

if TYPE_CHECKING:
    from transformers import BertTokenizer

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LineBatch:
    """Lines of one text file, with what is known of each; blank lines are left out."""

    text: Path
    reference: Path | None
    lines: list[str]
    line_numbers: Ints  # in the file, from 1
    documents: Ints  # number of each line's document in the whole text, from 0
    positions: list[list[int]] | None  # reference: tokens that continue a word, [CLS] counted as 0


@dataclass(frozen=True)
class TokenizedLines:
    """Tokens of all lines of a batch in a row, without [CLS] and [SEP]."""

    input_ids: NDArray[np.int32]
    continuation: NDArray[np.bool_]
    num_tokens: Ints  # of each line


class LineTokenizer:
    """The Rust tokenizer and the table of its '##' pieces."""

    def __init__(self, tokenizer_json: str) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        self._is_piece = np.zeros(max(vocab.values()) + 1, dtype=bool)
        self._is_piece[[i for token, i in vocab.items() if token.startswith("##") and len(token) > 2]] = True

    def tokenize(self, batch: LineBatch) -> TokenizedLines:
        """Tokens of the batch. A token continues a word if it is a '##' piece or the reference says so.

        The first token of a line never does. MiniRBT's references mark Han characters only, hence the pieces.

        Raises:
            InputError: a reference position that its line does not have.
        """
        encodings = self._tokenizer.encode_batch_fast(batch.lines, add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        num_tokens = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        total = int(num_tokens.sum())
        input_ids = np.fromiter(itertools.chain.from_iterable(ids), dtype=np.int32, count=total)
        continuation = self._is_piece[input_ids]
        line_starts = np.cumsum(num_tokens) - num_tokens
        if batch.positions is not None:
            continuation[_flatten_positions(batch, num_tokens, line_starts)] = True
        continuation[line_starts[num_tokens > 0]] = False
        return TokenizedLines(input_ids, continuation, num_tokens)


def _flatten_positions(batch: LineBatch, num_tokens: Ints, line_starts: Ints) -> Ints:
    """Index of each reference position among the batch's tokens, after checking that the line has it."""
    assert batch.positions is not None
    counts = np.fromiter(map(len, batch.positions), dtype=np.int64, count=len(batch.positions))
    positions = np.fromiter(itertools.chain.from_iterable(batch.positions), dtype=np.int64, count=int(counts.sum()))
    lines = np.repeat(np.arange(len(counts)), counts)
    wrong = np.flatnonzero((positions < 1) | (positions > num_tokens[lines]))
    if wrong.size:
        line, position = lines[wrong[0]], positions[wrong[0]]
        raise InputError(
            f"{batch.reference}: position {position} for line {batch.line_numbers[line]} of {batch.text}, which has "
            f"{num_tokens[line]} tokens; the reference belongs to another text or tokenizer; run `distill ref` again"
        )
    return line_starts[lines] + positions - 1


def load_tokenizer(folder: Path | str) -> "BertTokenizer":
    """transformers' BertTokenizer of a local folder.

    Raises:
        InputError: no vocabulary there. Without this check transformers would silently make one of 5 tokens.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
        raise InputError(f"{folder}: no tokenizer there; a folder with vocab.txt or tokenizer.json is needed")
    from transformers import BertTokenizer

    return BertTokenizer.from_pretrained(str(folder))


def tokenize_in_order(
    batches: Iterable[LineBatch], *, tokenizer_json: str, processes: int
) -> Generator[tuple[LineBatch, TokenizedLines]]:
    """Each batch with its tokens, in order. One process works here (with the Rust library's threads), more in a pool.

    Only a few batches a process are under way at any time, so memory does not grow with the text.
    """
    if processes == 1:
        tokenizer = LineTokenizer(tokenizer_json)
        yield from ((batch, tokenizer.tokenize(batch)) for batch in batches)
        return
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),  # forking a process with torch's or Rust's threads can hang
        initializer=_start_worker,
        initargs=(tokenizer_json,),
    )
    under_way: deque[tuple[LineBatch, Future[TokenizedLines]]] = deque()
    try:
        for batch in batches:
            under_way.append((batch, pool.submit(_tokenize_in_worker, batch)))
            if len(under_way) > 3 * processes:
                done, future = under_way.popleft()
                yield done, future.result()
        for done, future in under_way:
            yield done, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


_worker: dict[str, Any] = {}


def _start_worker(tokenizer_json: str) -> None:
    # Ctrl-C reaches the whole group; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _worker["tokenize"] = partial(LineTokenizer.tokenize, LineTokenizer(tokenizer_json))


def _tokenize_in_worker(batch: LineBatch) -> TokenizedLines:
    return _worker["tokenize"](batch)
