"""Corpus preparation: our alignment against MiniRBT's, text to packed rows per second, memory at several sizes.

    python benchmarks/prepare.py [--segmenter ltp:DIR] [--tokenizer DIR] [--sizes 10 100] [TEXT...]

Without text the sample world is used, with a perceptron trained on it. Prints a table and one JSON line.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill.corpus import alignment, shards
from distill.corpus.perceptron_training import train_perceptron
from distill.corpus.prepare import prepare_dataset
from distill.corpus.segment import RunSegmenter, load_segmenter
from distill.corpus.tokenizing import load_tokenizer
from distill.recipe_file import check_data_fields

LINES = 1000  # a map batch of MiniRBT's; its grouping is quadratic in these


def is_han(word: str) -> bool:
    return all("\u4e00" <= character <= "\u9fff" for character in word)


def peer_references(lines: list[list[str]], words: list[list[str]]) -> list[str]:
    """MiniRBT's way, from a description: all words of a line as a set, the longest match from each token on."""
    made = []
    for tokens, line_words in zip(lines, words, strict=True):
        known = {word for word in line_words if len(word) > 1 and is_han(word)}
        longest = max(map(len, known), default=0)
        positions, start = [], 0
        while start < len(tokens):
            step = 1
            if is_han(tokens[start]):
                for length in range(min(longest, len(tokens) - start), 1, -1):
                    if "".join(tokens[start : start + length]) in known:
                        positions += range(start + 2, start + length + 1)
                        step = length
                        break
            start += step
        made.append(json.dumps(positions))
    return made


def peer_grouping(ids: list[list[int]], references: list[str], body: int) -> list[tuple[list[int], list[int]]]:
    """Lines joined by adding lists, and the marks of each row found by searching what is left of all of them."""
    tokens: list[int] = sum(ids, [])
    marks: list[int] = []
    offset = 0
    for line, reference in zip(ids, references, strict=True):
        marks = marks + [position + offset for position in json.loads(reference)]
        offset += len(line)
    rows = []
    for start in range(0, len(tokens), body):
        inside = [mark for mark in marks if mark <= start + body]
        last = marks.index(inside[-1]) + 1 if inside else 0
        rows.append((tokens[start : start + body], [mark - start for mark in inside]))
        marks = marks[last:]
    return rows


def our_alignment(lines: list[str], words: list[list[str]], tokens: tuple[Any, ...], backend: Any, body: int) -> Any:
    """What is left of a shard's work without segmenter and tokenizer."""
    with_tokens = alignment.tokenize_lines
    alignment.tokenize_lines = lambda *_, **__: tokens
    try:
        input_ids, continuation, num_tokens = alignment.align(lines, words, backend)
    finally:
        alignment.tokenize_lines = with_tokens
    full = len(input_ids) // body * body
    return input_ids[:full].reshape(-1, body), continuation[:full].reshape(-1, body), num_tokens


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    times = []
    work()  # caches warm up
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def compare_parts(text: list[str], segmenter: str, tokenizer: str, repeats: int) -> dict[str, float]:
    """Characters per second of each part, in this process, and how many times faster than the peer we align."""
    cut, backend = load_segmenter(segmenter), load_tokenizer(tokenizer).backend_tokenizer
    words, tokens = cut.segment(text), alignment.tokenize_lines(text, backend)
    few, few_words = text[:LINES], words[:LINES]
    encodings = backend.encode_batch(few, add_special_tokens=False)
    few_tokens = alignment.tokenize_lines(few, backend)
    ids, names = [e.ids for e in encodings], [e.tokens for e in encodings]
    ours = median_seconds(lambda: our_alignment(few, few_words, few_tokens, backend, 510), repeats)
    peer = median_seconds(lambda: peer_grouping(ids, peer_references(names, few_words), 510), repeats)
    size = sum(map(len, text))
    seconds = {
        "segmenter": median_seconds(lambda: cut.segment(text), repeats),
        "tokenizer": median_seconds(lambda: alignment.tokenize_lines(text, backend, use_table=False), repeats),
        "look-up": median_seconds(lambda: alignment.tokenize_lines(text, backend), repeats),
        "alignment and grouping": median_seconds(lambda: our_alignment(text, words, tokens, backend, 510), repeats),
    }
    return {**{name: size / value for name, value in seconds.items()}, "times the peer's alignment": peer / ours}


@contextlib.contextmanager
def no_progress(what: str, total: int) -> Any:
    yield lambda characters: None


def prepare_once(text: str, segmenter: str, tokenizer: str, output: str, processes: int) -> None:
    """In a process of its own: prints characters, seconds, the most memory of all its processes together, and with
    one process the parts of its CPU time."""
    peak, stop = [0], [False]

    def watch() -> None:
        while not stop[0]:
            peak[0] = max(peak[0], memory_of_group())
            time.sleep(0.1)

    threading.Thread(target=watch, daemon=True).start()
    inside = {"loading": clock(shards, "load_models"), "segmenter": clock(RunSegmenter, "segment"),
              "tokenizer": clock(alignment, "tokenize_lines")}  # fmt: skip
    start, work = time.perf_counter(), time.process_time()
    data = check_data_fields("benchmark", text=[text], dev=0.0, segmenter=segmenter)
    packed = prepare_dataset(data, tokenizer=Path(tokenizer), max_seq_length=512, folder=Path(output),
                             processes=processes, progress=no_progress, report=lambda line: None)  # fmt: skip
    seconds, work = time.perf_counter() - start, time.process_time() - work
    stop[0] = True
    shares = {name: sum(times) / work for name, times in inside.items()} if processes == 1 else {}
    characters = json.loads((packed / "info.json").read_text())["train"]["characters"]
    print(json.dumps({"characters": characters, "seconds": seconds, "peak_mb": peak[0] / 1e6,
                      "shares": shares}))  # fmt: skip


def clock(place: Any, name: str) -> list[float]:
    """The list of CPU seconds that the calls of a function take from now on, in this process."""
    function, times = getattr(place, name), list[float]()

    def timed(*arguments: Any, **options: Any) -> Any:
        begin = time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            times.append(time.process_time() - begin)

    setattr(place, name, timed)
    return times


def memory_of_group() -> int:
    """Proportional set size of all processes of this process group, in bytes: shared pages count once."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getpgid(int(process.name)) == os.getpgid(0):
                fields = dict(line.split(":") for line in (process / "smaps_rollup").read_text().splitlines()[1:])
                total += int(fields["Pss"].split()[0]) * 1024
    return total


def measure_preparation(text: Path, segmenter: str, tokenizer: str, processes: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--once", str(text), segmenter, tokenizer, folder, str(processes)]
        result = subprocess.run(command, check=True, capture_output=True, text=True, start_new_session=True)
    return json.loads(result.stdout.splitlines()[-1])


def cut_texts(texts: list[Path], size: int) -> str:
    """`size` characters, from the beginning of every text as much as its share of all is."""
    contents = [text.read_text(encoding="utf-8") for text in texts]
    share = min(1.0, size / sum(map(len, contents)))
    return "".join(content[: content.rfind("\n", 0, round(len(content) * share)) + 1] for content in contents)


def sample_inputs(folder: Path) -> tuple[list[Path], str, str]:
    from distill.sample import write_sample_world

    write_sample_world(folder, seed=0)
    train_perceptron(folder / "segmented.txt", folder / "ltp")
    return sorted((folder / "train").glob("*.txt")), f"ltp:{folder / 'ltp'}", str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="*", type=Path)
    parser.add_argument("--segmenter", default="words")
    parser.add_argument("--tokenizer")
    parser.add_argument("--sizes", nargs="*", type=float, default=[10, 100], help="MB of text, repeated as needed")
    parser.add_argument("--processes", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.text:
            texts, segmenter, tokenizer = options.text, options.segmenter, options.tokenizer
        else:
            texts, segmenter, tokenizer = sample_inputs(folder / "sample")
        parts = compare_parts(cut_texts(texts, 1_000_000).split("\n"), segmenter, tokenizer, options.repeats)
        results: dict[str, Any] = {"parts": parts, "preparation": []}
        for name, value in parts.items():
            print(f"{name:28} {value:14,.0f}")
        print(f"{'MB':>8} {'processes':>10} {'characters/s':>14} {'peak MB':>9}  of the CPU time")
        whole = cut_texts(texts, sys.maxsize)
        characters_per_byte = len(whole) / len(whole.encode())
        for megabytes in options.sizes:
            text, left = folder / "text.txt", round(megabytes * 1e6 * characters_per_byte)
            with text.open("w", encoding="utf-8") as file:
                while left > 0:
                    left -= file.write(cut_texts(texts, left)) or left
            for processes in options.processes:
                run = measure_preparation(text, segmenter, tokenizer, processes)
                run |= {"mb": megabytes, "processes": processes, "rate": run["characters"] / run["seconds"]}
                results["preparation"].append(run)
                shares = ", ".join(f"{name} {share:.1%}" for name, share in run["shares"].items())
                print(
                    f"{megabytes:8g} {processes:10} {run['rate']:14,.0f} {run['peak_mb']:9,.0f}  {shares}", flush=True
                )
        print(json.dumps(results))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        prepare_once(*sys.argv[2:6], processes=int(sys.argv[6]))
    else:
        main()
