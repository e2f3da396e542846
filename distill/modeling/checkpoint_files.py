"""Reading weights of any origin as plain tensors under BertForPreTraining's names.

Origins: Hugging Face folders and files, TextBrewer's gs*.pkl, MiniRBT's TA checkpoints (all of them such names with
variants), UER's and TencentPretrain's files, TensorFlow's original checkpoints. Pickles are read with weights_only.
"""

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.errors import InputError
from distill.modeling.uer_weights import WORDS, count_layers, from_uer, is_uer, to_uer
from distill.modeling.weight_files import BIAS, DECODER, DECODER_BIAS, has_weights
from distill.modeling.weights import read_weight_file, read_weights

UER_WEIGHTS = "model.bin"
"""The weights in a folder that was converted for UER."""
_BARE = ("embeddings.", "encoder.layer.", "pooler.")
"""How names begin in a file of an encoder alone."""
_TF_SKIPPED = re.compile(r"(global_step|.*/(adam_[mv]|AdamWeightDecayOptimizer.*|lamb_[mv]))")
_TF_NAMES = (
    (r"layer_(\d+)", r"layer.\1"), ("/kernel$", "/weight"), ("LayerNorm/gamma$", "LayerNorm/weight"),
    ("LayerNorm/beta$", "LayerNorm/bias"), ("_embeddings$", "_embeddings/weight"),
    ("^cls/predictions/output_bias$", "cls/predictions/bias"),
    ("^cls/seq_relationship/output_weights$", "cls/seq_relationship/weight"),
    ("^cls/seq_relationship/output_bias$", "cls/seq_relationship/bias"),
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """Weights that were read."""

    format: str
    weights: dict[str, Tensor]
    """Under BertForPreTraining's names; no decoder where it is tied."""
    uer_weights: dict[str, Tensor] | None
    """Under UER's present names and as they came, if the file is UER's."""


def read_checkpoint(source: Path, source_format: str | None, *, exact: bool) -> Checkpoint:
    """The weights of a folder or file.

    Args:
        source_format: "hf", "uer" or "tf"; None takes what is found.
        exact: whether UER's LayerNorm is folded into its weights.
    Raises:
        InputError: nothing that can be read, another format than the one named, a RoBERTa.
    """
    index = _tensorflow_index(source)
    found = "tf" if index else None
    raw: dict[str, Tensor] = {}
    if index is None:
        raw = {name.removeprefix("module."): tensor for name, tensor in _read(source).items()}
        if any(name.startswith("roberta.") for name in raw):
            raise InputError(f"{source}: a RoBERTa (names begin with 'roberta.'), whose positions and vocabulary are "
                             f"not BERT's; it cannot be converted")  # fmt: skip
        found = "uer" if is_uer(raw) else "hf"
    assert found is not None
    if source_format is not None and source_format != found:
        raise InputError(f"{source}: its weights are named as in '{found}', not as in '{source_format}'; check --from")
    if found == "tf":
        assert index is not None
        return Checkpoint("tf", _canonical(_read_tensorflow(index)), None)
    if found == "hf":
        return Checkpoint("hf", _check_layers(_canonical(raw), source), None)
    plain = from_uer(raw, exact=False, where=str(source))
    weights = from_uer(raw, exact=exact, where=str(source))
    _check_layers(weights, source)
    complete = all(name in plain for name in (WORDS, "bert.embeddings.token_type_embeddings.weight"))
    pretrained = {name: tensor for name, tensor in plain.items() if name.startswith(("bert.", "cls."))}
    return Checkpoint("uer", _without_tied(weights),
                      to_uer(pretrained, exact=False, where=str(source)) if complete else None)  # fmt: skip


def _read(source: Path) -> dict[str, Tensor]:
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; name a model folder or a file of weights")
    if source.is_dir():
        if not has_weights(source):
            if (source / UER_WEIGHTS).is_file():
                return read_weight_file(source / UER_WEIGHTS)
            raise InputError(f"{source}: no weights; expected model.safetensors, pytorch_model.bin, {UER_WEIGHTS} or "
                             f"*.ckpt.index, or name the file")  # fmt: skip
        return read_weights(source)
    return read_weight_file(source)


def _canonical(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as BertForPreTraining has them: gamma and beta, missing prefixes and doubles are brought in line."""
    found = {}
    for name, tensor in raw.items():
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if not name.endswith("embeddings.position_ids"):
            found[f"bert.{name}" if name.startswith(_BARE) else name] = tensor
    double = found.pop(DECODER_BIAS, None)
    if double is not None:
        found.setdefault(BIAS, double)
    return _without_tied(found)


def _without_tied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    tied = DECODER in weights and WORDS in weights and torch.equal(weights[DECODER], weights[WORDS])
    return {name: tensor for name, tensor in weights.items() if not (tied and name == DECODER)}


def _check_layers(weights: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    """InputError for a file in which nothing is BERT's."""
    if not count_layers(weights):
        example = next(iter(weights), "no tensors")
        raise InputError(f"{source}: no layers of a BERT encoder in it (found e.g. {example}); it cannot be converted")
    return weights


def _tensorflow_index(source: Path) -> Path | None:
    """The index of a TensorFlow checkpoint that was named by folder, file or prefix."""
    if source.is_dir():
        found = sorted(source.glob("*.ckpt*.index"))
        return found[0] if found and not has_weights(source) else None
    for path in (source, source.with_name(f"{source.name}.index")):
        if path.name.endswith(".index") and path.is_file():
            return path
    return None


def _read_tensorflow(index: Path) -> dict[str, Tensor]:
    """The weights of a TensorFlow checkpoint under PyTorch's names, optimiser state left out."""
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(f"{index}: a TensorFlow checkpoint, which only TensorFlow can read: `pip install "
                         f"tensorflow-cpu` and try again, or take the model's PyTorch files")  # fmt: skip
    import tensorflow  # type: ignore[import-not-found,unused-ignore]

    reader: Any = tensorflow.train.load_checkpoint(str(index).removesuffix(".index"))
    found = {}
    for original in sorted(reader.get_variable_to_shape_map()):
        if _TF_SKIPPED.fullmatch(original):
            continue
        name, tensor = original, torch.from_numpy(reader.get_tensor(original))
        for pattern, replacement in _TF_NAMES:
            name = re.sub(pattern, replacement, name)
        # A kernel multiplies from the right there.
        found[name.replace("/", ".")] = tensor.T.contiguous() if original.endswith("/kernel") else tensor
    return found
