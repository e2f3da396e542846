"""The weights of a model folder as plain tensors, and the rows among them that belong to tokens.

For changing a vocabulary no model is built: every tensor that has no row for each token is carried over as it is, be it
a pooler or a classifier, in whatever precision.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.corpus.tokenizing import load_tokenizer
from distill.corpus.vocabulary import tokens_by_id, write_tokenizer
from distill.durable import whole_folder
from distill.errors import InputError
from distill.json_file import read_json
from distill.modeling.config import config_file, load_config
from distill.modeling.weight_files import (
    BIAS,
    DECODER,
    DECODER_BIAS,
    UNREADABLE,
    list_weight_files,
    load_pickle,
    unreadable,
)

if TYPE_CHECKING:
    from transformers import BertTokenizer

EMBEDDINGS = "embeddings.word_embeddings.weight"


@dataclass(frozen=True)
class ModelFiles:
    """What a model folder holds."""

    folder: Path
    config: dict[str, Any]
    tokenizer: "BertTokenizer"
    tokens: list[str | None]
    """Token of each id of the tokenizer; None where no token leads."""
    weights: dict[str, Tensor]

    @property
    def embeddings(self) -> Tensor:
        """Word embeddings [rows, H]."""
        return next(tensor for name, tensor in self.weights.items() if name.endswith(EMBEDDINGS))

    def token_rows(self) -> dict[str, Tensor]:
        """The tensors that have a row for each token, by name."""
        endings = (EMBEDDINGS, DECODER, BIAS, DECODER_BIAS)
        return {name: tensor for name, tensor in self.weights.items() if name.endswith(endings)}


def read_model(folder: Path) -> ModelFiles:
    """Config, tokenizer and weights of a folder, sizes unchecked.

    Raises:
        InputError: one of them is missing or unreadable, or the weights have no word embeddings.
    """
    load_config(folder)
    tokenizer = load_tokenizer(folder)
    weights = read_weights(folder)
    tables = [name for name in weights if name.endswith(EMBEDDINGS)]
    if len(tables) != 1:
        raise InputError(f"{folder}: expected one tensor ...{EMBEDDINGS} among the weights, found {len(tables)}")
    return ModelFiles(folder, read_json(config_file(folder)), tokenizer, tokens_by_id(tokenizer), weights)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder; a decoder equal to the word embeddings is left out, since it is tied to them."""
    weights: dict[str, Tensor] = {}
    for file in list_weight_files(folder):
        weights |= read_weight_file(file)
    table = next((tensor for name, tensor in weights.items() if name.endswith(EMBEDDINGS)), None)
    for name in [name for name in weights if name.endswith(DECODER)]:
        if table is not None and torch.equal(weights[name], table):
            del weights[name]
    return weights


def read_weight_file(file: Path) -> dict[str, Tensor]:
    """The tensors of one file, safetensors or a plain pickle; InputError if it cannot be read as that."""
    if file.suffix != ".safetensors":
        return load_pickle(file)
    try:
        return load_file(file)
    except UNREADABLE as error:
        raise unreadable(file, error) from None


def write_model(
    model: ModelFiles,
    output: Path,
    *,
    tokens: list[str],
    map_rows: Callable[[Tensor], Tensor],
    settings: dict[str, Any],
    card: str,
) -> None:
    """Writes the model with other tokens: config, weights, tokenizer and README.md; whole or absent.

    Args:
        map_rows: from a tensor with the model's rows to one with a row for each of `tokens`.
        settings: keys of tokenizer_config.json.
    """
    mapped = {name: map_rows(tensor) for name, tensor in model.token_rows().items()}
    weights = {name: mapped.get(name, tensor).clone().contiguous() for name, tensor in model.weights.items()}
    config = model.config | {"vocab_size": len(tokens), "pad_token_id": tokens.index("[PAD]")}
    with whole_folder(output) as folder:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_tokenizer(folder, tokens, settings)
        (folder / "README.md").write_text(card, encoding="utf-8")
