"""Metrics: values worked out by hand, scikit-learn's and scipy's own, and those of CMRC 2018's script."""

import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from distill.downstream.examples import Entity
from distill.downstream.metrics import classification_metrics, mean_score, regression_metrics
from distill.downstream.span_metrics import answer_f1, answer_matches, segments, span_metrics
from distill.downstream.tags import decode_tags, encode_tags, entity_metrics, tag_names

GOLD, PREDICTED = [0, 1, 1, 0, 1, 1, 0, 1], [0, 1, 0, 1, 1, 1, 0, 1]  # 4 true, 1 false positive, 1 false negative


def test_classification_metrics_by_hand():
    found = classification_metrics(["accuracy", "f1", "macro_f1", "matthews"], GOLD, PREDICTED)
    # accuracy 6/8; F1 of 1: 2*4/(5+5); F1 of 0: 2*2/(3+3); Matthews: (4*2 - 1*1) / sqrt(5*5*3*3)
    assert found == {"accuracy": 75.0, "f1": 80.0, "macro_f1": 73.3333, "matthews": 46.6667}


def test_classification_metrics_are_scikit_learn_s_on_three_labels():
    gold, predicted = [0, 1, 2, 2, 1, 0, 2], [0, 2, 2, 1, 1, 1, 2]
    found = classification_metrics(["macro_f1", "matthews"], gold, predicted)
    assert found["macro_f1"] == pytest.approx(
        100 * sklearn_metrics.f1_score(gold, predicted, average="macro"), abs=1e-4
    )
    assert found["matthews"] == pytest.approx(100 * sklearn_metrics.matthews_corrcoef(gold, predicted), abs=1e-4)


def test_a_model_that_always_says_the_same_has_no_correlation():
    assert classification_metrics(["matthews", "f1"], [0, 1], [0, 0]) == {"matthews": 0.0, "f1": 0.0}
    assert regression_metrics(["pearson", "spearman"], [1, 2, 3], [2, 2, 2]) == {"pearson": 0.0, "spearman": 0.0}


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_run_that_diverged_has_no_correlation(wrong):
    """NaN would stand in metrics.json, which is no JSON then: every later look at the run would end with an error."""
    assert regression_metrics(["pearson", "spearman"], [1, 2, 3], [1, wrong, 3]) == {"pearson": 0.0, "spearman": 0.0}


def test_regression_metrics_are_scipy_s():
    gold, predicted = [0.0, 1.5, 3.0, 5.0, 2.0], [0.2, 1.0, 3.5, 4.0, 2.5]
    found = regression_metrics(["pearson", "spearman"], gold, predicted)
    assert found["pearson"] == pytest.approx(100 * stats.pearsonr(gold, predicted)[0], abs=1e-4)
    assert found["spearman"] == pytest.approx(100 * stats.spearmanr(gold, predicted)[0], abs=1e-4)


def test_two_metrics_of_a_task_count_by_their_mean():
    assert mean_score({"span_f1": 80.0, "exact_match": 60.0, "loss": 3.0}, ["span_f1", "exact_match"]) == 70.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2008年8月", ["2008", "年", "8", "月"]),
        ("《战国无双3》", ["战", "国", "无", "双", "3"]),
        ("ω-force公司", ["ωforce", "公", "司"]),
        ("Nexon 与 Big Bang", ["nexon", "与", "big", "bang"]),
        ("3.5万元", ["3.5", "万", "元"]),
        ("24,672人, (NBA) A. Gates.", ["24,672", "人", ",", "(", "nba", ")", "a.", "gates", "."]),
        ("“是”……", ["是", "……"]),  # the script's list has the two-character ellipsis, which removes nothing
        ("A（B）c", ["abc"]),  # punctuation is taken out before words are found
        ("", []),
    ],
)
def test_mixed_segmentation(text, expected):
    assert segments(text) == expected


@pytest.mark.parametrize(
    ("gold", "predicted", "f1", "match"),
    [
        (["2008年"], "2008年8月", 2 / 3, False),  # run of 2 of 2 and of 4 segments
        (["甲乙丙丁"], "丙丁甲乙", 0.5, False),  # the longest common run, not the bag of words
        (["《泡泡堂》", "跑跑卡丁车"], "泡泡堂", 1.0, True),
        (["韩国Nexon"], "nexon", 0.5, False),
        (["北京"], "", 0.0, False),
        (["北京"], "上海", 0.0, False),
        (["北京市", "在北京"], "北京", 0.8, False),
    ],
)
def test_answers_by_hand(gold, predicted, f1, match):
    assert answer_f1(gold, predicted) == pytest.approx(f1)
    assert answer_matches(gold, predicted) is match


def test_an_unanswered_question_counts_nothing():
    found = span_metrics({"a": ["北京"], "b": ["上海"], "c": ["2008年"]}, {"a": "北京。", "c": "2008年8月"})
    assert found == {"span_f1": 55.5556, "exact_match": 33.3333}


OFFSETS = [(0, 0), (0, 1), (1, 2), (2, 6), (6, 7), (7, 8), (0, 0)]  # [CLS] 小 明 csol 北 京 [SEP]
ENTITIES = {Entity(0, 1, "name"), Entity(2, 5, "game"), Entity(6, 7, "address")}


def test_tags_of_entities_and_back():
    tags = encode_tags(ENTITIES, OFFSETS)
    assert tags == ["O", "B-name", "I-name", "B-game", "B-address", "I-address", "O"]
    assert decode_tags(tags, OFFSETS) == ENTITIES
    assert set(tags) <= set(tag_names(["name", "game", "address"]))


def test_of_overlapping_entities_the_longest_keeps_its_tokens():
    tags = encode_tags({Entity(0, 1, "name"), Entity(0, 5, "company")}, OFFSETS)
    assert tags[1:5] == ["B-company", "I-company", "I-company", "O"]


def test_an_inside_tag_without_its_begin_starts_an_entity():
    tags = ["I-name", "I-name", "I-game", "I-game", "B-game", "B-name", "I-name"]
    assert decode_tags(tags, OFFSETS) == {
        Entity(0, 0, "name"), Entity(1, 5, "game"), Entity(6, 6, "game"), Entity(7, 7, "name")
    }  # fmt: skip


def test_entities_count_only_with_both_ends_and_type_right():
    gold = [ENTITIES, set()]
    predicted = [{Entity(0, 1, "name"), Entity(2, 5, "company"), Entity(6, 6, "address")}, {Entity(0, 0, "name")}]
    found = entity_metrics(gold, predicted)  # 1 right of 4 found, of 3 there are
    assert found == {"entity_f1": 28.5714, "entity_precision": 25.0, "entity_recall": 33.3333}
    assert entity_metrics([set()], [set()])["entity_f1"] == 0.0
