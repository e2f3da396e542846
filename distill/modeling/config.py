"""Reading a BertConfig that somebody else wrote: what it must say, what it may say, and what is left out.

Only what makes a BERT's shape and numbers is taken over. What would have transformers run or fetch other code
(auto_map, kernels as attention implementation), or load other weights (quantisation), is refused or left out.
"""

import functools
import logging
from pathlib import Path
from typing import Any

from transformers import BertConfig
from transformers.activations import ACT2FN

from distill.errors import InputError
from distill.json_file import nearest, read_object, short
from distill.modeling.architectures import MINIRBT, NAMES, named_config
from distill.shipped import or_shipped

logger = logging.getLogger(__name__)

CONFIG_FILES = ("config.json", "bert_config.json")
"""Hugging Face's name, and that of Google's and CLUE's original folders."""
WEIGHT_ENDINGS = (".safetensors", ".bin", ".pt", ".pkl", ".onnx")

# The largest numbers are far above any BERT; without them a wrong digit takes all memory.
_SIZES = {"hidden_size": 2**16, "num_hidden_layers": 512, "num_attention_heads": 2**12, "intermediate_size": 2**18,
          "vocab_size": 2**24}  # fmt: skip
_OPTIONAL_SIZES = {"max_position_embeddings": 2**20, "type_vocab_size": 2**12}
_SHARES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
_NUMBERS = ("initializer_range", "layer_norm_eps")
# key -> the one value that our models have
_FIXED = {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"}
_TAKEN = {*_SIZES, *_OPTIONAL_SIZES, *_SHARES, *_NUMBERS, "hidden_act", "pad_token_id", "tie_word_embeddings"}


def load_config(path: str | Path) -> BertConfig:
    """The BertConfig in a JSON file or model folder, or of an architecture that is known by name (architectures.py).

    Raises:
        InputError: not readable, not BERT's, numbers that make no BERT model, or code of its own.
    """
    path = or_shipped(path)
    if str(path) in NAMES and not path.exists():
        return named_config(str(path))
    if str(path) in MINIRBT and not path.exists():
        path = or_shipped(f"distill_configs/{path}.json")
    if path.is_dir():
        path = config_file(path)
    elif not path.exists() and not path.suffix and path.parent == Path():
        near = nearest(str(path), (*NAMES, *MINIRBT), otherwise="`distill models --counts` lists those that are known")
        raise InputError(f"{path}: no such file or folder, and no architecture of that name{near}")
    if path.suffix in WEIGHT_ENDINGS:
        raise InputError(f"{path}: weights; name the folder that holds them and their config.json, or that file")
    raw = read_object(path, what="a model config")
    if raw.get("model_type") == "roberta" and _is_wordpiece(path.parent):
        _warn_of_kind(path)
        raw["model_type"] = "bert"
    if "heads_num" in raw and "num_attention_heads" not in raw:
        raise InputError(f"{path}: a config of UER's; `distill convert` makes a model folder of its weights")
    _check_kind(raw, path)
    _check_sizes(raw, path)
    _check_values(raw, path)
    taken = {key: value for key, value in raw.items() if key in _TAKEN}
    return BertConfig(**taken | {key: float(raw[key]) for key in {*_NUMBERS} & raw.keys()})


def config_file(folder: Path) -> Path:
    """The config of a model folder; InputError if it has none."""
    found = find_config(folder)
    if found is None:
        raise InputError(
            f"{folder / CONFIG_FILES[0]}: no such file; a model folder has config.json, vocab.txt and model.safetensors"
        )
    return found


def find_config(folder: Path) -> Path | None:
    """The config of a model folder; None if it has none."""
    return next((folder / name for name in CONFIG_FILES if (folder / name).exists()), None)


def _is_wordpiece(folder: Path) -> bool:
    """Whether a folder has BERT's vocabulary and none of RoBERTa's: its weights are BERT's then, or refused later."""
    return (folder / "vocab.txt").is_file() and not (folder / "merges.txt").exists()


@functools.cache
def _warn_of_kind(path: Path) -> None:
    logger.warning("%s: model_type is 'roberta', but vocab.txt is BERT's; read as 'bert'", path)


def _check_kind(raw: dict[str, Any], path: Path) -> None:
    if raw.get("model_type", "bert") != "bert":
        raise InputError(f"{path}: model_type is '{raw['model_type']}'; only 'bert' models can be distilled here")
    if raw.get("auto_map"):
        raise InputError(
            f"{path}: 'auto_map' names Python code that the model would run; only transformers' own BERT is used here, "
            "so take out the key if the weights are that"
        )
    if raw.get("quantization_config"):
        raise InputError(f"{path}: 'quantization_config': quantised weights cannot be read; take the model in float")
    for key, value in _FIXED.items():
        if raw.get(key, value) != value:
            raise InputError(f"{path}: '{key}' is {short(raw[key])}; only {short(value)} is BERT's encoder")


def _check_sizes(raw: dict[str, Any], path: Path) -> None:
    for key, most in (_SIZES | {key: most for key, most in _OPTIONAL_SIZES.items() if key in raw}).items():
        value = raw.get(key)
        if type(value) is not int or value < 1:
            raise InputError(f"{path}: '{key}' must be a whole number above 0, found {short(value)}")
        if value > most:
            raise InputError(f"{path}: '{key}' is {value:,}, over {most:,}, which no BERT reaches")
    if raw["hidden_size"] % raw["num_attention_heads"]:
        raise InputError(
            f"{path}: hidden_size {raw['hidden_size']} is not a multiple of num_attention_heads "
            f"{raw['num_attention_heads']}"
        )


def _check_values(raw: dict[str, Any], path: Path) -> None:
    activation = raw.get("hidden_act", "gelu")
    if not isinstance(activation, str) or activation not in ACT2FN:
        raise InputError(f"{path}: unknown hidden_act {short(activation)}{nearest(str(activation), ACT2FN)}")
    for key in {*_SHARES, *_NUMBERS} & raw.keys():
        value = raw[key]
        if value is None and key == "classifier_dropout":
            continue
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise InputError(f"{path}: '{key}' must be a number from 0 to below 1, found {short(value)}")
    pad = raw.get("pad_token_id")
    if pad is not None and (type(pad) is not int or not 0 <= pad < raw["vocab_size"]):
        raise InputError(f"{path}: 'pad_token_id' must be one of {raw['vocab_size']} token ids, found {short(pad)}")
    if type(raw.get("tie_word_embeddings", True)) is not bool:
        raise InputError(
            f"{path}: 'tie_word_embeddings' must be true or false, found {short(raw['tie_word_embeddings'])}"
        )
