"""Distilling on a task: a fine-tuned teacher's scores, and its layers if matches say so, beside the labels.

    loss = kd_weight * temperature^2 * KD(scores / temperature) + hard_weight * loss of the labels + sum of the matches

KD and matches are TextBrewer's, computed by its GeneralDistiller as in pre-training. The factor temperature^2 keeps the
gradient of the KD term as large as that of the labels (https://arxiv.org/abs/1503.02531). The scores are, by kind of
task: of labels [B, C]; of the tags of every real token [N, C]; of the first and of the last token, padding left out; of
the choices; a number, whose KD is the squared distance.
"""

# B rows, L tokens, C labels, N tokens that are no padding

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from distill.downstream.encoding import IGNORE_INDEX
from distill.downstream.run import Distillation, read_task_file
from distill.downstream.sharing import LABELS, Shares, no_loss
from distill.downstream.task import Task
from distill.downstream.task_model import check_model, load_finetuned
from distill.errors import InputError
from distill.modeling.config import load_config
from distill.modeling.models import check_same_tokens, load_tokenizer
from distill.training.encoder import capture_vectors, needs_of
from distill.training.losses import SEQUENCES, loss_unit
from distill.training.matches import Match, resolve_matches

_NEVER = -1e4
"""The score of padding: its probability is 0 in float32 and in bfloat16."""


def find_matches(distillation: Distillation, student: Path) -> list[Match]:
    """The matches of a distillation as TextBrewer takes them; InputError if they do not fit the two models."""
    configs = load_config(distillation.teacher), load_config(student)
    return resolve_matches(list(distillation.matches), *configs, where="--match")


def check_teacher(distillation: Distillation, student: Path, task: Task, labels: tuple[str, ...] = ()) -> None:
    """InputError unless a teacher was fine-tuned on this task and reads the student's tokens; loads no weights.

    Args:
        labels: the task's, in the order of the student's scores; empty if they are not read yet.
    """
    teacher = distillation.teacher
    its_task, its_labels, max_length = read_task_file(teacher)
    if its_task.name != task.name or its_task.kind != task.kind:
        raise InputError(f"{teacher}: was fine-tuned on {its_task.name}, not on {task.name}; name a run of this task")
    if labels and its_labels != labels:
        raise InputError(f"{teacher}: its labels ({', '.join(its_labels[:8])}) are not the task's in the same order "
                         f"({', '.join(labels[:8])})")  # fmt: skip
    if distillation.augment and task.kind != "classification":
        raise InputError(f"--augment {distillation.augment}: only texts of a classification task can be changed, and "
                         f"{task.name} is a {task.kind} task")  # fmt: skip
    check_model(teacher, max_length)
    check_same_tokens(
        load_tokenizer(teacher), load_tokenizer(student), a_name=f"teacher {teacher}", b_name=str(student)
    )
    find_matches(distillation, student)


def needs_eager(matches: Iterable[Match]) -> bool:
    """Whether attention matrices are compared, which only plain attention gives."""
    return any(match["feature"] == "attention" for match in matches)


class TaskObjective(nn.Module):
    """A student of a task with its projections; see sharing.LabelObjective. Its loss is the distillation's.

    The teacher is not part of it: it is not trained and not saved.
    """

    accepts_loss_kwargs = False

    def __init__(self, student: PreTrainedModel, task: Task, distillation: Distillation, matches: list[Match]) -> None:
        super().__init__()
        self.student, self.kind, self.distillation, self.matches = student, task.kind, distillation, matches
        self._teacher = [load_finetuned(distillation.teacher, eager=needs_eager(matches))[0].eval()]
        temperature = 1.0 if task.kind == "regression" else distillation.temperature
        self._kd_weight = distillation.kd_weight * temperature**2
        self._kd_unit = LABELS if task.kind == "tags" else SEQUENCES
        config = DistillationConfig(
            temperature=temperature,
            kd_loss_type="mse" if task.kind == "regression" else "ce",
            intermediate_matches=[{**match, "proj": list(match["proj"]) if match.get("proj") else None}
                                  for match in matches],
        )  # fmt: skip
        self._needs = {side: needs_of(matches, side, logits=True) for side in "TS"}
        self._distiller = GeneralDistiller(
            TrainingConfig(device="cpu", output_dir="."), config, None, student, None, None
        )
        self.projections = nn.ModuleList([p for p in self._distiller.projs if p is not None])

    def forward(self, shares: Shares | None = None, **inputs: Tensor) -> ModelOutput:
        """The loss of the distillation alone, or without shares what the student gives for a padded batch."""
        if shares is None:
            return self.student(**inputs)
        outputs, found_S = self._features(self.student, inputs, "S")
        with torch.no_grad():
            _, found_T = self._features(self._teacher_on(inputs["input_ids"].device), inputs, "T")
        if not shares[self._kd_unit]:
            del found_S["logits"]
        if shares[LABELS] and self.kind == "classification":  # augmented rows have no label
            found_S["losses"] = [nn.functional.cross_entropy(outputs.logits.float(), inputs["labels"])]
        elif shares[LABELS]:
            found_S["losses"] = [outputs.loss]
        mask = inputs["attention_mask"]
        found_S["inputs_mask"] = mask.view(-1, mask.size(-1))
        self._set_weights(shares)
        loss, _ = self._distiller.compute_loss(found_S, found_T)
        return ModelOutput(loss=loss + no_loss(outputs))

    def _set_weights(self, shares: Shares) -> None:
        """Multiplies the weight of every term by the share of the unit that it averages over."""
        config = self._distiller.d_config
        config.kd_loss_weight = self._kd_weight * shares[self._kd_unit]
        config.hard_label_weight = self.distillation.hard_weight * shares[LABELS]
        for match, configured in zip(self.matches, config.intermediate_matches, strict=True):
            configured.weight = match["weight"] * shares[loss_unit(match["loss"])]

    def _features(self, model: PreTrainedModel, inputs: Mapping[str, Tensor], side: str) -> tuple[Any, dict[str, Any]]:
        """A model's outputs, and its logits and layers under TextBrewer's names."""
        needs = self._needs[side]
        with capture_vectors(model, needs.vectors) as vectors:
            outputs = model(**inputs, output_hidden_states=bool(needs.hidden), output_attentions=needs.attention)
        hidden = tuple(state.float() for state in outputs.get("hidden_states") or ())
        attention = tuple(matrix.float() for matrix in outputs.get("attentions") or ())
        logits = task_logits(self.kind, outputs, inputs)
        return outputs, {"logits": logits, "hidden": hidden, "attention": attention, **vectors}

    def _teacher_on(self, device: torch.device) -> PreTrainedModel:
        self._teacher[0] = self._teacher[0].to(device)
        return self._teacher[0]


def task_logits(kind: str, outputs: Any, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """The scores that are distilled, in float32; two of [B, L] for spans, one [N or B, C] for all else."""
    if kind == "span":
        padding = inputs["attention_mask"] == 0
        return [scores.float().masked_fill(padding, _NEVER) for scores in (outputs.start_logits, outputs.end_logits)]
    logits = outputs.logits.float()
    if kind == "tags":
        return [logits[inputs["labels"] != IGNORE_INDEX]]
    return [logits]
