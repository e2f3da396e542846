"""The weight files of a model folder: which there are, and the names and shapes in them, without loading the weights.

Nothing in a file is executed: safetensors hold numbers alone, and pickles are read with weights_only.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import BertConfig, BertForMaskedLM

from distill.errors import InputError, first_line
from distill.json_file import read_object, short

WEIGHT_FILES = (  # in transformers' order
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
NO_WEIGHTS = "no weights; expected model.safetensors or pytorch_model.bin"
# What safetensors and torch.load raise for files that are damaged or something else.
UNREADABLE = (
    OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, EOFError, IndexError, SafetensorError,
    pickle.UnpicklingError,
)  # fmt: skip
HEAD = "cls.predictions.transform.dense.weight"
DECODER, DECODER_BIAS, BIAS = "cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "cls.predictions.bias"

Shapes = dict[str, tuple[int, ...]]


def weight_file(folder: Path) -> Path | None:
    """The file, or the index of files, that transformers would read."""
    return next((folder / name for name in WEIGHT_FILES if (folder / name).exists()), None)


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a model's weights."""
    return weight_file(folder) is not None


def has_head(folder: Path) -> bool:
    """Whether a model folder has a masked-language-model head; looks at the names of its weights only."""
    return HEAD in weight_shapes(folder)


def weight_shapes(folder: Path) -> Shapes:
    """Name -> shape of a folder's weights, which are not loaded.

    Raises:
        InputError: no weights, a file that is damaged, or one that an index lists and that is missing.
    """
    return {name: shape for file in list_weight_files(folder) for name, shape in _shapes_in(file).items()}


def list_weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights.

    Raises:
        InputError: none, or an index that lists what is not there or not in this folder.
    """
    file = weight_file(folder)
    if file is None:
        raise InputError(f"{folder}: {NO_WEIGHTS}")
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{folder}: an adapter for a model (adapter_config.json); merge it into the model's weights")
    if file.suffix != ".json":
        return [file]
    names = read_object(file, what="an index of weight files").get("weight_map")
    if not isinstance(names, dict) or not names:
        raise InputError(f"{file}: no index of weight files (no 'weight_map'); download it again")
    shards = list(dict.fromkeys(names.values()))
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise InputError(f"{file}: lists {short(shard)}, which is no file beside it; download it again")
        if not (folder / shard).is_file():
            raise InputError(f"{file}: lists {shard}, which is not there; download it, too")
    return [folder / shard for shard in shards]


def _shapes_in(file: Path) -> Shapes:
    if file.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in load_pickle(file, device="meta").items()}
    try:
        with safe_open(file, framework="pt") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except UNREADABLE as error:
        raise unreadable(file, error) from None


def load_pickle(file: Path, *, device: str = "cpu") -> dict[str, torch.Tensor]:
    """The tensors of a pytorch_model.bin; other pickles than plain ones of tensors are refused, not run."""
    try:
        loaded: Any = torch.load(file, map_location=device, weights_only=True)
    except UNREADABLE as error:
        raise unreadable(file, error) from None
    if not isinstance(loaded, dict):
        raise InputError(f"{file}: cannot be read as weights (it holds a {type(loaded).__name__}); download it again")
    return {str(name): tensor for name, tensor in loaded.items() if isinstance(tensor, torch.Tensor)}


def unreadable(file: Path, error: Exception) -> InputError:
    """The complaint about a weight file that a library could not read."""
    return InputError(f"{file}: cannot be read as weights ({first_line(error)}); copy or download it again")


def check_shapes(folder: Path, config: BertConfig) -> None:
    """InputError unless the weights of the encoder are all there, and they and the head have the config's shapes."""
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in BertForMaskedLM(config).state_dict().items()}
    found = {_modern_name(name): (name, shape) for name, shape in weight_shapes(folder).items()}
    missing = sorted(name for name in expected if name.startswith("bert.") and name not in found)
    if missing:
        raise InputError(f"{folder}: {len(missing)} weights are missing, the first is {missing[0]}")
    for name, (own_name, shape) in found.items():
        if shape != expected.get(name, shape):
            raise InputError(
                f"{folder}: {own_name} is {list(shape)}, but by config.json it must be {list(expected[name])}; config "
                "and weights are of two models"
            )


def _modern_name(name: str) -> str:
    """The name in BertForMaskedLM: old files say gamma and beta, and those of an encoder alone have no 'bert.'."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return name if name.startswith(("bert.", "cls.")) else f"bert.{name}"
