"""One student in training: its objective, optimiser, scheduler and scaler, and how they go to disk and come back."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertForMaskedLM, get_scheduler

from distill.errors import InputError
from distill.recipe import Student
from distill.training.matches import Match
from distill.training.objective import Objective
from distill.training.precision import Autocast


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on all parts, in order."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def student_seed(settings: Student, *parts: object) -> tuple[object, ...]:
    """What a student's initial weights, projections and dropout are derived from: its own seed, else these parts."""
    return parts if settings.seed is None else ("student seed", settings.seed)


class StudentRun:
    """A student with everything that one of its optimiser steps changes.

    Nothing in it depends on other students of the pass: initial projections and dropout come from its seed, clipping
    and optimiser are its own.
    """

    def __init__(
        self,
        name: str,
        model: BertForMaskedLM,
        settings: Student,
        *,
        matches: list[Match],
        distilled: bool,
        steps: int,
        seed_parts: tuple[object, ...],
        device: torch.device,
        dtype: torch.dtype,
        autocast: Autocast,
    ) -> None:
        self.name = name
        self.settings = settings
        self.seed_parts = student_seed(settings, *seed_parts, name)
        scale = settings.temperature**2 if settings.kd_scale == "tau_squared" else 1.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(*self.seed_parts, "projections"))
            self.objective = Objective(
                model, matches=matches, temperature=settings.temperature, kd_loss=settings.kd_loss,
                kd_weight=settings.kd_weight * scale, mlm_weight=settings.mlm_weight, distilled=distilled,
                autocast=autocast,
            ).to(device).train()  # fmt: skip
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.objective, settings.weight_decay),
            lr=settings.learning_rate, betas=(0.9, 0.999), eps=1e-6, fused=device.type in ("cpu", "cuda"),
        )  # fmt: skip
        self.scheduler = build_scheduler(self.optimizer, settings, steps)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.objective.parameters() if parameter.requires_grad]

    def seed_dropout(self, *, step: int, micro_step: int, rank: int) -> None:
        """Sets the random state for one forward, so that no random state has to be stored or shared."""
        torch.manual_seed(derive_seed(*self.seed_parts, "dropout", step, micro_step, rank))

    def step(self) -> Tensor:
        """Clips, updates and clears the gradients. Returns the gradient norm before clipping, on the device."""
        self.scaler.unscale_(self.optimizer)
        limit = self.settings.max_grad_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(self.parameters, limit)
        if self.scaler.is_enabled():
            # fp16: the scaler tries larger scales now and then, and skips a step that overflows; that is no failure.
            norm = torch.where(norm.isfinite(), norm, torch.zeros_like(norm))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def is_finite(self) -> bool:
        """Whether all weights and moments are numbers; waits for the device."""
        return all(bool(value.isfinite().all()) for named in self.tensors().values() for value in named.values())

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """File stem -> name -> tensor: weights with projections, and the optimiser's moments by parameter name."""
        weights = {name: value for name, value in self.objective.named_parameters()}
        moments = {
            f"{name}.{key}": value
            for name, parameter in weights.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        return {self.name: {name: value.data for name, value in weights.items()}, f"{self.name}+optimizer": moments}

    def state(self) -> dict[str, Any]:
        """JSON values beside the tensors."""
        return {"scheduler": self.scheduler.state_dict(), "scaler": self.scaler.state_dict()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Takes over what `tensors` and `state` gave."""
        weights, moments = tensors[self.name], tensors[f"{self.name}+optimizer"]
        for name, parameter in self.objective.named_parameters():
            parameter.copy_(weights[name])
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if f"{name}.{key}" in moments:
                    self.optimizer.state[parameter][key] = moments[f"{name}.{key}"].to(parameter.device)
        self.scheduler.load_state_dict(dict(state["scheduler"]))
        for group, rate in zip(self.optimizer.param_groups, state["scheduler"]["_last_lr"], strict=True):
            group["lr"] = rate
        self.scaler.load_state_dict(dict(state["scaler"]))


def parameter_groups(objective: Objective, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: matrices decay, biases and LayerNorm do not; a projection with options has its own group."""
    groups: list[dict[str, Any]] = []
    own = {
        id(p): number
        for number in objective.projection_options
        for p in objective.projections[number].parameters()
    }  # fmt: skip
    rest = [p for p in objective.parameters() if p.requires_grad and id(p) not in own]
    groups.append({"params": [p for p in rest if p.dim() >= 2], "weight_decay": weight_decay})
    groups.append({"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0})
    for number, options in objective.projection_options.items():
        groups.append({"params": list(objective.projections[number].parameters()), **options})
    return groups


def build_scheduler(optimizer: torch.optim.Optimizer, settings: Student, steps: int) -> Any:
    """One of transformers' learning-rate schedules over `steps` optimiser steps, stepped once after each."""
    warmup = round(settings.warmup_ratio * steps)
    return get_scheduler(settings.scheduler, optimizer, num_warmup_steps=warmup, num_training_steps=steps)


def check_scheduler(name: str, *, where: str) -> None:
    """InputError unless transformers has this schedule and it needs no more than warm-up and length."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        scheduler = get_scheduler(name, optimizer, num_warmup_steps=1, num_training_steps=2)
        optimizer.step()
        scheduler.step()
        json.dumps(scheduler.state_dict())
    except (ValueError, TypeError):
        usable = "linear, constant, constant_with_warmup, cosine, polynomial, inverse_sqrt"
        raise InputError(f"{where}: scheduler '{name}' cannot be used here; take one of: {usable}") from None
