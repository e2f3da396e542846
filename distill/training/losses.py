"""What TextBrewer's match losses average over, repaired versions of the ones it has wrong, and MiniLMv2's relations.

Ours join TextBrewer's registry under names of their own; TextBrewer's are never overwritten. A user's losses come the
same way, see plugins.py.
"""

# B sequences, h heads, L tokens, H width

import functools
import math
import re

import torch
import torch.nn.functional as F
from textbrewer.distiller_utils import register_new
from textbrewer.presets import FEATURES, MATCH_LOSS_MAP
from torch import Tensor

# The unit whose mean a loss is: a loss over part of a batch counts by its share of these units (DESIGN: objective).
MASKED, TOKENS, TOKEN_PAIRS, SEQUENCES = "masked", "tokens", "token_pairs", "sequences"
UNITS = (MASKED, TOKENS, TOKEN_PAIRS, SEQUENCES)
_UNITS = {
    "hidden_mse": TOKENS, "cos": TOKENS, "attention_ce": TOKENS, "attention_ce_mean": TOKENS,
    "attention_ce_probs": TOKENS, "attention_mse": TOKEN_PAIRS, "attention_mse_sum": TOKEN_PAIRS,
    "mmd": TOKEN_PAIRS, "nst": TOKEN_PAIRS, "mmd_fixed": TOKEN_PAIRS,
    "pkd": SEQUENCES, "gram": SEQUENCES, "fsp": SEQUENCES,
}  # fmt: skip

PAIR_LOSSES = {"gram", "fsp", "mmd", "nst", "mmd_fixed"}
"""Losses that compare the product of two layers, and so take lists of two layer numbers."""
SAME_WIDTH_LOSSES = {"hidden_mse", "cos", "pkd", "gram", "fsp"}
"""TextBrewer's losses that need student and teacher states of one width."""
MASK_DEPENDENT_LOSSES = {"mmd", "nst"}
"""Losses whose value changes when an all-ones mask is given, so that the mask must be given always or never."""


VECTORS = ("query", "key", "value")
"""Features of one attention layer, [B, L, H] each, before they are split into the layer's own heads."""
STATES = ("hidden", *VECTORS)
"""Features that are [B, L, H]: every loss of states can compare any of them."""
FEATURES.extend(feature for feature in VECTORS if feature not in FEATURES)

_RELATION = re.compile(r"(sample_)?relation_([1-9][0-9]*)")
PUBLISHED_RELATION_HEADS = 48
"""MiniLMv2's number of relation heads for teachers 768 wide."""


def is_match_loss(loss: str) -> bool:
    """Whether TextBrewer's registry has this loss; `[sample_]relation_<heads>` joins it when it is first asked for."""
    heads = relation_heads(loss)
    if heads and loss not in MATCH_LOSS_MAP:
        divergence = sample_relation_divergence if loss.startswith("sample_") else relation_divergence
        register_new("match_Loss", loss, functools.partial(divergence, heads=heads))
    return loss in MATCH_LOSS_MAP


def relation_heads(loss: str) -> int | None:
    """The number in `relation_<heads>` or `sample_relation_<heads>`, or None for another loss."""
    found = _RELATION.fullmatch(loss)
    return int(found[2]) if found else None


def published_heads(width_S: int, width_T: int) -> int:
    """The most relation heads up to MiniLMv2's 48 that both widths can be cut into."""
    common = math.gcd(width_S, width_T)
    return max(n for n in range(1, PUBLISHED_RELATION_HEADS + 1) if common % n == 0)


def loss_features(loss: str) -> tuple[str, ...]:
    """The features that a word such as `last:LOSS` compares with it."""
    if relation_heads(loss):
        return VECTORS
    return ("attention",) if loss.startswith("attention") else ("hidden",)


def loss_unit(loss: str) -> str:
    """The unit a match loss averages over: TextBrewer's by name, others by their attribute `unit`, else tokens."""
    return _UNITS.get(loss) or str(getattr(MATCH_LOSS_MAP.get(loss), "unit", TOKENS))


def needs_same_width(loss: str) -> bool:
    """Whether student and teacher states must have one width, so that unequal ones need a projection."""
    return loss in SAME_WIDTH_LOSSES or getattr(MATCH_LOSS_MAP.get(loss), "same_width", False)


def any_head_count(loss: str) -> bool:
    """Whether an attention loss sums or averages the heads first, so that the two head counts may differ."""
    return loss.endswith(("_sum", "_mean"))


def mmd_fixed(state_S: list[Tensor], state_T: list[Tensor], mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of the token-by-token similarity matrices of student and teacher.

    TextBrewer's `mmd` (losses.py `mmd_loss`, NST of https://arxiv.org/abs/1707.01219) with one change: with a mask
    the published package divides the products by the row length instead of the width; here it is the width always.

    Args:
        state_S, state_T: two tensors [B, L, H] each; the widths may differ.
        mask: [B, L], 1 = counts.
    """
    gram_S, gram_T = (torch.bmm(a, b.transpose(1, 2)) / b.size(2) for a, b in (state_S, state_T))
    if mask is None:
        return F.mse_loss(gram_S, gram_T)
    mask = mask.to(gram_S)
    difference = (gram_S - gram_T).square() * mask.unsqueeze(-1) * mask.unsqueeze(1)
    return difference.sum() / mask.sum(dim=1).square().sum().clamp(min=1)


def attention_ce_probs(attention_S: Tensor, attention_T: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy of the student's attention rows to the teacher's, mean over heads and valid tokens.

    TextBrewer's `attention_ce` applies a softmax, but transformers returns probabilities already, so that it computes
    the softmax of a softmax, nearly a constant. Here the inputs are probabilities, [B, h, L, L]; mask is [B, L].
    """
    cross_entropy = -(attention_T * attention_S.clamp(min=1e-9).log()).sum(dim=-1)
    if mask is None:
        return cross_entropy.mean()
    mask = mask.to(cross_entropy).unsqueeze(1).expand_as(cross_entropy)
    return (cross_entropy * mask).sum() / mask.sum().clamp(min=1)


def relation_divergence(state_S: Tensor, state_T: Tensor, mask: Tensor | None = None, *, heads: int) -> Tensor:
    """KL divergence of the student's token relations from the teacher's, mean over relation heads and valid tokens.

    MiniLMv2, https://arxiv.org/abs/2012.15828, equations 4 to 6: the states are cut into `heads` relation heads of
    width H / heads each, whatever the model's own heads are; softmax(A A^T / sqrt(H / heads)) relates a token to
    all others. With queries, keys or values as states these are its Q-Q, K-K and V-V relations.

    Args:
        state_S, state_T: [B, L, H]; the widths may differ, `heads` divides both.
        mask: [B, L], 1 = counts, both as the token that relates and as the one related to.
    """
    log_S, log_T = (_log_relations(state, mask, heads) for state in (state_S, state_T))
    divergence = F.kl_div(log_S, log_T, reduction="none", log_target=True).sum(dim=-1)
    if mask is None:
        return divergence.mean()
    mask = mask.to(divergence)
    return (divergence.mean(dim=1) * mask).sum() / mask.sum().clamp(min=1)


def sample_relation_divergence(state_S: Tensor, state_T: Tensor, mask: Tensor | None = None, *, heads: int) -> Tensor:
    """`relation_divergence` between samples: how a token relates to the tokens at its position in the other sequences.

    PP-MiniLM's sample-to-sample relation (PaddleNLP, `calc_multi_relation_loss`). The sequences are those of a
    micro-batch, so that unlike other losses it depends on how a step is cut.

    Args:
        state_S, state_T: [B, L, H]; the widths may differ, `heads` divides both.
        mask: [B, L], 1 = counts, both as the token that relates and as the one related to.
    """
    mask = None if mask is None else mask.transpose(0, 1)
    return relation_divergence(state_S.transpose(0, 1), state_T.transpose(0, 1), mask, heads=heads)


def _log_relations(states: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """Log-probabilities [B, heads, L, L] of each token's relations."""
    split = states.unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = split @ split.transpose(2, 3) / math.sqrt(split.size(-1))
    if mask is not None:
        # Not -inf: its difference from itself is NaN, also where a probability of 0 is multiplied with it.
        scores = scores.masked_fill(mask[:, None, None, :] == 0, torch.finfo(scores.dtype).min)
    return scores.log_softmax(dim=-1)


register_new("match_Loss", "mmd_fixed", mmd_fixed)
register_new("match_Loss", "attention_ce_probs", attention_ce_probs)
