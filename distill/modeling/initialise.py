"""Starting weights from a teacher: embeddings, chosen layers and the prediction head."""

from collections.abc import Sequence

import torch
from transformers import BertConfig, BertForMaskedLM

from distill.errors import InputError

_SAME = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size", "type_vocab_size")


def check_layer_numbers(layers: Sequence[int], teacher: BertConfig, student: BertConfig, *, where: str) -> None:
    """InputError unless there is a layer of the teacher for each of the student's."""
    if len(layers) != student.num_hidden_layers:
        raise InputError(
            f"{where}: init_layers names {len(layers)} layers, but the student has {student.num_hidden_layers}"
        )
    for layer in layers:
        if not 0 <= layer < teacher.num_hidden_layers:
            raise InputError(
                f"{where}: init_layers: the teacher has no layer {layer}, only 0..{teacher.num_hidden_layers - 1}"
            )


def check_layers(layers: Sequence[int], teacher: BertConfig, student: BertConfig, *, where: str) -> None:
    """InputError unless the student can take these teacher layers as they are."""
    check_layer_numbers(layers, teacher, student, where=where)
    for key in _SAME:
        if getattr(teacher, key) != getattr(student, key):
            raise InputError(
                f"{where}: init_layers copies whole layers, but {key} is {getattr(student, key)} in the student and "
                f"{getattr(teacher, key)} in the teacher"
            )
    if student.max_position_embeddings > teacher.max_position_embeddings:
        raise InputError(
            f"{where}: init_layers: the student has {student.max_position_embeddings} positions, the teacher only "
            f"{teacher.max_position_embeddings}"
        )


@torch.no_grad()
def copy_layers(teacher: BertForMaskedLM, student: BertForMaskedLM, layers: Sequence[int]) -> None:
    """Copies the teacher's embeddings, `layers` and prediction head into the student, in place.

    MiniRBT's scripts/init_checkpoint_TA.py with its default 0, 2, 4, 7, 9, 11, plus the head that it leaves random.
    """
    check_layers(layers, teacher.config, student.config, where="copy_layers")
    source, target = teacher.bert.embeddings, student.bert.embeddings
    target.word_embeddings.load_state_dict(source.word_embeddings.state_dict())
    target.token_type_embeddings.load_state_dict(source.token_type_embeddings.state_dict())
    target.LayerNorm.load_state_dict(source.LayerNorm.state_dict())
    rows = target.position_embeddings.weight
    rows.copy_(source.position_embeddings.weight[: len(rows)])
    for number, layer in enumerate(layers):
        student.bert.encoder.layer[number].load_state_dict(teacher.bert.encoder.layer[layer].state_dict())
    student.cls.load_state_dict(teacher.cls.state_dict())
