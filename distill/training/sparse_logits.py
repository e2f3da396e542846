"""Sparse teacher logits: a few tokens and weights a masked position in place of a row of the whole vocabulary.

Two ways to choose them from the teacher's probabilities p at the temperature of the stage:

sample  N draws from p, a token's weight is its share of them. Its mean is p itself, so loss and gradient are unbiased
        (random sampling KD of "Sparse Logit Sampling", https://arxiv.org/abs/2503.16870). The paper's draws are
        independent; here draw i falls into the i-th of N equal parts of the probability, which has the same mean and
        never more variance.
top_k   the N likeliest tokens, their probabilities divided by their sum. Biased: the student hears nothing of the
        rest of the vocabulary, and too much of these. Here for comparison.
"""

# N masked tokens, V vocabulary, D draws or kept tokens, K at most D different tokens

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from textbrewer.distiller_utils import register_new
from torch import Tensor

SPARSE_KD_LOSS = "ce_sparse"
"""TextBrewer's name of the loss below; a stage with a teacher cache takes it in place of `ce`."""


@dataclass(frozen=True)
class SparseLogits:
    """What stands in for the teacher's logits: tokens and weights at its temperature, padded with weight 0."""

    ids: Tensor  # [N, K]
    weights: Tensor  # [N, K], each row sums to 1


def ce_sparse(logits_S: Tensor, teacher: SparseLogits, temperature: float) -> Tensor:
    """Cross-entropy of the student's probabilities to sparse ones of the teacher, mean over masked tokens.

    -sum_k w_k log_softmax(z_S / temperature)[id_k]: TextBrewer's `ce` with w in place of softmax(z_T / temperature).

    Args:
        logits_S: [N, V].
        temperature: the one that the teacher's weights were made at.
    """
    log_probabilities = F.log_softmax(logits_S.float() / temperature, dim=-1)
    return -(teacher.weights * log_probabilities.gather(1, teacher.ids)).sum(dim=-1).mean()


def draw_tokens(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """[N, D] tokens drawn from softmax(logits / temperature), ascending in each row, with repeats.

    Args:
        logits: [N, V], float32.
        uniform: [N, D], float64 in [0, 1): decides where in its D-th of the probability each draw falls.
    """
    if logits.device.type == "mps":
        logits = logits.cpu()  # no float64 there
    draws = uniform.size(1)
    # Sums of 20,000 small numbers: float32 would misplace the last tokens by as much as they weigh.
    edges = torch.softmax(logits / temperature, dim=-1).cumsum(dim=-1, dtype=torch.float64)
    parts = torch.arange(draws, dtype=torch.float64, device=edges.device)
    places = (parts + uniform.to(edges.device)) / draws * edges[:, -1:]
    return torch.searchsorted(edges, places, right=True).clamp_(max=logits.size(1) - 1)


def keep_likeliest(logits: Tensor, size: int, temperature: float) -> tuple[Tensor, Tensor]:
    """The `size` likeliest tokens [N, D] of each row, the first first, and their weights, which sum to 1."""
    weights, ids = torch.softmax(logits / temperature, dim=-1).topk(size, dim=-1)
    return ids, weights / weights.sum(dim=-1, keepdim=True)


register_new("kd_loss", SPARSE_KD_LOSS, ce_sparse)
