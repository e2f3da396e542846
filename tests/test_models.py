"""Model folders: what is refused and in which words, and that what we save opens with transformers alone."""

import json
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CHARACTERS, VOCABULARY, tiny_config, tiny_model, write_config, write_model, write_tokenizer

from distill.errors import InputError
from distill.modeling.config import load_config
from distill.modeling.models import (
    build_model,
    check_same_tokens,
    check_vocabulary,
    find_model,
    load_masked_lm,
    load_tokenizer,
    save_model,
)
from distill.modeling.weight_files import has_head, has_weights, weight_shapes

HEAD = "cls.predictions.transform.dense.weight"


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model", tiny_config(heads=4), seed=1)


def refusal(function, *arguments, **keywords) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change_weights(folder, change) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def without(prefix):
    return lambda weights: {name: value for name, value in weights.items() if not name.startswith(prefix)}


def test_a_folder_comes_back_as_it_was_saved(folder):
    expected = tiny_model(tiny_config(heads=4), seed=1).state_dict()
    found = load_masked_lm(folder)
    assert found.config._attn_implementation == "sdpa"
    assert found.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())


def test_half_precision_weights_come_back_in_float32(folder):
    change_weights(folder, lambda weights: {name: value.half() for name, value in weights.items()})
    assert {value.dtype for value in load_masked_lm(folder).parameters()} == {torch.float32}


def test_weights_of_pytorch_are_read(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    expected = tiny_model(tiny_config(heads=4), seed=1).state_dict()
    found = load_masked_lm(folder).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert has_head(folder)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(folder):
    class Runs:
        def __reduce__(self):
            return (open, (str(folder / "was_run"), "w"))

    (folder / "model.safetensors").unlink()
    torch.save({"w": Runs()}, folder / "pytorch_model.bin")
    assert "cannot be read as weights" in refusal(weight_shapes, folder)
    assert str(folder) in refusal(load_masked_lm, folder)
    assert not (folder / "was_run").exists()


def test_a_folder_without_head_is_refused_where_the_head_is_needed(folder):
    change_weights(folder, without("cls."))
    assert not has_head(folder)
    message = refusal(load_masked_lm, folder)
    assert "no masked-language-model head" in message and "kd_weight 0" in message and str(folder) in message
    assert load_masked_lm(folder, need_head=False).config.hidden_size == 16


@pytest.mark.parametrize("name", [HEAD, "cls.predictions.bias", "cls.predictions.transform.LayerNorm.weight"])
def test_half_a_head_is_no_head(folder, name):
    change_weights(folder, without(name))
    assert "no masked-language-model head" in refusal(load_masked_lm, folder)


def test_an_encoder_saved_alone_has_no_head(folder):
    tiny_model(tiny_config(heads=4)).bert.save_pretrained(folder)
    assert not has_head(folder)
    assert "no masked-language-model head" in refusal(load_masked_lm, folder)


@pytest.mark.parametrize("prefix, count", [
    ("bert.encoder.layer.1.attention.self.query.weight", 1), ("bert.encoder.layer.1.", 16),
    ("bert.embeddings.position_embeddings", 1),
])  # fmt: skip
@pytest.mark.parametrize("need_head", [True, False])
def test_missing_weights_are_refused_and_never_made_up(folder, prefix, count, need_head):
    change_weights(folder, without(prefix))
    message = refusal(load_masked_lm, folder, need_head=need_head)
    assert f"{count} weights are missing, the first is {prefix}" in message


def test_misshapen_weights_are_refused(folder):
    key = "bert.encoder.layer.0.output.dense.weight"
    change_weights(folder, lambda weights: {**weights, key: torch.zeros(3, 3)})
    assert f"{key} is [3, 3], but by config.json it must be" in refusal(load_masked_lm, folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder, value):
    """Every loss would be NaN, and the message about it would blame the learning rate."""
    key = "bert.encoder.layer.0.output.dense.bias"
    change_weights(folder, lambda weights: {**weights, key: torch.full_like(weights[key], value)})
    assert f"{key} holds NaN or infinity" in refusal(load_masked_lm, folder)


def test_a_config_of_another_depth_than_the_weights_is_refused(folder):
    write_config(folder / "config.json", tiny_config(layers=3, heads=4))
    assert "16 weights are missing" in refusal(load_masked_lm, folder)


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"\x00" * 100])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_damaged_weight_file_is_refused(folder, file, content):
    (folder / "model.safetensors").unlink()
    (folder / file).write_bytes(content)
    assert "cannot be read as weights" in refusal(weight_shapes, folder)
    assert "cannot be read as weights" in refusal(load_masked_lm, folder)


def test_a_truncated_weight_file_is_refused(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert "cannot be read as weights" in refusal(weight_shapes, folder)
    assert "cannot be read as weights" in refusal(load_masked_lm, folder)


def test_a_folder_without_weights_says_which_files_were_expected(folder):
    (folder / "model.safetensors").unlink()
    assert not has_weights(folder) and "no weights" in refusal(weight_shapes, folder)
    assert "no weights; expected model.safetensors or pytorch_model.bin" in refusal(load_masked_lm, folder)


def test_a_missing_shard_of_an_index_is_named(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {HEAD: "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lists model-00001-of-00002.safetensors, which is not there" in refusal(weight_shapes, folder)


def test_a_folder_that_is_not_there_names_those_beside_it(folder):
    assert f"no such model folder; there are in {folder.parent}: model" in refusal(find_model, f"{folder}l")
    assert find_model(str(folder)) == folder


def test_a_file_is_no_model_folder(folder):
    assert "found a file" in refusal(find_model, str(folder / "vocab.txt"))


@pytest.mark.parametrize("place", ["models/m", "model"])
def test_the_models_below_a_folder_that_is_none_are_named(place, folder, tmp_path):
    """A run's folder, and a fine-tuning run's, are what users name first."""
    shutil.copytree(folder, tmp_path / "run" / place)
    assert f"there are below it: {tmp_path / 'run' / place}; name one" in refusal(find_model, str(tmp_path / "run"))


GOOD_CONFIG = tiny_config().to_dict()


@pytest.mark.parametrize("change, words", [
    ({"model_type": "roberta"}, "model_type is 'roberta'; only 'bert' models"),
    ({"hidden_size": 0}, "'hidden_size' must be a whole number above 0, found 0"),
    ({"num_hidden_layers": "2"}, "'num_hidden_layers' must be a whole number above 0, found \"2\""),
    ({"vocab_size": True}, "'vocab_size' must be a whole number above 0, found true"),
    ({"hidden_size": 15}, "hidden_size 15 is not a multiple of num_attention_heads 2"),
    ({"hidden_act": "gleu"}, "unknown hidden_act \"gleu\"; did you mean 'gelu'"),
])  # fmt: skip
def test_configs_that_make_no_bert_are_refused(tmp_path, change, words):
    (tmp_path / "config.json").write_text(json.dumps({**GOOD_CONFIG, **change}))
    message = refusal(load_config, tmp_path)
    assert words in message and message.startswith(str(tmp_path / "config.json"))


def test_a_config_is_read_from_a_folder_or_a_file(folder):
    assert load_config(folder).to_dict() == load_config(folder / "config.json").to_dict()


def test_a_vocabulary_without_mask_token_is_refused(tmp_path):
    """transformers adds a [MASK] with a new id, for which no model has a row."""
    write_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(token for token in VOCABULARY if token != "[MASK]"))
    assert "the vocabulary has no [MASK]" in refusal(load_tokenizer, tmp_path)


def test_the_model_must_have_one_row_for_every_token(folder):
    tokenizer = load_tokenizer(folder)
    check_vocabulary(tokenizer, tiny_config(), tokens_from="here", model="there")
    message = refusal(check_vocabulary, tokenizer, tiny_config(vocab_size=86), tokens_from="here", model="there")
    assert message.startswith("there: the model has 86 vocabulary rows, but the tokenizer of here has 85 tokens")


@pytest.mark.parametrize("change", [
    lambda tokens: [*tokens[:-2], tokens[-1], tokens[-2]], lambda tokens: [*tokens[:-1], "x"],
    lambda tokens: [*tokens, "x"],
], ids=["order", "other_token", "more"])  # fmt: skip
def test_vocabularies_that_differ_are_refused(folder, tmp_path, change):
    other = write_tokenizer(tmp_path / "other")
    (other / "vocab.txt").write_text("\n".join(change(VOCABULARY)) + "\n", encoding="utf-8")
    ours, theirs = load_tokenizer(folder), load_tokenizer(other)
    check_same_tokens(ours, load_tokenizer(folder), a_name="a", b_name="b")
    assert "a and b have different vocabularies (85 and" in refusal(
        check_same_tokens, ours, theirs, a_name="a", b_name="b"
    )


def test_random_weights_depend_on_the_seed_alone_and_leave_the_random_state():
    torch.manual_seed(0)
    first = build_model(tiny_config(), seed=3)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), after)
    second, other = build_model(tiny_config(), seed=3), build_model(tiny_config(), seed=4)
    words = "bert.embeddings.word_embeddings.weight"
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    assert not torch.equal(first.get_parameter(words), other.get_parameter(words))


def test_building_a_model_leaves_the_config_as_it_was():
    config = tiny_config()
    before = config.to_dict()
    build_model(config, seed=0, attention="eager")
    assert config.to_dict() == before


def test_a_saved_folder_is_whole_and_replaces_an_older_one(folder, tmp_path):
    target = tmp_path / "saved" / "student"
    (tmp_path / "saved" / ".partial-student").mkdir(parents=True)
    (tmp_path / "saved" / ".partial-student" / "left_over").write_text("")
    for seed in (1, 2):
        save_model(tiny_model(tiny_config(), seed=seed), target, tokenizer=folder, card=f"card {seed}\n")
    assert (target / "README.md").read_text() == "card 2\n"
    assert [path.name for path in target.parent.iterdir()] == ["student"]
    assert "left_over" not in {path.name for path in target.iterdir()}
    expected = tiny_model(tiny_config(), seed=2).state_dict()
    assert all(torch.equal(v, expected[name]) for name, v in load_masked_lm(target).state_dict().items())
    assert load_tokenizer(target).get_vocab() == load_tokenizer(folder).get_vocab()


def test_a_tokenizer_folder_of_vocab_txt_alone_gets_its_settings(folder, tmp_path):
    (folder / "tokenizer_config.json").unlink()
    save_model(tiny_model(tiny_config()), tmp_path / "student", tokenizer=folder, card="")
    assert (tmp_path / "student" / "tokenizer_config.json").exists()


PLAIN = """
import sys
sys.modules["distill"] = None  # any import of ours fails, even where the package is installed
from transformers import BertForMaskedLM, BertTokenizer, pipeline
folder = sys.argv[1]
model, loading = BertForMaskedLM.from_pretrained(folder, output_loading_info=True)
tokenizer = BertTokenizer.from_pretrained(folder)
answers = pipeline("fill-mask", model=folder)(sys.argv[2])
assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
assert len(tokenizer) == model.config.vocab_size
assert sys.modules["distill"] is None and not any(name.startswith("distill.") for name in sys.modules)
try:
    import distill
except ImportError:
    print("answers", len(answers), len(answers[0]["token_str"]))
"""


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_saved_config_says_what_the_model_is_and_not_how_it_was_trained(folder, tmp_path, attention):
    save_model(tiny_model(tiny_config(), attention=attention), tmp_path / "student", tokenizer=folder, card="")
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM"]
    assert "attn" not in json.dumps(config)


@pytest.mark.slow
def test_a_saved_folder_opens_with_transformers_alone(folder, tmp_path, python, clean_environment):
    save_model(tiny_model(tiny_config(), attention="eager"), tmp_path / "student", tokenizer=folder, card="card\n")
    shutil.rmtree(folder)
    sentence = "".join(CHARACTERS[:4]) + "[MASK]" + CHARACTERS[5]
    done = subprocess.run([python, "-c", PLAIN, str(tmp_path / "student"), sentence], cwd="/", text=True,
                          env=clean_environment, capture_output=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("answers 5 ")
