"""From a recipe's `data` to a packed dataset, each step skipped when its result is there already.

 1. The segmenter: named, or trained from segmented text into `folder/segmenter-<hash>`.
 2. In one pass over the text: references of the texts that have none, into `folder/references-<hash>`, and the packed
    dataset, `folder/<hash>`, with train, dev, tokenizer and info.json.

Every hash is of content, so that the same input is never prepared twice and other input never mistaken for it. What
is unfinished lies in `folder/.<hash>.work`, and the next run with the same input goes on from there.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.corpus.data_json import read_data_json
from distill.corpus.dictionary import read_dictionary
from distill.corpus.hashing import Files, data_hash, hash_file, lacking_reference
from distill.corpus.lock import exclusive
from distill.corpus.neural_time import report_neural_time
from distill.corpus.packing import pack_corpus, work_folder
from distill.corpus.perceptron_training import train_perceptron
from distill.corpus.reference import reference_paths, write_references
from distill.corpus.segment import add_dictionary, check_segmenter, resolve_segmenter, words_fingerprint
from distill.corpus.text import estimate_characters, expand_text, text_root
from distill.corpus.text_names import skipping_bad, without_skip_bad
from distill.corpus.tokenizing import load_tokenizer
from distill.durable import write_json
from distill.errors import InputError
from distill.json_file import read_object
from distill.recipe import Data, TrainSegmenter

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""(what is done, characters in all) -> context of a function that takes the characters just done."""
Report = Callable[[str], None]


def check_data(data: Data, *, where: str) -> None:
    """Finds what is wrong with the data of a stage without reading all of it: files, lists, segmenter.

    Raises:
        InputError: see `expand_text`, `read_data_json` and `check_segmenter`.
    """
    try:
        _check_data(data)
    except InputError as error:
        raise InputError(f"{where}, data: {error}") from None


def _check_data(data: Data) -> None:
    train, dev = list_files(data)
    if data.mask == "whole_word":
        missing = lacking_reference(train, dev)
        if missing and data.segmenter is None:
            raise InputError(
                f"{missing[0]} has no reference file and there is no 'segmenter' to make one; name a "
                f'segmenter, or set "mask": "token"'
            )
        if missing and isinstance(data.segmenter, str):
            # References made earlier are used without LTP.
            check_segmenter(add_dictionary(data.segmenter, data.dictionary), needs_ltp=False)
        elif missing and isinstance(data.segmenter, TrainSegmenter) and not os.path.isfile(data.segmenter.train):
            raise InputError(f"segmenter: {data.segmenter.train}: no such file; name text split by spaces")
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
    dev: Files = [(path, None) for path in expand_text(data.dev, skip_bad=data.skip_bad)] if data.dev else []
    held_out = {os.path.abspath(path) for path, _ in dev}
    train = [pair for pair in train if os.path.abspath(pair[0]) not in held_out]
    if not train:
        raise InputError(f"all {len(dev)} text file(s) are dev files, such as {dev[0][0]}; name other text to train on")
    return train, dev


def _skipping_bad(files: Files) -> Files:
    return [(skipping_bad(text), reference) for text, reference in files]


def find_dataset(data: Data, *, tokenizer: Path, max_seq_length: int, folder: Path) -> Path | None:
    """Where `prepare_dataset` puts, or has put, the dataset; its name is a hash of all that goes in. Writes nothing.

    None if a segmenter must be trained first.
    """
    if not _segmenter_is_there(data, folder):
        return None
    return _plan(data, tokenizer=tokenizer, max_seq_length=max_seq_length, folder=folder).packed


def prepare_dataset(
    data: Data,
    *,
    tokenizer: Path,
    max_seq_length: int,
    folder: Path,
    processes: int,
    progress: Progress,
    report: Report,
    ray: str | None = None,
) -> Path:
    """The packed dataset of a stage, made if it is not there.

    Args:
        folder: where segmenters, references and datasets lie; one run at a time works there, others wait.
        report: takes one line about each finished step.
        ray: address of a Ray cluster that works instead of processes.
    Raises:
        InputError: unusable text, references, segmenter or tokenizer; finished steps stay, no half ones do.
    """
    wanted: dict[str, Any] = {"tokenizer": tokenizer, "max_seq_length": max_seq_length, "folder": folder}
    if _segmenter_is_there(data, folder):
        plan = _plan(data, **wanted)
        if plan.is_done and not work_folder(plan.packed).exists():
            return plan.packed  # nothing is written, not even a lock
    with exclusive(folder, report):
        if not _segmenter_is_there(data, folder):
            _train_segmenter(data, folder, report)
        plan = _plan(data, **wanted)  # another run may have changed what is there
        packed, train, dev, references = plan.packed, plan.train, plan.dev, plan.references
        if plan.is_done:
            shutil.rmtree(work_folder(packed), ignore_errors=True)  # of a run that was killed at its very end
            return packed
        shutil.rmtree(packed, ignore_errors=True)
        settings = dict(plan.settings)
        if references and all(path.exists() for path in references.values()) and not work_folder(packed).exists():
            # Made before for another length, say. A run that stopped half way goes on with what it has segmented.
            train, dev, references = _with_references(train, references), _with_references(dev, references), {}
        if references:
            settings["segmenter"] = resolve_segmenter(settings["segmenter"])
            if ray is None:
                report_neural_time(settings["segmenter"], list(references), report)
        with progress("preparing text", estimate_characters([text for text, _ in train])) as advance:
            info = pack_corpus(train=train, dev=dev, output=packed, references=references, processes=processes,
                               ray=ray, progress=advance, **settings)  # fmt: skip
        parts = [f"{info[split]['rows']:,} {split} rows" for split in ("train", "dev") if split in info]
        report(f"packed {' and '.join(parts)} of {max_seq_length} tokens into {packed}")
        return packed


@dataclass(frozen=True)
class _Plan:
    """What a packed dataset is made of, and where it goes."""

    train: Files
    dev: Files | float
    references: dict[Path, Path]  # text -> where its reference goes, for the texts that come without
    settings: dict[str, Any]
    packed: Path

    @property
    def is_done(self) -> bool:
        return (self.packed / "info.json").exists()


def _plan(data: Data, *, tokenizer: Path, max_seq_length: int, folder: Path) -> _Plan:
    train, dev = list_files(data)
    spec, references = None, dict[Path, Path]()
    if data.mask == "whole_word":
        texts = lacking_reference(train, dev)
        if texts:
            spec = _segmenter_spec(data, folder)
            references = _reference_files(texts, data, spec, tokenizer, folder)
    else:
        train = [(text, None) for text, _ in train]
        dev = dev if isinstance(dev, float) else [(text, None) for text, _ in dev]
    settings: dict[str, Any] = {
        "tokenizer_dir": str(tokenizer), "max_seq_length": max_seq_length, "packing": data.packing, "segmenter": spec,
    }  # fmt: skip
    packed = folder / data_hash(train=train, dev=dev, **settings)
    return _Plan(train, dev, references, settings, packed)


def _with_references(files: Any, references: dict[Path, Path]) -> Any:
    """The files, or the fraction for dev, with the references that are there for them."""
    if isinstance(files, float):
        return files
    return [(text, reference or references[text]) for text, reference in files]


def _segmenter_is_there(data: Data, folder: Path) -> bool:
    """False if a segmenter must be trained first."""
    if data.mask != "whole_word" or not isinstance(data.segmenter, TrainSegmenter):
        return True
    return not lacking_reference(*list_files(data)) or (_trained_segmenter(data, folder) / "config.json").exists()


def _segmenter_spec(data: Data, folder: Path) -> str:
    """The segmenter's spec, with its dictionary."""
    spec = data.segmenter if isinstance(data.segmenter, str) else f"ltp:{_trained_segmenter(data, folder)}"
    return add_dictionary(spec, data.dictionary)


def _trained_segmenter(data: Data, folder: Path) -> Path:
    """Where the segmenter lies that is trained from the text that the data name."""
    assert isinstance(data.segmenter, TrainSegmenter)
    return folder / f"segmenter-{_hash_of(Path(data.segmenter.train).read_bytes())}"


def _train_segmenter(data: Data, folder: Path, report: Report) -> None:
    assert isinstance(data.segmenter, TrainSegmenter)
    result = train_perceptron(Path(data.segmenter.train), _trained_segmenter(data, folder))
    report(f"trained an LTP perceptron on {result['sentences']:,} sentences in {result['seconds']:.1f} s: "
           f"word F1 {100 * result['held_out_f1']:.1f} on held-out sentences")  # fmt: skip


def _reference_files(texts: Sequence[Path], data: Data, spec: str, tokenizer: Path, folder: Path) -> dict[Path, Path]:
    """Text -> its reference file below folder/references-<hash>."""
    patterns = data.text + (data.dev if isinstance(data.dev, list) else []) if data.text else texts
    root = text_root(patterns)
    output = folder / f"references-{_references_hash(texts, root, spec, tokenizer)}"
    return dict(zip(texts, reference_paths(texts, root, output), strict=True))


def _references_hash(texts: Sequence[Path], root: Path, spec: str, tokenizer: Path) -> str:
    backend = json.loads(load_tokenizer(tokenizer).backend_tokenizer.to_str())
    parts = [words_fingerprint(spec), json.dumps(backend, sort_keys=True)]
    parts += [f"{os.path.relpath(without_skip_bad(text), root)} {hash_file(text)}" for text in texts]
    return _hash_of("\n".join(parts).encode())


def prepare_references(
    patterns: Sequence[str | Path],
    *,
    output: Path,
    tokenizer: Path,
    segmenter: str,
    skip_bad: bool = False,
    processes: int,
    progress: Progress,
    report: Report,
    ray: str | None = None,
) -> dict[str, int]:
    """References of all text that files, folders and glob patterns name, below `output`; made if they are not there.

    output/references.json says what they were made of; a run on other input replaces what is there.

    Args:
        skip_bad: leave out lines and records that are not usable, with a warning; see expand_text.
    Returns: files, lines, characters, words, marks (positions written).
    Raises:
        InputError: see write_references.
    """
    texts = expand_text(patterns, skip_bad=skip_bad)
    root = text_root(patterns)
    references = reference_paths(texts, root, output)
    with exclusive(output, report):
        manifest = output / "references.json"
        name = _references_hash(texts, root, segmenter, tokenizer)
        made = read_object(manifest, what="the record of references") if manifest.is_file() else {}
        work = output / f".{name}.work"
        if (
            made.get("hash") == name
            and isinstance(made.get("counts"), dict)
            and all(path.exists() for path in references)
        ):
            shutil.rmtree(work, ignore_errors=True)
            report(f"{output}: up to date")
            return made["counts"]
        manifest.unlink(missing_ok=True)
        segmenter = resolve_segmenter(segmenter)
        if ray is None:
            report_neural_time(segmenter, texts, report)
        with progress("references", estimate_characters(texts)) as advance:
            counts = write_references(texts, references, segmenter=segmenter, tokenizer_dir=str(tokenizer),
                                      processes=processes, progress=advance, work=work, ray=ray)  # fmt: skip
        counts = {"files": len(texts), **counts}
        write_json(manifest, {"hash": name, "counts": counts})
        shutil.rmtree(work)
        return counts


def _hash_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
