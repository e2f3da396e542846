"""Finding words: `ltp:FOLDER_OR_HUB_ID` (perceptron or neural), `jieba`, or `words` (text already split by spaces).

`SPEC#FILE` adds a dictionary of words to keep whole (dictionary.py).

1. A line is cleaned of what BERT's tokenizer drops and split at white space into runs (characters.py).
2. Long runs are cut into windows, because neural LTP reads 510 word pieces and silently glues the rest into one word.
3. The segmenter cuts each window into words; Latin words and numbers it cut (BE|RT, 5|G) are joined again, because
   BERT's tokenizer never parts them either; the words go back to their line.

LTP folders and hub ids are in ltp_models.py, neural models in ltp_neural.py, training in perceptron_training.py.
"""

import difflib
import hashlib
import importlib.metadata
import importlib.util
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from distill.corpus import ltp_models
from distill.corpus.characters import runs, windows
from distill.corpus.dictionary import Cut, dictionary_fingerprint, read_dictionary, with_dictionary
from distill.corpus.ltp_neural import load_neural, neural_windows
from distill.errors import InputError

KINDS = "ltp:FOLDER (or ltp:HUB_ID such as ltp:LTP/small), jieba, or words (text already split by spaces)"
RULES_VERSION = "1"  # of cleaning, windows and type rules; raise it when they change what comes out
WINDOW_CHARS = 20_000  # bounds time and memory of one call; perceptron and jieba have no limit of their own
_LATIN_PAIR = re.compile("[A-Za-z0-9]{2}")


class Segmenter(Protocol):
    def segment(self, lines: Sequence[str]) -> list[list[str]]:
        """One word list a line. Joined, its words are the line without white space and without what BERT drops."""


@dataclass(frozen=True)
class RunSegmenter:
    """A segmenter made of a function that cuts runs into words and one that cuts long runs into windows."""

    cut: Cut
    split: Callable[[str], Iterable[str]]

    def segment(self, lines: Sequence[str]) -> list[list[str]]:
        pieces: list[str] = []
        line_of_piece: list[int] = []
        for number, line in enumerate(lines):
            for run in runs(line):
                for piece in self.split(run):
                    pieces.append(piece)
                    line_of_piece.append(number)
        words: list[list[str]] = [[] for _ in lines]
        for number, piece, found in zip(line_of_piece, pieces, self.cut(pieces), strict=True):
            words[number].extend(_join_latin(piece, found))
        return words


def _join_latin(piece: str, words: list[str]) -> list[str]:
    """The words, those joined that meet between two ASCII letters or digits.

    LTP has rules for this (enable_type_concat), but they leave Tr|ansformer.
    """
    if len(words) < 2 or not _LATIN_PAIR.search(piece):
        return words
    joined = words[:1]
    for word in words[1:]:
        if _LATIN_PAIR.match(joined[-1][-1] + word[0]):
            joined[-1] += word
        else:
            joined.append(word)
    return joined


def add_dictionary(spec: str, dictionary: str | Path | None) -> str:
    """The spec of the same segmenter with a user's dictionary, if there is one."""
    return spec if dictionary is None else f"{spec}#{dictionary}"


def _split_spec(spec: str) -> tuple[str, Path | None]:
    """(spec without dictionary, dictionary file or None); a folder that is really called so is meant literally."""
    base, mark, dictionary = spec.rpartition("#")
    if not mark or Path(spec.removeprefix("ltp:")).exists():
        return spec, None
    return base, Path(dictionary).expanduser()


def load_segmenter(spec: str) -> Segmenter:
    """The segmenter `spec` names, ready for use. A hub id is downloaded first.

    Raises:
        InputError: as check_segmenter, and if a model's files are damaged or the hub cannot be reached.
    """
    spec, dictionary = _split_spec(resolve_segmenter(spec))
    if spec == "words":
        return RunSegmenter(cut=lambda pieces: [[piece] for piece in pieces], split=lambda run: (run,))
    if spec == "jieba":
        return RunSegmenter(cut=_load_jieba(dictionary), split=_short_windows)
    folder = ltp_models.inspect_folder(spec.removeprefix("ltp:"))
    cut = load_neural(folder) if folder.neural else ltp_models.load_perceptron(folder)
    if dictionary is not None:
        cut = with_dictionary(cut, read_dictionary(dictionary))
    return RunSegmenter(cut=cut, split=neural_windows if folder.neural else _short_windows)


def check_segmenter(spec: str, *, needs_ltp: bool = True) -> None:
    """Finds what can be wrong with `spec` without loading or downloading a model.

    Args:
        needs_ltp: whether the package must be installed for a model of it.
    Raises:
        InputError: unknown kind, missing folder or file, git-lfs pointer, package not installed; says what to do.
    """
    spec, dictionary = _split_spec(spec)
    if dictionary is not None:
        if spec == "words":
            raise InputError("segmenter 'words': the text's own spaces decide, a dictionary has no say; leave it out")
        read_dictionary(dictionary)
    if spec in ("words", "jieba"):
        if spec == "jieba" and importlib.util.find_spec("jieba") is None:
            raise InputError("segmenter 'jieba': the package jieba is not installed; `pip install jieba`")
        return
    location = spec.removeprefix("ltp:")
    if not spec.startswith("ltp:") or not location:
        raise InputError(f"segmenter {spec!r}: unknown{_meant(spec)}; use {KINDS}")
    neural = None if ltp_models.is_hub_id(location) else ltp_models.inspect_folder(location).neural
    if needs_ltp:
        ltp_models.check_installed(neural=neural)


def _meant(spec: str) -> str:
    kind = spec.partition(":")[0]
    close = difflib.get_close_matches(kind, ("ltp", "jieba", "words"), n=1, cutoff=0.5)
    return f", did you mean '{close[0]}{spec.removeprefix(kind)}'" if close and close != [kind] else ""


def resolve_segmenter(spec: str) -> str:
    """`spec` with a hub id replaced by the folder it was downloaded to; checked."""
    check_segmenter(spec)
    base, dictionary = _split_spec(spec)
    location = base.removeprefix("ltp:")
    if base.startswith("ltp:") and ltp_models.is_hub_id(location):
        spec = add_dictionary(f"ltp:{ltp_models.download(location)}", dictionary)
        check_segmenter(spec)
    return spec


def is_neural(spec: str) -> bool:
    """Whether a resolved `spec` is a neural LTP model: some 400 times slower on a CPU, and best in one process."""
    spec, _ = _split_spec(spec)
    return spec.startswith("ltp:") and ltp_models.inspect_folder(spec.removeprefix("ltp:")).neural


def segmenter_fingerprint(spec: str) -> str:
    """A hex hash of what decides the segmenter's output: our rules, its package's version, its files' contents."""
    spec, dictionary = _split_spec(resolve_segmenter(spec))
    digest = hashlib.sha256(f"rules {RULES_VERSION}\n".encode())
    if dictionary is not None:
        digest.update(f"dictionary {dictionary_fingerprint(dictionary)}\n".encode())
    if spec.startswith("ltp:"):
        folder = ltp_models.inspect_folder(spec.removeprefix("ltp:"))
        package = "ltp" if folder.neural else "ltp-extension"
        digest.update(f"{package} {importlib.metadata.version(package)}\n".encode())
        for file in folder.files:
            with open(file, "rb") as content:
                digest.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    elif spec == "jieba":
        digest.update(f"jieba {importlib.metadata.version('jieba')}\n".encode())
    else:
        digest.update(spec.encode())
    return digest.hexdigest()


def words_fingerprint(spec: str) -> str:
    """What decides a segmenter's words: its files, the dictionary and our rules.

    LTP's version is left out, unlike in `segmenter_fingerprint`, so that what is prepared serves where LTP is not
    installed.
    """
    base, dictionary = _split_spec(spec)
    if not base.startswith("ltp:"):
        return segmenter_fingerprint(spec)
    location = base.removeprefix("ltp:")
    folder = ltp_models.inspect_folder(
        str(ltp_models.download(location)) if ltp_models.is_hub_id(location) else location
    )
    parts = [RULES_VERSION, *(hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.files)]
    if dictionary is not None:
        parts.append(f"dictionary {dictionary_fingerprint(dictionary)}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _short_windows(run: str) -> Iterable[str]:
    return windows(run, WINDOW_CHARS)


def _load_jieba(dictionary: Path | None) -> Cut:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba 0.42.1 imports pkg_resources and has invalid escape sequences
        import jieba
    jieba.setLogLevel(logging.WARNING)
    tokenizer = jieba.Tokenizer()
    tokenizer.initialize()
    if dictionary is not None:
        tokenizer.load_userdict(str(dictionary))
    return lambda pieces: [tokenizer.lcut(piece) for piece in pieces]
