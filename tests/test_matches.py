"""Layer matches: what `uniform` and MiniRBT's preset names stand for, and what is refused with which words."""

import json

import pytest
from textbrewer import DistillationConfig
from transformers import BertConfig

from distill.errors import InputError
from distill.training.matches import PRESETS, resolve_matches


def config(layers, width=768, heads=12):
    return BertConfig(num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, intermediate_size=64)


ROBERTA, RBT6, H256 = config(12), config(6), config(6, 256, 8)


def refusal(spec, teacher=ROBERTA, student=H256):
    """The message of the refusal, which is one line and begins with the place."""
    with pytest.raises(InputError) as caught:
        resolve_matches(spec, teacher, student, where="stage 'a', student 'b'")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("stage 'a', student 'b'") or ".json" in message.split(":")[0]
    return message


# Teacher layers of student hidden layers 0..S, counted by hand: i * T / S, halves up.
HIDDEN = {
    (12, 4): [0, 3, 6, 9, 12],
    (12, 8): [0, 2, 3, 5, 6, 8, 9, 11, 12],  # 1.5 -> 2, 4.5 -> 5, 7.5 -> 8, 10.5 -> 11
    (6, 4): [0, 2, 3, 5, 6],  # 1.5 -> 2, 4.5 -> 5; Python's round would say 4
    (7, 2): [0, 4, 7],  # 3.5 -> 4
    (5, 2): [0, 3, 5],  # 2.5 -> 3; Python's round would say 2
    (12, 5): [0, 2, 5, 7, 10, 12],  # 2.4 4.8 7.2 9.6
    (6, 6): [0, 1, 2, 3, 4, 5, 6],
    (4, 6): [0, 1, 1, 2, 3, 3, 4],  # 0.67 1.33 2 2.67 3.33: a student deeper than its teacher
    (24, 3): [0, 8, 16, 24],
    (12, 1): [0, 12],
}
# Of student attention layers 0..S-1: (i + 1) * T / S, halves up, minus 1.
ATTENTION = {
    (12, 4): [2, 5, 8, 11],
    (12, 8): [1, 2, 4, 5, 7, 8, 10, 11],
    (6, 4): [1, 2, 4, 5],
    (7, 2): [3, 6],
    (5, 2): [2, 4],
    (12, 1): [11],
    (6, 6): [0, 1, 2, 3, 4, 5],
}


@pytest.mark.parametrize("depths", HIDDEN, ids=str)
def test_uniform_hidden_pairs_by_hand(depths):
    matches = resolve_matches(["uniform"], config(depths[0]), config(depths[1]))
    assert [match["layer_T"] for match in matches] == HIDDEN[depths]
    assert [match["layer_S"] for match in matches] == list(range(depths[1] + 1))
    assert {(m["feature"], m["loss"], m["weight"]) for m in matches} == {("hidden", "hidden_mse", 1)}


@pytest.mark.parametrize("depths", ATTENTION, ids=str)
def test_uniform_attention_pairs_by_hand(depths):
    matches = resolve_matches(["uniform:attention_mse"], config(depths[0]), config(depths[1]))
    assert [match["layer_T"] for match in matches] == ATTENTION[depths]
    assert [match["layer_S"] for match in matches] == list(range(depths[1]))
    assert {(m["feature"], m["loss"]) for m in matches} == {("attention", "attention_mse")}


@pytest.mark.parametrize("loss, projected", [
    ("hidden_mse", True), ("cos", True), ("pkd", True), ("gram", True), ("mmd", False), ("mmd_fixed", False),
])  # fmt: skip
def test_uniform_projects_where_the_loss_needs_equal_widths(loss, projected):
    for match in resolve_matches([f"uniform:{loss}"], ROBERTA, H256):
        assert match.get("proj") == (["linear", 256, 768] if projected else None)
    for match in resolve_matches([f"uniform:{loss}"], ROBERTA, RBT6):
        assert "proj" not in match


@pytest.mark.parametrize("word, pairs", [
    ("last", [(12, 6)]), ("last:cos", [(12, 6)]), ("last:attention_mse_sum", [(11, 5)]),
    ("inner:pkd", [(2, 1), (4, 2), (6, 3), (8, 4), (10, 5)]),  # BERT-PKD's skip strategy for 12 -> 6
    ("inner:attention_mse_sum", [(1, 0), (3, 1), (5, 2), (7, 3), (9, 4)]),
])  # fmt: skip
def test_last_and_inner_are_parts_of_uniform(word, pairs):
    matches = resolve_matches([word], ROBERTA, H256)
    assert [(match["layer_T"], match["layer_S"]) for match in matches] == pairs
    assert all(match in resolve_matches([word.replace("inner", "uniform").replace("last", "uniform")], ROBERTA, H256)
               for match in matches)  # fmt: skip


def test_last_relation_is_three_matches_of_the_last_layers():
    matches = resolve_matches(["last:relation_32"], ROBERTA, H256)
    assert matches == [
        {"layer_T": 11, "layer_S": 5, "feature": feature, "loss": "relation_32", "weight": 1}
        for feature in ("query", "key", "value")
    ]
    assert resolve_matches(["last:relation"], ROBERTA, H256) == matches
    assert len(resolve_matches(["uniform:relation_8"], ROBERTA, H256)) == 18


def test_relations_take_any_teacher_layer_as_objects():
    match = {"layer_T": 8, "layer_S": 5, "feature": "value", "loss": "relation_64", "weight": 2}
    assert resolve_matches([match], ROBERTA, H256) == [match]


def test_states_of_attention_may_be_compared_by_other_losses():
    match = {"layer_T": 11, "layer_S": 5, "feature": "value", "loss": "cos", "proj": ["linear", 256, 768], "weight": 1}
    assert resolve_matches([match], ROBERTA, H256) == [match]


def test_a_weighted_word_multiplies_each_of_its_matches():
    plain = resolve_matches(["uniform"], ROBERTA, H256)
    assert resolve_matches([{"match": "uniform", "weight": 0.5}], ROBERTA, H256) == [
        {**match, "weight": 0.5} for match in plain
    ]


@pytest.mark.parametrize("entry, words", [
    ({"match": "uniform"}, 'expected {"match": WORD, "weight": number}'),
    ({"match": "uniform", "weight": 1, "loss": "cos"}, 'expected {"match": WORD, "weight": number}'),
    ({"match": 3, "weight": 1}, 'expected {"match": WORD, "weight": number}'),
    ({"match": "uniform", "weight": "1"}, "match weight must be a number >= 0, found '1'"),
    ({"match": "unifrm", "weight": 1}, "unknown match 'unifrm'; did you mean 'uniform'"),
])  # fmt: skip
def test_a_wrong_weighted_word_is_refused(entry, words):
    assert words in refusal([entry])


@pytest.mark.parametrize("loss", ["gram", "fsp", "mmd", "nst", "mmd_fixed"])
def test_losses_of_pairs_get_lists_of_two(loss):
    matches = resolve_matches([f"uniform:{loss}"], ROBERTA, RBT6)
    assert [match["layer_T"] for match in matches] == [[2 * i, 2 * i] for i in range(7)]
    assert [match["layer_S"] for match in matches] == [[i, i] for i in range(7)]


# MiniRBT's matches.py, entry by entry: feature, loss, [(teacher layer, student layer)], proj. Written from the table
# of the original, not from our own.
L3, L4T = [(0, 0), (4, 1), (8, 2), (12, 3)], [(0, 0), (3, 1), (6, 2), (9, 3), (12, 4)]
EVEN = [(0, 0), (2, 1), (4, 2), (6, 3), (8, 4), (10, 5), (12, 6)]
SAME = [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6)]
SMALL = [(0, 0), (2, 2), (4, 4), (6, 6), (8, 8), (10, 10), (12, 12)]
USABLE = {
    "L3n_hidden_mse": ("hidden", "hidden_mse", L3, ["linear", 384, 768], 12, config(3, 384)),
    "L3_hidden_smmd": ("hidden", "mmd", L3, None, 12, config(3)),
    "L3_hidden_mse": ("hidden", "hidden_mse", L3, None, 12, config(3)),
    "L4_attention_mse": ("attention", "attention_mse", [(2, 0), (5, 1), (8, 2), (11, 3)], None, 12,
                         config(4, 312, 12)),
    "L4_hidden_mse": ("hidden", "hidden_mse", [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)], ["linear", 312, 768], 12,
                      config(4, 312)),
    "L4t_hidden_mse": ("hidden", "hidden_mse", L4T, ["linear", 312, 768], 12, config(4, 312)),
    "L4_hidden_smmd": ("hidden", "mmd", L4T, None, 12, config(4, 312)),
    "L4t_hidden_sgram": ("hidden", "gram", L4T, ["linear", 312, 768], 12, config(4, 312)),
    "L6_hidden_mse": ("hidden", "hidden_mse", EVEN, None, 12, config(6)),
    "L6_hidden_smmd": ("hidden", "mmd", EVEN, None, 12, config(6, 256, 8)),
    "small_hidden_mse": ("hidden", "hidden_mse", SMALL, ["linear", 256, 768], 12, config(12, 256, 8)),
    "small_hidden_smmd": ("hidden", "mmd", SMALL, None, 12, config(12, 256, 8)),
    "L6h288_rbt6_hidden_mse": ("hidden", "hidden_mse", SAME, ["linear", 288, 768], 6, config(6, 288)),
    "L6h256_rbt6_hidden_mse": ("hidden", "hidden_mse", SAME, ["linear", 256, 768], 6, config(6, 256, 8)),
    "L6n0_hidden_mse": ("hidden", "hidden_mse", EVEN, ["linear", 288, 768], 12, config(6, 288)),
    "L6h256_roberta_hidden_mse": ("hidden", "hidden_mse", EVEN, ["linear", 256, 768], 12, config(6, 256, 8)),
}  # fmt: skip
REFUSED = {
    "L3_attention_mse": 3, "L3_attention_mse_sum": 3, "L3_attention_ce": 3, "L3_attention_ce_mean": 3,
    "L4_attention_mse_sum": 4, "L4_attention_ce": 4, "L4_attention_ce_mean": 4,
}  # fmt: skip


def test_the_presets_are_minirbts_23():
    assert len(USABLE) == 16 and len(REFUSED) == 7
    assert set(PRESETS) == set(USABLE) | set(REFUSED)


@pytest.mark.parametrize("name", USABLE)
def test_a_usable_preset_comes_out_entry_for_entry(name):
    feature, loss, pairs, proj, depth, student = USABLE[name]
    expected = []
    for layer_t, layer_s in pairs:
        paired = loss in ("mmd", "gram")
        entry = {"layer_T": [layer_t, layer_t] if paired else layer_t,
                 "layer_S": [layer_s, layer_s] if paired else layer_s,
                 "feature": feature, "loss": loss, "weight": 1}  # fmt: skip
        expected.append({**entry, "proj": proj} if proj else entry)
    found = resolve_matches([name], config(depth), student)
    assert found == expected
    DistillationConfig(intermediate_matches=[dict(match) for match in found])


@pytest.mark.parametrize("name", REFUSED)
def test_a_preset_with_attention_layer_12_of_12_is_refused_with_an_explanation(name):
    message = refusal([name], ROBERTA, config(REFUSED[name]))
    assert "attention layer 12 of the teacher does not exist, it has 0..11 (12 layers)" in message
    assert "attention layers count from 0" in message


@pytest.mark.parametrize("name, same", [("L6h256_roberta_hidden_mse", "uniform"), ("L6_hidden_smmd", "uniform:mmd")])
def test_presets_equal_uniform_where_they_should(name, same):
    assert resolve_matches([name], ROBERTA, H256) == resolve_matches([same], ROBERTA, H256)


def test_several_entries_are_joined_in_order():
    single = {"layer_T": 12, "layer_S": 6, "feature": "hidden", "loss": "pkd", "proj": ["tanh", 256, 768]}
    found = resolve_matches(["uniform", "L6_hidden_smmd", single], ROBERTA, H256)
    assert [match["loss"] for match in found] == ["hidden_mse"] * 7 + ["mmd"] * 7 + ["pkd"]
    assert found[-1]["weight"] == 1
    assert "weight" not in single


def test_a_json_path_gives_its_list(tmp_path):
    matches = [{"layer_T": [4, 4], "layer_S": [2, 2], "feature": "hidden", "loss": "mmd", "weight": 0.5}]
    (tmp_path / "mine.json").write_text(json.dumps(matches))
    assert resolve_matches([str(tmp_path / "mine.json")], ROBERTA, H256) == matches


@pytest.mark.parametrize("text, words", [
    ('{"layer_T": 1}', "expected a JSON list of match objects"), ("[1]", "expected a JSON list of match objects"),
    ("[{]", "not valid JSON"),
])  # fmt: skip
def test_a_json_file_with_something_else_is_refused(tmp_path, text, words):
    (tmp_path / "mine.json").write_text(text)
    assert words in refusal([str(tmp_path / "mine.json")])


def test_a_json_file_that_is_not_there_is_named(tmp_path):
    assert "nowhere.json: no such file" in refusal([str(tmp_path / "nowhere.json")])


@pytest.mark.parametrize("spec, words", [
    ("unifrom", "unknown match 'unifrom'; did you mean 'uniform'?"),
    ("L6h256_roberta_hiden_mse", "did you mean 'L6h256_roberta_hidden_mse'?"),
    ("uniform:hiden_mse", "unknown loss 'hiden_mse' in 'uniform:hiden_mse'; did you mean 'hidden_mse'?"),
    ("L6h288_rbt6_hidden_mse", "projects 288->768, but the student is 256 wide and the teacher 768; 'uniform:hidden_m"),
    ("L6_hidden_mse", "no 'proj', but the student is 256 wide and the teacher 768"),
    ("small_hidden_smmd", "hidden layer 8 of the student does not exist, it has 0..6 (6 layers)"),
    ("last:relation_12", "cuts states into 12 parts, but the student is 256 wide and the teacher 768; numbers"),
    ("last:relation_0", "unknown loss 'relation_0' in 'last:relation_0'; did you mean 'relation_<heads>'?"),
    ("lsat:cos", "unknown match 'lsat:cos'; did you mean"),
    ("uniform:attention_mse", "the student has 8 heads and the teacher 12; use attention_mse_sum or attention_ce_mean"),
])  # fmt: skip
def test_names_that_do_not_fit_are_refused(spec, words):
    assert words in refusal([spec])


def test_a_preset_for_a_deeper_teacher_is_refused():
    assert "hidden layer 8 of the teacher does not exist, it has 0..6" in refusal(["L6_hidden_mse"], RBT6, RBT6)


@pytest.mark.parametrize("loss", ["attention_mse_sum", "attention_ce_mean"])
def test_losses_over_all_heads_allow_unequal_head_counts(loss):
    assert len(resolve_matches([f"uniform:{loss}"], ROBERTA, H256)) == 6


GOOD = {"layer_T": 12, "layer_S": 6, "feature": "hidden", "loss": "hidden_mse", "weight": 1,
        "proj": ["linear", 256, 768]}  # fmt: skip


def test_a_good_match_is_taken_as_it_is():
    assert resolve_matches([GOOD], ROBERTA, H256) == [GOOD]
    with_options = {**GOOD, "proj": ["relu", 256, 768, {"lr": 1e-3}]}
    assert resolve_matches([with_options], ROBERTA, H256) == [with_options]


@pytest.mark.parametrize("change, words", [
    ({"layer_t": 3}, "unknown key 'layer_t' in a match; did you mean 'layer_T'?"),
    ({"layer_T": None}, "takes one layer number as layer_T, found None"),
    ({"layer_T": True}, "takes one layer number as layer_T, found True"),
    ({"layer_S": [6, 6]}, "'hidden_mse' takes one layer number as layer_S, found [6, 6]"),
    ({"loss": "gram"}, "'gram' takes a list of two layer numbers as layer_T, found 12"),
    ({"layer_T": 13}, "hidden layer 13 of the teacher does not exist, it has 0..12"),
    ({"layer_S": -1}, "hidden layer -1 of the student does not exist, it has 0..6"),
    ({"feature": "hiden"}, "unknown feature 'hiden'; known: hidden, attention"),
    ({"loss": "mse"}, "unknown loss 'mse'"),
    ({"loss": 3}, "unknown loss '3'"),
    ({"loss": ["mmd"]}, "unknown loss"),
    ({"feature": ["hidden"]}, "unknown feature"),
    ({"weight": -1}, "match weight must be a number >= 0, found -1"),
    ({"weight": "1"}, "match weight must be a number >= 0, found '1'"),
    ({"weight": True}, "match weight must be a number >= 0, found True"),
    ({"weight": float("nan")}, "match weight must be a number >= 0, found nan"),
    ({"weight": float("inf")}, "match weight must be a number >= 0, found inf"),
    ({"proj": ["linaer", 256, 768]}, "KIND one of linear, relu, tanh"),
    ({"proj": [["linear"], 256, 768]}, "KIND one of linear, relu, tanh"),
    ({"proj": "linear"}, "KIND one of linear, relu, tanh"),
    ({"proj": ["linear", 768, 256]}, "projects 768->256, but the student is 256 wide"),
    ({"proj": ["linear", 256, 768, 1e-3]}, "the fourth part of proj is an object of optimiser options, found 0.001"),
    ({"proj": None}, "has no 'proj', but the student is 256 wide and the teacher 768"),
    ({"feature": "attention", "loss": "attention_mse_sum", "layer_T": 11, "layer_S": 5}, "takes no 'proj'"),
    ({"feature": "query", "layer_S": 5}, "query layer 12 of the teacher does not exist, it has 0..11 (12 layers); att"),
    ({"feature": "query", "layer_T": 11, "layer_S": 5, "proj": None}, "query match 11->5 has no 'proj', but"),
    ({"feature": "query", "layer_T": 11, "layer_S": 5, "loss": "relation_7"}, "cuts states into 7 parts, but the"),
])  # fmt: skip
def test_a_match_that_cannot_be_is_refused(change, words):
    assert words in refusal([{**GOOD, **change}])


@pytest.mark.parametrize("change", [
    {"loss": "attention_mse_sum", "proj": None},
    {"feature": "attention", "layer_T": 11, "layer_S": 5, "proj": None},
], ids=["attention_loss_on_hidden", "hidden_loss_on_attention"])  # fmt: skip
def test_a_loss_of_the_other_feature_is_refused(change):
    """TextBrewer would compute nonsense, or fail at the first batch."""
    assert "but the match has feature" in refusal([{**GOOD, **change}], ROBERTA, RBT6)


@pytest.mark.parametrize("key", ["layer_T", "layer_S", "feature", "loss"])
def test_a_match_without_a_key_is_refused(key):
    assert f"a match lacks '{key}'" in refusal([{k: v for k, v in GOOD.items() if k != key}])


def test_inner_of_a_student_of_one_layer_is_refused():
    assert "'inner:pkd' finds no layer in a student of 1 layer(s)" in refusal(["inner:pkd"], ROBERTA, config(1))
