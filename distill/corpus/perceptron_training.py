"""Training an LTP perceptron word segmenter on text whose words are split by spaces.

LTP's trainer has traps, each of which gives a bad model without an error (facts measured with ltp-extension 0.1.13):
without evaluation data only the first epoch counts; threshold 0 prunes the best features; only an ASCII space parts
words; shuffling makes two runs differ. It also prints to stdout and cannot be interrupted, so it runs in a process of
its own (`main` below).
"""

import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import psutil

from distill.corpus.characters import runs
from distill.corpus.ltp_models import check_installed
from distill.corpus.scoring import word_f1
from distill.corpus.text import iter_lines
from distill.durable import write_whole
from distill.errors import InputError
from distill.json_file import read_json
from distill.machine import child_environment

logger = logging.getLogger(__name__)

MODEL_FILE = "cws_model.bin"
HELD_OUT_SENTENCES = 2000  # or a tenth of the sentences, where that is fewer
GB_PER_MILLION_CHARS = 0.8  # measured: 6 GB for 5 million words (8 million characters)


def train_perceptron(
    segmented: Path | Sequence[Path],
    output: Path,
    *,
    epochs: int = 2,
    threshold: float = 1e-3,
    max_sentences: int | None = None,
) -> dict[str, float | int]:
    """Trains an LTP perceptron (averaged perceptron, deterministic) and writes it as a folder for `ltp:FOLDER`.

    Args:
        segmented: one text or several: UTF-8, a sentence a line, words split by white space of any kind.
        threshold: features whose weights sum to less are pruned; 1e-3 keeps nearly all, 6 makes a model of under 1 MB.
        max_sentences: an evenly spread sample of that size; memory is about 0.8 GB a million characters.
    Returns:
        sentences and words trained on, held_out_sentences, held_out_f1 (of words), model_bytes, seconds. With fewer
        than ten sentences none are held out, and held_out_f1 is measured on the training sentences.
    Raises:
        InputError: no sentences, no word borders, numbers out of range, or another model in `output`.
    """
    check_arguments(output, epochs=epochs, threshold=threshold, max_sentences=max_sentences)
    texts = [segmented] if isinstance(segmented, Path) else segmented
    check_installed(neural=False)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="distill-segmenter-") as folder:
        work = Path(folder)
        counts = _write_sentences(texts, work, max_sentences)
        _warn_of_memory(counts["characters"])
        held_out = bool(counts["held_out_sentences"])
        result = _run_trainer({"folder": folder, "epochs": epochs, "threshold": threshold, "held_out": held_out})
        _install(work / MODEL_FILE, output)
    return {
        "sentences": counts["sentences"],
        "words": counts["words"],
        "held_out_sentences": counts["held_out_sentences"],
        "held_out_f1": result["f1"],
        "model_bytes": (output / MODEL_FILE).stat().st_size,
        "seconds": time.perf_counter() - start,
    }


def check_arguments(output: Path, *, epochs: int, threshold: float, max_sentences: int | None) -> None:
    """Raises InputError for what train_perceptron would refuse before it reads the text."""
    if epochs < 1:
        raise InputError(f"epochs: {epochs}; at least 1")
    if not threshold > 0:
        raise InputError(f"threshold: {threshold}; it must be above 0 (LTP's pruning with 0 removes the best features)")
    if max_sentences is not None and max_sentences < 1:
        raise InputError(f"max_sentences: {max_sentences}; at least 1")
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: a file; name a folder for the model")
    config = output / "config.json"
    if config.is_file():
        try:
            written = read_json(config)
        except InputError:
            written = None
        if not isinstance(written, dict) or written.get("nerual") is not False:
            raise InputError(f"{output}: holds another model (config.json); name another folder")


def _sentences(texts: Sequence[Path]) -> Iterator[list[str]]:
    """Word lists without white space, byte-order marks and control characters; blank lines left out."""
    return (words for words in map(runs, chain.from_iterable(map(iter_lines, texts))) if words)


def _write_sentences(texts: Sequence[Path], work: Path, max_sentences: int | None) -> dict[str, int]:
    """Writes train.txt and held_out.txt as LTP's trainer wants them."""
    total = words_found = 0
    for words in _sentences(texts):
        total += 1
        words_found += len(words)
    if not total:
        raise InputError(f"{texts[0]}: no sentences; one a line, words split by spaces")
    if words_found == total:
        raise InputError(f"{texts[0]}: none of its {total} lines has two words; split the words by spaces")
    keep = min(total, max_sentences or total)
    step = max(10, keep // HELD_OUT_SENTENCES)
    counts = {"sentences": 0, "words": 0, "characters": 0, "held_out_sentences": 0}
    kept = 0
    with (
        (work / "train.txt").open("w", encoding="utf-8", newline="\n") as train,
        (work / "held_out.txt").open("w", encoding="utf-8", newline="\n") as held_out,
    ):
        for number, words in enumerate(_sentences(texts)):
            if (number + 1) * keep // total == number * keep // total:
                continue
            kept += 1
            line = " ".join(words) + "\n"
            if kept % step == 0 and keep >= 10:
                held_out.write(line)
                counts["held_out_sentences"] += 1
            else:
                train.write(line)
                counts["sentences"] += 1
                counts["words"] += len(words)
                counts["characters"] += sum(map(len, words))
    return counts


def _warn_of_memory(characters: int) -> None:
    needed, free = GB_PER_MILLION_CHARS * characters / 1e6, psutil.virtual_memory().available / 1e9
    if needed > free:
        logger.warning(
            "training on %.1f million characters takes about %.1f GB, %.1f GB are free: lower max_sentences",
            characters / 1e6, needed, free,
        )  # fmt: skip


def _run_trainer(job: dict[str, object]) -> dict[str, float]:
    command = [sys.executable, "-m", "distill.corpus.perceptron_training", json.dumps(job)]
    done = subprocess.run(
        command, env=child_environment(), capture_output=True, text=True, encoding="utf-8", errors="replace"
    )
    for line in (done.stdout + done.stderr).splitlines():
        logger.debug("LTP: %s", line)
    result = Path(str(job["folder"])) / "result.json"
    if done.returncode or not result.is_file():
        reason = (done.stderr.strip().splitlines() or ["no message; was it killed for lack of memory?"])[-1]
        raise RuntimeError(f"LTP's trainer ended with exit code {done.returncode}: {reason}")
    return json.loads(result.read_text("utf-8"))


def _install(model: Path, output: Path) -> None:
    """Puts the model into `output`: config.json comes last, so its presence means that all is there."""
    config = json.dumps({"nerual": False, "tasks": {"cws": MODEL_FILE}})
    for name, content in ((MODEL_FILE, model.read_bytes()), ("config.json", config)):
        write_whole(output / name, content)


def main() -> None:
    """The trainer's process: reads train.txt and held_out.txt, writes the model and result.json beside them."""
    from ltp_extension.perceptron import Algorithm, CWSTrainer

    job = json.loads(sys.argv[1])
    folder = Path(job["folder"])
    held_out = folder / ("held_out.txt" if job["held_out"] else "train.txt")
    trainer = CWSTrainer()
    trainer.algorithm = Algorithm("AP", 1)
    trainer.epoch, trainer.threshold = job["epochs"], job["threshold"]
    trainer.shuffle, trainer.eval_threads, trainer.compress = False, 1, True
    trainer.load_train_data(str(folder / "train.txt"))
    trainer.load_eval_data(str(held_out))
    model = trainer.train()
    model.save(str(folder / MODEL_FILE))
    gold = [line.split() for line in held_out.read_text("utf-8").splitlines()]
    found = model.batch_predict(["".join(words) for words in gold], parallelism=False)
    (folder / "result.json").write_text(json.dumps({"f1": word_f1(gold, found)}), encoding="utf-8")


if __name__ == "__main__":
    main()
