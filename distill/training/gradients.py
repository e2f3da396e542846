"""How hard each term of a loss pulls at the student: the norms of their gradients, measured beside the training."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from distill.corpus.batches import MicroBatch
from distill.training.loop import Teacher
from distill.training.losses import UNITS
from distill.training.objective import Objective


def term_gradient_norms(
    objective: Objective, batch: MicroBatch, teacher: Teacher | None, *, scale: float = 1.0
) -> dict[str, float]:
    """The gradient norm of every term with respect to the student's parameters, by the term's short name.

    Projections are left out: what matters is what reaches the student. Dropout is off and no `.grad` is touched, so
    that training goes on bit for bit as if nothing had been measured.

    Args:
        scale: multiplies the terms before their gradients are taken, and the norms are divided by it (fp16).
    Returns: norms of the terms without their weights; one that is not finite is left out.
    """
    training = [module for module in objective.modules() if module.training]
    objective.eval()
    try:
        features = teacher(batch)[objective.teacher_needs.attention] if teacher else None
        _, terms = objective.loss_and_terms(batch, features, dict.fromkeys(UNITS, 1.0))
        parameters = [parameter for parameter in objective.student.parameters() if parameter.requires_grad]
        norms = {name: _gradient_norm(term * scale, parameters) / scale for name, term in terms.items()}
    finally:
        for module in training:
            module.training = True
    values = dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True))
    return {name: value for name, value in values.items() if math.isfinite(value)}


def describe_norms(objective: Objective, norms: Mapping[str, float]) -> dict[str, float]:
    """What the log says: `grad_norm_NAME`, `weighted_grad_norm_NAME` with the term's weight, and `balance_NAME`."""
    weights, factors = objective.term_weights(), objective.factors()
    return {
        **{f"grad_norm_{name}": norm for name, norm in norms.items()},
        **{f"weighted_grad_norm_{name}": weights[name] * factors.get(name, 1.0) * norm for name, norm in norms.items()},
        **{f"balance_{name}": factor for name, factor in factors.items()},
    }


def balance_factors(
    norms: Mapping[str, float], weights: Mapping[str, float], shares: Mapping[str, float]
) -> dict[str, float]:
    """Factors for the terms' weights by which each term's weighted gradient norm gets its share of their sum.

    The sum stays as it is. Terms without gradient, or without weight, get no factor.

    Args:
        norms: of the unweighted terms.
        shares: relative to each other.
    """
    pulls = {name: weights[name] * norm for name, norm in norms.items() if weights[name] * norm * shares[name] > 0}
    unit = sum(pulls.values()) / (sum(shares[name] for name in pulls) or 1.0)
    return {name: shares[name] * unit / pull for name, pull in pulls.items()}


def _gradient_norm(term: Tensor, parameters: list[torch.nn.Parameter]) -> Tensor:
    gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    return torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
