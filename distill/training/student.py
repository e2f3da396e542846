"""One student in training: its objective, optimiser, scheduler and scaler, and how they go to disk and come back."""

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import BertForMaskedLM

from distill.corpus.schedule import scheduled_value
from distill.errors import InputError
from distill.recipe import Student
from distill.training.compiling import Loss, compile_loss
from distill.training.matches import Match
from distill.training.objective import Objective
from distill.training.optimizer import ADAMW_STATE, MUON_STATE, build_optimizer, build_scheduler
from distill.training.precision import autocast_for


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
        compiled: bool = False,
    ) -> None:
        self.name = name
        self.settings = settings
        self.seed_parts = student_seed(settings, *seed_parts, name)
        # A temperature that changes brings its own factor.
        scale = 1.0 if settings.temperature_end else self._kd_factor(settings.temperature)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(*self.seed_parts, "projections"))
            self.objective = Objective(
                model, matches=matches, temperature=settings.temperature, kd_loss=settings.kd_loss,
                kd_weight=settings.kd_weight * scale, mlm_weight=settings.mlm_weight, distilled=distilled,
                autocast=autocast_for(dtype, device),
            ).to(device).train()  # fmt: skip
        self.average = copy.deepcopy(self.objective.student).requires_grad_(False) if settings.ema else None
        """The moving average of the student's weights, if one is kept."""
        # The hooks that catch queries, keys and values come and go with each forward, which dynamo cannot follow.
        can_compile = not self.objective.student_needs.vectors
        self.loss: Loss = compile_loss(self.objective) if compiled and can_compile else self.objective
        """The objective as the loop calls it."""
        self.optimizer = build_optimizer(self.objective, settings, device, dtype)
        self.scheduler = build_scheduler(self.optimizer, settings, steps)
        self.steps = steps
        self._move_temperature()
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        # How many updates were left out, how many of them are not yet told, and the first of those: on the device, so
        # that nothing waits for it.
        self._left_out = torch.zeros(3, dtype=torch.int64, device=device)

    @property
    def is_compiled(self) -> bool:
        return self.loss is not self.objective

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.objective.parameters() if parameter.requires_grad]

    @property
    def published(self) -> BertForMaskedLM:
        """The model whose weights count: the moving average if there is one, else the student itself."""
        return self.objective.student if self.average is None else self.average

    def seed_dropout(self, *, step: int, micro_step: int, rank: int) -> None:
        """Sets the random state for one forward, so that no random state has to be stored or shared."""
        torch.manual_seed(derive_seed(*self.seed_parts, "dropout", step, micro_step, rank))

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of one micro-batch's part of the loss."""
        self.scaler.scale(loss).backward()
        # A loss that is no number shows in a gradient, which all processes see; else this adds 0.
        gradient = self.parameters[0].grad
        if gradient is not None:
            gradient.view(-1)[:1].add_(loss.detach() * 0)

    def step(self, number: int) -> Tensor:
        """Clips, updates and clears the gradients, but leaves out an update by gradients that are no numbers.

        The schedule goes on either way. With fp16 the scaler does the leaving out, while it looks for its scale.

        Args:
            number: of the step, from 1.
        Returns: the gradient norm before clipping, on the device.
        """
        self.scaler.unscale_(self.optimizer)
        limit = self.settings.max_grad_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(self.parameters, limit)
        is_sound = norm.isfinite()
        if self.scaler.is_enabled():
            # fp16: the scaler tries larger scales now and then, and skips a step that overflows; that is no failure.
            norm = torch.where(is_sound, norm, torch.zeros_like(norm))
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self._guarded_update(norm, number)
        self.scheduler.step()
        self._move_temperature()
        self._update_average(is_sound)
        self.clear_gradients()
        return norm

    def term_shares(self) -> dict[str, float]:
        """The terms' weights as the recipe has them: how much of the gradient each is to have, where it is balanced.

        `kd_scale` is left out: it makes up for the temperature's part in the gradient, as the balance does.
        """
        return {**self.objective.term_weights(), "kd": self.settings.kd_weight}

    def _kd_factor(self, temperature: float) -> float:
        return temperature**2 if self.settings.kd_scale == "tau_squared" else 1.0

    def _move_temperature(self) -> None:
        """Sets the temperature of the next step, a function of the steps done."""
        if self.settings.temperature_end is None:
            return
        temperature = scheduled_value(
            self.scheduler.last_epoch, steps=self.steps, start=self.settings.temperature,
            end=self.settings.temperature_end, shape="linear",
        )  # fmt: skip
        self.objective.set_temperature(temperature, factor=self._kd_factor(temperature))

    @torch.no_grad()
    def _update_average(self, is_sound: Tensor) -> None:
        """Moves the average towards the new weights: by 1 - ema, but faster at first, or it would keep its start.

        The decay of step t is min(ema, (1 + t) / (10 + t)), as in TensorFlow's ExponentialMovingAverage. After an
        update that was left out the average stays where it is.
        """
        if self.average is None or self.settings.ema is None:
            return
        step = self.scheduler.last_epoch
        share = is_sound * (1 - min(self.settings.ema, (1 + step) / (10 + step)))
        for mean, weight in zip(self.average.parameters(), self.objective.student.parameters(), strict=True):
            mean.lerp_(weight, share.to(mean.dtype))

    def _guarded_update(self, norm: Tensor, number: int) -> None:
        is_bad = ~norm.isfinite()
        if self.optimizer.defaults["fused"]:
            # AdamW's fused kernels look at this flag, which is GradScaler's, on the device.
            self.optimizer.found_inf = is_bad.float()  # type: ignore[attr-defined]
            self.optimizer.step()
            del self.optimizer.found_inf  # type: ignore[attr-defined]
        elif not bool(is_bad):
            self.optimizer.step()
        total, untold, first = self._left_out.unbind()
        first = torch.where(is_bad & (untold == 0), number, first)
        self._left_out = torch.stack([total + is_bad, untold + is_bad, first])

    def tell_left_out(self) -> tuple[int, int, int]:
        """How many updates were left out since the stage began and since the last call, and the first step of those."""
        total, untold, first = self._left_out.tolist()
        self._left_out[1] = 0
        return total, untold, first

    def clear_gradients(self) -> None:
        """Frees the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def is_finite(self) -> bool:
        """Whether all weights and moments are numbers; waits for the device."""
        return all(bool(value.isfinite().all()) for named in self.tensors().values() for value in named.values())

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """File stem -> name -> tensor: weights with projections, moments, the moving average if there is one."""
        weights = {name: value for name, value in self.objective.named_parameters()}
        moments = {
            f"{name}.{key}": value
            for name, parameter in weights.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        found = {self.name: {name: value.data for name, value in weights.items()}, f"{self.name}+optimizer": moments}
        if self.average is not None:
            found[f"{self.name}+average"] = {name: value.data for name, value in self.average.named_parameters()}
        return found

    def state(self) -> dict[str, Any]:
        """JSON values beside the tensors."""
        return {
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "left_out": int(self._left_out[0]),
            "balance": self.objective.factors(),
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Takes over what `tensors` and `state` gave. Rates and lengths are the settings', which may have changed.

        Raises:
            InputError: the weights are those of another model.
        """
        weights, moments = tensors[self.name], tensors[f"{self.name}+optimizer"]
        shapes = {name: parameter.shape for name, parameter in self.objective.named_parameters()}
        saved = {name: value.shape for name, value in weights.items()}
        if shapes != saved:
            other = sorted(name for name in shapes.keys() | saved.keys() if shapes.get(name) != saved.get(name))
            raise InputError(
                f"student '{self.name}': its checkpoint is of another model or has other projections ({len(other)} "
                f"weights differ, e.g. {other[0]}); this cannot be changed in a run, choose another output_dir"
            )
        by_muon = {id(p) for group in self.optimizer.param_groups if group.get("muon") for p in group["params"]}
        for name, parameter in self.objective.named_parameters():
            parameter.copy_(weights[name])
            # After a change of the optimiser the moments of the other one are not taken: those here begin at 0.
            for key in MUON_STATE if id(parameter) in by_muon else ADAMW_STATE:
                if f"{name}.{key}" in moments:
                    self.optimizer.state[parameter][key] = moments[f"{name}.{key}"].to(parameter.device)
        if self.average is not None:
            # A run whose average was asked for later begins it with the weights of that time.
            average = tensors.get(f"{self.name}+average") or dict(self.objective.student.named_parameters())
            for name, parameter in self.average.named_parameters():
                parameter.copy_(average[name])
        if self.settings.balance_every:
            self.objective.balance(state.get("balance", {}))
        self._load_schedule(state["scheduler"])
        self._move_temperature()
        self.scaler.load_state_dict(dict(state["scaler"]))
        self._left_out[0] = state.get("left_out", 0)

    def _load_schedule(self, state: Mapping[str, Any]) -> None:
        base_rates = self.scheduler.base_lrs
        lambdas = [None] * len(base_rates)  # they keep no state; another optimiser may have had more groups
        self.scheduler.load_state_dict({**state, "base_lrs": base_rates, "lr_lambdas": lambdas})
        rates = list(state["_last_lr"])
        if isinstance(self.scheduler, LambdaLR):
            rates = [
                rate * factor(self.scheduler.last_epoch)
                for rate, factor in zip(base_rates, self.scheduler.lr_lambdas, strict=True)
            ]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.scheduler._last_lr = rates
