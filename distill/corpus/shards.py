"""A shard, some lines of one text file, and what is made of it: tokens, continuation bits, lines of the reference.

`tokenize_shard` is the one function that does the work of corpus preparation, in this process, in a pool's or on
another machine. Its result depends on the shard and the setup alone. Where shards come from is in source.py, who works
on them in workers.py, and where finished ones are kept in shard_store.py.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distill.corpus.alignment import align, is_piece, tokenize_lines, without_limits
from distill.corpus.segment import Segmenter, load_segmenter, segmenter_fingerprint
from distill.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Ints = NDArray[np.int64]

FORMAT = 1  # raise it when the same lines give another result, so that shards kept by an older version are not taken
# A JSON list of whole numbers that fit any array; JSON has no leading zeros.
_NUMBER = r"(?:0|[1-9][0-9]{0,8})"
_LIST_OF_NUMBERS = re.compile(rf"[ \t]*\[[ \t]*(?:{_NUMBER}[ \t]*(?:,[ \t]*{_NUMBER}[ \t]*)*)?\][ \t]*")


@dataclass(frozen=True)
class ShardSetup:
    """What a worker process needs to start."""

    tokenizer_json: str
    segmenter: str | None  # a resolved spec; None: only "##" pieces continue words where there is no reference

    @cache  # noqa: B019 (a handful of setups a process)
    def fingerprint(self) -> str:
        """A hash of all that decides a shard's result but its lines."""
        backend = json.dumps(json.loads(self.tokenizer_json), sort_keys=True)
        segmenter = segmenter_fingerprint(self.segmenter) if self.segmenter else None
        return hashlib.sha256(json.dumps([FORMAT, backend, segmenter]).encode()).hexdigest()


@dataclass(frozen=True)
class Shard:
    """Lines of one text file, blank ones too."""

    number: int  # of all shards of a run, from 0
    file_number: int
    text: Path
    lines: list[str]
    first_line: int  # its number in the file, from 1
    documents: Ints  # number of each line's document in the whole text, from 0; of a blank line, that before it
    num_characters: Ints  # of each line, 0 of a blank one
    reference: Path | None = None
    references: list[str] | None = None  # lines of the reference file, "[]" for a blank line that has none there
    reference_numbers: list[int] = field(default_factory=list)

    def key(self, setup: ShardSetup) -> str:
        """A hash of all that decides the result."""
        digest = hashlib.blake2b(setup.fingerprint().encode(), digest_size=16)
        for lines in (self.lines, self.references):
            content = "\n".join(lines) if lines is not None else "\0no reference"
            digest.update(f"\n{len(content)}\n".encode())
            digest.update(content.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


@dataclass(frozen=True)
class ShardTokens:
    """Tokens of all lines of a shard in a row, without [CLS] and [SEP]."""

    input_ids: NDArray[np.int32]
    continuation: NDArray[np.bool_]
    num_tokens: NDArray[np.int32]  # of each line
    references: bytes  # lines of the reference file; empty unless a segmenter found the words
    num_words: int


def tokenize_shard(shard: Shard, setup: ShardSetup) -> ShardTokens:
    """Tokens of the shard; which of them continue a word is said by "##" pieces, and by reference or segmenter.

    The first token of a line never continues.

    Raises:
        InputError: a reference line that is no list of ascending positions, or a position that its line does not have.
    """
    tokenizer, segmenter = load_models(setup)
    words: list[list[str]] = []
    if shard.references is None and segmenter is not None:
        words = segmenter.segment(shard.lines)
        input_ids, continuation, num_tokens = align(shard.lines, words, tokenizer)
    else:
        input_ids, _, num_tokens = tokenize_lines(shard.lines, tokenizer)
        continuation = is_piece(tokenizer, tokenizer.get_vocab_size())[input_ids]
        if shard.references is not None:
            continuation[_positions(shard, num_tokens)] = True
    line_starts = np.cumsum(num_tokens) - num_tokens
    continuation[line_starts[num_tokens > 0]] = False
    return ShardTokens(
        input_ids=input_ids,
        continuation=continuation,
        num_tokens=num_tokens.astype(np.int32),
        references=_reference_lines(continuation, num_tokens) if words else b"",
        num_words=sum(map(len, words)),
    )


@lru_cache(maxsize=2)
def load_models(setup: ShardSetup) -> "tuple[Tokenizer, Segmenter | None]":
    """Tokenizer and segmenter, loaded once a process: LTP's models cannot be sent to another."""
    from tokenizers import Tokenizer

    tokenizer = without_limits(Tokenizer.from_str(setup.tokenizer_json))
    return tokenizer, load_segmenter(setup.segmenter) if setup.segmenter else None


def _reference_lines(continuation: NDArray[np.bool_], num_tokens: Ints) -> bytes:
    """One JSON list a line: the positions that continue a word, [CLS] being 0."""
    token_ends = np.cumsum(num_tokens)
    marked = np.flatnonzero(continuation)
    mark_ends = np.searchsorted(marked, token_ends)
    marks_of_line = np.diff(mark_ends, prepend=0)
    positions = (marked - np.repeat(token_ends - num_tokens, marks_of_line) + 1).tolist()
    ends = mark_ends.tolist()
    # str of a list of ints is what json.dumps gives.
    lines = (f"{positions[start:end]}\n" for start, end in zip([0, *ends], ends, strict=False))
    return "".join(lines).encode("ascii")


def _positions(shard: Shard, num_tokens: Ints) -> Ints:
    """Index of each reference position among the shard's tokens, after checking that the line has it."""
    assert shard.references is not None
    positions, counts = _parse_references(shard)
    line_of_position = np.repeat(np.arange(len(counts)), counts)
    is_wrong = positions > num_tokens[line_of_position]
    is_wrong |= shard.num_characters[line_of_position] == 0
    if is_wrong.any():
        first = int(is_wrong.argmax())
        line, position = int(line_of_position[first]), int(positions[first])
        if shard.num_characters[line] == 0:
            raise InputError(
                f"{shard.reference}: line {shard.reference_numbers[line]} has positions, but line "
                f"{shard.first_line + line} of {shard.text} is blank"
            )
        raise InputError(
            f"{shard.reference}: position {position} for line {shard.first_line + line} of {shard.text}, which has "
            f"{num_tokens[line]} tokens; the reference belongs to another text or tokenizer; run `distill ref` again"
        )
    return (np.cumsum(num_tokens) - num_tokens)[line_of_position] + positions - 1


def _parse_references(shard: Shard) -> tuple[Ints, Ints]:
    """All positions in a row, and how many each line has."""
    assert shard.references is not None
    lines = shard.references
    # One parse for all lines; what it would not find, and who is wrong, is found line by line.
    parsed = json.loads(f"[{','.join(lines)}]") if all(map(_LIST_OF_NUMBERS.fullmatch, lines)) else None
    if parsed is not None:
        counts = np.fromiter(map(len, parsed), np.int64, len(parsed))
        positions = np.fromiter(itertools.chain.from_iterable(parsed), np.int64, int(counts.sum()))
        starts = (np.cumsum(counts) - counts)[counts > 0]
        before = np.concatenate([[0], positions[:-1]]) if len(positions) else positions
        before[starts] = 0
        if (positions > before).all():
            return positions, counts
    for number, line in zip(shard.reference_numbers, lines, strict=True):
        parse_positions(shard.reference, number, line)
    raise AssertionError("a reference line is wrong, but none was found")


def parse_positions(path: Path | None, number: int, line: str) -> list[int]:
    """One line of a reference file.

    Raises:
        InputError: not a JSON list of ascending positions from 1.
    """
    positions: list[int] | None = json.loads(line) if _LIST_OF_NUMBERS.fullmatch(line) else None
    if positions is None or not _ascends(positions):
        raise InputError(
            f"{path}: line {number}: found {line[:60]!r}, not a JSON list of ascending positions from 1 like [2, 3]; "
            "make the reference again with `distill ref`"
        )
    return positions


def _ascends(positions: Sequence[int]) -> bool:
    return all(map(int.__lt__, [0, *positions], positions))
