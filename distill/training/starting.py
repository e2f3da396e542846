"""A student before its first step: its shape, its starting weights, and what trains it."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import BertForMaskedLM

from distill.corpus.batches import MicroBatch
from distill.modeling.initialise import copy_layers
from distill.modeling.models import build_model, load_config, load_masked_lm
from distill.modeling.narrow import WayBack, narrow_teacher
from distill.modeling.neighbours import look_at_neighbours
from distill.recipe import Student
from distill.training.encoder import Needs, encode
from distill.training.matches import Match, resolve_matches
from distill.training.objective import Objective
from distill.training.processes import Processes, copy_from_first
from distill.training.sparse_logits import SPARSE_KD_LOSS
from distill.training.stage_setting import StageSetting
from distill.training.student import StudentRun, derive_seed, student_seed

MEASURED_TOKENS, FORWARD_TOKENS = 8192, 2048
"""Tokens that a teacher is measured on before its width is cut, in all and at a time, however training is cut into
micro-batches: a start does not depend on that."""


def start_student(
    name: str, setting: StageSetting, teacher: BertForMaskedLM | None, *, compiled: bool, goes_on: bool
) -> StudentRun:
    """A student at step 0; a function of the recipe alone.

    Args:
        teacher: in float32 on the CPU.
        goes_on: weights of a checkpoint follow, so that nothing needs to be measured.
    """
    stage, processes, init = setting.stage, setting.processes, setting.paths.inits.get(name)
    settings = stage.students[name]
    if stage.teacher_cache:
        settings = settings.model_copy(update={"kd_loss": SPARSE_KD_LOSS})
    source = settings.config or init
    assert source is not None, "checked by the recipe"
    config = load_config(source)
    where = f"stage '{stage.name}', student '{name}'"
    matches = resolve_matches(settings.matches, teacher.config, config, where=where) if teacher else []
    attention = "eager" if any(match["feature"] == "attention" for match in matches) else "sdpa"
    if settings.dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = settings.dropout
    seed = derive_seed(*student_seed(settings, stage.seed, stage.name, name), "weights")
    model = build_model(config, seed=seed, attention=attention)
    way_back = None
    if init:
        model.load_state_dict(load_masked_lm(init).state_dict())
    elif settings.init_attention:
        look_at_neighbours(model, seed=seed)
    elif settings.init_width and teacher is not None:
        if not goes_on:
            way_back = _start_narrow(teacher, model, settings, _first_samples(setting), processes)
    elif settings.init_layers and teacher is not None:
        copy_layers(teacher, model, settings.init_layers)
    run = StudentRun(
        name, model, settings, matches=matches, distilled=teacher is not None, steps=setting.steps,
        seed_parts=(stage.seed, stage.name), device=processes.device, dtype=setting.dtype, compiled=compiled,
    )  # fmt: skip
    if settings.init_width and not goes_on:
        _start_projections(run.objective, matches, way_back, processes)
    return run


def _first_samples(setting: StageSetting) -> list[MicroBatch]:
    """The stage's first samples, as many as make MEASURED_TOKENS."""
    batches, length = setting.batches(setting.alone), setting.stage.max_seq_length
    rows, at_once = (max(1, tokens // length) for tokens in (MEASURED_TOKENS, FORWARD_TOKENS))
    return [batches.load(range(start, min(start + at_once, rows))) for start in range(0, rows, at_once)]


def _start_narrow(
    teacher: BertForMaskedLM, model: BertForMaskedLM, settings: Student, samples: list[MicroBatch],
    processes: Processes,
) -> WayBack | None:  # fmt: skip
    """The first process measures and cuts, in float32 on its CPU; the others take its weights and return None."""
    assert settings.init_width is not None
    way_back = None
    if processes.is_first:
        way_back = narrow_teacher(
            teacher, model, samples, lambda batch: encode(teacher, batch, Needs()),
            method=settings.init_width, layers=settings.init_layers,
        )  # fmt: skip
    copy_from_first(model.parameters(), processes)
    return way_back


@torch.no_grad()
def _start_projections(
    objective: Objective, matches: Sequence[Match], way_back: WayBack | None, processes: Processes
) -> None:
    """Linear projections of hidden states start as the way back to the teacher's, which the first process has.

    Random ones would ask at first for other states than those that the student has just been given.
    """
    for number, projection in objective.projections.items():
        match = matches[int(number)]
        if way_back and match["feature"] == "hidden" and isinstance(projection, nn.Linear):
            layers = match["layer_T"]
            biases = [way_back.biases[n] for n in (layers if isinstance(layers, list) else [layers])]
            projection.weight.copy_(way_back.weight)
            projection.bias.copy_(torch.stack(biases).mean(0))
    copy_from_first(objective.projections.parameters(), processes)
