"""Collators side by side: microseconds a sequence from packed rows (or Python lists) to masked tensors, on one thread.

    python benchmarks/masking.py [TEXT ...] [--segmenter jieba] [--tokenizer DIR] [--length 512] [--batch 32]

Without TEXT the embedded sample world is written and used, whose words are known. Every collator masks the same rows
with the same words, one batch each in turn, and the medians are printed: a table, then one JSON line.
 - ours: StepBatches, from the memory-mapped dataset to a MicroBatch, for each kind of masking;
 - transformers: DataCollatorForLanguageModeling(whole_word_mask=True) of the installed version, given the words as
   offsets and the special tokens ready-made;
 - Python loop: what transformers 4's DataCollatorForWholeWordMask did with `chinese_ref`, MiniRBT's way, written here
   from its behaviour. Both get their rows as Python lists in memory.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from distill.corpus.batches import StepBatches
from distill.corpus.masking import MaskVocabulary
from distill.corpus.packing import pack_corpus
from distill.corpus.reference import write_references
from distill.corpus.rows import PackedRows
from distill.corpus.text import iter_lines
from distill.corpus.tokenizing import load_tokenizer
from distill.sample import write_sample_world

PROBABILITY = 0.15
IGNORE_INDEX = -100


def prepare(arguments: argparse.Namespace, folder: Path) -> tuple[PackedRows, Any]:
    """Packed rows of the text, and its tokenizer."""
    texts, segmenter, tokenizer_dir = arguments.text, arguments.segmenter, arguments.tokenizer
    if not texts:
        write_sample_world(folder / "world", seed=0)
        texts, segmenter = [folder / "world" / "segmented.txt"], "words"
    head = folder / "text.txt"
    with head.open("w", encoding="utf-8") as file:
        left = arguments.characters
        for line in (line for text in texts for line in iter_lines(text)):
            file.write(line + "\n")
            left -= len(line)
            if left < 0:
                break
    tokenizer_dir = tokenizer_dir or str(folder / "world")
    write_references([head], [folder / "ref.txt"], segmenter=segmenter, tokenizer_dir=tokenizer_dir)
    pack_corpus(train=[(head, folder / "ref.txt")], dev=0, tokenizer_dir=tokenizer_dir,
                max_seq_length=arguments.length, output=folder / "packed")  # fmt: skip
    return PackedRows(folder / "packed" / "train"), load_tokenizer(tokenizer_dir)


def our_collator(rows: PackedRows, tokenizer: Any, batch_size: int, **options: Any) -> Callable[[int], Any]:
    """Batch number -> our masked batch."""
    steps = StepBatches(
        rows, seed=0, stage="benchmark", global_batch_size=batch_size, micro_batch_size=batch_size, rank=0,
        world_size=1, vocabulary=MaskVocabulary.from_tokenizer(tokenizer), probability=PROBABILITY, **options,
    )  # fmt: skip
    return lambda number: steps[number][0]


def transformers_collator(examples: Sequence[dict[str, Any]], tokenizer: Any, batch_size: int) -> Callable[[int], Any]:
    """Batch number -> what the installed transformers makes of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it masks 100/0/0 and says so
        collate = transformers.DataCollatorForLanguageModeling(
            tokenizer, whole_word_mask=True, mlm_probability=PROBABILITY
        )
    keys = ("input_ids", "offset_mapping", "special_tokens_mask")
    given = [{key: example[key] for key in keys} for example in examples]
    return lambda number: collate([dict(example) for example in _take(given, number, batch_size)])


def loop_collator(examples: Sequence[dict[str, Any]], tokenizer: Any, batch_size: int) -> Callable[[int], Any]:
    """Batch number -> whole words chosen by Python loops over token strings."""

    def collate(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        taken = _take(examples, number, batch_size)
        inputs = torch.tensor([example["input_ids"] for example in taken])
        chosen = torch.tensor([choose_words(example, tokenizer) for example in taken], dtype=torch.bool)
        chosen &= ~torch.tensor(
            [tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True) for ids in inputs.tolist()],
            dtype=torch.bool,
        )
        labels = torch.where(chosen, inputs, IGNORE_INDEX)
        becomes_mask = torch.bernoulli(torch.full(inputs.shape, 0.8)).bool() & chosen
        becomes_random = torch.bernoulli(torch.full(inputs.shape, 0.5)).bool() & chosen & ~becomes_mask
        inputs[becomes_mask] = tokenizer.mask_token_id
        inputs[becomes_random] = torch.randint(len(tokenizer), inputs.shape)[becomes_random]
        return inputs, labels

    return collate


def choose_words(example: dict[str, Any], tokenizer: Any) -> list[int]:
    """1 for each token to mask; a token whose number is in the reference list continues the word before it."""
    reference = example["chinese_ref"]
    tokens = [tokenizer._convert_id_to_token(token_id) for token_id in example["input_ids"]]
    marked = ["##" + token if place in reference else token for place, token in enumerate(tokens)]
    words: list[list[int]] = []
    for place, token in enumerate(marked):
        if token in ("[CLS]", "[SEP]"):
            continue
        if words and token.startswith("##"):
            words[-1].append(place)
        else:
            words.append([place])
    random.shuffle(words)
    budget = max(1, round(len(tokens) * PROBABILITY))
    chosen: set[int] = set()
    for word in words:
        if len(chosen) >= budget:
            break
        if len(chosen) + len(word) <= budget:
            chosen.update(word)
    return [int(place in chosen) for place in range(len(tokens))]


def as_examples(rows: PackedRows, tokenizer: Any, limit: int) -> list[dict[str, Any]]:
    """The first full rows as Python lists, with the words as `chinese_ref` and as offsets (a gap before each word)."""
    input_ids, continuation, length = rows.rows(np.arange(min(limit, len(rows))))
    examples = []
    for ids, flags in zip(input_ids[length == rows.max_seq_length], continuation[length == rows.max_seq_length],
                          strict=True):  # fmt: skip
        ends = np.cumsum(1 + ~flags)
        offsets = np.stack([ends - 1, ends], axis=1)
        special = tokenizer.get_special_tokens_mask(ids.tolist(), already_has_special_tokens=True)
        offsets[np.array(special, dtype=bool)] = 0
        examples.append({"input_ids": ids.tolist(), "chinese_ref": np.flatnonzero(flags).tolist(),
                         "offset_mapping": offsets.tolist(), "special_tokens_mask": special})  # fmt: skip
    return examples


def _take(examples: Sequence[Any], number: int, batch_size: int) -> list[Any]:
    return [examples[i % len(examples)] for i in range(number * batch_size, (number + 1) * batch_size)]


def mask_statistics(rows: PackedRows, tokenizer: Any, kind: str, at_least: int = 100_000) -> dict[str, float]:
    """Per cent of tokens chosen, what becomes of those, and how long runs of them are; over so many tokens."""
    collate = our_collator(rows, tokenizer, 32, mask=kind)
    vocabulary = MaskVocabulary.from_tokenizer(tokenizer)
    tokens = maskable = runs = 0
    labels, replaced = [], []
    number = 0
    while tokens < at_least:
        batch = collate(number)
        number += 1
        tokens += batch.num_tokens
        positions = batch.masked_positions.numpy()
        original = batch.input_ids.numpy().reshape(-1).copy()
        replaced.append(original[positions])
        labels.append(batch.labels.numpy())
        original[positions] = labels[-1]
        maskable += int((~vocabulary.is_special[original]).sum())
        runs += int((np.diff(positions, prepend=-2) > 1).sum())
    label, new = np.concatenate(labels), np.concatenate(replaced)
    is_mask, is_kept = new == vocabulary.mask_id, new == label
    shares = {"chosen": len(label) / maskable, "[MASK]": is_mask.mean(), "another token": (~is_mask & ~is_kept).mean(),
              "kept": is_kept.mean()}  # fmt: skip
    return {"tokens": tokens, **{name: 100 * float(share) for name, share in shares.items()},
            "tokens a run": len(label) / runs}  # fmt: skip


def measure(collators: dict[str, Callable[[int], Any]], rounds: int, batch_size: int) -> dict[str, float]:
    """Median microseconds a sequence of each collator, all taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in collators}
    for number in range(rounds + 2):
        for name, collate in collators.items():
            start = time.perf_counter()
            collate(number)
            if number >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) / batch_size * 1e6 for name, taken in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="*", type=Path, help="text files; default: the sample world")
    parser.add_argument("--segmenter", default="jieba", help="for TEXT: jieba, words or ltp:DIR")
    parser.add_argument("--tokenizer", help="folder with vocab.txt; default: the sample world's, needed with TEXT")
    parser.add_argument("--characters", type=int, default=1_000_000, help="of text to use")
    parser.add_argument("--length", type=int, default=512, help="tokens a row")
    parser.add_argument("--batch", type=int, default=32, help="sequences a batch")
    parser.add_argument("--rounds", type=int, default=25, help="batches of each collator")
    arguments = parser.parse_args()
    if arguments.text and not arguments.tokenizer:
        parser.error("TEXT needs --tokenizer")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as scratch:
        rows, tokenizer = prepare(arguments, Path(scratch))
        examples = as_examples(rows, tokenizer, 1024)
        ours = {kind: our_collator(rows, tokenizer, arguments.batch, mask=kind)
                for kind in ("whole_word", "token", "span")}  # fmt: skip
        with_borders = our_collator(rows, tokenizer, arguments.batch, mask="whole_word", document_attention=True)
        peer = f"transformers {transformers.__version__} whole_word_mask=True"
        collators = {
            **{f"ours, {kind}": collate for kind, collate in ours.items()},
            "ours, whole_word, document_attention": with_borders,
            peer: transformers_collator(examples, tokenizer, arguments.batch),
            "Python loop with chinese_ref": loop_collator(examples, tokenizer, arguments.batch),
        }
        microseconds = measure({"ours, whole_word, alone": ours["whole_word"]}, arguments.rounds, arguments.batch)
        microseconds |= measure(collators, arguments.rounds, arguments.batch)
        own = microseconds["ours, whole_word"]
        print(f"{len(rows):,} rows of {rows.max_seq_length} tokens, batches of {arguments.batch}, one thread")
        print(f"{'collator':<48} {'us a sequence':>14} {'times ours':>11}")
        for name, value in microseconds.items():
            print(f"{name:<48} {value:>14.1f} {value / own:>11.2f}")
        statistics_of = {kind: mask_statistics(rows, tokenizer, kind) for kind in ours}
        for kind, found in statistics_of.items():
            print(f"{kind:<12}", "  ".join(f"{name} {value:,.2f}" for name, value in found.items()))
        result = {"benchmark": "masking", "statistics": statistics_of, "rows": len(rows),
                  "length": rows.max_seq_length, "batch": arguments.batch,
                  "rounds": arguments.rounds, "us_per_sequence": {k: round(v, 2) for k, v in microseconds.items()},
                  "ratio": {k: round(v / own, 3) for k, v in microseconds.items()}}  # fmt: skip
        print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
