"""A random start whose first layer looks at the neighbours."""

import pytest
import torch
from tiny import tiny_config, tiny_model

from distill.errors import InputError
from distill.modeling.neighbours import check_neighbours, look_at_neighbours


def started(*, seed=0, length=512, **fields):
    model = tiny_model(tiny_config(max_position_embeddings=length, **fields), attention="eager").eval()
    look_at_neighbours(model, seed=seed)
    return model


def attention(model, length):
    """[heads, length, length] of the first layer, mean over random rows."""
    ids = torch.randint(5, model.config.vocab_size, (8, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.bert(ids, output_attentions=True).attentions[0].mean(0)


@pytest.mark.parametrize("width, heads", [(512, 8), (312, 12), (96, 3), (128, 2)])
def test_each_head_looks_at_its_neighbour_and_at_no_other_place(width, heads):
    for length in (8, 64):
        found = attention(started(width=width, heads=heads), length)
        for head, offset in zip(range(heads), (-1, 1, -2, 2), strict=False):
            at_neighbour = torch.diagonal(found[head], offset=offset)
            others = found[head].clone()
            torch.diagonal(others, offset=offset).zero_()
            assert at_neighbour.min() > 0.4, (head, length)
            assert others[abs(offset) : -abs(offset)].max() < at_neighbour.min() / 2, (head, length)


def test_far_positions_are_not_taken_for_near_ones():
    """Evenly spaced frequencies would repeat: 64 places away would look like here."""
    found = attention(started(width=128, heads=2), 512)
    assert torch.equal(found[0].argmax(-1)[1:], torch.arange(511))
    assert torch.equal(found[1].argmax(-1)[:-1], torch.arange(1, 512))


def test_all_else_stays_as_it_was_drawn_and_the_seed_decides_the_rest():
    config = tiny_config(layers=2, width=96, heads=6)
    plain, one, same, other = (tiny_model(config, seed=3) for _ in range(4))
    for model, seed in ((one, 0), (same, 0), (other, 1)):
        look_at_neighbours(model, seed=seed)
    changed = {
        "bert.embeddings.word_embeddings.weight", "bert.embeddings.position_embeddings.weight",
        *(f"bert.encoder.layer.0.attention.self.{name}.weight" for name in ("query", "key")),
    }  # fmt: skip
    for name, value in plain.named_parameters():
        assert torch.equal(value, one.get_parameter(name)) == (name not in changed), name
        assert torch.equal(one.get_parameter(name), same.get_parameter(name)), name
    for name in ("query", "key"):  # heads of 16: the fifth and sixth are as drawn
        weights = [model.bert.encoder.layer[0].attention.self.get_parameter(f"{name}.weight") for model in (plain, one)]
        assert torch.equal(weights[0][64:], weights[1][64:])
    positions = [model.bert.embeddings.position_embeddings.weight for model in (plain, one, other)]
    assert torch.equal(positions[0][:, 16:], positions[1][:, 16:])
    assert not torch.equal(positions[1], positions[2])


def test_one_head_leaves_no_room_for_words():
    with pytest.raises(InputError, match="stage 'a': init_attention: the config has 1 attention head; give it 2"):
        check_neighbours(tiny_config(heads=1), where="stage 'a'")
