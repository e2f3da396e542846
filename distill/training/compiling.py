"""torch.compile of what runs once a micro-batch: a student's forward with its loss, and the teacher's forward.

What is compiled must not depend on what came before, or a resumed run would not be equal bit for bit to the one that
was never stopped. So sizes are fixed in the compiled code, but for the number of masked tokens, which is a variable
from the first batch on; torch's habit of making a size variable when it has changed is off.
"""

import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._triton import has_triton
from transformers import BertForMaskedLM
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from distill.corpus.batches import MicroBatch
from distill.errors import InputError
from distill.training.encoder import Features, Needs, encode
from distill.training.objective import Objective, Share

Loss = Callable[[MicroBatch, Features | None, Share], tuple[Tensor, dict[str, Tensor]]]
Encode = Callable[[BertForMaskedLM, MicroBatch, Needs], Features]

_VERSIONS = 64
"""Compiled versions of one function: students x (padded or not) x sizes of a micro-batch. Beyond, torch stops."""


def should_compile(choice: bool | str, device: torch.device) -> bool:
    """Whether to compile: as `choice` says; "auto" is yes on CUDA, where it pays, and no on other devices.

    Raises:
        InputError: true on a machine without the C++ compiler that torch needs for it.
    """
    if choice == "auto":
        return device.type == "cuda" and has_triton() and bool(shutil.which(os.environ.get("CC", "cc")))
    if choice and device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        raise InputError('compile: torch.compile needs a C++ compiler and there is no g++; install it or take "auto"')
    return bool(choice)


def compile_loss(objective: Objective) -> Loss:
    """`objective`, compiled; the first call with a new shape takes up to a minute."""
    forward = _compile(objective.forward, objective.student)

    def loss(batch: MicroBatch, teacher: Features | None, share: Share) -> tuple[Tensor, dict[str, Tensor]]:
        _mark_masked_count(batch)
        if teacher is not None and teacher.logits is not None:
            torch._dynamo.maybe_mark_dynamic(teacher.logits, 0)
        if teacher is not None and teacher.sparse is not None:
            for tensor in (teacher.sparse.ids, teacher.sparse.weights):
                torch._dynamo.maybe_mark_dynamic(tensor, [0, 1])
        # As numbers they would be part of the code, which would be compiled again for each micro-batch.
        device = batch.input_ids.device
        values = torch.tensor(list(share.values())).to(device, non_blocking=True).unbind()
        return forward(batch, teacher, dict(zip(share, values, strict=True)))

    return loss


def compile_encode(model: BertForMaskedLM) -> Encode:
    """`encode` of this model, compiled."""
    compiled = _compile(encode, model)

    def run(model: BertForMaskedLM, batch: MicroBatch, needs: Needs) -> Features:
        _mark_masked_count(batch)
        return compiled(model, batch, needs)

    return run


def _compile(function: Callable, model: BertForMaskedLM) -> Callable:
    # transformers installs the hooks behind output_hidden_states at the first call, under a lock that stops dynamo.
    maybe_install_capturing_hooks(model.bert)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _VERSIONS)
    return torch.compile(function, dynamic=False)


def _mark_masked_count(batch: MicroBatch) -> None:
    for tensor in (batch.masked_positions, batch.labels):
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
