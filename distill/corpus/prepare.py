"""From a recipe's `data` to a packed dataset, each step skipped when its result is there already.

 1. The segmenter: named, or trained from segmented text into `folder/segmenter-<hash>`.
 2. References of the texts that have none, into `folder/references-<hash>`.
 3. The packed dataset, `folder/<hash>`, with train, dev and info.json.

Every hash is of content, so that the same input is never prepared twice and other input never mistaken for it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from distill.corpus.data_json import read_data_json
from distill.corpus.dictionary import read_dictionary
from distill.corpus.neural_time import report_neural_time
from distill.corpus.packing import Files, data_hash, pack_corpus
from distill.corpus.perceptron_training import train_perceptron
from distill.corpus.reference import reference_paths, write_references
from distill.corpus.segment import add_dictionary, check_segmenter, resolve_segmenter, segmenter_fingerprint
from distill.corpus.text import estimate_characters, expand_text, text_root
from distill.corpus.text_names import hash_text, skipping_bad, without_skip_bad
from distill.corpus.tokenizing import load_tokenizer
from distill.errors import InputError
from distill.recipe import Data, TrainSegmenter

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""(what is done, characters in all) -> context of a function that takes the characters just done."""
Report = Callable[[str], None]


def check_data(data: Data, *, where: str) -> None:
    """Finds what is wrong with the data of a stage without reading all of it: files, lists, segmenter.

    Raises:
        InputError: see `expand_text`, `read_data_json` and `check_segmenter`.
    """
    train, dev = list_files(data)
    if data.mask == "whole_word":
        missing = [text for text, reference in [*train, *(dev if isinstance(dev, list) else [])] if reference is None]
        if missing and data.segmenter is None:
            raise InputError(
                f"{where}: {missing[0]} has no reference file and there is no 'segmenter' to make one; name a "
                f'segmenter, or set "mask": "token"'
            )
        if missing and isinstance(data.segmenter, str):
            check_segmenter(add_dictionary(data.segmenter, data.dictionary))
        elif missing and isinstance(data.segmenter, TrainSegmenter) and not Path(data.segmenter.train).is_file():
            raise InputError(f"{where}: segmenter: {data.segmenter.train}: no such file of segmented text")
        elif missing and data.dictionary is not None:
            read_dictionary(Path(data.dictionary))


def list_files(data: Data) -> tuple[Files, Files | float]:
    """(text, its reference or None) for training, and the same for dev, or dev's fraction."""
    if data.files is not None:
        found = read_data_json(data.files)
        if not data.skip_bad:
            return found.train, found.dev
        return _skipping_bad(found.train), _skipping_bad(found.dev)
    assert data.text is not None
    train: Files = [(path, None) for path in expand_text(data.text, skip_bad=data.skip_bad)]
    if isinstance(data.dev, float):
        return train, data.dev
    dev: Files = [(path, None) for path in expand_text(data.dev, skip_bad=data.skip_bad)]
    held_out = {os.path.abspath(path) for path, _ in dev}
    return [pair for pair in train if os.path.abspath(pair[0]) not in held_out], dev


def _skipping_bad(files: Files) -> Files:
    return [(skipping_bad(text), reference) for text, reference in files]


def prepare_dataset(
    data: Data,
    *,
    tokenizer: Path,
    max_seq_length: int,
    folder: Path,
    processes: int,
    progress: Progress,
    report: Report,
) -> Path:
    """The packed dataset of a stage, made if it is not there.

    Args:
        folder: where segmenters, references and datasets lie.
        report: takes one line about each finished step.
    Raises:
        InputError: unusable text, references, segmenter or tokenizer; finished steps stay, no half ones do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train, dev = list_files(data)
    if data.mask == "whole_word":
        pairs = [*train, *(dev if not isinstance(dev, float) else [])]
        texts = [text for text, reference in pairs if reference is None]
        if texts:
            spec = _segmenter_spec(data, folder, report)
            made = _references(texts, data, spec, tokenizer, folder, processes, progress, report)
            train = [(text, reference or made[text]) for text, reference in train]
            if not isinstance(dev, float):
                dev = [(text, reference or made[text]) for text, reference in dev]
    else:
        train = [(text, None) for text, _ in train]
        dev = dev if isinstance(dev, float) else [(text, None) for text, _ in dev]
    name = data_hash(train=train, dev=dev, tokenizer_dir=str(tokenizer), max_seq_length=max_seq_length,
                     packing=data.packing)  # fmt: skip
    packed = folder / name
    if not (packed / "info.json").exists():
        shutil.rmtree(packed, ignore_errors=True)
        with progress("packing", estimate_characters([text for text, _ in train])) as advance:
            info = pack_corpus(train=train, dev=dev, tokenizer_dir=str(tokenizer), max_seq_length=max_seq_length,
                               packing=data.packing, output=packed, processes=processes, progress=advance)  # fmt: skip
        parts = [f"{info[split]['rows']:,} {split} rows" for split in ("train", "dev") if split in info]
        report(f"packed {' and '.join(parts)} of {max_seq_length} tokens into {packed}")
    return packed


def _segmenter_spec(data: Data, folder: Path, report: Report) -> str:
    """The segmenter's spec; one that is to be trained is trained first."""
    if isinstance(data.segmenter, str):
        return resolve_segmenter(add_dictionary(data.segmenter, data.dictionary))
    assert data.segmenter is not None
    source = Path(data.segmenter.train)
    output = folder / f"segmenter-{_hash_of(source.read_bytes())}"
    if not (output / "config.json").exists():
        result = train_perceptron(source, output)
        report(f"trained an LTP perceptron on {result['sentences']:,} sentences in {result['seconds']:.1f} s: "
               f"word F1 {100 * result['held_out_f1']:.1f} on held-out sentences")  # fmt: skip
    return add_dictionary(f"ltp:{output}", data.dictionary)


def _references(
    texts: Sequence[Path], data: Data, spec: str, tokenizer: Path, folder: Path, processes: int, progress: Progress,
    report: Report,
) -> dict[Path, Path]:  # fmt: skip
    """Text -> its reference file below folder/references-<hash>; written if they are not all there."""
    patterns = data.text + (data.dev if isinstance(data.dev, list) else []) if data.text else texts
    root = text_root(patterns)
    backend = json.loads(load_tokenizer(tokenizer).backend_tokenizer.to_str())
    parts = [segmenter_fingerprint(spec), json.dumps(backend, sort_keys=True)]
    for text in texts:
        parts.append(f"{os.path.relpath(without_skip_bad(text), root)} {hash_text(text)}")
    output = folder / f"references-{_hash_of(chr(10).join(parts).encode())}"
    references = reference_paths(texts, root, output)
    if not all(path.exists() for path in references):
        report_neural_time(spec, texts, report)
        with progress("references", estimate_characters(texts)) as advance:
            counts = write_references(texts, references, segmenter=spec, tokenizer_dir=str(tokenizer),
                                      processes=processes, progress=advance)  # fmt: skip
        report(f"wrote references of {counts['lines']:,} lines, {counts['words']:,} words into {output}")
    return dict(zip(texts, references, strict=True))


def _hash_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
