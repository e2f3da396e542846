"""How a student's weights are updated: which parameters by which optimiser, with which decay, and the learning rate."""

import json
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW
from transformers import get_scheduler

from distill.errors import InputError
from distill.recipe import Student
from distill.training.muon import MuonAdamW, muon_dtype
from distill.training.objective import Objective

ADAMW_STATE, MUON_STATE = ("step", "exp_avg", "exp_avg_sq"), ("momentum_buffer",)
"""What the optimisers keep for a parameter."""
STABLE = "warmup_stable_decay"


def build_optimizer(
    objective: Objective, settings: Student, device: torch.device, dtype: torch.dtype
) -> torch.optim.AdamW:
    """AdamW of everything, or Muon of the encoder's matrices with AdamW of the rest; `dtype` is the stage's."""
    by_muon = settings.optimizer == "muon"
    groups = parameter_groups(objective, settings.weight_decay, by_muon=by_muon)
    options: dict[str, Any] = {
        "lr": settings.learning_rate, "betas": (0.9, 0.999), "eps": 1e-6, "fused": device.type in ("cpu", "cuda"),
    }  # fmt: skip
    return MuonAdamW(groups, dtype=muon_dtype(device, dtype), **options) if by_muon else AdamW(groups, **options)


def parameter_groups(objective: Objective, weight_decay: float, *, by_muon: bool = False) -> list[dict[str, Any]]:
    """Groups: matrices decay, biases and LayerNorm do not; a projection with options has its own group.

    Args:
        by_muon: the matrices of the encoder's layers are in a group of their own, "muon": True. Embeddings, prediction
            head and projections, whose rows or outputs are no hidden units, are never in it.
    """
    groups: list[dict[str, Any]] = []
    own = {
        id(p): number
        for number in objective.projection_options
        for p in objective.projections[number].parameters()
    }  # fmt: skip
    rest = [p for p in objective.parameters() if p.requires_grad and id(p) not in own]
    encoder = {id(p) for p in objective.student.bert.encoder.parameters()} if by_muon else set()
    matrices = [p for p in rest if p.dim() >= 2]
    groups.append({"params": [p for p in matrices if id(p) not in encoder], "weight_decay": weight_decay})
    groups.append({"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0})
    for number, options in objective.projection_options.items():
        groups.append({"params": list(objective.projections[number].parameters()), **options, "muon": False})
    if by_muon:
        hidden = [p for p in matrices if id(p) in encoder]
        groups.append({"params": hidden, "weight_decay": weight_decay, "muon": True})
    return groups


def build_scheduler(optimizer: torch.optim.Optimizer, settings: Student, steps: int) -> Any:
    """One of transformers' learning-rate schedules over `steps` optimiser steps, stepped once after each.

    The rate is a function of the step alone, so that nothing but the step has to be kept.
    """
    return _make_scheduler(
        settings.scheduler, optimizer, steps, warmup=round(settings.warmup_ratio * steps),
        decay=round(settings.decay_ratio * steps),
    )  # fmt: skip


def _make_scheduler(name: str, optimizer: torch.optim.Optimizer, steps: int, *, warmup: int, decay: int) -> Any:
    options: dict[str, Any] = {}
    if name == STABLE:
        # 1 - sqrt(t): the way down that ended lowest of those compared in https://arxiv.org/abs/2405.18392.
        options = {"num_decay_steps": min(max(1, decay), steps - warmup), "decay_type": "1-sqrt"}
    return get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=steps, scheduler_specific_kwargs=options
    )


def check_scheduler(name: str, *, where: str) -> None:
    """InputError unless transformers has this schedule and it needs no more than the lengths of its parts."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        scheduler = _make_scheduler(name, optimizer, 3, warmup=1, decay=1)
        optimizer.step()
        scheduler.step()
        json.dumps(scheduler.state_dict())
    except (ValueError, TypeError):
        usable = "linear, constant, constant_with_warmup, cosine, polynomial, inverse_sqrt, warmup_stable_decay"
        raise InputError(f"{where}: scheduler '{name}' cannot be used here; take one of: {usable}") from None
