"""Model folders: find, load, build and save `BertForMaskedLM` models and their tokenizers.

A model folder is Hugging Face's: config.json, model.safetensors or pytorch_model.bin, vocab.txt. Folders are data:
nothing in them is executed.
"""

import contextlib
import json
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import BertConfig, BertForMaskedLM, BertTokenizer
from transformers.activations import ACT2FN
from transformers.utils import logging as transformers_logging

from distill.corpus.tokenizing import load_tokenizer as load_bert_tokenizer
from distill.errors import InputError
from distill.json_file import nearest, read_json

WEIGHT_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
_NUMBERS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
TOKENIZER_FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# What safetensors and torch.load raise for files that are damaged or something else.
_UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, EOFError, SafetensorError, pickle.UnpicklingError)


def find_model(name: str, *, weights: bool = True) -> Path:
    """The local folder of a model: `name` itself if it is one, else the hub's, downloaded once (HF_ENDPOINT counts).

    Raises:
        InputError: no such folder or hub id, or a folder without config, tokenizer or weights.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{name}: found a file; name the folder with config.json, vocab.txt and the weights")
    if not _HUB_ID.fullmatch(name) or Path(name.split("/")[0]).exists():  # a path whose first folder is here
        raise InputError(f"{name}: no such model folder{_models_beside(folder)}")
    return _fetch(name, weights)


def _models_beside(folder: Path) -> str:
    """`; there are: ...` for the model folders where `folder` was looked for."""
    beside = sorted(path.parent.name for path in folder.parent.glob("*/config.json"))
    return f"; there are in {folder.parent}: {', '.join(beside[:8])}" if beside else ""


def _fetch(name: str, weights: bool) -> Path:
    """A hub model's folder: the copy fetched before if it is complete, else a new one, in one weight format."""
    patterns = ["config.json", *TOKENIZER_FILES]
    with contextlib.suppress(LocalEntryNotFoundError, ValueError):
        folder = Path(snapshot_download(name, local_files_only=True))
        if (folder / "config.json").exists() and (has_weights(folder) or not weights):
            return folder
    try:
        if weights:
            files = {file.rfilename for file in HfApi().model_info(name, timeout=20).siblings or []}
            single = next((file for file in WEIGHT_FILES if file in files), None)
            patterns += [single] if single and not single.endswith(".json") else ["*.safetensors*"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub's client lets through the errors of whichever HTTP library it uses
        raise InputError(
            f"{name}: no such folder, and it could not be fetched from the hub ({_first_line(error)}); check the name, "
            f"go online, set HF_ENDPOINT to a mirror, or put the files into a folder and name that"
        ) from None


def load_config(path: str | Path) -> BertConfig:
    """The BertConfig in a JSON file or model folder.

    Raises:
        InputError: not readable, not BERT's, or numbers that make no BERT model.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise InputError(f"{path}: a model config is a JSON object, found {type(raw).__name__}")
    if raw.get("model_type", "bert") != "bert":
        raise InputError(f"{path}: model_type is '{raw['model_type']}'; only 'bert' models can be distilled here")
    for key in (*_NUMBERS, *({"max_position_embeddings", "type_vocab_size"} & raw.keys())):
        value = raw.get(key)
        if type(value) is not int or value < 1:
            raise InputError(f"{path}: '{key}' must be a whole number above 0, found {json.dumps(value)}")
    if raw.get("hidden_act", "gelu") not in ACT2FN:
        raise InputError(f"{path}: unknown hidden_act '{raw['hidden_act']}'{nearest(str(raw['hidden_act']), ACT2FN)}")
    if raw["hidden_size"] % raw["num_attention_heads"]:
        raise InputError(
            f"{path}: hidden_size {raw['hidden_size']} is not a multiple of num_attention_heads "
            f"{raw['num_attention_heads']}"
        )
    try:
        return BertConfig(**raw)
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a BertConfig ({str(error).splitlines()[0]})") from None


def load_tokenizer(folder: str | Path) -> BertTokenizer:
    """The BERT WordPiece tokenizer of a folder; InputError if it has no vocabulary or lacks a special token."""
    tokenizer = load_bert_tokenizer(folder)
    vocabulary = tokenizer.get_vocab()
    for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"):
        if token not in vocabulary:
            raise InputError(f"{folder}: the vocabulary has no {token}")
    return tokenizer


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a model's weights."""
    return any((folder / file).exists() for file in WEIGHT_FILES)


def has_head(folder: Path) -> bool:
    """Whether a model folder has a masked-language-model head; looks at the names of its weights only."""
    return "cls.predictions.transform.dense.weight" in weight_names(folder)


def weight_names(folder: Path) -> set[str]:
    """The names of a folder's weights, which are not loaded; empty if there are none.

    Raises:
        InputError: a weight file that is damaged, or missing from the list of an index.
    """
    file = next((folder / file for file in WEIGHT_FILES if (folder / file).exists()), None)
    if file is None:
        return set()
    if file.suffix == ".json":
        return _names_in_index(file)
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as weights:
                return set(weights.keys())
        return set(torch.load(file, map_location="meta", weights_only=True))
    except _UNREADABLE as error:
        raise InputError(
            f"{file}: cannot be read as weights ({_first_line(error)}); copy or download it again"
        ) from None


def _names_in_index(file: Path) -> set[str]:
    index = read_json(file)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict):
        raise InputError(f"{file}: no index of weight files (no 'weight_map'); download it again")
    for shard in sorted(set(map(str, names.values()))):
        if not (file.parent / shard).is_file():
            raise InputError(f"{file}: lists {shard}, which is not there; download it, too")
    return set(names)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def load_masked_lm(folder: str | Path, *, need_head: bool = True, attention: str = "sdpa") -> BertForMaskedLM:
    """The model of a folder in float32, complete: weights that are missing are an error, never made up.

    Args:
        need_head: whether the prediction head is used; a folder of an encoder alone is refused then.
        attention: "sdpa", or "eager" where attention matrices are needed.
    Raises:
        InputError: no weights, missing or misshapen weights, no prediction head.
    """
    folder = Path(folder)
    config = load_config(folder)
    if not has_weights(folder):
        raise InputError(f"{folder}: no weights; expected {WEIGHT_FILES[0]} or {WEIGHT_FILES[1]}")
    try:
        with quiet_transformers():
            loaded: Any = BertForMaskedLM.from_pretrained(
                folder, config=config, dtype=torch.float32, local_files_only=True, output_loading_info=True,
                attn_implementation=attention, weights_only=True,
            )  # fmt: skip
    except _UNREADABLE as error:
        raise InputError(f"{folder}: weights cannot be loaded ({_first_line(error)})") from None
    model, info = loaded
    missing = sorted(info["missing_keys"])
    encoder = [key for key in missing if not key.startswith("cls.")]
    if encoder:
        raise InputError(f"{folder}: {len(encoder)} weights are missing, the first is {encoder[0]}")
    if missing and need_head:
        raise InputError(
            f"{folder}: no masked-language-model head ({len(missing)} weights missing, e.g. {missing[0]}), "
            f"but its logits are used here; take a model saved with its head, or kd_weight 0"
        )
    return model


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and reports of transformers; what matters in them we say ourselves."""
    verbosity, progress_bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if progress_bar:
            transformers_logging.enable_progress_bar()


def build_model(config: BertConfig, *, seed: int, attention: str = "sdpa") -> BertForMaskedLM:
    """A new model with random weights that depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BertForMaskedLM._from_config(BertConfig(**config.to_diff_dict()), attn_implementation=attention)


def check_vocabulary(tokenizer: BertTokenizer, config: BertConfig, *, tokens_from: str, model: str) -> None:
    """InputError unless the model has exactly one row for every token."""
    if len(tokenizer) != config.vocab_size:
        raise InputError(
            f"{model}: the model has {config.vocab_size} vocabulary rows, but the tokenizer of {tokens_from} has "
            f"{len(tokenizer)} tokens; they must be equal"
        )


def check_same_tokens(a: BertTokenizer, b: BertTokenizer, *, a_name: str, b_name: str) -> None:
    """InputError unless both tokenizers give every token the same id."""
    ours, theirs = a.get_vocab(), b.get_vocab()
    if ours == theirs:
        return
    differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    raise InputError(
        f"{a_name} and {b_name} have different vocabularies ({len(ours)} and {len(theirs)} tokens, {len(differing)} "
        f"differ, e.g. '{differing[0]}'); teacher, student and data must share one"
    )


def save_model(model: BertForMaskedLM, folder: Path, *, tokenizer: Path, card: str) -> None:
    """Writes a complete model folder that opens with transformers alone; whole or absent.

    Args:
        tokenizer: folder whose tokenizer files are copied.
        card: text of README.md.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with warnings.catch_warnings(), quiet_transformers():
        warnings.simplefilter("ignore")
        model.save_pretrained(partial)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, partial / name)
    if not (partial / "tokenizer_config.json").exists():
        load_tokenizer(tokenizer).save_pretrained(partial)
    (partial / "README.md").write_text(card, encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)
