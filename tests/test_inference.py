"""fill-mask and features: equal to transformers' own pipelines."""

import json

import numpy as np
import pytest
import torch
from fixtures_cli import complaint, run
from transformers import BertForMaskedLM, BertModel, BertTokenizer, pipeline

from distill.modeling.inference import fill_mask, text_features

pytest_plugins = ["fixtures_cli"]

LINES = ["今天天气很好。", "研究生", *[f"明天{'很' * n}冷。" for n in range(40)]]


@pytest.fixture
def folder(project):
    return project.model("m", initializer_range=0.5)


def by_pipeline(folder, text, top_k):
    fill = pipeline("fill-mask", model=BertForMaskedLM.from_pretrained(folder),
                    tokenizer=BertTokenizer.from_pretrained(folder))  # fmt: skip
    return fill(text, top_k=top_k)


def assert_same(found, expected):
    assert [answer["score"] for answer in found] == pytest.approx([a["score"] for a in expected], abs=1e-6)
    for key in ("token", "token_str", "sequence"):
        assert [answer[key] for answer in found] == [answer[key] for answer in expected]


@pytest.mark.parametrize("top_k", [1, 5])
def test_one_mask_is_filled_as_by_the_pipeline(folder, top_k):
    text = "今天天[MASK]很好。"
    assert_same(fill_mask(folder, [text], top_k=top_k)[0][0], by_pipeline(folder, text, top_k))


def test_several_masks_are_filled_as_by_the_pipeline(folder):
    text = "今天[MASK]气[MASK]好。"
    found = fill_mask(folder, ["明天[MASK]冷。", text])[1]
    assert len(found) == 2
    for answers, expected in zip(found, by_pipeline(folder, text, 5), strict=True):
        assert_same(answers, expected)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_features_are_those_of_the_encoder(folder, pooling):
    extract = pipeline("feature-extraction", model=BertModel.from_pretrained(folder, add_pooling_layer=False),
                       tokenizer=BertTokenizer.from_pretrained(folder))  # fmt: skip
    pool = {"cls": lambda states: states[0], "mean": lambda states: states.mean(0), "max": lambda states: states.max(0)}
    expected = np.array([pool[pooling](np.array(extract(line)[0])) for line in LINES])
    found = text_features(folder, LINES, pooling=pooling)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_commands(folder, project, capsys):
    assert run("fill-mask", "m", "今天天[MASK]很好。", "--top-k", "2") == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 2 and answers[0]["score"] >= answers[1]["score"] and set(answers[0]) == {
        "score", "token", "token_str", "sequence"}  # fmt: skip
    project.write("lines.txt", "今天\n\n明天\n")
    assert run("features", "m", "--text", "lines.txt", "--output", "vectors.npy") == 0
    expected = text_features(folder, ["今天", "明天"], pooling="mean")
    assert np.array_equal(np.load("vectors.npy"), expected)
    project.write("long.txt", "今天" * 60)
    assert run("features", "m", "--text", "long.txt", "--max-length", "4", "--output", "cut.npy") == 0
    assert np.array_equal(np.load("cut.npy"), text_features(folder, ["今天"], pooling="mean"))


@pytest.mark.parametrize(("arguments", "words"), [
    (["fill-mask", "m", "今天"], "text 1: no [MASK] in it"),
    (["fill-mask", "m", "[MASK]", "天" * 80 + "[MASK]"], "text 2: 83 tokens, but the model has 64 positions"),
    (["fill-mask", "m", "[MASK]", "--top-k", "100000"], "--top-k 100000: m has only"),
    (["features", "m", "--text", "t.txt", "--pooling", "cls", "--output", "x.csv"], "features are written as .npy"),
    (["features", "m", "--text", "t.txt", "--pooling", "cls", "--output", "d.npy"], "d.npy: a folder is there"),
    (["features", "m", "--text", "long.txt", "--pooling", "cls", "--output", "x.npy"], "long.txt: line 3: 82 tokens"),
    (["features", "m", "--text", "blank.txt", "--pooling", "cls", "--output", "x.npy"], "blank.txt: only blank lines"),
    (["features", "m", "--text", "t.txt", "--max-length", "65", "--output", "x.npy"], "m has only 64 positions"),
    (["convert", "m", "--output", "x.npy"], "'--to'. Choose from: hf, uer, tencentpretrain; see"),
])  # fmt: skip
def test_what_cannot_be_answered_is_said(arguments, words, folder, project, capsys):
    project.write("t.txt", "今天\n")
    project.write("long.txt", "今天\n\n" + "天" * 80)
    project.write("blank.txt", "\n \n")
    (project.root / "d.npy").mkdir()
    assert words in complaint(capsys, *arguments)
    assert not list(project.root.glob("x.*"))


def test_a_model_without_head_fills_no_mask(project, capsys):
    project.model("bare", head=False)
    assert "no masked-language-model head" in complaint(capsys, "fill-mask", "bare", "天[MASK]")
    assert torch.tensor(text_features(project.root / "bare", ["今天"], pooling="cls")).isfinite().all()
