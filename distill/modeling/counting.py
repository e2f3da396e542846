"""How large a BERT is: parameters under the field's counting conventions, and FLOPs a token."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AlbertForPreTraining,
    AlbertModel,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
)


@dataclass(frozen=True)
class Parameters:
    """Parameter counts of one architecture, tied weights counted once."""

    with_pooler: int
    """BertModel as transformers builds it."""
    encoder: int
    """BertModel without pooler."""
    masked_lm: int
    """BertForMaskedLM: encoder and prediction head, decoder tied. The convention of MiniRBT's tables."""
    pretraining: int
    """BertForPreTraining: pooler, prediction head and next-sentence head."""
    embeddings: int
    """Word, position and type embeddings with their LayerNorm."""

    @property
    def without_embeddings(self) -> int:
        """MiniRBT's "W/O embeddings": masked_lm minus embeddings."""
        return self.masked_lm - self.embeddings


def count_parameters(config: BertConfig | AlbertConfig) -> Parameters:
    """Parameter counts of a config, without allocating any weights. A layer that ALBERT runs four times counts once."""
    base: Any = BertModel
    heads: tuple[Any, Any] = (BertForMaskedLM, BertForPreTraining)
    if isinstance(config, AlbertConfig):
        base, heads = AlbertModel, (AlbertForMaskedLM, AlbertForPreTraining)
    with torch.device("meta"):
        encoder = base(config, add_pooling_layer=False)
        masked_lm, pretraining = (_count(head(config)) for head in heads)
        return Parameters(
            with_pooler=_count(base(config)),
            encoder=_count(encoder),
            masked_lm=masked_lm,
            pretraining=pretraining,
            embeddings=_count(encoder.embeddings),
        )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def flops_per_token(
    config: BertConfig | AlbertConfig, length: int, *, head_share: float = 0.0, layers: int | None = None
) -> float:
    """Forward FLOPs a token: two for each weight that multiplies it, plus attention over `length` tokens.

    Args:
        head_share: share of the tokens whose prediction head is computed (1 = all, 0.15 = masked ones only).
        layers: how many of the layers run; default: all.
    """
    width, inner = config.hidden_size, config.intermediate_size
    layer = 2 * (4 * width * width + 2 * width * inner) + 4 * length * width
    if isinstance(config, AlbertConfig):  # narrow embeddings, widened before the first layer and narrowed in the head
        narrow = config.embedding_size
        head = 2 * (width * narrow + narrow * config.vocab_size)
        return config.num_hidden_layers * layer + 2 * narrow * width + head_share * head
    head = 2 * (width * width + width * config.vocab_size)
    return (config.num_hidden_layers if layers is None else layers) * layer + head_share * head
