"""A look into a packed dataset: some rows with their words and one draw of masks, and statistics of all.

The statistics are in statistics.py; how it is shown in inspection_terminal.py and inspection_page.py. B rows, L tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from distill.corpus.masking import mask_rows
from distill.corpus.order import permuted_row, sample_key, sample_random
from distill.corpus.rows import PackedRows, open_table
from distill.corpus.statistics import Statistics, TokenTable, count_statistics
from distill.corpus.tokenizing import TOKENIZER_FOLDER, load_tokenizer
from distill.errors import InputError

Fate = Literal["plain", "special", "unknown", "masked", "replaced", "kept"]
MASK_PROBABILITY = 0.15

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ShownToken:
    """One token of a row."""

    text: str
    """Without '##'."""
    fate: Fate
    replacement: str | None
    """What a replaced token became."""
    starts_word: bool
    starts_document: bool


@dataclass(frozen=True)
class ShownRow:
    """One row without its padding."""

    number: int
    tokens: list[ShownToken]


@dataclass(frozen=True)
class Inspection:
    """What `distill inspect` shows."""

    dataset: str
    split: str
    """Where the rows are from."""
    rows: list[ShownRow]
    statistics: dict[str, Statistics]
    """By split."""


def inspect_dataset(dataset: Path, *, num_rows: int = 5, seed: int = 0) -> Inspection:
    """Rows drawn by `seed`, with whole-word masks drawn by it, and the statistics of every split.

    Args:
        dataset: a folder with train and dev, or one of these.
    Raises:
        InputError: no dataset there, or a damaged one.
    """
    splits = _find_splits(dataset)
    tokenizer = next(iter(splits.values())).parent / TOKENIZER_FOLDER
    if not tokenizer.is_dir():
        raise InputError(f"{dataset}: has no {TOKENIZER_FOLDER}/; remove the packed dataset, and it is made again")
    table = TokenTable(load_tokenizer(tokenizer))
    packed = {name: PackedRows(path) for name, path in splits.items()}
    statistics = {name: count_statistics(rows, table) for name, rows in packed.items()}
    first = next(iter(packed))
    return Inspection(str(dataset), first, show_rows(packed[first], table, num_rows=num_rows, seed=seed), statistics)


def _find_splits(dataset: Path) -> dict[str, Path]:
    """Folder of each split, train first."""
    if (dataset / "state.json").is_file():
        return {dataset.name: dataset}
    found = {name: dataset / name for name in ("train", "dev") if (dataset / name / "state.json").is_file()}
    if not found:
        below = sorted(str(path.parents[1]) for path in dataset.glob("*/train/state.json"))[:8]
        told = f"there are below it: {', '.join(below)}; name one" if below else "make it with `distill pack`"
        raise InputError(f"{dataset}: not a packed dataset (no train/state.json); {told}")
    return found


def show_rows(packed: PackedRows, table: TokenTable, *, num_rows: int, seed: int) -> list[ShownRow]:
    """Rows drawn without repeats, in ascending order, with one draw of whole-word masks."""
    positions = np.arange(min(num_rows, len(packed)))
    numbers = np.sort(permuted_row(positions, rows=len(packed), key=sample_key(seed, "inspect rows")))
    input_ids, continuation, length = packed.rows(numbers)
    masked_ids, chosen, _ = mask_rows(
        input_ids, continuation, length, probability=MASK_PROBABILITY, kind="whole_word", vocabulary=table.masks,
        random=sample_random(sample_key(seed, "inspect masks"), numbers, packed.max_seq_length),
    )  # fmt: skip
    is_chosen = np.zeros(input_ids.size, dtype=bool)
    is_chosen[chosen] = True
    is_chosen_BL = is_chosen.reshape(input_ids.shape)
    starts = _document_starts(packed, numbers)
    rows = []
    for row, number in enumerate(numbers.tolist()):
        tokens = [
            _show_token(
                table, int(input_ids[row, i]), int(masked_ids[row, i]), chosen=bool(is_chosen_BL[row, i]),
                starts_word=not continuation[row, i], starts_document=starts[row][i],
            )
            for i in range(int(length[row]))
        ]  # fmt: skip
        rows.append(ShownRow(number, tokens))
    return rows


def _show_token(
    table: TokenTable, token: int, shown: int, *, chosen: bool, starts_word: bool, starts_document: bool
) -> ShownToken:
    fate: Fate = "plain" if table.is_text_V[token] else "special"
    if token == table.unk_id:
        fate = "unknown"
    if chosen:
        fate = "masked" if shown == table.masks.mask_id else "kept" if shown == token else "replaced"
    replacement = table.texts[shown] if fate == "replaced" else None
    return ShownToken(table.texts[token], fate, replacement, starts_word, starts_document)


def _document_starts(packed: PackedRows, numbers: Ints) -> Sequence[Sequence[bool]]:
    starts = open_table(packed.path).column("document_start")
    return [starts[number].as_py() for number in numbers.tolist()]
