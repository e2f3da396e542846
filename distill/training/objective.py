"""The loss of one student on one micro-batch. The objective is TextBrewer's; this module feeds it.

1. encoder.py gives the logits of the masked positions and the states that a match needs, of teacher and student.
2. `GeneralDistiller.compute_loss` turns logits and states into losses by the registered formulas.
3. Each term is weighted by this micro-batch's share of the step's units (masked tokens, tokens, ...), so that
   the sum over micro-batches and processes is the mean over the step, however it was cut.
"""

import functools
from collections.abc import Mapping
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from textbrewer.presets import KD_LOSS_MAP
from torch import Tensor, nn
from transformers import BertForMaskedLM

from distill.corpus.batches import MicroBatch
from distill.errors import InputError
from distill.json_file import nearest
from distill.training.encoder import Features, encode, needs_of
from distill.training.losses import MASK_DEPENDENT_LOSSES, MASKED, VECTORS, loss_unit
from distill.training.matches import Match
from distill.training.precision import Autocast
from distill.training.sparse_logits import SPARSE_KD_LOSS

Share = Mapping[str, float | Tensor]
"""Unit -> this micro-batch's count over the whole step's count (scalar tensors where the objective is compiled)."""


def check_kd_loss(name: str, *, where: str) -> None:
    """InputError unless TextBrewer's registry has this KD loss."""
    usable = KD_LOSS_MAP.keys() - {SPARSE_KD_LOSS}  # comes with teacher_cache
    if name not in usable:
        raise InputError(f"{where}: unknown kd_loss '{name}'{nearest(name, usable)}")


class Objective(nn.Module):
    """A student, its projections and its loss. The teacher is not part of it: it is not trained and not saved."""

    def __init__(
        self,
        student: BertForMaskedLM,
        *,
        matches: list[Match] | None = None,
        temperature: float = 8.0,
        kd_loss: str = "ce",
        kd_weight: float = 1.0,
        mlm_weight: float = 0.0,
        distilled: bool = True,
        autocast: Autocast = nullcontext,
    ) -> None:
        """
        Args:
            matches: TextBrewer's intermediate_matches, resolved.
            kd_weight: weight of the KD term as it enters the sum (temperature^2 included, if wanted).
            distilled: False for masked-language modelling without a teacher; only the MLM term is left then.
            autocast: context of the encoder and the projections; the losses are always computed in float32.
        """
        super().__init__()
        matches = matches or []
        config = DistillationConfig(
            temperature=temperature,
            kd_loss_type=kd_loss,
            kd_loss_weight=kd_weight,
            hard_label_weight=mlm_weight,
            intermediate_matches=[{**match, "proj": list(match["proj"]) if match.get("proj") else None}
                                  for match in matches],
        )  # fmt: skip
        self.student = student
        self.autocast = autocast
        self.distilled = distilled
        self.use_kd = distilled and kd_weight > 0
        self.use_mlm = mlm_weight > 0 or not distilled
        self.matches = matches
        self.kd_weight, self.mlm_weight = kd_weight, mlm_weight
        # What changes from step to step is kept in tensors, as numbers would be part of what is compiled.
        self._factors: dict[str, Tensor] = {}
        self._temperature: Tensor | None = None  # and the factor of the KD term's weight, [2]
        self.teacher_needs = needs_of(matches, "T", logits=self.use_kd)
        self.student_needs = needs_of(matches, "S", logits=self.use_kd or self.use_mlm)
        self.always_mask = any(match["loss"] in MASK_DEPENDENT_LOSSES for match in matches)
        training = TrainingConfig(device="cpu", output_dir=".")
        self._distiller = GeneralDistiller(training, config, None, student, None, None)
        self.projections = nn.ModuleDict({str(i): p for i, p in enumerate(self._distiller.projs) if p is not None})
        self._distiller.projs = [
            functools.partial(self._project, self.projections[str(i)]) if str(i) in self.projections else None
            for i in range(len(matches))
        ]
        self.projection_options = {
            str(i): match["proj"][3] for i, match in enumerate(matches) if len(match.get("proj") or ()) == 4
        }

    def forward(self, batch: MicroBatch, teacher: Features | None, share: Share) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss of this micro-batch and its unweighted terms, each times its share of the step.

        Args:
            teacher: features with at least `teacher_needs`; None without a teacher.
            share: unit -> this micro-batch's part of the step's count.
        Returns:
            A scalar whose sum over all micro-batches is the step's loss, and name -> scalar likewise, without graph.
        """
        loss, terms = self.loss_and_terms(batch, teacher, share)
        return loss, {name: term.detach() for name, term in terms.items()}

    def loss_and_terms(
        self, batch: MicroBatch, teacher: Features | None, share: Share
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What `forward` gives, with terms that can be differentiated."""
        with self.autocast():
            features = encode(self.student, batch, self.student_needs)
        mlm = None
        if self.use_mlm and features.logits is not None:
            # The sum over no rows is 0, their mean would be NaN; a micro-batch may have no masked token.
            mlm = F.cross_entropy(features.logits, batch.labels, reduction="sum") / max(1, len(batch.labels))
        if not self.distilled or teacher is None:
            assert mlm is not None
            return mlm * share[MASKED], {"mlm": mlm * share[MASKED]}
        results_S, results_T = features.by_name(), teacher.by_name()
        if self.use_kd and len(batch.labels):
            results_S["logits"], results_T["logits"] = [features.logits], [teacher.sparse or teacher.logits]
        if mlm is not None:
            results_S["losses"] = [mlm]
        mask = batch.attention_mask
        if mask is None and self.always_mask:
            mask = torch.ones_like(batch.input_ids)
        if mask is not None:
            results_S["inputs_mask"] = mask
        self._set_weights(share)
        total, terms = self._distiller.compute_loss(results_S, results_T)
        if self.use_kd and features.logits is not None and not len(batch.labels):
            # Nothing is masked: the KD term is an empty sum, which keeps the loss a tensor with a graph.
            terms["unweighted_kd_loss"] = features.logits.sum()
            total = total + terms["unweighted_kd_loss"]
        return total, self._named_terms(terms, share)

    def _set_weights(self, share: Share) -> None:
        """Multiplies every term's weight by this micro-batch's share of the unit that the term averages over."""
        config = self._distiller.d_config
        config.kd_loss_weight = self._balanced("kd", self.kd_weight * share[MASKED])
        if self._temperature is not None:
            config.temperature, factor = self._temperature.unbind()
            config.kd_loss_weight = config.kd_loss_weight * factor
        config.hard_label_weight = self._balanced("mlm", self.mlm_weight * share[MASKED])
        for match, configured in zip(self.matches, config.intermediate_matches, strict=True):
            configured.weight = self._balanced(_term_name(match), match["weight"] * share[loss_unit(match["loss"])])

    def _balanced(self, term: str, weight: float | Tensor) -> float | Tensor:
        return weight * self._factors[term] if term in self._factors else weight

    def set_temperature(self, temperature: float, *, factor: float) -> None:
        """From now on the KD term is taken at this temperature, and its weight times this factor."""
        if self._temperature is None:
            self._temperature = torch.ones(2, device=next(self.parameters()).device)
        for place, value in enumerate((temperature, factor)):
            self._temperature[place].fill_(value)  # no copy from the host, which would wait for the device

    def balance(self, factors: Mapping[str, float]) -> None:
        """Multiplies the weights of these terms, as they were given, by these factors from now on."""
        device = next(self.parameters()).device
        for term, factor in factors.items():
            self._factors.setdefault(term, torch.ones((), device=device)).fill_(factor)

    def factors(self) -> dict[str, float]:
        """The factors that `balance` was given last, by term; waits for the device."""
        return {term: factor.item() for term, factor in self._factors.items()}

    def _named_terms(self, terms: Mapping[str, Tensor], share: Share) -> dict[str, Tensor]:
        """TextBrewer's terms under short names (kd, mlm, hidden_mse_3_6, query_relation_12_5_11), times their share."""
        named = {}
        used = (("kd", "unweighted_kd_loss", self.use_kd), ("mlm", "unweighted_hard_label_loss", self.use_mlm))
        for short, name, is_used in used:
            if is_used:
                named[short] = terms[name] * share[MASKED]
        for match in self.matches:
            s, t = _layer_names(match)
            value = terms[f"unweighted_{match['feature']}_{match['loss']}_{s}_{t}"]
            named[_term_name(match)] = value * share[loss_unit(match["loss"])]
        return named

    def term_weights(self) -> dict[str, float]:
        """The weight of each term before it is balanced, by its short name."""
        factor = 1.0 if self._temperature is None else self._temperature[1].item()
        weights = {"kd": self.kd_weight * factor} if self.use_kd else {}
        if self.use_mlm:
            weights["mlm"] = self.mlm_weight if self.distilled else 1.0
        for match in self.matches:
            weights[_term_name(match)] = match["weight"]
        return weights

    def _project(self, projection: nn.Module, states: Tensor) -> Tensor:
        with self.autocast():
            return projection(states).float()


def _term_name(match: Match) -> str:
    """What the log calls a match's term: hidden_mse_3_6, query_relation_3_6."""
    loss = f"{match['feature']}_{match['loss']}" if match["feature"] in VECTORS else match["loss"]
    return "_".join([loss, *_layer_names(match)])


def _layer_names(match: Match) -> list[str]:
    """Student and teacher layer of a match as TextBrewer writes them: 3, or 3-3 for a pair."""
    layers = [match["layer_S"], match["layer_T"]]
    return ["-".join(map(str, n)) if isinstance(n, list) else str(n) for n in layers]
