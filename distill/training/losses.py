"""What TextBrewer's match losses average over, and repaired versions of the ones it has wrong.

The repaired losses join TextBrewer's registry under names of their own; TextBrewer's are never overwritten.
"""

# B sequences, h heads, L tokens, H width

import torch
import torch.nn.functional as F
from textbrewer.distiller_utils import register_new
from torch import Tensor

# The unit whose mean a loss is: a loss over part of a batch counts by its share of these units (DESIGN: objective).
MASKED, TOKENS, TOKEN_PAIRS, SEQUENCES = "masked", "tokens", "token_pairs", "sequences"
_UNITS = {
    "hidden_mse": TOKENS, "cos": TOKENS, "attention_ce": TOKENS, "attention_ce_mean": TOKENS,
    "attention_ce_probs": TOKENS, "attention_mse": TOKEN_PAIRS, "attention_mse_sum": TOKEN_PAIRS,
    "mmd": TOKEN_PAIRS, "nst": TOKEN_PAIRS, "mmd_fixed": TOKEN_PAIRS,
    "pkd": SEQUENCES, "gram": SEQUENCES, "fsp": SEQUENCES,
}  # fmt: skip

PAIR_LOSSES = {"gram", "fsp", "mmd", "nst", "mmd_fixed"}
"""Losses that compare the product of two layers, and so take lists of two layer numbers."""
SAME_WIDTH_LOSSES = {"hidden_mse", "cos", "pkd", "gram", "fsp"}
"""Losses that need student and teacher states of one width, hence a projection where the widths differ."""
MASK_DEPENDENT_LOSSES = {"mmd", "nst"}
"""Losses whose value changes when an all-ones mask is given, so that the mask must be given always or never."""


def loss_unit(loss: str) -> str:
    """The unit a match loss averages over; a loss we do not know is taken as a mean over tokens."""
    return _UNITS.get(loss, TOKENS)


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


register_new("match_Loss", "mmd_fixed", mmd_fixed)
register_new("match_Loss", "attention_ce_probs", attention_ce_probs)
