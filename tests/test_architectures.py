"""Architectures by name: their integers, and which published figures these reproduce."""

import functools

import pytest
import torch
from fixtures_cli import complaint, run
from safetensors.torch import load_file

from distill.errors import InputError
from distill.modeling.architectures import MINIRBT, NAMES, albert_tiny, miniature, named_config
from distill.modeling.comparison import shipped_configs
from distill.modeling.config import load_config
from distill.modeling.counting import count_parameters, flops_per_token
from distill.modeling.models import CLUE_TOKENS, GOOGLE_ROWS, load_masked_lm
from distill.modeling.published import ALBERT, FIGURES, counts_tables

pytest_plugins = ["fixtures_cli"]

# name: encoder + pooler, encoder, masked LM, pre-training, embeddings
COUNTS = {
    "RoBERTa": (102_267_648, 101_677_056, 102_290_312, 102_882_442, 16_622_592),
    "RBT6": (59_740_416, 59_149_824, 59_763_080, 60_355_210, 16_622_592),
    "RBT3": (38_476_800, 37_886_208, 38_499_464, 39_091_594, 16_622_592),
    "RBT4-h312": (11_419_320, 11_321_664, 11_441_072, 11_539_354, 6_752_928),
    "MiniRBT-h256": (10_345_216, 10_279_424, 10_366_856, 10_433_162, 5_540_864),
    "MiniRBT-h288": (12_311_136, 12_227_904, 12_332_840, 12_416_650, 6_233_472),
    "RoBERTa-tiny-clue": (7_449_936, 7_352_280, 7_458_581, 7_556_863, 2_663_544),
    "RoBERTa-tiny-pair": (7_449_936, 7_352_280, 7_458_581, 7_556_863, 2_663_544),
    "RoBERTa-tiny3L312-clue": (6_277_752, 6_180_096, 6_286_397, 6_384_679, 2_663_544),
    "RoBERTa-tiny3L768-clue": (28_410_624, 27_820_032, 28_420_181, 29_012_311, 6_556_416),
    "RoBERTa-large-clue": (312_100_864, 311_051_264, 312_110_933, 313_162_583, 8_741_888),
    "RoBERTa-large-pair": (312_100_864, 311_051_264, 312_110_933, 313_162_583, 8_741_888),
    "BERT-base-clue": (92_201_472, 91_610_880, 92_211_029, 92_803_159, 6_556_416),
    "BERT-base": (102_267_648, 101_677_056, 102_290_312, 102_882_442, 16_622_592),
    "RoBERTa-tiny-cased": (27_982_336, 27_719_680, 28_012_356, 28_276_038, 15_110_144),
}
# layers: masked LM, encoder + pooler, for 128, 256, 512 and 768 dimensions
MINIATURES = {
    2: ((3_204_872, 3_183_488), (7_207_816, 7_186_176), (17_671_304, 17_649_152), (31_411_592, 31_388_928)),
    4: ((3_601_416, 3_580_032), (8_787_336, 8_765_696), (23_976_072, 23_953_920), (45_587_336, 45_564_672)),
    6: ((3_997_960, 3_976_576), (10_366_856, 10_345_216), (30_280_840, 30_258_688), (59_763_080, 59_740_416)),
    8: ((4_394_504, 4_373_120), (11_946_376, 11_924_736), (36_585_608, 36_563_456), (73_938_824, 73_916_160)),
    10: ((4_791_048, 4_769_664), (13_525_896, 13_504_256), (42_890_376, 42_868_224), (88_114_568, 88_091_904)),
    12: ((5_187_592, 5_166_208), (15_105_416, 15_083_776), (49_195_144, 49_172_992), (102_290_312, 102_267_648)),
}
CELLS = [(layers, width, *counts) for layers, row in MINIATURES.items()
         for width, counts in zip((128, 256, 512, 768), row, strict=True)]  # fmt: skip
UNREPRODUCED = {
    ("RoBERTa-tiny-clue", "28.3M"), ("RoBERTa-tiny-pair", "28.3M"), ("RoBERTa-tiny3L768-clue", "38M"),
    ("RoBERTa-large-clue", "290M"), ("RoBERTa-large-pair", "290M"), ("RoBERTa-large-clue", "1.20G"),
    ("RoBERTa-large-pair", "1.20G"), ("RoBERTa-large-clue", "92M"), ("RoBERTa-large-pair", "92M"),
    ("BERT-base", "108M"),
}  # fmt: skip


@functools.cache
def counts_of(name):
    return count_parameters(config_called(name))


def config_called(name):
    shipped = {path.stem: path for path in shipped_configs()}
    return albert_tiny() if name == ALBERT else load_config(shipped.get(name, name))


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_under_every_convention(name):
    counts = counts_of(name)
    found = (counts.with_pooler, counts.encoder, counts.masked_lm, counts.pretraining, counts.embeddings)
    assert found == COUNTS[name]


@pytest.mark.parametrize(("layers", "width", "masked_lm", "with_pooler"), CELLS)
def test_parameters_of_the_24_miniatures(layers, width, masked_lm, with_pooler):
    config = load_config(miniature(layers, width))
    assert (config.num_attention_heads, config.intermediate_size) == (width // 64, 4 * width)
    counts = count_parameters(config)
    assert (counts.masked_lm, counts.with_pooler) == (masked_lm, with_pooler)


@pytest.mark.parametrize(("name", "count"), [("RoBERTa-wwm-large", 325_522_432), ("BERT-small", 28_763_648),
                                             (ALBERT, 4_080_520)])  # fmt: skip
def test_parameters_of_models_to_compare_with(name, count):
    assert counts_of(name).with_pooler == count


def test_all_the_miniatures_have_a_name():
    assert len([name for name in NAMES if name.startswith("chinese_roberta_")]) == len(CELLS) == 24


def test_the_file_of_rbt3_is_three_layers_of_the_base_model():
    base, three = named_config("BERT-base").to_dict(), config_called("RBT3").to_dict()
    assert {key for key in base if base[key] != three.get(key)} <= {"num_hidden_layers", "architectures"}


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: f"{figure.model}-{figure.stated}-{figure.of}")
def test_a_published_figure_is_reproduced_or_its_reason_is_given(figure):
    found = figure.reproduced_by(counts_of(figure.model))
    assert bool(found) == ((figure.model, figure.stated) not in UNREPRODUCED) == (not figure.reason)


@pytest.mark.parametrize(("model", "stated", "conventions"), [
    ("RoBERTa", "102.3M", ["encoder + pooler", "masked LM"]), ("RoBERTa", "85.7M", ["masked LM"]),
    ("RBT6", "59.76M", ["masked LM"]), ("RBT6", "43.14M", ["masked LM"]),
    ("RoBERTa-tiny-clue", "7.5M", ["masked LM"]), ("RoBERTa-wwm-large", "325M", ["encoder + pooler", "masked LM"]),
])  # fmt: skip
def test_the_conventions_behind_a_figure(model, stated, conventions):
    (figure,) = [figure for figure in FIGURES if (figure.model, figure.stated) == (model, stated)]
    assert figure.reproduced_by(counts_of(model)) == conventions


def test_albert_runs_its_layer_as_often_as_bert_its_layers():
    bert = load_config("RoBERTa-tiny-clue")
    extra = flops_per_token(albert_tiny(), 128) - flops_per_token(bert, 128)
    assert extra == 2 * 128 * 312  # widening the embeddings


def test_counts_are_shown_with_the_figures_of_the_models_named(capsys):
    assert run("models", "--counts", "chinese_roberta_L-2_H-128", "RoBERTa-tiny3L768-clue", ALBERT) == 0
    out = capsys.readouterr().out
    assert "3,204,872" in out and "28,420,181" in out and "4,080,520" in out
    assert "no: the count with 21,128 embedding rows" in out and "MiniRBT" not in out


@pytest.mark.slow
def test_without_names_every_known_model_is_counted():
    table = counts_tables([*shipped_configs(), *NAMES, ALBERT])
    assert all(f"| {name} " in table for name in (*COUNTS, *NAMES, ALBERT))


def test_a_name_that_is_no_architecture_gets_the_nearest(capsys):
    message = complaint(capsys, "models", "chinese_roberta_L-8_H-513")
    assert "no architecture of that name; did you mean 'chinese_roberta_L-8_H-512'?" in message


def test_a_name_like_none_is_told_where_they_are_listed(capsys):
    message = complaint(capsys, "models", "zzz")
    assert message.endswith("no architecture of that name; `distill models --counts` lists those that are known")


@pytest.mark.parametrize("name", MINIRBT)
def test_minirbts_models_are_known_by_name_from_any_folder(name, project):
    assert count_parameters(load_config(name)).masked_lm == COUNTS[name][2]


def test_a_folder_of_that_name_comes_first(project):
    project.model("BERT-small")
    assert load_config("BERT-small").hidden_size == 16


def test_a_recipe_takes_an_architecture_by_name(project, capsys):
    project.recipe(student={"config": "chinese_roberta_L-2_H-128"})
    assert "the model has 21128 vocabulary rows" in complaint(capsys, "train", "recipe.json", "--dry-run")


@pytest.mark.parametrize("name", ["config.json", "bert_config.json"])
def test_the_config_of_an_original_folder_is_read(project, name):
    folder = project.model("m")
    (folder / "config.json").rename(folder / name)
    assert load_config(folder).hidden_size == 16


def test_a_bert_that_calls_itself_roberta_is_read_as_what_its_vocabulary_says(project, caplog):
    """clue/* on the hub: BERT's weights and vocab.txt, model_type roberta."""
    folder = project.model("m", model_type="roberta")
    assert load_config(folder).model_type == "bert"
    assert "model_type is 'roberta', but vocab.txt is BERT's" in caplog.text
    (folder / "merges.txt").write_text("")
    with pytest.raises(InputError, match="only 'bert' models"):
        load_config(folder)


def test_rows_that_clues_vocabulary_has_no_tokens_for_are_left_out(project, caplog):
    """clue/roberta_chinese_clue_large: Google's rows under CLUE's tokens."""
    folder = project.model("m", vocab_size=GOOGLE_ROWS)
    tokens = (folder / "vocab.txt").read_text(encoding="utf-8").split()
    tokens += [f"##filler{number}" for number in range(CLUE_TOKENS - len(tokens))]
    (folder / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    stored = load_file(folder / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    model = load_masked_lm(folder)
    assert torch.equal(model.get_input_embeddings().weight, stored[:CLUE_TOKENS])
    assert model.config.vocab_size == len(model.cls.predictions.bias) == CLUE_TOKENS
    assert model(torch.tensor([[2, 3]])).logits.shape == (1, 2, CLUE_TOKENS)
    assert "21,128 vocabulary rows for CLUE's 8,021 tokens" in caplog.text


def test_another_number_of_rows_than_tokens_is_refused(project, capsys):
    folder = project.model("m", vocab_size=GOOGLE_ROWS)
    assert load_masked_lm(folder).config.vocab_size == GOOGLE_ROWS
    assert "21128 vocabulary rows" in complaint(capsys, "fill-mask", str(folder), "[MASK]")
