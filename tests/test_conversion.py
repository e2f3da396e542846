"""Conversion: names and outputs of UER's models both ways, other toolkits' files, and what is refused."""

import json
import shutil
import sys
import types

import pytest
import torch
from fixtures_cli import VOCAB, complaint, run
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertForSequenceClassification, BertModel
from transformers import BertTokenizer as Tokenizer
from uer import UerModel

from distill.errors import InputError
from distill.modeling.config import load_config
from distill.modeling.conversion import convert_model
from distill.modeling.models import load_masked_lm, load_tokenizer

pytest_plugins = ["fixtures_cli"]

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(0x4E00 + i) for i in range(55))]
IDS = torch.randint(5, 60, (2, 11), generator=torch.Generator().manual_seed(0))
SHAPES = pytest.mark.parametrize(("layers", "width"), [(2, 128), (4, 256)])


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "google_zh_vocab.txt"
    path.write_text("".join(f"{token}\n" for token in TOKENS), encoding="utf-8")
    return path


@pytest.fixture
def uer_file(tmp_path):
    """A file of UER's mini model with 4 x 128."""
    return save(UerModel(4, 128, heads=2).state_dict(), tmp_path / "model.bin")


def save(weights, path):
    torch.save(dict(weights), path)
    return path


def to_hf(source, vocabulary, name="hf", **options):
    output = vocabulary.parent / name
    return output, convert_model(source, output, to="hf", tokenizer=vocabulary, **options)


def refusal(*arguments, **options):
    with pytest.raises(InputError) as caught:
        convert_model(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def outputs(folder):
    model = BertForMaskedLM.from_pretrained(folder).eval()
    with torch.no_grad():
        states = model.bert(IDS).last_hidden_state
        return states, model.cls(states)


# ---- UER


@SHAPES
def test_a_model_of_uer_computes_the_same_as_a_hugging_face_folder(layers, width, vocabulary):
    model = UerModel(layers, width, heads=width // 64)
    folder, done = to_hf(save(model.state_dict(), vocabulary.parent / "model.bin"), vocabulary)
    for found, expected in zip(outputs(folder), model(IDS), strict=True):
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max().clamp(min=1)
    assert done.kind == "BertForMaskedLM" and done.difference < 1e-5


@SHAPES
def test_compat_is_uers_own_converter_weight_for_weight(layers, width, vocabulary):
    model = UerModel(layers, width, heads=width // 64)
    weights = model.state_dict()
    folder, _ = to_hf(save(weights, vocabulary.parent / "model.bin"), vocabulary, exact=False)
    found = load_masked_lm(folder).state_dict()
    layer = "encoder.transformer.1"
    for theirs, ours in {
        "embedding.layer_norm.gamma": "bert.embeddings.LayerNorm.weight",
        f"{layer}.self_attn.linear_layers.1.weight": "bert.encoder.layer.1.attention.self.key.weight",
        f"{layer}.layer_norm_2.gamma": "bert.encoder.layer.1.output.LayerNorm.weight",
        f"{layer}.feed_forward.linear_1.bias": "bert.encoder.layer.1.intermediate.dense.bias",
        "target.mlm.linear_2.bias": "cls.predictions.bias",
        "target.mlm.linear_2.weight": "cls.predictions.decoder.weight",
    }.items():
        assert torch.equal(found[ours], weights[theirs]), ours
    assert torch.equal(
        found["bert.embeddings.token_type_embeddings.weight"], weights["embedding.seg.embedding.weight"][1:]
    )
    difference = (outputs(folder)[0] - model(IDS)[0]).abs().max()
    assert 1e-4 < difference < 0.1  # what the official converter leaves


@SHAPES
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "compat"])
def test_there_and_back_differs_in_the_row_of_padding_alone(layers, width, exact, vocabulary):
    weights = UerModel(layers, width, heads=width // 64).state_dict()
    folder, _ = to_hf(save(weights, vocabulary.parent / "model.bin"), vocabulary, exact=exact)
    convert_model(folder, vocabulary.parent / "back", to="uer", exact=exact)
    back = torch.load(vocabulary.parent / "back/model.bin", weights_only=True)
    assert back.keys() == weights.keys()
    segments = "embedding.seg.embedding.weight"
    for name in weights.keys() - {segments}:
        torch.testing.assert_close(back[name], weights[name], atol=1e-6, rtol=1e-6)
    assert torch.equal(back[segments][1:], weights[segments][1:]) and not back[segments][0].any()


def test_what_is_written_for_uer_is_complete(project):
    project.model("m", hidden_size=128, num_attention_heads=4)
    convert_model(project.root / "m", project.root / "uer", to="uer")
    config = json.loads((project.root / "uer/config.json").read_text())
    assert (config["heads_num"], config["layers_num"], config["feedforward_size"]) == (4, 2, 32)
    assert (project.root / "uer/vocab.txt").read_text(encoding="utf-8").splitlines() == VOCAB
    again = convert_model(project.root / "uer/model.bin", project.root / "hf", to="hf",
                          config=str(project.root / "uer/config.json"))  # fmt: skip
    assert again.config.num_attention_heads == 4


@pytest.mark.parametrize("source", ["uer", "uer/model.bin"])
def test_what_was_written_for_uer_comes_back_without_being_told_its_parts(source, project, caplog):
    """Heads that are not in the weights stand in the config beside them."""
    project.model("m", hidden_size=128, num_attention_heads=4)
    convert_model(project.root / "m", project.root / "uer", to="uer")
    again = convert_model(project.root / source, project.root / "hf", to="hf")
    assert again.config.num_attention_heads == 4 and not caplog.text


def test_a_model_of_uer_with_next_sentences_keeps_them(vocabulary):
    weights = UerModel(2, 128, heads=2, next_sentence=True).state_dict()
    folder, done = to_hf(save(weights, vocabulary.parent / "model.bin"), vocabulary)
    assert done.kind == "BertForPreTraining"
    model, info = BertForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(model.bert.pooler.dense.weight, weights["target.sp.linear_1.weight"])
    assert torch.equal(model.cls.seq_relationship.bias, weights["target.sp.linear_2.bias"])


def test_a_classifier_of_uer_keeps_its_head(vocabulary):
    weights = {name: tensor for name, tensor in UerModel(2, 128, heads=2).state_dict().items() if "target" not in name}
    weights |= {"output_layer_1.weight": torch.randn(128, 128), "output_layer_1.bias": torch.randn(128)}
    weights |= {"output_layer_2.weight": torch.randn(3, 128), "output_layer_2.bias": torch.randn(3)}
    folder, done = to_hf(save(weights, vocabulary.parent / "model.bin"), vocabulary)
    model, info = BertForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert done.kind == "BertForSequenceClassification" and not info["missing_keys"]
    assert torch.equal(model.classifier.weight, weights["output_layer_2.weight"])
    assert torch.equal(model.bert.pooler.dense.weight, weights["output_layer_1.weight"])


def test_names_of_before_2022_and_of_data_parallel_are_known(vocabulary):
    weights = UerModel(2, 128, heads=2, next_sentence=True).state_dict()
    old = {
        "word.embedding": "word_embedding", "pos.embedding": "position_embedding", "seg.embedding": "segment_embedding",
        "mlm.linear": "mlm_linear", "mlm.layer_norm": "layer_norm", "sp.linear": "nsp_linear",
    }  # fmt: skip
    renamed = {}
    for name, tensor in weights.items():
        for new, before in old.items():
            name = name.replace(new, before)
        renamed[f"module.{name}"] = tensor
    new, _ = to_hf(save(weights, vocabulary.parent / "new.bin"), vocabulary, "new")
    folder, _ = to_hf(save(renamed, vocabulary.parent / "old.bin"), vocabulary)
    expected = load_file(new / "model.safetensors")
    found = load_file(folder / "model.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_decoder_of_its_own_stays_one(vocabulary):
    weights = UerModel(2, 128, heads=2).state_dict()
    weights["target.mlm.linear_2.weight"] = weights["target.mlm.linear_2.weight"] + 1
    folder, _ = to_hf(save(weights, vocabulary.parent / "model.bin"), vocabulary)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    found = load_masked_lm(folder).state_dict()
    assert torch.equal(found["cls.predictions.decoder.weight"], weights["target.mlm.linear_2.weight"])


def test_what_is_written_opens_with_transformers_and_says_where_it_comes_from(uer_file, vocabulary):
    folder, _ = to_hf(uer_file, vocabulary)
    assert "cls.predictions.decoder.weight" not in load_file(folder / "model.safetensors")  # tied
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    assert Tokenizer.from_pretrained(folder).convert_tokens_to_ids(TOKENS[7]) == 7
    assert "UER's LayerNorm is folded" in (folder / "README.md").read_text()


# ---- config and shape


def test_heads_come_from_the_config(uer_file, vocabulary, tmp_path):
    (tmp_path / "uer.json").write_text(json.dumps({
        "emb_size": 128, "hidden_size": 128, "feedforward_size": 512, "heads_num": 8, "layers_num": 4,
        "max_seq_length": 64, "hidden_act": "gelu", "dropout": 0.1,
    }))  # fmt: skip
    _, done = to_hf(uer_file, vocabulary, config=str(tmp_path / "uer.json"))
    assert done.config.num_attention_heads == 8


def test_heads_that_are_not_known_are_assumed_with_a_warning(uer_file, vocabulary, caplog):
    _, done = to_hf(uer_file, vocabulary)
    assert done.config.num_attention_heads == 2 and "2 heads of 64 dimensions are assumed" in caplog.text


@pytest.mark.parametrize(("change", "words"), [
    ({"layers_num": 2}, "num_hidden_layers is 4 in the weights and 2 in"),
    ({"max_seq_length": 512}, "max_position_embeddings is 64 in the weights and 512 in"),
    ({"hidden_act": "relu"}, "only gelu can be checked"),
    ({"layernorm_positioning": "pre"}, "'layernorm_positioning' is pre, which BERT's encoder is not"),
    ({"emb_size": 64}, "emb_size and hidden_size differ"),
])  # fmt: skip
def test_a_config_of_another_model_is_refused(uer_file, vocabulary, tmp_path, change, words):
    config = {"emb_size": 128, "hidden_size": 128, "feedforward_size": 512, "heads_num": 2, "layers_num": 4,
              "max_seq_length": 64, "hidden_act": "gelu", "dropout": 0.1}  # fmt: skip
    (tmp_path / "uer.json").write_text(json.dumps(config | change))
    message = refusal(uer_file, tmp_path / "hf", to="hf", tokenizer=vocabulary, config=str(tmp_path / "uer.json"))
    assert words in message and not (tmp_path / "hf").exists() and not list(tmp_path.glob(".hf*"))


def test_uers_config_is_no_model_folders(uer_file):
    (uer_file.parent / "config.json").write_text('{"heads_num": 2}')
    with pytest.raises(InputError, match=r"a config of UER's; `distill convert` makes a model folder"):
        load_config(uer_file.parent)


def test_a_width_without_config_that_fits_no_heads_is_refused(project):
    state = BertForMaskedLM(BertConfig(vocab_size=len(VOCAB), hidden_size=312, num_hidden_layers=1,
                                       num_attention_heads=12, intermediate_size=32)).state_dict()  # fmt: skip
    message = refusal(save(state, project.root / "gs10.pkl"), project.root / "hf", to="hf",
                      tokenizer=project.root / "teacher")  # fmt: skip
    assert "312 dimensions are no multiple of 64" in message and "--config" in message


def broken(change):
    weights = dict(UerModel(4, 128, heads=2).state_dict())
    change(weights)
    return weights


@pytest.mark.parametrize(("change", "words"), [
    (lambda w: w.pop("encoder.transformer.2.self_attn.linear_layers.0.weight"),
     "1 weights are missing, the first is bert.encoder.layer.2.attention.self.query.weight"),
    (lambda w: w.update({"encoder.transformer.1.feed_forward.linear_gate.weight": torch.zeros(2)}),
     "encoder.transformer.1.feed_forward.linear_gate.weight has no place in a BERT encoder"),
    (lambda w: w.update({"output_layer.weight": torch.zeros(2, 128)}), "holds a tagging or reading head"),
    (lambda w: w.pop("target.mlm.layer_norm.beta"), "weights are missing, the first is cls.predictions.transform"),
    (lambda w: w.pop("embedding.word.embedding.weight"), "has no bert.embeddings.word_embeddings.weight"),
    (lambda w: w["embedding.layer_norm.beta"].fill_(float("nan")), "holds NaN or infinity"),
    (lambda w: w.update({"target.mlm.linear_1.bias": torch.zeros(3)}), "is [3], but by the config it must be [128]"),
    (lambda w: [w.pop(name) for name in list(w) if "transformer" in name], "no layers of a BERT encoder"),
])  # fmt: skip
def test_files_that_are_no_whole_bert_are_refused(change, words, vocabulary, tmp_path):
    file = save(broken(change), tmp_path / "model.bin")
    assert words in refusal(file, tmp_path / "hf", to="hf", tokenizer=vocabulary)
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(("weights", "words"), [
    ({"roberta.encoder.layer.0.x.weight": torch.zeros(2)}, "a RoBERTa"),
    ({"conv1.weight": torch.zeros(2)}, "no layers of a BERT encoder in it (found e.g. conv1.weight)"),
    ({}, "no layers of a BERT encoder in it (found e.g. no tensors)"),
])  # fmt: skip
def test_files_of_other_models_are_refused(weights, words, vocabulary, tmp_path):
    message = refusal(save(weights, tmp_path / "model.bin"), tmp_path / "hf", to="hf", tokenizer=vocabulary)
    assert words in message


def test_another_format_than_the_one_named_is_refused(uer_file, vocabulary, tmp_path):
    message = refusal(uer_file, tmp_path / "hf", to="hf", tokenizer=vocabulary, source_format="hf")
    assert "its weights are named as in 'uer', not as in 'hf'; check --from" in message


def test_weights_without_vocabulary_need_one_named(uer_file, tmp_path):
    assert "--tokenizer" in refusal(uer_file, tmp_path / "hf", to="hf")


def test_a_vocabulary_that_is_none_is_named(uer_file, tmp_path):
    (tmp_path / "words.txt").write_text("天\n")
    message = refusal(uer_file, tmp_path / "hf", to="hf", tokenizer=tmp_path / "words.txt")
    assert "words.txt: the vocabulary has no [PAD]" in message


def test_what_stands_at_the_output_is_not_replaced(uer_file, vocabulary, tmp_path):
    (tmp_path / "hf").mkdir()
    assert "exists already" in refusal(uer_file, tmp_path / "hf", to="hf", tokenizer=vocabulary)


def test_rows_that_are_no_tokens_are_said(uer_file, vocabulary, caplog):
    vocabulary.write_text("".join(f"{token}\n" for token in TOKENS[:-5]), encoding="utf-8")
    to_hf(uer_file, vocabulary)
    assert "60 embedding rows for the 55 tokens" in caplog.text and "distill vocab repair" in caplog.text


# ---- TextBrewer, MiniRBT, TensorFlow, Hugging Face's variants


def test_a_textbrewer_student_becomes_a_folder(project, capsys):
    """gs*.pkl is a state dict with the tied decoder, both names of its bias and, from transformers 4, position_ids."""
    project.model("m")
    state = dict(BertForMaskedLM.from_pretrained("m").state_dict())
    state["bert.embeddings.position_ids"] = torch.arange(64)[None]
    save(state, project.root / "gs40.pkl")
    arguments = ["--to", "hf", "--output", "out", "--tokenizer", "m", "--config", "student.json"]
    assert run("convert", "gs40.pkl", "--from", "textbrewer", *arguments) == 0
    assert "BertForMaskedLM of 2 layers x 16, 2 heads" in capsys.readouterr().out
    found = load_masked_lm("out").state_dict()
    assert all(torch.equal(found[name], state[name]) for name in found)
    assert load_tokenizer("out").get_vocab() == load_tokenizer("m").get_vocab()


def test_a_pickle_that_would_run_code_is_refused_and_not_run(project):
    class Runs:
        def __reduce__(self):
            return (open, (str(project.root / "was_run"), "w"))

    torch.save({"w": Runs()}, project.root / "teacher/gs1.pkl")
    assert "cannot be read as weights" in refusal(project.root / "teacher/gs1.pkl", project.root / "hf", to="hf")
    assert not (project.root / "was_run").exists()


def test_a_teacher_assistant_of_minirbt_is_an_encoder(project):
    """scripts/init_checkpoint_TA.py there wrote no prediction head."""
    project.model("m", head=False, form="bin")
    done = convert_model(project.root / "m/pytorch_model.bin", project.root / "ta", to="hf", config="student.json")
    assert done.kind == "BertModel"
    expected = torch.load("m/pytorch_model.bin", weights_only=True)
    found = load_file("ta/model.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_gamma_beta_and_missing_prefixes_are_brought_in_line(project):
    project.model("m", head=False, form="bin")
    state = torch.load("m/pytorch_model.bin", weights_only=True)
    old = {name.removeprefix("bert.").replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias",
           "LayerNorm.beta"): tensor for name, tensor in state.items()}  # fmt: skip
    save(old, project.root / "m/pytorch_model.bin")
    (project.root / "m/config.json").rename(project.root / "m/bert_config.json")
    convert_model(project.root / "m", project.root / "out", to="hf")
    model, info = BertModel.from_pretrained("out", add_pooling_layer=False, output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(model.embeddings.LayerNorm.weight, state["bert.embeddings.LayerNorm.weight"])


def tensorflow_names(state):
    """A state dict under the names and layouts of Google's checkpoints, with what an optimiser leaves."""
    found = {"global_step": torch.tensor(5), "bert/pooler/dense/kernel/adam_m": torch.zeros(2)}
    for name, tensor in state.items():
        if "decoder" in name:
            continue
        name = name.replace("layer.", "layer_").replace("LayerNorm.weight", "LayerNorm.gamma")
        name = name.replace("LayerNorm.bias", "LayerNorm.beta").replace("_embeddings.weight", "_embeddings")
        name = name.replace("cls.predictions.bias", "cls.predictions.output_bias")
        if name.startswith("cls.seq_relationship"):
            name = name.replace("relationship.", "relationship.output_").replace("output_weight", "output_weights")
        if name.endswith(".weight"):
            name, tensor = name.removesuffix(".weight") + ".kernel", tensor.T
        found[name.replace(".", "/")] = tensor
    return found


@pytest.fixture
def tensorflow_folder(project):
    project.model("m")
    (project.root / "m/model.safetensors").unlink()
    (project.root / "m/config.json").rename(project.root / "m/bert_config.json")
    (project.root / "m/bert_model.ckpt.index").write_bytes(b"")
    return project.root / "m"


@pytest.mark.parametrize("source", ["m", "m/bert_model.ckpt", "m/bert_model.ckpt.index"])
def test_tensorflow_checkpoints_are_refused_without_tensorflow(tensorflow_folder, source, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = complaint(capsys, "convert", source, "--to", "hf", "--output", "out", "--config", "student.json")
    assert "a TensorFlow checkpoint, which only TensorFlow can read" in message


def test_tensorflow_checkpoints_are_read_with_tensorflow(tensorflow_folder, monkeypatch):
    config = BertConfig.from_json_file(tensorflow_folder / "bert_config.json")
    torch.manual_seed(0)
    state = BertForPreTraining(config).state_dict()
    variables = tensorflow_names(state)
    reader = types.SimpleNamespace(
        get_variable_to_shape_map=lambda: {name: list(value.shape) for name, value in variables.items()},
        get_tensor=lambda name: variables[name].numpy(),
    )
    train = types.SimpleNamespace(load_checkpoint=lambda prefix: reader if prefix.endswith(".ckpt") else None)
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(train=train))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "tensorflow")
    done = convert_model(tensorflow_folder, tensorflow_folder.parent / "out", to="hf", source_format="tf")
    assert done.kind == "BertForPreTraining"
    model, info = BertForPreTraining.from_pretrained("out", output_loading_info=True)
    assert not info["missing_keys"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


# ---- case, and the command


def test_a_cased_vocabulary_keeps_its_case(uer_file, vocabulary, caplog):
    vocabulary.write_text("".join(f"{token}\n" for token in [*TOKENS[:-2], "Paris", "Obama"]), encoding="utf-8")
    folder, _ = to_hf(uer_file, vocabulary)
    assert Tokenizer.from_pretrained(folder).tokenize("Paris") == ["Paris"]
    assert json.loads((folder / "tokenizer_config.json").read_text())["do_lower_case"] is False


def test_a_folder_that_forgot_its_case_keeps_it_with_a_warning(tmp_path, caplog):
    """haisongzhang/roberta-tiny-cased has nothing but this in its tokenizer_config.json."""
    (tmp_path / "vocab.txt").write_text("\n".join([*TOKENS[:5], "Barack", "Obama", "visited", "par", "##is"]))
    (tmp_path / "tokenizer_config.json").write_text('{"special_tokens_map_file": null, "full_tokenizer_file": null}')
    assert load_tokenizer(tmp_path).tokenize("Barack Obama visited") == ["Barack", "Obama", "visited"]
    assert "case is kept" in caplog.text


def test_the_command_says_what_came_out(uer_file, vocabulary, tmp_path, capsys):
    out = ["--output", str(tmp_path / "hf"), "--tokenizer", str(vocabulary)]
    assert run("convert", str(uer_file), "--from", "tencentpretrain", "--to", "hf", *out) == 0
    assert (
        "BertForMaskedLM of 4 layers x 128, 2 heads, 60 tokens, from uer; outputs differ by" in capsys.readouterr().out
    )
    assert run("convert", str(tmp_path / "hf"), "--to", "uer", "--output", str(tmp_path / "back")) == 0
    assert "exists already" in complaint(capsys, "convert", str(uer_file), "--to", "hf", *out)


def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(capsys):
    assert "no such file" in complaint(capsys, "convert", "none.bin", "--to", "hf", "--output", "out")


def test_half_precision_is_kept(project):
    folder = project.model("m")
    weights = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    convert_model(folder, project.root / "out", to="hf")
    assert {tensor.dtype for tensor in load_file("out/model.safetensors").values()} == {torch.float16}
    shutil.rmtree("out")
