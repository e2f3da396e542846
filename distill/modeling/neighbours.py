"""A random start whose first layer looks at the neighbours of every token.

A masked-language model that starts at random learns how frequent the tokens are within a few hundred steps, and then
waits for the positions to become distinct: until then a mask cannot look at what stands beside it. Here they are
distinct from the first step: sinusoids as positions (Vaswani et al. 2017, section 3.5, with other frequencies), and
heads whose queries are the positions' keys, turned by one or two tokens (fixed ones: Raganato et al. 2020, Fixed
Encoder Self-Attention Patterns). All of it is trained like any weight. What it gains is in docs/quality.md.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from distill.errors import InputError

OFFSETS = (-1, 1, -2, 2)
PEAK = 8.0
"""Attention logit of the neighbour; those of other tokens are around 0."""
WAVE = 2.0
"""Root mean square of the sinusoids, in deviations of the other random weights."""


def check_neighbours(config: BertConfig, *, where: str) -> None:
    """InputError unless words find room beside the sinusoids, which are as many units as a head is wide."""
    if config.num_attention_heads < 2:
        raise InputError(
            f"{where}: init_attention: the config has {config.num_attention_heads} attention head; give it 2 or more, "
            "since the positions take as many of the hidden units as a head is wide"
        )


@torch.no_grad()
def look_at_neighbours(model: BertForMaskedLM, *, seed: int) -> None:
    """Sets the positions and up to four heads of the first layer of a random model, in place.

    With K frequencies, one in each K-th of 0 to pi, the product of two positions' sinusoids is K times their squared
    amplitude at distance 0 and near 0 at every other. Within its K-th a frequency is drawn, so that no distance
    comes close to 0 again.

    Args:
        seed: decides the frequencies.
    """
    config, embeddings = model.config, model.bert.embeddings
    size, deviation = config.hidden_size // config.num_attention_heads, config.initializer_range
    number = size // 2
    waves = slice(0, 2 * number)
    drawn = torch.rand(number, generator=torch.Generator().manual_seed(seed))
    frequencies = math.pi * (torch.arange(number) + drawn) / number
    angles = torch.arange(config.max_position_embeddings)[:, None] * frequencies
    sinusoids = torch.cat([angles.cos(), angles.sin()], dim=1)
    height = math.sqrt(2) * WAVE  # in deviations
    embeddings.position_embeddings.weight[:, waves] = height * deviation * sinusoids
    embeddings.word_embeddings.weight[:, waves] = 0

    # What LayerNorm makes of the height: all other units are the sum of a word and a position, 2 deviations^2.
    share = 2 * number / config.hidden_size
    amplitude = height / math.sqrt(share * WAVE**2 + (1 - share) * 2)
    gain = math.sqrt(PEAK * math.sqrt(size) / number) / amplitude
    attention = model.get_submodule("bert.encoder.layer.0.attention.self")
    for head, offset in zip(range(config.num_attention_heads), OFFSETS, strict=False):
        rows = slice(head * size, head * size + 2 * number)
        _set(attention.get_submodule("key"), rows, gain * torch.eye(2 * number))
        _set(attention.get_submodule("query"), rows, gain * _turn(frequencies * offset))


def _turn(angles: Tensor) -> Tensor:
    """[2K, 2K]: turns units i and K + i by angle i, which makes the sinusoids of p those of p + offset."""
    cos, sin = angles.cos().diag(), angles.sin().diag()
    return torch.cat([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)])


def _set(linear: nn.Module, rows: slice, weight: Tensor) -> None:
    """These outputs read the sinusoids alone."""
    linear.get_parameter("weight")[rows] = F.pad(weight, (0, linear.get_parameter("weight").shape[1] - len(weight)))
    linear.get_parameter("bias")[rows] = 0
