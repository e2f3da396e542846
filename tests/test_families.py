"""The recipes of UER, CLUE, RoBERTa-tiny-cased and RBT3: what they say, that they plan and train."""

import json
import runpy
import sys

import pytest
import torch
from fixtures_cli import ROOT, SENTENCES, SPECIAL, VOCAB, bert, run

from distill.modeling.architectures import LAYERS, WIDTHS, miniature
from distill.modeling.models import load_masked_lm, load_tokenizer
from distill.recipe_file import load_recipe

pytest_plugins = ["fixtures_cli"]

ENGLISH = ["Barack Obama visited Paris .", "The weather in Paris was cold .", "Obama met the mayor of Paris ."]
CASED = [*SPECIAL, *sorted({word for line in ENGLISH for word in line.split()})]


def shipped(name):
    return str(ROOT / f"jsons/recipes/{name}.json")


def stage_values(stage):
    return (stage.max_seq_length, stage.steps, stage.global_batch_size, stage.save_every, stage.data.packing,
            stage.data.mask, stage.data.segmenter, stage.data.static_masks)  # fmt: skip


def records(folder, stage, split="train"):
    lines = (folder / f"stages/{stage}/metrics.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["split"] == split]


# ---- what the recipes say


def test_uers_recipe_is_the_one_on_the_cards():
    first, second = load_recipe(shipped("uer_medium")).stages
    assert stage_values(first) == (128, 1_000_000, 8 * 64, 100_000, "documents", "token", None, None)
    assert stage_values(second) == (512, 250_000, 8 * 16, 50_000, "documents", "token", None, None)
    (warm,), (cold,) = second.students.values(), first.students.values()
    assert (cold.learning_rate, warm.learning_rate, cold.max_grad_norm) == (1e-4, 5e-5, 0)
    assert [warm.init] == list(first.students) and first.teacher is second.teacher is None
    # All checkpoints that UER keeps stay.
    assert [stage.keep_checkpoints * stage.save_every for stage in (first, second)] == [1_000_000, 250_000]


def test_the_generator_writes_the_recipes_of_all_24(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["write_uer_recipes.py", "--output", str(tmp_path)])
    runpy.run_path(str(ROOT / "scripts/write_uer_recipes.py"))["main"]()
    medium = load_recipe(shipped("uer_medium"))
    names = {miniature(layers, width) for layers in LAYERS for width in WIDTHS}
    assert {path.stem for path in tmp_path.iterdir()} == names and len(names) == 24
    assert load_recipe(tmp_path / f"{miniature(8, 512)}.json") == medium
    tiny = load_recipe(tmp_path / f"{miniature(2, 128)}.json")
    assert [student.config for student in tiny.stages[0].students.values()] == [miniature(2, 128)]
    assert [stage_values(stage) for stage in tiny.stages] == [stage_values(stage) for stage in medium.stages]
    assert tiny.output_dir != medium.output_dir


def test_roberta_tiny_cased_is_what_its_card_says():
    (stage,) = load_recipe(shipped("roberta_tiny_cased")).stages
    (student,) = stage.students.values()
    assert (stage.epochs, stage.steps, stage.global_batch_size, stage.max_seq_length) == (20, None, 512, 256)
    assert (stage.data.packing, stage.data.mask, student.learning_rate) == ("full_sentences", "token", 1e-4)
    assert stage.teacher is None


def test_rbt3_begins_as_three_layers_of_its_teacher_and_learns_from_text_alone():
    (stage,) = load_recipe(shipped("rbt3")).stages
    (student,) = stage.students.values()
    assert (student.init_layers, student.kd_weight, student.mlm_weight, student.matches) == ([0, 1, 2], 0, 1, [])
    assert stage.data.mask == "whole_word"


# ---- that they plan, with stand-ins for what a user puts there


@pytest.fixture
def stand_ins(project):
    """Vocabularies of the published sizes, and a text."""
    for name, size in (("RoBERTa", 21_128), ("clue-vocabulary", 8_021), ("bert-base-cased", 28_996)):
        project.tokenizer(f"pretrained_model_path/{name}", [*SPECIAL, *(f"t{i}" for i in range(size - 5))])
    (project.root / "text").rename(project.root / "dataset")
    (project.root / "dataset").rename(project.root / "train")
    (project.root / "dataset").mkdir()
    (project.root / "train").rename(project.root / "dataset/train")
    return project


@pytest.mark.parametrize(("recipe", "parameters"), [
    ("uer_medium", ["36,585,608", "36,585,608"]), ("clue", ["7,458,581", "6,286,397"]),
    ("roberta_tiny_cased", ["28,012,356"]),
])  # fmt: skip
def test_recipes_without_teacher_plan(recipe, parameters, stand_ins, capsys):
    assert run("train", shipped(recipe), "--dry-run") == 0
    out = capsys.readouterr().out
    assert [line.split(": ")[1].split()[0] for line in out.splitlines() if " parameters" in line] == parameters


def test_the_recipe_of_rbt3_plans(stand_ins, capsys):
    stand_ins.model("pretrained_model_path/RoBERTa", num_hidden_layers=12, max_position_embeddings=512)
    stand_ins.write("three.json", bert(num_hidden_layers=3, max_position_embeddings=512))
    settings = ["--config", "three.json", "--set", "stages.continue.data.segmenter=words"]
    assert run("train", shipped("rbt3"), "--dry-run", *settings) == 0
    assert "RBT3 from pretrained_model_path/RoBERTa, 1,000,000 steps" in capsys.readouterr().out


# ---- that they train, in small


@pytest.fixture
def tiny(project):
    """2 layers of 128, as UER's tiny, with this project's vocabulary and room for its words."""
    project.write("tiny.json", bert(hidden_size=128, intermediate_size=512, hidden_dropout_prob=0.0,
                                    attention_probs_dropout_prob=0.0))  # fmt: skip
    return project


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_uers_two_stages_go_on_from_each_other(tiny):
    """The second stage starts from weights alone: a new optimiser, a new schedule, longer rows."""
    recipe = json.loads((ROOT / "jsons/recipes/uer_medium.json").read_text())
    recipe["defaults"]["data"] |= {"text": ["text"], "tokenizer": "teacher", "dev": 0.1}
    lengths = ((32, 150), (48, 10))
    for stage, (length, steps) in zip(recipe["stages"], lengths, strict=True):
        stage |= {"max_seq_length": length, "steps": steps, "global_batch_size": 16, "micro_batch_size": 4,
                  "log_every": 1, "save_every": steps, "learning_rate": stage["learning_rate"] * 10}  # fmt: skip
    recipe["stages"][0]["students"]["chinese_roberta_L-8_H-512-seq128"]["config"] = "tiny.json"
    tiny.write("uer.json", recipe | {"output_dir": "out", "report": False})
    assert run("train", "uer.json") == 0
    first, second = (records(tiny.root / "out", name) for name in ("seq128", "seq512"))
    last = sum(record["loss"] for record in first[-5:]) / 5
    assert first[0]["loss"] - last > 1
    # Not all of it: longer rows have positions that the first stage never saw, and this text is learned by heart.
    assert second[0]["loss"] - last < 0.3 * (first[0]["loss"] - last)
    # Four micro-batches a step, and yet the schedule ends where it should.
    assert [stage[-1]["learning_rate"] for stage in (first, second)] == [0, 0]
    assert max(record["learning_rate"] for record in second) == pytest.approx(5e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_small_text_is_learned_by_heart(tiny):
    """CLUE's own check of its pre-training: masked tokens of the sample are all found, from random weights."""
    sentences = [line.replace(" ", "") for line in SENTENCES[:11]]
    for name in ("sample", "again"):
        tiny.write(f"{name}/text.txt", "\n".join(sentences) + "\n")
    data = {"text": ["sample"], "dev": ["again"], "tokenizer": "teacher", "packing": "lines", "mask": "token"}
    tiny.write("overfit.json", {
        "output_dir": "out",
        "report": False,
        "stages": [{"name": "mlm", "data": data, "max_seq_length": 32, "steps": 300, "global_batch_size": 22,
                    "eval_every": 300, "students": {"tiny": {"config": "tiny.json", "learning_rate": 2e-3}}}],
    })  # fmt: skip
    assert run("train", "overfit.json") == 0
    assert records(tiny.root / "out", "mlm", "dev")[-1]["accuracy"] == 1.0


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_roberta_tiny_cased_keeps_case_from_text_to_model(tiny, caplog):
    """A folder that forgot do_lower_case, 100 steps, then a task in GLUE's format."""
    tiny.tokenizer("cased", CASED)
    tiny.write("cased/tokenizer_config.json", '{"special_tokens_map_file": null, "full_tokenizer_file": null}')
    tiny.write("english/text.txt", "\n".join([*ENGLISH, ""] * 30))
    tiny.write("cased.json", bert(vocab_size=len(CASED), hidden_size=128, intermediate_size=512))
    recipe = json.loads((ROOT / "jsons/recipes/roberta_tiny_cased.json").read_text())
    recipe["defaults"]["data"] |= {"text": ["english"], "tokenizer": "cased", "dev": 0.1}
    recipe["defaults"] |= {"max_seq_length": 32, "global_batch_size": 8, "steps": 100, "learning_rate": 1e-3}
    del recipe["defaults"]["epochs"]
    recipe["stages"][0]["students"]["RoBERTa-tiny-cased"]["config"] = "cased.json"
    tiny.write("recipe.json", recipe | {"output_dir": "out", "report": False})
    assert run("train", "recipe.json") == 0
    folder = tiny.root / "out/models/RoBERTa-tiny-cased"
    assert records(tiny.root / "out", "mlm")[-1]["loss"] < 1.5
    assert json.loads((folder / "tokenizer_config.json").read_text())["do_lower_case"] is False
    assert load_tokenizer(folder).tokenize("Obama visited Paris") == ["Obama", "visited", "Paris"]
    head = "index\tsentence1\tsentence2\tlabel\n"
    pairs = [(a, b, "entailment" if a == b else "not_entailment") for a in ENGLISH for b in ENGLISH]
    rows = "".join(f"{i}\t{a}\t{b}\t{label}\n" for i, (a, b, label) in enumerate(pairs * 3))
    for split in ("train", "dev"):
        tiny.write(f"glue/RTE/{split}.tsv", head + rows)
    arguments = ["--data", "glue", "--epochs", "1", "--max-length", "32", "--output", "runs"]
    assert run("finetune", str(folder), "--task", "rte", *arguments) == 0
    (metrics,) = (tiny.root / "runs").rglob("metrics.json")
    assert "accuracy" in json.loads(metrics.read_text())["dev"]["metrics"]


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_rbt3_begins_with_its_teachers_layers_and_keeps_learning(tiny):
    tiny.model("teacher", num_hidden_layers=4)
    recipe = json.loads((ROOT / "jsons/recipes/rbt3.json").read_text())
    recipe["defaults"] |= {"data": {"text": ["text"], "dev": 0.1, "segmenter": "words"}, "max_seq_length": 32,
                           "global_batch_size": 4, "steps": 3, "learning_rate": 1e-30, "weight_decay": 0}  # fmt: skip
    recipe["stages"][0]["teacher"] = "teacher"
    recipe["stages"][0]["students"]["RBT3"]["config"] = "three.json"
    tiny.write("three.json", bert(num_hidden_layers=3))
    tiny.write("recipe.json", recipe | {"output_dir": "out", "report": False})
    assert run("train", "recipe.json") == 0
    teacher, student = (load_masked_lm(folder).state_dict() for folder in ("teacher", "out/models/RBT3"))
    assert student.keys() < teacher.keys()
    for name, tensor in student.items():  # at a learning rate of next to nothing
        torch.testing.assert_close(tensor, teacher[name], atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_distilling_into_a_pruned_vocabulary(tiny):
    """Tokens that a text does not use go, the rest says the same, and the pruned model teaches in its vocabulary."""
    unused = [f"t{i}" for i in range(200)]
    tiny.tokenizer("large", [*VOCAB, *unused])
    tiny.model("teacher-large", vocab_size=len(VOCAB) + 200)
    tiny.tokenizer("teacher-large", [*VOCAB, *unused])
    text = "".join(SENTENCES).replace(" ", "")
    tiny.write("raw/text.txt", "\n".join(line.replace(" ", "") for line in SENTENCES) + "\n")
    assert run("vocab", "prune", "--model", "teacher-large", "--text", "raw", "--output", "pruned") == 0
    before, after = load_tokenizer("teacher-large"), load_tokenizer("pruned")
    assert len(after) <= len(VOCAB)
    kept = [before.convert_tokens_to_ids(token) for token in after.convert_ids_to_tokens(range(len(after)))]
    with torch.no_grad():
        long = load_masked_lm("teacher-large").eval()(**before(text[:40], return_tensors="pt")).logits[..., kept]
        short = load_masked_lm("pruned").eval()(**after(text[:40], return_tensors="pt")).logits
    torch.testing.assert_close(short, long, atol=1e-6, rtol=1e-6)
    tiny.write("student.json", bert(vocab_size=len(after)))
    tiny.recipe(stage={"teacher": "pruned"})
    assert run("train", "recipe.json") == 0
    assert load_masked_lm("out/models/small").config.vocab_size == len(after)
