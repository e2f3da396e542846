"""How hard each term of a loss pulls at the student: the norms of their gradients, measured beside the training."""

import math

import torch
from torch import Tensor

from distill.corpus.batches import MicroBatch
from distill.training.loop import Teacher
from distill.training.losses import UNITS
from distill.training.objective import Objective


def term_gradient_norms(
    objective: Objective, batch: MicroBatch, teacher: Teacher | None, *, scale: float = 1.0
) -> dict[str, float]:
    """The gradient norm of every term with respect to the student's parameters, plain and times the term's weight.

    Projections are left out: what matters is what reaches the student. Dropout is off and no `.grad` is touched, so
    that training goes on bit for bit as if nothing had been measured.

    Args:
        scale: multiplies the terms before their gradients are taken, and the norms are divided by it (fp16).
    Returns: `grad_norm_NAME` and `weighted_grad_norm_NAME` for every term, on this process's micro-batch alone;
        one that is not finite is left out.
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
    weights = objective.term_weights()
    values = dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True))
    values = {name: value for name, value in values.items() if math.isfinite(value)}
    plain = {f"grad_norm_{name}": value for name, value in values.items()}
    return plain | {f"weighted_grad_norm_{name}": weights[name] * value for name, value in values.items()}


def _gradient_norm(term: Tensor, parameters: list[torch.nn.Parameter]) -> Tensor:
    gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    return torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
