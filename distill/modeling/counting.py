"""How large a BERT is: parameters under the field's counting conventions, and FLOPs a token."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel


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


def count_parameters(config: BertConfig) -> Parameters:
    """Parameter counts of a config, without allocating any weights."""
    with torch.device("meta"):
        encoder = BertModel(config, add_pooling_layer=False)
        return Parameters(
            with_pooler=_count(BertModel(config)),
            encoder=_count(encoder),
            masked_lm=_count(BertForMaskedLM(config)),
            pretraining=_count(BertForPreTraining(config)),
            embeddings=_count(encoder.embeddings),
        )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def flops_per_token(config: BertConfig, length: int, *, head_share: float = 0.0, layers: int | None = None) -> float:
    """Forward FLOPs a token: two for each weight that multiplies it, plus attention over `length` tokens.

    Args:
        head_share: share of the tokens whose prediction head is computed (1 = all, 0.15 = masked ones only).
        layers: how many of the layers run; default: all.
    """
    width, inner = config.hidden_size, config.intermediate_size
    layer = 2 * (4 * width * width + 2 * width * inner) + 4 * length * width
    head = 2 * (width * width + width * config.vocab_size)
    return (config.num_hidden_layers if layers is None else layers) * layer + head_share * head
