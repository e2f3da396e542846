"""Models of other toolkits as Hugging Face folders, and Hugging Face folders as UER's checkpoints.

1. Weights are read as plain tensors and their names brought to BertForPreTraining's (checkpoint_files.py).
2. The config is the one given, or follows from the weights' shapes; each name and shape must fit it.
3. The new folder is written beside its place; it gets its name only if what transformers computes with it equals an
   independent forward over the weights as they came.

TPUs and their TensorFlow code are not supported; TensorFlow's checkpoints are, where TensorFlow is installed.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertConfig, BertForPreTraining

from distill.corpus.tokenizing import load_tokenizer
from distill.corpus.vocabulary import SPECIAL_TOKENS, read_vocabulary, refuse_existing, tokens_by_id
from distill.durable import whole_folder
from distill.errors import InputError
from distill.json_file import read_object
from distill.modeling.architectures import NAMES
from distill.modeling.checkpoint_files import UER_WEIGHTS, read_checkpoint
from distill.modeling.config import find_config, load_config
from distill.modeling.models import copy_tokenizer, load_masked_lm
from distill.modeling.uer_weights import WORDS, count_layers, to_uer, uer_forward
from distill.modeling.weight_files import BIAS, DECODER, DECODER_BIAS, HEAD, has_head

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-4
"""Of outputs, which are of the order of 1."""
_UER_KEYS = {
    "emb_size": "hidden_size", "feedforward_size": "intermediate_size", "hidden_size": "hidden_size",
    "hidden_act": "hidden_act", "heads_num": "num_attention_heads", "layers_num": "num_hidden_layers",
    "max_seq_length": "max_position_embeddings", "dropout": "hidden_dropout_prob",
}  # fmt: skip
_UER_PLAIN = {
    "layernorm_positioning": "post", "feed_forward": "dense", "remove_embedding_layernorm": False,
    "remove_transformer_bias": False, "relative_position_embedding": False, "parameter_sharing": False,
    "factorized_embedding_parameterization": False,
}  # fmt: skip
"""Settings of UER's encoder that make another model, and their values in BERT."""
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings",
          "type_vocab_size")  # fmt: skip


@dataclass(frozen=True)
class Conversion:
    """What was found and done."""

    source_format: str
    config: BertConfig
    kind: str
    """transformers' class of the model."""
    difference: float
    """The largest between the outputs before and after."""


def convert_model(
    source: Path,
    output: Path,
    *,
    to: str,
    source_format: str | None = None,
    config: str | None = None,
    tokenizer: Path | None = None,
    exact: bool = True,
) -> Conversion:
    """Writes `source` as a folder of another toolkit; whole or absent.

    Args:
        source: a model folder, or a file of weights: UER's, TencentPretrain's, TextBrewer's gs*.pkl, pytorch_model.bin.
        to: "hf", or "uer", which is TencentPretrain's, too.
        source_format: "hf", "uer" or "tf"; None takes what the names of the weights say.
        config: of the model, as file, folder or architecture; UER's config files, too. None: the one beside the
            weights, else sizes from the weights and a head for every 64 dimensions.
        tokenizer: folder or vocab.txt; None: what lies beside the weights.
        exact: fold UER's LayerNorm, so that outputs are equal; False does as UER's converter.
    Raises:
        InputError: a source that is no BERT or is incomplete, a config or vocabulary that does not fit it.
    """
    refuse_existing(output)
    tokenizer = _find_tokenizer(source, tokenizer)
    if tokenizer is None and to == "hf":
        raise InputError(f"{source}: no vocabulary beside it; name a folder or vocab.txt with --tokenizer")
    found = read_checkpoint(source, source_format, exact=exact)
    settled = _settle_config(found.weights, config or find_config(_folder_of(source)), where=str(source))
    kind = check_weights(found.weights, settled, where=str(source))
    if tokenizer is not None:
        _check_vocabulary(tokenizer, settled, where=str(source))
    _describe(settled, kind, found.weights)
    with whole_folder(output) as partial:
        card = _card(output.name, source, found.format, exact)
        _write_hf(partial, found.weights, settled, tokenizer if to == "hf" else None, card)
        if to == "hf":
            before = found.uer_weights or to_uer(_without_tasks(found.weights), exact=False, where=str(source))
            folded = exact and found.uer_weights is not None
            difference = _check_outputs(partial, before, settled, exact=folded, where=str(source))
        else:
            renamed = to_uer(found.weights, exact=exact, where=str(source))
            difference = _check_outputs(partial, renamed, settled, exact=exact, where=str(source))
            _clear(partial)
            _write_uer(partial, renamed, settled, tokenizer)
    return Conversion(found.format, settled, kind, difference)


def _describe(config: BertConfig, kind: str, weights: Mapping[str, Tensor]) -> None:
    """Writes into the config what the weights are of."""
    config.architectures = [kind]
    config.tie_word_embeddings = DECODER not in weights
    if "classifier.weight" in weights:
        config.num_labels = len(weights["classifier.weight"])


def check_weights(weights: Mapping[str, Tensor], config: BertConfig, *, where: str) -> str:
    """transformers' class for these weights.

    Raises:
        InputError: names that BERT does not have, weights that are missing, misshapen or no numbers.
    """
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in BertForPreTraining(config).state_dict().items()}
    tasks = {name for name in weights if name.startswith(("classifier.", "qa_outputs."))}
    unknown = sorted(weights.keys() - expected.keys() - tasks)
    if unknown:
        raise InputError(f"{where}: {len(unknown)} weights that no BERT has, e.g. {unknown[0]}; it cannot be converted")
    needed = [name for name in expected if name.startswith("bert.") and ".pooler." not in name]
    if HEAD in weights:
        needed += [name for name in expected if name.startswith("cls.predictions.") and "decoder" not in name]
    missing = [name for name in needed if name not in weights]
    if missing:
        raise InputError(f"{where}: {len(missing)} weights are missing, the first is {missing[0]}")
    for name in weights.keys() - tasks:
        if tuple(weights[name].shape) != expected[name]:
            raise InputError(
                f"{where}: {name} is {list(weights[name].shape)}, but by the config it must be {list(expected[name])}"
            )
        if not torch.isfinite(weights[name]).all():
            raise InputError(f"{where}: {name} holds NaN or infinity; the model is broken, take another one")
    return _kind_of(weights)


def _kind_of(weights: Mapping[str, Tensor]) -> str:
    has_pooler = "bert.pooler.dense.weight" in weights
    if "qa_outputs.weight" in weights:
        return "BertForQuestionAnswering"
    if "classifier.weight" in weights:
        return "BertForSequenceClassification" if has_pooler else "BertForTokenClassification"
    if HEAD not in weights:
        return "BertModel"
    return "BertForPreTraining" if has_pooler and "cls.seq_relationship.weight" in weights else "BertForMaskedLM"


def _settle_config(weights: Mapping[str, Tensor], given: str | Path | None, *, where: str) -> BertConfig:
    """The model's config: `given` where it fits the weights, else from their shapes."""
    inner, positions, kinds = (
        "bert.encoder.layer.0.intermediate.dense.weight", "bert.embeddings.position_embeddings.weight",
        "bert.embeddings.token_type_embeddings.weight",
    )  # fmt: skip
    for name in (WORDS, inner, positions, kinds):
        if name not in weights:
            raise InputError(f"{where}: has no {name}; no BERT model, or only a part of one")
    rows, width = weights[WORDS].shape
    sizes: dict[str, Any] = {
        "vocab_size": rows, "hidden_size": width, "num_hidden_layers": count_layers(weights),
        "intermediate_size": len(weights[inner]), "max_position_embeddings": len(weights[positions]),
        "type_vocab_size": len(weights[kinds]),
    }  # fmt: skip
    if given is None:
        if width % 64:
            raise InputError(f"{where}: {width} dimensions are no multiple of 64, so the number of heads is not known; "
                             f"name the model's config with --config")  # fmt: skip
        logger.warning("%s: no config, so %d heads of 64 dimensions are assumed; if it has others, name its config "
                       "with --config", where, width // 64)  # fmt: skip
        return BertConfig(**sizes, num_attention_heads=width // 64)
    config = _read_config(given, sizes)
    for key in _SIZES:
        if getattr(config, key) != sizes[key]:
            raise InputError(
                f"{where}: {key} is {sizes[key]} in the weights and {getattr(config, key)} in {given}; name the "
                "config of this model"
            )
    return config


def _read_config(given: str | Path, sizes: Mapping[str, int]) -> BertConfig:
    """A config file of ours or of UER, whose files leave out the sizes of the vocabulary and the segments."""
    path = Path(given)
    if (
        str(given) in NAMES
        or not path.is_file()
        or "heads_num" not in (raw := read_object(path, what="a model config"))
    ):
        return load_config(given)
    for key, plain in _UER_PLAIN.items():
        if raw.get(key, plain) != plain:
            raise InputError(f"{path}: '{key}' is {raw[key]}, which BERT's encoder is not; it cannot be converted")
    translated: dict[str, Any] = {theirs: raw[ours] for ours, theirs in _UER_KEYS.items() if ours in raw}
    if raw.get("emb_size", raw.get("hidden_size")) != raw.get("hidden_size"):
        raise InputError(f"{path}: emb_size and hidden_size differ, which is not BERT; it cannot be converted")
    return BertConfig(**{**sizes, **translated})


def _folder_of(source: Path) -> Path:
    """Where a source's weights lie."""
    return source if source.is_dir() else source.parent


def _find_tokenizer(source: Path, given: Path | None) -> Path | None:
    """Folder or vocab.txt of the model's tokens."""
    if given is not None:
        if not given.exists():
            raise InputError(f"{given}: no such file or folder; --tokenizer takes a folder with vocab.txt, or the file")
        return given
    folder = _folder_of(source)
    return folder if (folder / "vocab.txt").is_file() or (folder / "tokenizer.json").is_file() else None


def _tokens_of(tokenizer: Path) -> Sequence[str | None]:
    """The tokens of a folder or vocab.txt; None for an id that no token leads to."""
    return read_vocabulary(tokenizer) if tokenizer.is_file() else tokens_by_id(load_tokenizer(tokenizer))


def _check_vocabulary(tokenizer: Path, config: BertConfig, *, where: str) -> None:
    tokens = _tokens_of(tokenizer)
    if lacking := [token for token in SPECIAL_TOKENS if token not in tokens]:
        raise InputError(f"{tokenizer}: the vocabulary has no {lacking[0]}; take the model's own")
    if len(tokens) != config.vocab_size:
        logger.warning("%s: %d embedding rows for the %d tokens of %s; `distill vocab repair` makes them agree", where,
                       config.vocab_size, len(tokens), tokenizer)  # fmt: skip


def _write_hf(
    folder: Path, weights: Mapping[str, Tensor], config: BertConfig, tokenizer: Path | None, card: str
) -> None:
    """A folder that opens with transformers: safetensors, of a tied decoder one copy."""
    tensors = {name: tensor.clone().contiguous() for name, tensor in weights.items()}
    if DECODER in tensors:  # not tied, nor is its bias then
        tensors[DECODER_BIAS] = tensors[BIAS].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    if tokenizer is not None:
        copy_tokenizer(tokenizer, folder)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write_uer(folder: Path, weights: Mapping[str, Tensor], config: BertConfig, tokenizer: Path | None) -> None:
    """model.bin, config.json for --config_path, and vocab.txt for --vocab_path."""
    torch.save(dict(weights), folder / UER_WEIGHTS)
    values = {ours: getattr(config, theirs) for ours, theirs in _UER_KEYS.items()}
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    if tokenizer is not None:
        lines = "".join(f"{token or ''}\n" for token in _tokens_of(tokenizer))
        (folder / "vocab.txt").write_text(lines, encoding="utf-8")


def _check_outputs(
    folder: Path, uer_weights: Mapping[str, Tensor], config: BertConfig, *, exact: bool, where: str
) -> float:
    """The largest difference between a written folder's outputs and those of the weights under UER's names."""
    if config.hidden_act != "gelu":
        raise InputError(f"{where}: hidden_act is '{config.hidden_act}'; only gelu can be checked after conversion")
    generator = torch.Generator().manual_seed(0)
    shape = (2, min(32, config.max_position_embeddings))
    input_ids = torch.randint(config.vocab_size, shape, generator=generator)
    model = load_masked_lm(folder, need_head=has_head(folder)).eval()
    floats = {name: tensor.float() for name, tensor in uer_weights.items()}
    states, logits = uer_forward(floats, input_ids, heads=config.num_attention_heads, exact=exact)
    with torch.no_grad():
        found = model.bert(input_ids).last_hidden_state
        pairs = [(found, states)] + ([(model.cls(found), logits)] if logits is not None else [])
    difference = max(float((a - b).abs().max() / max(1.0, float(b.abs().max()))) for a, b in pairs)
    if not difference < _TOLERANCE:
        raise InputError(f"{where}: after conversion the outputs differ by {difference:.2g}; the model is not the BERT "
                         f"that its config says")  # fmt: skip
    return difference


def _without_tasks(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a pre-trained model has."""
    return {name: tensor for name, tensor in weights.items() if name.startswith(("bert.", "cls."))}


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _card(name: str, source: Path, source_format: str, exact: bool) -> str:
    norm = ""
    if source_format == "uer":
        norm = (
            " UER's LayerNorm is folded into the weights, so that outputs are UER's own."
            if exact
            else " LayerNorm's weights are UER's as they are, as its own converter leaves them."
        )
    return f"# {name}\n\nConverted from `{source.name}` ({source_format}) by MiniDistill.{norm}\n"
