"""Fine-tuning: every kind of task is learned by a tiny model, runs repeat, the best epoch stays, grids go on."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
import zipfile
from types import SimpleNamespace

import pytest
import torch
from fixtures_cli import complaint, run
from transformers import AutoModelForSequenceClassification, BertConfig, BertForMaskedLM, BertTokenizer

from distill.downstream.finetune import finetune, predict
from distill.downstream.grid import Grid, Run, count_runs, grid_names, list_runs, load_grid, with_tasks
from distill.downstream.results import as_cells, best_results, details_table, read_runs
from distill.downstream.run import finished_metrics, model_name, run_folder, with_defaults
from distill.downstream.scores import absolute_table, rule_for
from distill.downstream.search import _ended_runs, finetune_run, run_grid, search
from distill.downstream.task import Task, load_task
from distill.downstream.task_data import load_task_data
from distill.downstream.trainer import TellProgress
from distill.errors import InputError
from distill.modeling.config import load_config

HAN = [chr(0x4E00 + i) for i in range(30)]
GOOD, BAD = HAN[:3], HAN[3:6]
FILLERS = HAN[6:]
RATE = 3e-3


def write_encoder(folder, *, seed=0, width=32, layers=2, heads=2, inner=None, vocabulary=0, positions=64):
    """A masked-LM model with a vocabulary of single characters, filled up to a size by unused tokens."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *HAN]
    tokens += [f"[unused{i}]" for i in range(vocabulary - len(tokens))]
    config = BertConfig(
        vocab_size=len(tokens), hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=inner or 2 * width, max_position_embeddings=positions, initializer_range=0.2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(seed)
    BertForMaskedLM(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}', encoding="utf-8")
    return folder


def sentence(rng, *must, length=8):
    characters = [*must, *rng.choices(FILLERS, k=length - len(must))]
    rng.shuffle(characters)
    return "".join(characters)


def classified(rng):
    label = rng.choice(["good", "bad"])
    return {"text": sentence(rng, rng.choice(GOOD if label == "good" else BAD)), "label": label}


def graded(rng):
    score = rng.randint(0, 3)
    return {"text": sentence(rng, *[GOOD[0]] * score), "label": score}


def asked(rng):
    answer = rng.choice(GOOD)
    context = sentence(rng, answer, length=40)
    return {
        "context": context,
        "question": BAD[0],
        "answers": {"text": [answer], "answer_start": [context.index(answer)]},
    }


def tagged(rng):
    text = sentence(rng, rng.choice(GOOD), rng.choice(BAD))
    label = {}
    for kind, members in (("good", GOOD), ("bad", BAD)):
        for at, character in enumerate(text):
            if character in members:
                label.setdefault(kind, {}).setdefault(character, []).append([at, at])
    return {"text": text, "label": label}


def chosen(rng):
    choices = [rng.choice(GOOD), *rng.sample(BAD, rng.choice([1, 2]))]
    rng.shuffle(choices)
    answer = next(choice for choice in choices if choice in GOOD)
    return {"context": sentence(rng), "question": FILLERS[0], "choice": choices, "answer": answer}


KINDS = {
    "classification": (classified, ["accuracy", "macro_f1"], ["text"], "label"),
    "regression": (graded, ["pearson", "spearman"], ["text"], "label"),
    "span": (asked, ["span_f1", "exact_match"], ["context", "question"], "answers"),
    "tags": (tagged, ["entity_f1"], ["text"], "label"),
    "choice": (chosen, ["accuracy"], ["context", "question"], "answer"),
}


def make_task(folder, kind="classification", *, train=192, seed=0):
    """A task of that kind with its data: train, dev, and a test without labels."""
    row, metrics, texts, label = KINDS[kind]
    rng = random.Random(f"{kind}{seed}")
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("dev", 40), ("test", 10)):
        rows = [row(rng) for _ in range(count)]
        if split == "test":
            rows = [{key: value for key, value in made.items() if key != label} for made in rows]
        lines = [json.dumps(made, ensure_ascii=False) for made in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    description = {
        "name": f"tiny-{kind}", "kind": kind, "metrics": metrics, "texts": texts, "label": label,
        "files": {split: [f"{split}.jsonl"] for split in ("train", "dev", "test")},
        "defaults": {"learning_rate": RATE, "epochs": 6, "batch_size": 16, "max_length": 32},
    }  # fmt: skip
    (folder / "task.json").write_text(json.dumps(description), encoding="utf-8")
    return Task.model_validate(description)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("models") / "encoder")


def train(encoder, folder, task, *, splits=("train", "dev"), seed=0, lines=None, **given):
    data = load_task_data(task, str(folder), splits)
    hyperparameters = with_defaults(task, seed, **given)
    show = (lines if lines is not None else []).append
    return finetune(encoder, data, hyperparameters, folder / f"run-{seed}", show=show), folder / f"run-{seed}"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task_is_learned(encoder, tmp_path, kind):
    task = make_task(tmp_path, kind)
    results, folder = train(encoder, tmp_path, task, splits=("train", "dev", "test"))
    assert all(value > 90 for value in results["dev"]["metrics"].values()), results["epochs"]
    assert results["test"]["metrics"] is None
    answers = [json.loads(line) for line in (folder / "predictions-test.jsonl").read_text("utf-8").splitlines()]
    assert len(answers) == 10
    records, metrics = predict(folder / "model", load_task_data(task, str(tmp_path), ["dev"]), "dev")
    assert metrics == results["dev"]["metrics"] and len(records) == 40


def test_the_same_seed_gives_the_same_run_and_another_does_not(encoder, tmp_path):
    task = make_task(tmp_path, train=64)
    made = [train(encoder, tmp_path / name, make_task(tmp_path / name, train=64), seed=seed, epochs=2)
            for name, seed in (("a", 0), ("b", 0), ("c", 1))]  # fmt: skip
    losses = [[epoch["loss"] for epoch in results["epochs"]] for results, _ in made]
    assert losses[0] == losses[1] != losses[2]
    weights = [(folder / "model" / "model.safetensors").read_bytes() for _, folder in made]
    assert weights[0] == weights[1] != weights[2]
    assert task.defaults.epochs == 6


def test_the_best_epoch_on_dev_stays(encoder, tmp_path):
    """At this rate dev goes up and down again."""
    task, lines = make_task(tmp_path, train=96), []
    results, folder = train(encoder, tmp_path, task, lines=lines, epochs=6, learning_rate=1.5e-2, seed=1)
    scores = [epoch["score"] for epoch in results["epochs"]]
    lines = [line for line in lines if ": step " not in line]  # of a slow machine
    assert len(lines) == 7 and lines[1].startswith("tiny-classification: epoch 1: dev accuracy")
    assert re.fullmatch(r"tiny-classification: \d+ steps in 6 epoch\(s\)", lines[0])
    assert results["best_epoch"] == scores.index(max(scores)) + 1
    kept = {name: results["epochs"][int(results["best_epoch"]) - 1][name] for name in task.metrics}
    assert results["dev"]["metrics"] == kept
    assert min(scores) < max(scores), "the test needs epochs that differ"
    assert not (folder / "checkpoints").exists()


def test_a_fine_tuned_model_is_called_by_model_and_task(tmp_path):
    """All of them lie in folders named "model"."""
    folder = tmp_path / "small/lcqmc/0950dca89b84/model"
    folder.mkdir(parents=True)
    assert model_name(str(folder), folder) == "model"
    (folder / "task.json").touch()
    assert model_name(str(folder), folder) == "small-lcqmc"


def test_the_samples_tasks_fit_the_samples_models():
    positions = load_config("distill_configs/sample/narrow-deep.json").max_position_embeddings
    tasks = load_grid("sample").tasks
    assert tasks and all(load_task(name).defaults.max_length <= positions for name in tasks)


def test_a_long_run_says_twice_a_minute_how_far_it_is():
    seconds, lines = iter([0, 0, 10, 31, 40, 62]), []  # made, begun, and four steps
    task = SimpleNamespace(name="t")
    progress = TellProgress(task, lines.append, clock=lambda: next(seconds))
    state = SimpleNamespace(is_world_process_zero=True, max_steps=1004, global_step=0)
    progress.on_train_begin(SimpleNamespace(num_train_epochs=2.0), state, None)
    for step in range(1, 5):
        state.global_step = step
        progress.on_step_end(None, state, None)
    assert lines == ["t: 1,004 steps in 2 epoch(s)", "t: step 2 of 1,004, about 259 min left",
                     "t: step 4 of 1,004, about 258 min left"]  # fmt: skip


def test_what_is_left_opens_with_transformers_alone(encoder, tmp_path):
    task = make_task(tmp_path, train=32)
    _, folder = train(encoder, tmp_path, task, epochs=1)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model")
    tokenizer = BertTokenizer.from_pretrained(folder / "model")
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert model(**tokenizer(GOOD[0], return_tensors="pt")).logits.shape == (1, 2)


def test_a_model_of_another_task_gives_its_encoder_and_pooler_but_no_head(encoder, tmp_path):
    from distill.downstream.task_model import load_for_finetuning

    task = make_task(tmp_path, train=32)
    _, folder = train(encoder, tmp_path, task, epochs=1)
    before = AutoModelForSequenceClassification.from_pretrained(folder / "model")
    after, _ = load_for_finetuning(folder / "model", task, ("a", "b", "c"), max_length=32, seed=1)
    assert after.classifier.weight.shape == (3, 32)
    assert torch.equal(after.bert.pooler.dense.weight, before.bert.pooler.dense.weight)
    again, _ = load_for_finetuning(folder / "model", task, ("bad", "good"), max_length=32, seed=1)
    assert not torch.equal(again.classifier.weight, before.classifier.weight)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights; expected model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"damaged"), "cannot be read as weights"),
        (lambda folder: change_config(folder, num_hidden_layers=3), "16 weights are missing, the first is bert"),
        (lambda folder: change_config(folder, intermediate_size=32), "config and weights are of two models"),
        (lambda folder: change_config(folder, vocab_size=20), "config and weights are of two models"),
        (lambda folder: add_token(folder), "the vocabulary has 36 tokens, the model 35 rows"),
    ],
)
def test_a_model_that_does_not_fit_is_one_line(encoder, tmp_path, damage, message):
    folder = shutil.copytree(encoder, tmp_path / "model")
    damage(folder)
    task = make_task(tmp_path / "data", train=8)
    with pytest.raises(InputError, match=message) as raised:
        train(folder, tmp_path / "data", task)
    assert "\n" not in str(raised.value)


def add_token(folder):
    with (folder / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("new\n")


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def test_a_run_is_named_by_all_that_decides_it(encoder, tmp_path):
    task = make_task(tmp_path / "data", train=8)
    model = shutil.copytree(encoder, tmp_path / "m" / "model")

    def name(**given):
        return run_folder(tmp_path, "model", model, task, str(tmp_path / "data"), with_defaults(task, **given))

    first = name()
    assert first.parent == tmp_path / "model" / "tiny-classification" and name() == first
    assert len({first, name(seed=1), name(epochs=2), name(learning_rate=1e-5), name(batch_size=8)}) == 5
    other = write_encoder(tmp_path / "n" / "model", seed=9)
    assert run_folder(tmp_path, "model", other, task, str(tmp_path / "data"), with_defaults(task)) != first
    make_task(tmp_path / "more", train=9)
    assert run_folder(tmp_path, "model", model, task, str(tmp_path / "more"), with_defaults(task)) != first


@pytest.fixture
def small_grid(encoder, tmp_path):
    make_task(tmp_path / "data", train=32)
    path = tmp_path / "grid.json"
    grid = {"tasks": [str(tmp_path / "data" / "task.json")], "grid": {"epochs": [1, 2]}, "seeds": [0, 1]}
    path.write_text(json.dumps(grid), "utf-8")
    return path


def test_a_grid_goes_on_where_it_stopped(encoder, tmp_path, small_grid):
    runs = list_runs(load_grid(str(small_grid)), {"encoder": encoder}, str(tmp_path / "data"), tmp_path / "out")
    assert [(r.hyperparameters.seed, r.hyperparameters.epochs) for r in runs] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    finetune_run(runs[2], show=print)
    before = runs[2].folder.joinpath("metrics.json").stat().st_mtime_ns
    lines = []
    assert run_grid(runs, processes=1, show=lines.append) == []
    assert lines[0] == "4 runs, 1 finished, 3 to do" and len(lines) == 4
    assert runs[2].folder.joinpath("metrics.json").stat().st_mtime_ns == before
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    (result,) = best_results(read_runs(run.folder for run in runs))
    assert result.seeds == (0, 1) and result.num_settings == 2
    mean = sum(finished_metrics(r.folder)["dev"]["metrics"]["accuracy"] for r in runs
               if r.hyperparameters.epochs == result.hyperparameters["epochs"]) / 2  # fmt: skip
    assert result.dev["accuracy"] == pytest.approx(mean, abs=1e-3)


def test_one_failed_run_does_not_stop_the_others(encoder, tmp_path, small_grid):
    broken = shutil.copytree(encoder, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"x")
    runs = list_runs(
        load_grid(str(small_grid)), {"broken": broken, "encoder": encoder}, str(tmp_path / "data"), tmp_path / "out"
    )[:4]
    failed = run_grid(runs, processes=1, show=lambda line: None)
    assert len(failed) == 2 and all("cannot be read as weights" in line for line in failed)
    assert [finished_metrics(run.folder) is not None for run in runs] == [False, False, True, True]


def test_a_task_starts_from_the_best_model_of_another(encoder, tmp_path, small_grid):
    make_task(tmp_path / "data" / "tiny-tags", "tags", train=32)
    source, task = str(tmp_path / "data" / "task.json"), str(tmp_path / "data" / "tiny-tags" / "task.json")
    grid = Grid.model_validate({"tasks": {task: {"epochs": [1]}, source: {"epochs": [1, 2]}},
                                "start_from": {task: source}})  # fmt: skip
    runs, failed = search(grid, {"encoder": encoder}, str(tmp_path / "data"), tmp_path / "out",
                          processes=1, show=lambda line: None)  # fmt: skip
    assert failed == [] and [run.task.name for run in runs] == ["tiny-classification"] * 2 + ["tiny-tags"]
    scores = {run.folder: finished_metrics(run.folder)["dev"]["metrics"]["accuracy"] for run in runs[:2]}
    assert runs[2].model.parent == max(scores, key=scores.get) and runs[2].name == "encoder"
    with pytest.raises(InputError, match="starts from the model of .*; add that task"):
        with_tasks(grid, [task])


def test_rows_that_stand_in_train_are_measured_apart(encoder, tmp_path):
    task = make_task(tmp_path, train=32)
    train_rows = (tmp_path / "train.jsonl").read_text("utf-8").splitlines()
    with (tmp_path / "dev.jsonl").open("a", encoding="utf-8") as dev:
        dev.write("\n".join(train_rows[:7]) + "\n")
    results, folder = train(encoder, tmp_path, task, epochs=1)
    assert (results["dev"]["num_examples"], results["dev"]["unseen"]["num_examples"]) == (47, 40)
    dev = [json.loads(line) for line in (tmp_path / "dev.jsonl").read_text("utf-8").splitlines()]
    told = [json.loads(line)["label"] for line in (folder / "predictions-dev.jsonl").read_text("utf-8").splitlines()]
    right = [answer == row["label"] for answer, row in zip(told, dev, strict=True)]
    assert results["dev"]["metrics"]["accuracy"] == pytest.approx(100 * sum(right) / 47, abs=1e-3)
    assert results["dev"]["unseen"]["metrics"]["accuracy"] == pytest.approx(100 * sum(right[:40]) / 40, abs=1e-3)


@pytest.mark.slow
def test_a_grid_over_ray_gives_the_same(encoder, tmp_path, small_grid, python, command_environment):
    pytest.importorskip("ray")
    code = (
        "import sys, ray; from distill.cli import main; "
        "ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False); main(sys.argv[1:])"
    )
    command = ["grid", str(small_grid), "--model", str(encoder), "--data", str(tmp_path / "data"), "--no-speed"]
    there = [*command, "--output", str(tmp_path / "ray"), "--ray", "local"]
    done = subprocess.run([python, "-c", code, *there], env=command_environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert run(*command, "--output", str(tmp_path / "here")) == 0
    tables = [(tmp_path / output / "report" / "details.csv").read_text("utf-8") for output in ("ray", "here")]
    assert tables[0] == tables[1]


def fake_run(model, task, seed, dev, **setting):
    return {
        "model_name": model, "task": task, "texts": "text", "metric_names": list(dev), "dev": {"metrics": dev},
        "hyperparameters": {"seed": seed, **setting},
    }  # fmt: skip


def test_the_setting_with_the_best_mean_is_reported_not_the_luckiest_run():
    runs = [fake_run("m", "t", seed, {"accuracy": value}, epochs=epochs)
            for epochs, values in ((2, [80, 70]), (3, [76, 78]), (5, [99]))
            for seed, value in enumerate(values)]  # fmt: skip
    (result,) = best_results(runs)
    assert result.hyperparameters == {"epochs": 3} and result.dev == {"accuracy": 77.0}
    assert result.std == {"accuracy": 1.4142} and result.seeds == (0, 1) and result.num_settings == 3
    assert details_table([result]).columns[3:5] == ("Dev", "Best run")
    assert details_table([result]).rows[0][3:5] == ("77.00±1.41", "99.00")
    (alone,) = best_results(runs[-1:])
    assert details_table([alone]).rows[0][3] == "99.00" and "Best run" not in details_table([alone]).columns


def test_results_of_a_whole_benchmark_get_its_score():
    dev = {"afqmc": 73.7, "tnews": 56.58, "iflytek": 60.29, "cmnli": 79.69}
    cells = as_cells(best_results(fake_run("bert", task, 0, {"accuracy": value}) for task, value in dev.items()))
    assert rule_for(cells) == "clue"
    assert absolute_table(cells, rule="clue").rows[0][:2] == ("bert", "67.57")


@pytest.mark.parametrize("name", grid_names())
def test_published_grids_open_and_their_tasks_ship(name):
    grid = load_grid(name)
    assert isinstance(grid, Grid) and all(load_task(task) for task in grid.tasks)


@pytest.mark.parametrize(
    ("name", "count"), [("minirbt", 7 * 4 * 3), ("uer", 6 * 18), ("clue", 4 * 6), ("glue", 10 * 20)]
)
def test_published_grids_have_the_published_number_of_runs(encoder, tmp_path, name, count):
    grid = load_grid(name)
    assert count_runs(grid, 1) == count
    runs = list_runs(grid, {"encoder": encoder}, str(tmp_path), tmp_path / "out")
    assert len(runs) == len({run.folder for run in runs}) == count - 20 * len(grid.start_from)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"grid": {"learning_rate": [1e-4, 0.0001]}}, r"grid: learning_rate \[0.0001, 0.0001\] names one twice"),
        ({"grid": {"epochs": [3, 3.0]}}, r"grid: epochs \[3.0, 3.0\] names one twice"),
        ({"seeds": [0, 0]}, r"seeds \[0, 0\] names one twice"),
        ({"seeds": [2**32]}, "seeds.0: input should be less than 4294967296"),
        ({"seed": [0]}, "grid.json: seed: unknown key; did you mean 'seeds'"),
        ({"grid": {"learning_rates": [1]}}, "grid.learning_rates: unknown key; did you mean 'learning_rate'"),
        ({"tasks": {"tnews": {"epoch": [1]}}}, "tasks.tnews.epoch: unknown key; did you mean 'epochs'"),
    ],
)  # fmt: skip
def test_a_grid_whose_means_would_mislead_or_that_numpy_cannot_seed_is_refused(tmp_path, content, message):
    """A run that stands twice would count twice, and its setting win for having more seeds than the others."""
    (tmp_path / "grid.json").write_text(json.dumps({"tasks": ["tnews"], **content}), "utf-8")
    with pytest.raises(InputError, match=message):
        load_grid(str(tmp_path / "grid.json"))


@pytest.mark.parametrize(
    ("name", "epochs", "batches", "rates", "length", "num_seeds"),
    [
        ("uer", [3, 5, 8], [32, 64], [3e-5, 1e-4, 3e-4], [128], 1),
        ("clue", [5, 8], [32], [1e-5, 1e-4, 4e-4], [128], 1),
        ("glue", [4], [8, 16, 32, 64, 128], [3e-5, 5e-5, 1e-4, 3e-4], None, 1),
        ("minirbt", [2, 3, 5, 10], None, None, None, 3),
        ("minirbt-teacher", [2, 3, 5, 10], None, None, None, 3),
    ],
)
def test_published_searches(name, epochs, batches, rates, length, num_seeds):
    grid = load_grid(name)
    values = grid.grid
    assert (values.epochs, values.batch_size, values.max_length) == (epochs, batches, length)
    assert (values.learning_rate and sorted(values.learning_rate)) == rates and len(grid.seeds) == num_seeds
    starts = dict.fromkeys(("rte", "sts-b", "mrpc", "qnli"), "mnli-m")
    assert grid.start_from == (starts if name == "glue" else {})


def test_published_rates_of_small_models():
    assert {task: values.learning_rate for task, values in load_grid("minirbt").tasks.items()} == {
        "cmrc2018": [1e-4], "drcd": [1e-4], "ocnli": [5e-5], "lcqmc": [1e-4], "bq": [1e-4], "tnews": [1e-4],
        "chnsenticorp": [1e-4],
    }  # fmt: skip


@pytest.mark.slow
def test_commands_finetune_predict_and_grid(encoder, tmp_path, small_grid, capsys):
    task, data, out = str(tmp_path / "data" / "task.json"), str(tmp_path / "data"), str(tmp_path / "out")
    arguments = ["finetune", str(encoder), "--task", task, "--data", data, "--output", out, "--epochs", "1"]
    assert run(*arguments) == 0
    told = capsys.readouterr().out
    assert "dev: accuracy " in told and "test: no labels, not scored on 10 examples" in told
    (folder,) = (tmp_path / "out" / "encoder" / "tiny-classification").iterdir()
    before = folder.joinpath("metrics.json").stat().st_mtime_ns
    assert run(*arguments) == 0 and folder.joinpath("metrics.json").stat().st_mtime_ns == before
    answers = tmp_path / "answers.jsonl"
    assert run("predict", str(folder / "model"), "--data", data, "--split", "test", "--output", str(answers)) == 0
    assert answers.read_bytes() == folder.joinpath("predictions-test.jsonl").read_bytes()
    capsys.readouterr()
    assert (
        run("grid", str(small_grid), "--model", str(encoder), "--data", data, "--output", out, "--teacher", "encoder")
        == 0
    )
    told = capsys.readouterr().out
    assert "| encoder | tiny-classification | accuracy/macro_f1 |" in told and "| encoder | 100%/100%" in told
    assert "### summary" in told and (tmp_path / "out" / "report" / "quality-size.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_killed_grid_started_again_equals_an_undisturbed_one(encoder, tmp_path, python, command_environment):
    """Two tasks x two lengths of training x two seeds, in two processes, killed with all its workers, then in one."""
    data = tmp_path / "data"
    make_task(data, train=32)
    make_task(data / "tiny-tags", "tags", train=32)
    tasks = [str(data / "task.json"), str(data / "tiny-tags" / "task.json")]
    grid = tmp_path / "grid.json"
    grid.write_text(json.dumps({"tasks": tasks, "grid": {"epochs": [1, 2]}, "seeds": [0, 1]}), "utf-8")

    def command(output, processes):
        return ["grid", str(grid), "--model", str(encoder), "--data", str(data), "--output", str(tmp_path / output),
                "--processes", str(processes), "--no-speed"]  # fmt: skip

    def finished(output):
        return len(list((tmp_path / output).glob("encoder/*/*/metrics.json")))

    victim = subprocess.Popen([python, "-m", "distill", *command("killed", 2)], env=command_environment,
                              start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    while not finished("killed") and victim.poll() is None:
        time.sleep(0.05)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    assert 0 < finished("killed") < 8
    for output in ("killed", "undisturbed"):
        assert run(*command(output, 1)) == 0 and finished(output) == 8
    for table in ("results.csv", "details.csv", "summary.csv"):
        ours, theirs = (
            (tmp_path / output / "report" / table).read_text("utf-8") for output in ("killed", "undisturbed")
        )
        assert ours == theirs


@pytest.mark.slow
def test_clues_run_submits_every_task_also_one_that_starts_from_anothers_model(encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    for task in ("cmnli", "ocnli"):
        (tmp_path / "data" / task).mkdir(parents=True)
        for split in ("train", "dev", "test"):
            rows = [{"id": i, "sentence1": sentence(rng, HAN[i % 3]), "sentence2": sentence(rng, HAN[3]),
                     "label": ("entailment", "neutral", "contradiction")[i % 3]} for i in range(24)]  # fmt: skip
            lines = (json.dumps({k: v for k, v in row.items() if split != "test" or k != "label"}) for row in rows)
            (tmp_path / "data" / task / f"{split}.json").write_text("".join(f"{line}\n" for line in lines))
    grid = {"tasks": ["cmnli", "ocnli"], "start_from": {"ocnli": "cmnli"},
            "grid": {"learning_rate": [RATE], "epochs": [1], "batch_size": [8], "max_length": [32]}}  # fmt: skip
    (tmp_path / "grid.json").write_text(json.dumps(grid))
    assert run("clue", str(encoder), "--data", "data", "--output", "out", "--grid", "grid.json") == 0
    with zipfile.ZipFile("out/submission/submission.zip") as archive:
        assert sorted(archive.namelist()) == ["cmnli_predict.json", "ocnli_50k_predict.json"]
        answers = [json.loads(line) for line in archive.read("ocnli_50k_predict.json").decode().splitlines()]
    assert [answer["id"] for answer in answers] == list(range(24))


class Deadly:
    """A run that ends the process which takes it up."""

    def __reduce__(self):
        return os._exit, (1,)


@pytest.mark.slow
def test_a_process_that_dies_ends_no_run_but_its_own(tmp_path):
    task = load_task("tnews")
    others = [Run("m", tmp_path, task, str(tmp_path), with_defaults(task), tmp_path / name) for name in "abc"]
    runs = [others[0], Deadly(), *others[1:]]
    ended = list(_ended_runs(runs, 2))
    told = {id(run): problem for run, problem in ended}
    assert len(ended) == len(told) == 4
    assert told.pop(id(runs[1])) == "its process was killed (out of memory?)"
    assert all("tnews: no data for split 'train'" in problem for problem in told.values())


@pytest.mark.slow
def test_a_grid_in_several_processes_gives_the_same(encoder, tmp_path, small_grid, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    data, lines = str(tmp_path / "data"), []
    made = []
    for processes in (1, 2):
        runs = list_runs(load_grid(str(small_grid)), {"encoder": encoder}, data, tmp_path / f"out{processes}")
        assert run_grid(runs, processes=processes, show=lines.append) == []
        made.append([[epoch["loss"] for epoch in finished_metrics(run.folder)["epochs"]] for run in runs])
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune", "MODEL", "--task", "tnew"], "task 'tnew': not known; did you mean 'tnews'"),
        (["finetune", "MODEL", "--task", "tnews", "--data", "empty"], "tnews: no data for split 'dev': looked in"),
        (["finetune", "nowhere", "--task", "TASK", "--data", "DATA"], "nowhere: no such model folder"),
        (["finetune", "MODEL", "--task", "TASK", "--data", "DATA", "--max-length", "65"],
         "--max-length 65 (in a grid, max_length), but the model has 64 positions"),
        (["finetune", "MODEL", "--task", "TASK", "--data", "DATA", "--learning-rate", "0"],
         "--learning-rate must be a number above 0, found 0"),
        (["finetune", "MODEL", "--task", "TASK", "--data", "DATA", "--epochs", "inf"],
         "--epochs must be a number above 0, found inf"),
        (["finetune", "MODEL", "--task", "TASK", "--data", "DATA", "--teacher", "MODEL", "--kd-weight", "inf"],
         "--kd-weight must be a number, found inf"),
        (["finetune", "MODEL", "--task", "TASK", "--data", "DATA", "--seed", "4294967296"],
         "'--seed': Input should be less than or equal to 4294967295"),
        (["predict", "MODEL", "--data", "DATA", "--output", "x"], "no task.json there; name the folder 'model'"),
        (["grid", "minirb", "--model", "MODEL"], "grid 'minirb': not known; did you mean 'minirbt'"),
        (["grid", "minirbt", "--model", "MODEL", "--task", "tnwes"],
         "task 'tnwes': not in this grid; did you mean 'tnews'"),
        (["grid", "GRID", "--model", "MODEL", "--model", "MODEL", "--data", "DATA"], "one --model is given twice"),
        (["grid", "GRID", "--model", "MODEL", "--model", "COPY", "--data", "DATA"], "two models are named alike"),
        (["grid", "GRID", "--model", "MODEL", "--model", "TAUGHT", "--data", "DATA"], "a model is named encoder+kd"),
        (["grid", "ALIKE", "--model", "MODEL", "--data", "DATA"], "two tasks are named tiny-classification, and their"),
        (["grid", "GRID", "--model", "MODEL", "--teacher", "encode", "--data", "DATA"],
         "'encode' is none of the models; did you mean 'encoder'"),
        (["grid", "GRID", "--model", "MODEL", "--against", "encoder", "--data", "DATA"],
         "--against encoder: expected two names, as in deep:shallow"),
        (["latency", "MODEL", "--length", "65"], "encoder: length 65 cannot be timed, the model has 64 positions"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line(encoder, tmp_path, small_grid, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(encoder, tmp_path / "copy" / "encoder")
    shutil.copytree(encoder, tmp_path / "copy" / "encoder+kd")
    shutil.copyfile(tmp_path / "data" / "task.json", tmp_path / "copy" / "task.json")
    alike = {"tasks": [str(tmp_path / folder / "task.json") for folder in ("data", "copy")]}
    (tmp_path / "alike.json").write_text(json.dumps(alike), "utf-8")
    places = {
        "COPY": tmp_path / "copy" / "encoder",
        "TAUGHT": tmp_path / "copy" / "encoder+kd",
        "ALIKE": tmp_path / "alike.json",
        "MODEL": encoder,
        "DATA": tmp_path / "data",
        "TASK": tmp_path / "data" / "task.json",
        "GRID": small_grid,
    }
    assert message in complaint(capsys, *(str(places.get(argument, argument)) for argument in arguments))
