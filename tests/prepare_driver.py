"""Prepares a small dataset in many shards, saying after each that it is done: for tests that disturb it."""

import contextlib
import sys
import time
from pathlib import Path

from distill.cli import guard
from distill.corpus import source
from distill.corpus.prepare import prepare_dataset
from distill.recipe_file import check_data_fields


@contextlib.contextmanager
def progress(what, total):
    def advance(characters):
        print("shard", flush=True)
        time.sleep(0.01)

    yield advance


def main():
    text, tokenizer, folder, processes = sys.argv[1:]
    source.SHARD_CHARS = 400
    data = check_data_fields("test", text=[text], dev=0.1, segmenter="words")
    prepare_dataset(
        data, tokenizer=Path(tokenizer), max_seq_length=16, folder=Path(folder), processes=int(processes),
        progress=progress, report=lambda line: print(line, file=sys.stderr),
    )  # fmt: skip


if __name__ == "__main__":
    guard(main)
