"""LTP models: finding, checking and downloading their folders, perceptron ("legacy") or neural; loading perceptrons.

Neural models are loaded in ltp_neural.py.

We load the weights ourselves instead of through `ltp.LTP(path)`: that one takes a path with "@" for a hub id, prints
to stdout, loads wrong weights without a word (strict=False), and imports torch for a perceptron that does not need it.
"""

import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.corpus.characters import batches
from distill.corpus.tokenizing import check_tokenizer_files
from distill.errors import InputError, first_line
from distill.json_file import read_json, read_object

LICENCE = (
    "LTP is free for universities and for individual research, paid for companies; `jieba` and `words` work without it"
)
CALL_CHARS = 100_000  # LTP's perceptron holds the GIL while it works: about 0.1 s, so that Ctrl-C is heard
WEIGHTS = ("pytorch_model.bin", "model.safetensors")
VOCABULARIES = ("vocab.txt", "tokenizer.json")
TOKENIZER_EXTRAS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# A config's `_ltp_target_` names what LTP imports and calls: these are parts of its models. ltp_neural.py looks closer.
_TARGET = re.compile(r"ltp_core\.models\.(ltp_model|processor|components|utils)(\.\w+)+", re.ASCII)
_CODE_KEYS = {"auto_map", "trust_remote_code", "quantization_config", "custom_generate"}
LFS_POINTER = b"version https://git-lfs"

Cut = Callable[[list[str]], list[list[str]]]


@dataclass(frozen=True)
class ModelFolder:
    """An LTP folder whose config was read and whose files are there. `files` decide what the model does."""

    path: Path
    neural: bool
    config: dict[str, Any]
    files: tuple[Path, ...]


def is_hub_id(location: str) -> bool:
    """Whether `location` reads as OWNER/NAME or OWNER/NAME@REVISION, and no folder of that beginning is here."""
    if Path(location).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", location, re.ASCII):
        return False
    owner = location.split("/")[0]
    return owner not in (".", "..") and not Path(owner).exists()


def inspect_folder(location: str) -> ModelFolder:
    """Reads an LTP folder's config and finds its files; loads nothing.

    Raises:
        InputError: whatever is missing, damaged at first sight, or names code outside LTP.
    """
    path = Path(location).expanduser()
    remedy = "put an LTP model there, make one with `distill segmenter train`, or use the segmenter 'jieba' or 'words'"
    if not path.is_dir():
        raise InputError(f"{path}: no such LTP folder; {remedy}")
    config_file = path / "config.json"
    if not config_file.is_file():
        raise InputError(f"{path}: no config.json, so no LTP model; {remedy}")
    config = read_json(config_file)
    if not isinstance(config, dict) or not isinstance(config.get("nerual"), bool):  # LTP's own spelling
        raise InputError(f"{config_file}: not an LTP config (no key 'nerual'); {remedy}")
    if config["nerual"]:
        return _inspect_neural(path, config)
    tasks = config.get("tasks")
    name = tasks.get("cws") if isinstance(tasks, dict) else None
    if not isinstance(name, str) or not name or "\0" in name or Path(name).name != name:
        raise InputError(f"{config_file}: names no word segmentation model beside it (tasks.cws); {remedy}")
    return ModelFolder(path, False, config, (_require(path, name),))


def _inspect_neural(path: Path, config: dict[str, Any]) -> ModelFolder:
    for target in targets(config.get("model")):
        if not _TARGET.fullmatch(target):
            raise InputError(f"{path / 'config.json'}: wants to run {target!r}, which is not LTP's; do not trust it")
    for key, value in settings_of(config.get("model")):
        own_kernel = "attn_implementation" in key and isinstance(value, str) and value not in ("eager", "sdpa")
        if value and (key in _CODE_KEYS or own_kernel):
            raise InputError(f"{path / 'config.json'}: {key!r} names code to fetch or run; take out the key")
    if not isinstance(config.get("model"), dict) or not isinstance(config.get("vocabs"), dict):
        raise InputError(f"{path / 'config.json'}: has no 'model' or no 'vocabs'; download the model again")
    weights = _require(path, *WEIGHTS)
    # Without a vocabulary transformers 5 builds a tokenizer of five tokens and every word comes out wrong.
    vocabulary = _require(path, *VOCABULARIES)
    extras = (path / name for name in (*VOCABULARIES, *TOKENIZER_EXTRAS))
    check_tokenizer_files(path)
    present = [file for file in extras if file.is_file() and file != vocabulary]
    return ModelFolder(path, True, config, (path / "config.json", weights, vocabulary, *present))


def _require(folder: Path, *names: str) -> Path:
    file = next((folder / name for name in names if os.path.isfile(folder / name)), None)
    if file is None:
        raise InputError(f"{folder}: {' or '.join(names)} is missing; download the model's files again")
    with open(file, "rb") as content:
        start = content.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise InputError(f"{file}: a git-lfs pointer, not the file itself; run `git lfs pull` in {folder}")
    if not start:
        raise InputError(f"{file}: an empty file; download it again")
    return file


def targets(config: Any) -> Iterator[str]:
    """What a config has ltp import and call."""
    return (str(value) for key, value in settings_of(config) if key == "_ltp_target_")


def settings_of(config: Any) -> Iterator[tuple[str, Any]]:
    """Key and value of all objects in a config."""
    if isinstance(config, dict):
        yield from config.items()
    for value in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        yield from settings_of(value)


def check_installed(*, neural: bool | None) -> None:
    """Raises InputError unless the LTP packages that a perceptron (False) or neural model (True) needs are there."""
    package = "ltp" if neural else "ltp_extension"
    if importlib.util.find_spec(package) is None:
        raise InputError(f"segmenter 'ltp': the package {package} is not installed; `pip install ltp`, or do "
                         f"without it, see docs/faq.md. {LICENCE}")  # fmt: skip


def download(hub_id: str) -> Path:
    """The local folder of a hub model, downloaded if it is not there yet; only the files segmentation needs."""
    from huggingface_hub import snapshot_download

    name, _, revision = hub_id.partition("@")

    def fetch(*files: str) -> Path:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(files)))

    try:
        folder = fetch("config.json")
        if not (folder / "config.json").is_file():
            raise InputError(f"ltp:{hub_id}: no config.json, so no LTP model; try ltp:LTP/small or ltp:LTP/legacy")
        config = read_object(folder / "config.json", what="an LTP config")
        if config.get("nerual") is False:
            tasks = config.get("tasks")
            return fetch("config.json", str(tasks.get("cws")) if isinstance(tasks, dict) else "")
        return fetch("config.json", *WEIGHTS[:1], *VOCABULARIES, *TOKENIZER_EXTRAS)
    except (OSError, ValueError, RuntimeError) as error:  # the hub's errors, and what its HTTP client raises
        if isinstance(error, InputError):
            raise
        reason = first_line(error, None)
        raise InputError(
            f"ltp:{hub_id}: cannot be downloaded ({reason}); check the name and the network, set HF_ENDPOINT to a "
            "mirror, or give a local folder as ltp:FOLDER"
        ) from error


def load_perceptron(folder: ModelFolder) -> Cut:
    """LTP's own perceptron engine over runs of text."""
    from ltp_extension.perceptron import CWSModel

    (file,) = folder.files
    if file.suffix != ".json" and not _is_whole_avro(file):
        raise InputError(f"{file}: not an LTP perceptron model, or cut short; download or train it again")
    try:
        model = CWSModel.load(str(file))
    except (RuntimeError, ValueError) as error:
        reason = first_line(error, None)  # a Rust backtrace follows
        raise InputError(f"{file}: not an LTP perceptron model ({reason}); download or train it again") from error

    def cut(pieces: list[str]) -> list[list[str]]:
        words: list[list[str]] = []
        for batch in batches(pieces, chars=CALL_CHARS):
            words += model.batch_predict(batch, parallelism=False)
        return words

    return cut


def _is_whole_avro(file: Path) -> bool:
    """Whether an Avro file has its beginning and its end: the 16 bytes that end its header end every block too.

    LTP's loader aborts the whole process on a file that is cut short. The zero that closes the header's metadata is
    looked for with the 16: a file short of a byte ends in 15 of them, with a byte of data before.
    """
    content = file.read_bytes()
    return content.startswith(b"Obj\x01") and content.find(b"\0" + content[-16:]) not in (-1, len(content) - 17)
