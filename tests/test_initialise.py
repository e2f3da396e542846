"""Starting weights from a teacher: exactly its embeddings, layers and head, and a decoder that stays tied."""

import pytest
import torch
from tiny import tiny_config, tiny_model

from distill.errors import InputError
from distill.modeling.initialise import check_layers, copy_layers

TEACHER = tiny_config(layers=4, width=32, heads=4)


def make_pair(**fields):
    """A teacher all of whose weights are random (new models have zeros and ones), and a student."""
    teacher = tiny_model(TEACHER, seed=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return teacher, tiny_model(tiny_config(layers=2, width=32, heads=4, **fields), seed=2)


def test_embeddings_chosen_layers_and_head_are_the_teachers():
    teacher, student = make_pair()
    copy_layers(teacher, student, [3, 1])
    expected = dict(teacher.named_parameters())
    checked = 0
    for name, value in student.named_parameters():
        source = name.replace("encoder.layer.0.", "encoder.layer.X.").replace("encoder.layer.1.", "encoder.layer.Y.")
        source = source.replace("layer.X.", "layer.3.").replace("layer.Y.", "layer.1.")
        assert torch.equal(value, expected[source]), name
        checked += 1
    assert checked == len(list(student.parameters())) > 30
    for part in ("cls.predictions.transform.dense.weight", "cls.predictions.transform.LayerNorm.bias",
                 "cls.predictions.bias"):  # fmt: skip
        assert torch.equal(student.get_parameter(part), teacher.get_parameter(part)), part


def test_the_decoder_stays_tied_to_the_word_embeddings():
    teacher, student = make_pair()
    copy_layers(teacher, student, [0, 1])
    words = student.bert.embeddings.word_embeddings.weight
    assert student.cls.predictions.decoder.weight is words
    with torch.no_grad():
        words[7] += 1
    assert torch.equal(student.cls.predictions.decoder.weight[7], words[7])
    assert not torch.equal(words, teacher.bert.embeddings.word_embeddings.weight), "the teacher must not be shared"


def test_the_copy_computes_what_the_teacher_would_with_those_layers():
    teacher, student = make_pair()
    copy_layers(teacher, student, [0, 2])
    teacher.bert.encoder.layer = torch.nn.ModuleList([teacher.bert.encoder.layer[i] for i in (0, 2)])
    teacher.config.num_hidden_layers = 2
    ids = torch.arange(5, 17).view(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(student.eval()(ids).logits, teacher.eval()(ids).logits, rtol=0, atol=0)


def test_a_shorter_student_takes_the_first_positions():
    teacher, student = make_pair(max_position_embeddings=10)
    copy_layers(teacher, student, [0, 1])
    expected = teacher.bert.embeddings.position_embeddings.weight[:10]
    assert torch.equal(student.bert.embeddings.position_embeddings.weight, expected)


def test_a_layer_may_be_copied_twice_without_being_shared():
    teacher, student = make_pair()
    copy_layers(teacher, student, [2, 2])
    first, second = (layer.attention.self.query.weight for layer in student.bert.encoder.layer)
    assert torch.equal(first, second) and first is not second


@pytest.mark.parametrize("layers, fields, words", [
    ([0], {}, "init_layers names 1 layers, but the student has 2"),
    ([0, 1, 2], {}, "init_layers names 3 layers, but the student has 2"),
    ([0, 4], {}, "the teacher has no layer 4, only 0..3"),
    ([-1, 2], {}, "the teacher has no layer -1, only 0..3"),
    ([0, 1], {"hidden_size": 16}, "hidden_size is 16 in the student and 32 in the teacher"),
    ([0, 1], {"intermediate_size": 48}, "intermediate_size is 48 in the student and 64 in the teacher"),
    ([0, 1], {"num_attention_heads": 2}, "num_attention_heads is 2 in the student and 4 in the teacher"),
    ([0, 1], {"vocab_size": 99}, "vocab_size is 99 in the student and 85 in the teacher"),
    ([0, 1], {"max_position_embeddings": 17}, "the student has 17 positions, the teacher only 16"),
])  # fmt: skip
def test_layers_that_cannot_be_copied_are_refused_in_one_line(layers, fields, words):
    student = tiny_config(layers=2, width=32, heads=4)
    student.update(fields)
    with pytest.raises(InputError) as caught:
        check_layers(layers, TEACHER, student, where="stage 'a'")
    assert words in str(caught.value)
    assert str(caught.value).startswith("stage 'a': init_layers") and "\n" not in str(caught.value)


def test_layers_that_can_be_copied_pass():
    check_layers([3, 0], TEACHER, tiny_config(layers=2, width=32, heads=4), where="stage 'a'")
