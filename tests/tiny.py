"""Tiny models, tokenizers, rows and batches that the tests of training share. Nothing here comes from a network."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM

from distill.corpus.batches import MicroBatch
from distill.corpus.rows import RowWriter
from distill.training.processes import Processes

CHARACTERS = [chr(0x4E00 + i) for i in range(40)]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, *(f"##{c}" for c in CHARACTERS)]
CLS, SEP, MASK, FIRST_CHARACTER = 2, 3, 4, 5
LENGTH = 16
ALONE = Processes(0, 1, torch.device("cpu"))


class NeverStop:
    """A StopRequest that no signal reaches."""

    signum = 0

    def listen(self) -> None:
        pass

    def interrupts(self) -> bool:
        return False


class StopBeforeStep(NeverStop):
    """A StopRequest that asks to stop when the loop looks at it before step `step` (counted from 1)."""

    def __init__(self, step: int, first_step: int = 0) -> None:
        self.left = step - first_step

    @property
    def signum(self) -> int:
        self.left -= 1
        return 15 if self.left <= 0 else 0


def tiny_config(*, layers=2, width=16, heads=2, dropout=0.0, **fields) -> BertConfig:
    values = {
        "vocab_size": len(VOCABULARY), "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "intermediate_size": 2 * width, "max_position_embeddings": LENGTH,
        "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout, **fields,
    }  # fmt: skip
    return BertConfig(**values)


def tiny_model(config: BertConfig, *, seed=0, attention="sdpa") -> BertForMaskedLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BertForMaskedLM._from_config(BertConfig(**config.to_diff_dict()), attn_implementation=attention)


def write_tokenizer(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": LENGTH}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def write_model(folder: Path, config: BertConfig, *, seed=0) -> Path:
    """A model folder with tokenizer."""
    tiny_model(config, seed=seed).save_pretrained(folder)
    return write_tokenizer(folder)


def write_config(path: Path, config: BertConfig) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config.to_json_string(), encoding="utf-8")
    return path


def random_rows(lengths: Sequence[int], *, seed=0) -> np.ndarray:
    """[CLS] characters [SEP] and padding, [rows, LENGTH]."""
    random = np.random.default_rng(seed)
    rows = np.zeros((len(lengths), LENGTH), dtype=np.int64)
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = random.integers(FIRST_CHARACTER, len(VOCABULARY), length)
        row[0], row[length - 1] = CLS, SEP
    return rows


def write_rows(folder: Path, lengths: Sequence[int], *, seed=0) -> Path:
    """One split of a packed dataset."""
    rows = random_rows(lengths, seed=seed)
    writer = RowWriter(folder, max_seq_length=LENGTH, vocab_size=len(VOCABULARY))
    flags = np.zeros(rows.shape, dtype=bool)
    writer.write(rows, flags, flags, np.array(lengths))
    writer.close()
    return folder


def write_world(folder: Path) -> None:
    """A teacher of 4 x 32, a student config of 2 x 16, and packed rows: 10 to train, some padded, 5 for dev."""
    write_model(folder / "teacher", tiny_config(layers=4, width=32, heads=4, initializer_range=0.2), seed=1)
    write_config(folder / "student.json", tiny_config(layers=2, width=16, heads=4, dropout=0.1))
    write_rows(folder / "data" / "train", [LENGTH, LENGTH, 9, LENGTH, 12, LENGTH, 5, LENGTH, LENGTH, 7], seed=2)
    write_rows(folder / "data" / "dev", [LENGTH, 8, LENGTH, LENGTH, 11], seed=3)


def make_batch(lengths: Sequence[int], masked: Sequence[int], *, seed=0) -> MicroBatch:
    """A micro-batch of rows with these lengths, of which row i has `masked[i]` masked tokens."""
    rows = torch.from_numpy(random_rows(lengths, seed=seed))
    generator = torch.Generator().manual_seed(seed)
    positions = torch.cat([
        number * LENGTH + 1 + torch.randperm(length - 2, generator=generator)[:count].sort().values
        for number, (length, count) in enumerate(zip(lengths, masked, strict=True))
    ])  # fmt: skip
    labels = rows.flatten()[positions]
    input_ids = rows.flatten().index_fill(0, positions, MASK).view_as(rows)
    sizes = torch.tensor(lengths)
    return MicroBatch(
        input_ids, padding_mask(sizes), positions, labels, sizes, num_tokens=sum(lengths), samples=range(len(lengths))
    )


def padding_mask(lengths: torch.Tensor) -> torch.Tensor | None:
    """As `corpus.batches` makes it: None when no row is padded."""
    return None if bool((lengths == LENGTH).all()) else (torch.arange(LENGTH) < lengths[:, None]).long()


def cut_batch(batch: MicroBatch, sizes: Sequence[int]) -> list[MicroBatch]:
    """The same rows and masks as several micro-batches."""
    pieces, start = [], 0
    assert sum(sizes) == len(batch.lengths)
    for size in sizes:
        rows = slice(start, start + size)
        here = (batch.masked_positions >= start * LENGTH) & (batch.masked_positions < (start + size) * LENGTH)
        lengths = batch.lengths[rows]
        pieces.append(replace(
            batch, input_ids=batch.input_ids[rows], attention_mask=padding_mask(lengths), lengths=lengths,
            masked_positions=batch.masked_positions[here] - start * LENGTH, labels=batch.labels[here],
            num_tokens=int(lengths.sum()), samples=range(start, start + size),
        ))  # fmt: skip
        start += size
    return pieces
