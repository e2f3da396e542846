"""Students narrower than their teacher that start from it: exact where nothing is lost, near where something is."""

import pytest
import torch
from tiny import LENGTH, make_batch, tiny_config, tiny_model

from distill.errors import InputError
from distill.modeling.narrow import check_narrowing, narrow_teacher, spread_layers
from distill.training.encoder import Needs, encode

BATCHES = [make_batch([LENGTH, 9, 12, LENGTH], [3, 1, 2, 1], seed=seed) for seed in range(4)]
OTHER = make_batch([LENGTH, 11], [4, 2], seed=9)
TEACHER = tiny_config(layers=4, width=32, heads=4, intermediate_size=64, initializer_range=0.2)


def narrowed_with_way_back(teacher, config, method="importance", layers=None, batches=BATCHES):
    student = tiny_model(config, seed=3)
    way_back = narrow_teacher(
        teacher, student, batches, lambda batch: encode(teacher, batch, Needs()), method=method, layers=layers
    )
    return student.eval(), way_back


def narrowed(*args, **fields):
    return narrowed_with_way_back(*args, **fields)[0]


def straight_head(model):
    """Without the prediction head's activation, through which turned units, or a mean of 0, do not come."""
    model.cls.predictions.transform.transform_act_fn = torch.nn.Identity()
    return model


@torch.no_grad()
def outputs(model, batch=OTHER):
    """Last hidden states and logits."""
    needs = Needs(frozenset({model.config.num_hidden_layers}))
    features = encode(model.eval(), batch, needs)
    return features.hidden[-1], features.logits


def random_teacher(**fields):
    """Gains, biases and all else random: new models have ones and zeros."""
    teacher = tiny_model(tiny_config(layers=4, width=32, heads=4, initializer_range=0.2, **fields), seed=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return teacher


def zero(model, places, *names):
    """Sets units to 0: rows of matrices and biases; the columns of `.columns` names."""
    with torch.no_grad():
        for name in names:
            if name.endswith(".columns"):
                model.get_parameter(name.removesuffix(".columns"))[:, places] = 0
            else:
                model.get_parameter(name)[places] = 0


def live_teacher(live=24, turn=None):
    """A teacher of 32 units of which only `live` are ever different from 0, and these have no mean in any token.

    Its LayerNorms have one gain for all, so that such units can be cut, and turned, without loss.
    """
    teacher = random_teacher()
    generator = torch.Generator().manual_seed(6)
    places = torch.randperm(32, generator=generator)[:live].sort().values
    keep = torch.zeros(32, 32)
    keep[places[:, None], places] = torch.eye(live) - 1 / live
    if turn is not None:
        keep = turn @ turn.T
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if name.endswith("LayerNorm.weight"):
                parameter.fill_(1.3)
                if turn is None:
                    parameter[[i for i in range(32) if i not in places]] = 0
            elif name.endswith("LayerNorm.bias") or "output.dense" in name or "transform.dense" in name:
                parameter.copy_(keep @ parameter)
            elif "embeddings.weight" in name:
                parameter.copy_(parameter @ keep)
    return teacher


def test_keeping_everything_is_the_teacher_bit_for_bit():
    teacher = random_teacher()
    student = narrowed(teacher, TEACHER)
    expected = dict(teacher.named_parameters())
    for name, value in student.named_parameters():
        assert torch.equal(value, expected[name]), name
    assert student.cls.predictions.decoder.weight is student.bert.embeddings.word_embeddings.weight


def test_layers_are_those_named_or_spread_evenly():
    teacher = random_teacher()
    config = tiny_config(layers=2, width=32, heads=4)
    for layers, expected in (([3, 0], [3, 0]), (None, [0, 3])):
        student = narrowed(teacher, config, layers=layers)
        for mine, theirs in enumerate(expected):
            found, wanted = student.bert.encoder.layer[mine], teacher.bert.encoder.layer[theirs]
            assert torch.equal(found.output.dense.weight, wanted.output.dense.weight)
    assert spread_layers(12, 6) == [0, 2, 4, 7, 9, 11] and spread_layers(12, 4) == [0, 4, 7, 11]
    assert spread_layers(6, 6) == list(range(6)) and spread_layers(6, 1) == [0]


@pytest.mark.parametrize("layer", [0, 3])
def test_neurons_and_heads_that_do_nothing_are_cut_without_loss(layer):
    teacher = random_teacher()
    for number in range(4):
        place = f"bert.encoder.layer.{number}"
        zero(teacher, torch.arange(1, 64, 2), f"{place}.output.dense.weight.columns")
        head = torch.arange(8) + 8 * (number % 4)
        zero(teacher, head, f"{place}.attention.output.dense.weight.columns")
    config = tiny_config(layers=4, width=24, heads=3, intermediate_size=32)
    student = narrowed(teacher, config)
    place = student.bert.encoder.layer[layer]
    assert place.output.dense.weight.shape == (24, 32) and place.attention.self.query.weight.shape == (24, 24)
    source = teacher.bert.encoder.layer[layer]
    kept = [unit for unit in range(32) if unit // 8 != layer]
    found = place.attention.self.value.weight
    assert all(any(torch.isin(row, source.attention.self.value.weight[unit]).all() for unit in kept) for row in found)


def test_units_that_are_always_0_are_cut_without_loss():
    """Embeddings, layers, head and vocabulary bias; LayerNorm over 24 of 32 units needs another gain."""
    teacher = straight_head(live_teacher())
    for number in range(4):
        zero(teacher, torch.arange(8), f"bert.encoder.layer.{number}.attention.output.dense.weight.columns")
    student = straight_head(narrowed(teacher, tiny_config(layers=4, width=24, heads=3, intermediate_size=64)))
    places = [i for i in range(32) if outputs(teacher)[0][..., i].abs().max() > 0]
    valid = torch.arange(LENGTH) < OTHER.lengths[:, None]
    (hidden_T, logits_T), (hidden_S, logits_S) = outputs(teacher), outputs(student)
    assert len(places) == 24
    torch.testing.assert_close(hidden_S[valid], hidden_T[valid][:, places], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits_S, logits_T, rtol=1e-4, atol=1e-4)


def test_pca_cuts_a_turned_subspace_without_loss_where_importance_cannot():
    """All 32 units differ from 0, but they move in 23 directions; 24 units hold these and have no mean."""
    generator = torch.Generator().manual_seed(7)
    flat = torch.eye(32) - 1 / 32  # LayerNorm takes the mean away: directions without one
    turn = torch.linalg.qr(flat @ torch.randn(32, 23, generator=generator)).Q
    teacher = straight_head(live_teacher(turn=turn))
    for number in range(4):
        zero(teacher, torch.arange(8), f"bert.encoder.layer.{number}.attention.output.dense.weight.columns")
    config = tiny_config(layers=4, width=24, heads=3, intermediate_size=64)
    expected = outputs(teacher)[1]
    errors = {method: (outputs(straight_head(narrowed(teacher, config, method)))[1] - expected).abs().max()
              for method in ("pca", "importance")}  # fmt: skip
    assert errors["pca"] < 1e-3 * expected.abs().max() < 0.1 * errors["importance"]


@pytest.mark.parametrize("method", ["importance", "pca"])
def test_the_way_back_loses_nothing_but_what_moves_in_the_part_that_is_cut(method):
    """At the embeddings, where the student's states are the kept part of the teacher's, fitted norms aside."""
    teacher = live_teacher()
    with torch.no_grad():  # eight units that never move, but are not 0
        dead = [i for i in range(32) if (teacher.bert.embeddings.word_embeddings.weight[:, i] == 0).all()]
        for norm in [m for m in teacher.modules() if isinstance(m, torch.nn.LayerNorm)]:
            norm.bias[dead] = 0.3
    config = tiny_config(layers=4, width=24, heads=4, intermediate_size=64)
    student, way_back = narrowed_with_way_back(teacher, config, method)
    assert way_back.weight.shape == (32, 24) and len(way_back.biases) == 5
    states = []
    for model in (teacher, student):
        states.append(encode(model.eval(), OTHER, Needs(frozenset({0, 4}))).hidden)
    valid = torch.arange(LENGTH) < OTHER.lengths[:, None]
    wanted, found = (hidden[0].detach()[valid].double() for hidden in states)
    again = found @ way_back.weight.T + way_back.biases[0]
    lost = {"importance": 1e-4, "pca": 0.1}[method]
    assert (again - wanted).square().mean() < lost * (wanted - wanted.mean(0)).square().mean()


def test_smaller_heads_keep_the_units_that_count_and_the_size_of_scores():
    """In each head the second half of queries and keys, and the first of values, are 0."""
    teacher = straight_head(live_teacher(live=16))
    for number in range(4):
        attention = f"bert.encoder.layer.{number}.attention"
        for head in range(4):
            first, second = torch.arange(4) + 8 * head, torch.arange(4, 8) + 8 * head
            for name in ("query", "key"):
                zero(teacher, second, f"{attention}.self.{name}.weight", f"{attention}.self.{name}.bias")
            zero(teacher, first, f"{attention}.output.dense.weight.columns")
    student = straight_head(narrowed(teacher, tiny_config(layers=4, width=16, heads=4, intermediate_size=64)))
    torch.testing.assert_close(outputs(student)[1], outputs(teacher)[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["importance", "pca"])
def test_a_narrow_start_is_nearer_to_the_teacher_than_a_random_one(method):
    teacher = random_teacher()
    config = tiny_config(layers=4, width=24, heads=3, intermediate_size=48, initializer_range=0.2)
    expected = outputs(teacher)[1]

    def distance(model):
        return float((outputs(model)[1] - expected).square().mean())

    assert distance(narrowed(teacher, config, method)) < 0.8 * distance(tiny_model(config, seed=3))


def test_what_a_matrix_took_from_units_that_are_gone_stays_as_its_mean():
    teacher = random_teacher()
    config = tiny_config(layers=4, width=32, heads=4, intermediate_size=40)
    student = narrowed(teacher, config)
    inputs = {}
    for name, model in (("T", teacher), ("S", student)):
        dense = model.bert.encoder.layer[0].output.dense
        handle = dense.register_forward_hook(
            lambda _m, _i, out, name=name: inputs.setdefault(name, []).append(out.detach())
        )
        for batch in BATCHES:
            outputs(model, batch)
        handle.remove()
    valid = [torch.arange(LENGTH) < batch.lengths[:, None] for batch in BATCHES]
    mean = {name: torch.cat([out[mask] for out, mask in zip(found, valid, strict=True)]).mean(0)
            for name, found in inputs.items()}  # fmt: skip
    torch.testing.assert_close(mean["S"], mean["T"], rtol=1e-4, atol=1e-5)


def test_padding_and_the_cut_into_batches_do_not_count():
    teacher = random_teacher()
    config = tiny_config(layers=2, width=16, heads=2)
    batch = make_batch([5, 7], [1, 1], seed=1)
    padded = narrowed(teacher, config, batches=[batch])
    batch.input_ids[0, 5:] = 7
    batch.input_ids[1, 7:] = 8
    other = narrowed(teacher, config, batches=[batch])
    for ours, theirs in zip(padded.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_fewer_positions_are_the_first():
    teacher = random_teacher()
    student = narrowed(teacher, tiny_config(layers=4, width=32, heads=4, max_position_embeddings=LENGTH))
    assert torch.equal(student.bert.embeddings.position_embeddings.weight,
                       teacher.bert.embeddings.position_embeddings.weight[:LENGTH])  # fmt: skip


@pytest.mark.parametrize("fields, layers, words", [
    ({"hidden_size": 48, "num_attention_heads": 4}, None, "hidden_size is 48 in the student, but must be at most"),
    ({"intermediate_size": 65}, None, "intermediate_size is 65 in the student, but must be at most the 64"),
    ({"num_attention_heads": 8}, None, "num_attention_heads is 8 in the student, but must be at most the 4"),
    ({"num_attention_heads": 2}, None, "attention heads are 16 wide and the teacher's 8, which cannot be widened; give "
     "it 4 heads or more"),
    ({"vocab_size": 84}, None, "vocab_size is 84 in the student, but must be as many as the 85"),
    ({"max_position_embeddings": 17}, None, "max_position_embeddings is 17"),
    ({"num_hidden_layers": 5}, None, "the student has 5 layers, the teacher only 4; name one for each"),
    ({"tie_word_embeddings": False}, None, "tie_word_embeddings is false in the student"),
    ({"hidden_act": "relu"}, None, "hidden_act is 'relu' in the student, 'gelu' in the teacher"),
    ({"num_hidden_layers": 2}, [0], "init_layers names 1 layers, but the student has 2"),
    ({"num_hidden_layers": 1}, [4], "init_layers: the teacher has no layer 4, only 0..3"),
])  # fmt: skip
def test_students_that_cannot_start_from_their_teacher_are_refused_in_one_line(fields, layers, words):
    student = tiny_config(layers=4, width=32, heads=4)
    student.update(fields)
    with pytest.raises(InputError) as caught:
        check_narrowing(layers, TEACHER, student, where="stage 'a'")
    assert words in str(caught.value)
    assert str(caught.value).startswith("stage 'a': init_") and "\n" not in str(caught.value)
