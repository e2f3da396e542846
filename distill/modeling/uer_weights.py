"""UER's and TencentPretrain's checkpoints: their names for BERT's weights, their LayerNorm, and their forward.

UER divides by the unbiased standard deviation plus 1e-6 (uer/layers/layer_norm.py), everybody else by the root of the
biased variance. The two differ by the factor sqrt((H - 1) / H), which can be folded into LayerNorm's weight. The
official converter leaves it out, so that the published uer/* models on the hub differ from UER's own outputs by that.
Names on the other side are those of BertForPreTraining. B sequences, L tokens, H width, V vocabulary.
"""

import math
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import InputError
from distill.modeling.weight_files import BIAS, DECODER, DECODER_BIAS

_NORM_EPS = 1e-6
_MODULES = {
    "embedding.word.embedding": "bert.embeddings.word_embeddings",
    "embedding.pos.embedding": "bert.embeddings.position_embeddings",
    "embedding.seg.embedding": "bert.embeddings.token_type_embeddings",
    "embedding.layer_norm": "bert.embeddings.LayerNorm",
    "target.mlm.linear_1": "cls.predictions.transform.dense",
    "target.mlm.layer_norm": "cls.predictions.transform.LayerNorm",
    "target.mlm.linear_2": "cls.predictions.decoder",
    "target.sp.linear_1": "bert.pooler.dense",
    "target.sp.linear_2": "cls.seq_relationship",
}
_CLASSIFIER = {"output_layer_1": "bert.pooler.dense", "output_layer_2": "classifier"}
_LAYER_MODULES = {
    "self_attn.linear_layers.0": "attention.self.query",
    "self_attn.linear_layers.1": "attention.self.key",
    "self_attn.linear_layers.2": "attention.self.value",
    "self_attn.final_linear": "attention.output.dense",
    "layer_norm_1": "attention.output.LayerNorm",
    "feed_forward.linear_1": "intermediate.dense",
    "feed_forward.linear_2": "output.dense",
    "layer_norm_2": "output.LayerNorm",
}
_OLD = {  # before 2022
    "embedding.word_embedding.": "embedding.word.embedding.",
    "embedding.position_embedding.": "embedding.pos.embedding.",
    "embedding.segment_embedding.": "embedding.seg.embedding.",
    "target.mlm_linear_1.": "target.mlm.linear_1.",
    "target.mlm_linear_2.": "target.mlm.linear_2.",
    "target.layer_norm.": "target.mlm.layer_norm.",
    "target.nsp_linear_1.": "target.sp.linear_1.",
    "target.nsp_linear_2.": "target.sp.linear_2.",
}
_LAYER = re.compile(r"(encoder\.transformer|bert\.encoder\.layer)\.(\d+)\.(.+)")
_SEGMENTS = "bert.embeddings.token_type_embeddings.weight"
WORDS = "bert.embeddings.word_embeddings.weight"


def is_uer(names: Mapping[str, Tensor]) -> bool:
    """Whether weights are named as UER and TencentPretrain do."""
    return any(name.startswith(("encoder.transformer.", "embedding.")) for name in names)


def from_uer(weights: Mapping[str, Tensor], *, exact: bool, where: str) -> dict[str, Tensor]:
    """The weights under BERT's names.

    Args:
        exact: fold UER's LayerNorm into its weights, so that outputs are equal; else as the official converter does.
    Raises:
        InputError: weights that a BERT encoder has no place for; a tagging or reading head.
    """
    modules = _MODULES | _CLASSIFIER
    found = {}
    for original, tensor in weights.items():
        name = next(
            (new + original.removeprefix(old) for old, new in _OLD.items() if original.startswith(old)), original
        )
        if name.startswith("output_layer."):
            raise InputError(
                f"{where}: holds a tagging or reading head ({original}), which its names do not tell apart; convert "
                "the pre-trained model and fine-tune that"
            )
        module, _, kind = name.rpartition(".")
        target = _translate(module, modules, _LAYER_MODULES, "bert.encoder.layer")
        if target is None:
            raise InputError(
                f"{where}: {original} has no place in a BERT encoder; only UER's BERT models are converted"
            )
        found[f"{target}.{ {'gamma': 'weight', 'beta': 'bias'}.get(kind, kind) }"] = tensor
    if DECODER_BIAS in found:
        found[BIAS] = found.pop(DECODER_BIAS)
    if _SEGMENTS in found:
        found[_SEGMENTS] = found[_SEGMENTS][1:]  # row 0 is padding's
    return _scale_norms(found, -0.5) if exact else found


def to_uer(weights: Mapping[str, Tensor], *, exact: bool, where: str) -> dict[str, Tensor]:
    """The weights of a BERT under UER's names; row 0 of the segment embeddings, padding's, is 0.

    Args:
        weights: under BertForPreTraining's names; without decoder if that is tied.
        exact: as in `from_uer`.
    Raises:
        InputError: weights that UER has no name for.
    """
    scaled = _scale_norms(weights, 0.5) if exact else dict(weights)
    modules = {theirs: ours for ours, theirs in _MODULES.items()}
    if "classifier.weight" in scaled:
        modules |= {theirs: ours for ours, theirs in _CLASSIFIER.items()}
    layer_modules = {theirs: ours for ours, theirs in _LAYER_MODULES.items()}
    if BIAS in scaled:
        scaled[DECODER_BIAS] = scaled.pop(BIAS)
        scaled.setdefault(DECODER, scaled[WORDS])
    found = {}
    for name, tensor in scaled.items():
        module, _, kind = name.rpartition(".")
        target = _translate(module, modules, layer_modules, "encoder.transformer")
        if target is None:
            raise InputError(f"{where}: UER has no name for {name}; convert the pre-trained model")
        if "LayerNorm" in module:
            kind = {"weight": "gamma", "bias": "beta"}[kind]
        found[f"{target}.{kind}"] = tensor
    segments = found["embedding.seg.embedding.weight"]
    found["embedding.seg.embedding.weight"] = torch.cat([torch.zeros_like(segments[:1]), segments])
    return found


def _translate(module: str, modules: Mapping[str, str], layer_modules: Mapping[str, str], layers: str) -> str | None:
    """The other side's name of a module, None if it has none."""
    if layer := _LAYER.fullmatch(module):
        inner = layer_modules.get(layer[3])
        return f"{layers}.{layer[2]}.{inner}" if inner else None
    return modules.get(module)


def _scale_norms(weights: Mapping[str, Tensor], power: float) -> dict[str, Tensor]:
    """All LayerNorm weights times (H / (H - 1)) ** power."""
    return {
        name: tensor * (len(tensor) / (len(tensor) - 1)) ** power if name.endswith("LayerNorm.weight") else tensor
        for name, tensor in weights.items()
    }


@torch.no_grad()
def uer_forward(
    weights: Mapping[str, Tensor], input_ids: Tensor, *, heads: int, exact: bool
) -> tuple[Tensor, Tensor | None]:
    """UER's own arithmetic, to check a conversion by: hidden states [B, L, H] and logits [B, L, V], None without head.

    Args:
        weights: under UER's present names; gelu as activation.
        input_ids: [B, L], no padding, one segment.
        exact: with UER's LayerNorm, else with everybody's.
    """

    def norm(x: Tensor, name: str) -> Tensor:
        gamma, beta = weights[f"{name}.gamma"], weights[f"{name}.beta"]
        if not exact:
            return F.layer_norm(x, gamma.shape, gamma, beta, eps=1e-12)
        return gamma * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + _NORM_EPS) + beta

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    size, length = input_ids.shape
    words, positions, segments = (weights[f"embedding.{kind}.embedding.weight"] for kind in ("word", "pos", "seg"))
    x = norm(words[input_ids] + positions[:length] + segments[1], "embedding.layer_norm")
    for number in range(count_layers(weights)):
        layer = f"encoder.transformer.{number}"
        query, key, value = (
            linear(x, f"{layer}.self_attn.linear_layers.{i}").view(size, length, heads, -1).transpose(1, 2)
            for i in range(3)
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(size, length, -1)
        x = norm(x + linear(mixed, f"{layer}.self_attn.final_linear"), f"{layer}.layer_norm_1")
        inner = linear(F.gelu(linear(x, f"{layer}.feed_forward.linear_1")), f"{layer}.feed_forward.linear_2")
        x = norm(x + inner, f"{layer}.layer_norm_2")
    if "target.mlm.linear_1.weight" not in weights:
        return x, None
    transformed = norm(F.gelu(linear(x, "target.mlm.linear_1")), "target.mlm.layer_norm")
    return x, linear(transformed, "target.mlm.linear_2")


def count_layers(names: Mapping[str, Tensor]) -> int:
    """The number of layers, under either side's names: one above the highest."""
    return max((int(found[2]) + 1 for name in names if (found := _LAYER.match(name))), default=0)
