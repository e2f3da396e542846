"""MiniLMv2's relations: the formula, padding, and where queries, keys and values come from."""

import numpy as np
import pytest
import torch
from textbrewer.configurations import IntermediateMatch
from tiny import ALONE, LENGTH, make_batch, tiny_config, tiny_model

from distill.training.encoder import Needs, encode
from distill.training.loop import TeacherPass
from distill.training.losses import (
    TOKENS,
    UNITS,
    is_match_loss,
    loss_unit,
    published_heads,
    relation_divergence,
    sample_relation_divergence,
)
from distill.training.matches import resolve_matches
from distill.training.objective import Objective
from distill.training.precision import autocast_for

TEACHER = tiny_config(layers=4, width=32, heads=4, initializer_range=0.2)
STUDENT = tiny_config(layers=2, width=24, heads=3, initializer_range=0.2)
ROWS = [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]
SHARES = dict.fromkeys(UNITS, 1.0)


def random_states(width, *, seed):
    return torch.randn(3, 6, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(scores):
    exponents = np.exp(scores - scores.max())
    return exponents / exponents.sum()


def relation_by_loops(student, teacher, mask, heads):
    """The loss of one batch, token by token in float64, over the tokens that count alone."""
    divergences = []
    for row, valid in enumerate(mask):
        tokens = np.flatnonzero(valid)
        for head in range(heads):
            for query in tokens:
                relations = []
                for states in (student, teacher):
                    size = states.shape[2] // heads
                    part = states[row, tokens, head * size : (head + 1) * size]
                    one = states[row, query, head * size : (head + 1) * size]
                    relations.append(softmax(part @ one / size**0.5))
                p_student, p_teacher = relations
                divergences.append((p_teacher * (np.log(p_teacher) - np.log(p_student))).sum())
    return np.mean(divergences)


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
@pytest.mark.parametrize("rows", [ROWS, [[1] * 6] * 3])
def test_the_loss_is_the_published_formula(heads, rows):
    student, teacher, mask = random_states(8, seed=0), random_states(16, seed=1), torch.tensor(rows)
    expected = relation_by_loops(student.numpy(), teacher.numpy(), mask.numpy(), heads)
    assert expected > 0.05
    assert float(relation_divergence(student, teacher, mask, heads=heads)) == pytest.approx(expected, rel=1e-10)
    if rows is not ROWS:
        assert float(relation_divergence(student, teacher, heads=heads)) == pytest.approx(expected, rel=1e-10)


def test_padding_changes_neither_loss_nor_gradient():
    """What stands at padded positions must not matter, as a token that relates and as one related to."""
    mask, gradients = torch.tensor(ROWS), []
    for filling in (0.0, 1e3):
        states = [random_states(8, seed=0), random_states(16, seed=1)]
        student, teacher = (state.masked_fill(mask[..., None] == 0, filling).requires_grad_() for state in states)
        loss = relation_divergence(student, teacher, mask, heads=2)
        loss.backward()
        gradients.append((float(loss.detach()), student.grad))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-12)
    torch.testing.assert_close(gradients[0][1], gradients[1][1])
    assert float(gradients[0][1][mask == 0].abs().max()) == 0.0


def test_it_is_zero_with_a_zero_gradient_where_student_and_teacher_agree():
    student = random_states(8, seed=0).requires_grad_()
    loss = relation_divergence(student, student.detach(), torch.tensor(ROWS), heads=2)
    loss.backward()
    assert abs(float(loss.detach())) < 1e-12 and float(student.grad.abs().max()) < 1e-12


def test_a_mask_of_zeros_gives_zero_and_not_nan():
    student = random_states(8, seed=0).requires_grad_()
    loss = relation_divergence(student, random_states(8, seed=1), torch.zeros(3, 6), heads=2)
    loss.backward()
    assert float(loss.detach()) == 0.0 and bool(student.grad.isfinite().all())


def test_sample_relations_by_hand():
    """Two sequences, one token: width 1, one head, so scores are products of two numbers."""
    student, teacher = torch.tensor([[[1.0]], [[2.0]]]), torch.tensor([[[0.0]], [[1.0]]])
    expected = []
    for scores_S, scores_T in (([1, 2], [0, 0]), ([2, 4], [0, 1])):
        p_S, p_T = softmax(np.array(scores_S, float)), softmax(np.array(scores_T, float))
        expected.append((p_T * np.log(p_T / p_S)).sum())
    found = sample_relation_divergence(student, teacher, torch.ones(2, 1), heads=1)
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-6)
    # The first sequence's token is padding: the other one relates to itself alone.
    alone = sample_relation_divergence(student, teacher, torch.tensor([[0], [1]]), heads=1)
    assert float(alone) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("rows", [ROWS, [[1] * 6] * 3])
def test_sample_relations_are_those_of_the_same_position_in_other_sequences(rows):
    student, teacher, mask = random_states(8, seed=0), random_states(16, seed=1), torch.tensor(rows)
    swapped = [values.transpose(0, 1).numpy() for values in (student, teacher, mask)]
    expected = relation_by_loops(*swapped, heads=2)
    assert expected > 0.05
    found = sample_relation_divergence(student, teacher, mask, heads=2)
    assert float(found) == pytest.approx(expected, rel=1e-10)
    assert float(found) != pytest.approx(float(relation_divergence(student, teacher, mask, heads=2)), rel=1e-3)
    if rows is not ROWS:
        assert float(sample_relation_divergence(student, teacher, heads=2)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("widths, heads", [
    ((384, 768), 48), ((256, 768), 32), ((288, 768), 48), ((312, 768), 24), ((768, 768), 48), ((16, 24), 8),
    ((7, 16), 1),
])  # fmt: skip
def test_the_published_number_of_relation_heads_or_the_next_that_fits(widths, heads):
    assert published_heads(*widths) == heads


@pytest.mark.parametrize("word", ["relation", "sample_relation"])
def test_the_words_for_relations_compare_queries_keys_and_values(word):
    matches = resolve_matches([f"last:{word}"], TEACHER, STUDENT)
    assert [(match["feature"], match["loss"]) for match in matches] == [
        (feature, f"{word}_8") for feature in ("query", "key", "value")
    ]
    assert loss_unit(f"{word}_8") == TOKENS


def test_textbrewer_knows_relations_once_they_are_asked_for():
    assert is_match_loss("relation_3") and loss_unit("relation_3") == TOKENS
    assert not any(map(is_match_loss, ["relation_0", "relation_", "relation_-1", "relation_2.5", "relations_2"]))
    for feature in ("query", "key", "value"):
        IntermediateMatch(layer_T=0, layer_S=0, weight=1, loss="relation_3", feature=feature)


# ---- where the vectors come from


def hooked(model):
    """Projections of queries, keys and values that have a hook (transformers keeps some on other modules)."""
    return [name for name, module in model.named_modules()
            if name.endswith((".query", ".key", ".value")) and module._forward_hooks]  # fmt: skip


def vectors_by_hand(model, batch, feature, layer):
    """The layer's projection of the hidden state below it, from a plain transformers forward."""
    with torch.no_grad():
        hidden = model.bert(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
        return getattr(model.bert.encoder.layer[layer].attention.self, feature)(hidden.hidden_states[layer])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_captured_vectors_are_the_layers_own(attention):
    model, batch = tiny_model(TEACHER, seed=1, attention=attention).eval(), make_batch([LENGTH, 9], [2, 1])
    wanted = {("query", 0), ("value", 0), ("key", 3)}
    features = encode(model, batch, Needs(vectors=frozenset(wanted)))
    assert {(feature, layer) for feature, layers in features.vectors.items() for layer in layers} == wanted
    for feature, layer in wanted:
        expected = vectors_by_hand(model, batch, feature, layer)
        torch.testing.assert_close(features.vectors[feature][layer], expected)
    assert model.config._attn_implementation == attention
    assert not hooked(model)


def test_nothing_is_captured_that_nobody_needs():
    features = encode(tiny_model(TEACHER), make_batch([LENGTH], [2]), Needs())
    assert not any(features.vectors.values())


def test_no_hook_is_left_when_the_forward_fails():
    model, batch = tiny_model(TEACHER), make_batch([LENGTH], [2])
    model.bert.encoder.layer[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encode(model, batch, Needs(vectors=frozenset({("key", 0)})))
    assert not hooked(model)


def test_vectors_are_float32_under_autocast():
    model = tiny_model(TEACHER)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = encode(model, make_batch([LENGTH], [2]), Needs(vectors=frozenset({("query", 1)})))
    assert features.vectors["query"][1].dtype == torch.float32


# ---- through the objective and TextBrewer's compute_loss


@pytest.mark.parametrize("lengths", [[LENGTH, LENGTH], [LENGTH, 9]])
def test_the_objective_sums_three_relations_of_the_last_layers(lengths):
    student, teacher = tiny_model(STUDENT, seed=2), tiny_model(TEACHER, seed=1)
    objective = Objective(student, matches=resolve_matches(["last:relation_4"], TEACHER, STUDENT), kd_weight=0.0)
    batch = make_batch(lengths, [2, 1])
    features = TeacherPass(teacher, [objective.teacher_needs], autocast_for(torch.float32, ALONE.device))(batch)
    loss, terms = objective(batch, features[False], SHARES)
    expected = {}
    mask = (torch.arange(LENGTH) < batch.lengths[:, None]).numpy()
    for feature in ("query", "key", "value"):
        states = [vectors_by_hand(model, batch, feature, layer).double().numpy()
                  for model, layer in ((student, 1), (teacher, 3))]  # fmt: skip
        expected[f"{feature}_relation_4_1_3"] = relation_by_loops(*states, mask, heads=4)
    assert {name: float(value) for name, value in terms.items()} == pytest.approx(expected, rel=1e-4)
    assert float(loss.detach()) == pytest.approx(sum(expected.values()), rel=1e-4)


def test_relations_train_queries_keys_and_values_without_eager_attention():
    student = tiny_model(STUDENT, seed=2)
    objective = Objective(student, matches=resolve_matches(["last:relation_4"], TEACHER, STUDENT), kd_weight=0.0)
    assert not objective.teacher_needs.attention and not objective.student_needs.attention
    teacher = TeacherPass(tiny_model(TEACHER, seed=1), [objective.teacher_needs], autocast_for(torch.float32, "cpu"))
    batch = make_batch([LENGTH, 9], [2, 1])
    objective(batch, teacher(batch)[False], SHARES)[0].backward()
    trained = {name for name, p in student.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0}
    assert {f"bert.encoder.layer.1.attention.self.{name}.weight" for name in ("query", "key", "value")} < trained
    assert "bert.embeddings.word_embeddings.weight" in trained
    assert not any(name.startswith("cls.predictions.transform") for name in trained)


def test_one_teacher_pass_serves_hidden_states_and_vectors_of_several_students():
    needs = [Needs(hidden=frozenset({4})), Needs(vectors=frozenset({("key", 3)}), logits=False)]
    batch = make_batch([LENGTH, 9], [2, 1])
    passes = TeacherPass(tiny_model(TEACHER, seed=1), needs, autocast_for(torch.float32, ALONE.device))(batch)
    assert list(passes) == [False]
    features = passes[False]
    assert features.hidden[4] is not None and 3 in features.vectors["key"] and features.logits is not None
