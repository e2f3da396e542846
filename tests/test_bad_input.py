"""Every mistake of a user gives exit code 2, one line that says where and what, and leaves nothing behind."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from cases import (
    ATTENTION,
    HIDDEN,
    both,
    config,
    cut,
    data,
    data_json,
    file,
    init_from,
    ltp_folder,
    matches,
    other_vocabulary,
    stage,
    student,
    teacher,
)
from fixtures_cli import ROOT, VOCAB, assert_one_line, bert, complaint, nothing_written, run
from safetensors.torch import load_file, save_file

pytest_plugins = ["fixtures_cli"]

SWAPPED = [*VOCAB[:5], VOCAB[6], VOCAB[5], *VOCAB[7:]]

# name: (what is done to the tiny project, what the line must say); found before anything is written.
BEFORE_ANYTHING = {
    "unknown key": (
        student(temprature=3),
        r"recipe.json: stage 'one', student 'small': unknown key 'temprature'; did you mean 'temperature'",
    ),
    "not json": (file("recipe.json", "{oops"), r"recipe.json, line 1: .*not valid JSON"),
    "NaN": (file("recipe.json", '{"output_dir": "x", "stages": [NaN]}'), "recipe.json: NaN is no number"),
    "negative number": (student(learning_rate=-1), r"student 'small', learning_rate: .*found -1"),
    "NaN match weight": (file("recipe.json", '{"stages": [{"matches": [{"weight": NaN}]}]}'), "NaN is no number"),
    "missing teacher": (stage(teacher="models/none"), "stage 'one', teacher: models/none: no such folder"),
    "teacher is a file": (stage(teacher="student.json"), "teacher: student.json: found a file"),
    "teacher made by nobody": (stage(teacher="smaller"), "teacher: smaller: no such model folder"),
    "missing teacher in a folder that is there": (
        stage(teacher="text/none"),
        "teacher: text/none: no such model folder",
    ),
    "teacher without weights": (
        lambda w: (w.root / "teacher/model.safetensors").unlink(),
        "teacher: no weights; expected model.safetensors or pytorch_model.bin",
    ),
    "teacher without tokenizer": (
        lambda w: (w.root / "teacher/vocab.txt").unlink(),
        "teacher: no tokenizer there; .*vocab.txt",
    ),
    "teacher without config": (
        lambda w: (w.root / "teacher/config.json").unlink(),
        "teacher/config.json: no such file",
    ),
    "teacher without head": (
        teacher(head=False),
        "teacher: no masked-language-model head, but a student learns from its logits .*kd_weight",
    ),
    "teacher.bin without head": (teacher(head=False, form="bin"), "teacher: no masked-language-model head"),
    "teacher without head to copy": (
        both(teacher(head=False), student(kd_weight=0, init_layers=[0, 3])),
        "no masked-language-model head",
    ),
    "corrupt safetensors": (cut("teacher/model.safetensors"), r"teacher/model.safetensors: cannot be read as weights"),
    "corrupt safetensors, no logits": (
        both(cut("teacher/model.safetensors"), student(kd_weight=0)),
        "cannot be read as weights",
    ),
    "corrupt bin": (
        both(teacher(form="bin"), cut("teacher/pytorch_model.bin")),
        "pytorch_model.bin: cannot be read as weights",
    ),
    "text as bin": (
        both(teacher(form="bin"), file("teacher/pytorch_model.bin", "version https://git-lfs")),
        "pytorch_model.bin: cannot be read as weights",
    ),
    "empty bin": (
        both(teacher(form="bin"), file("teacher/pytorch_model.bin", b"")),
        "pytorch_model.bin: cannot be read as weights",
    ),
    "missing shard": (
        both(
            lambda w: (w.root / "teacher/model.safetensors").unlink(),
            file("teacher/model.safetensors.index.json", {"weight_map": {"x": "model-1.safetensors"}}),
        ),
        "lists model-1.safetensors, which is not there",
    ),
    "teacher's vocabulary too short": (
        other_vocabulary("teacher", VOCAB[:-1]),
        rf"the model has {len(VOCAB)} vocabulary rows, but the tokenizer of teacher has {len(VOCAB) - 1} tokens",
    ),
    "other tokenizer": (
        both(other_vocabulary("tok", SWAPPED), data(tokenizer="tok")),
        "teacher teacher and tok have different vocabularies",
    ),
    "tokenizer without mask": (
        both(other_vocabulary("tok", [t for t in VOCAB if t != "[MASK]"]), data(tokenizer="tok")),
        r"stage 'one': tok: the vocabulary has no \[MASK\]",
    ),
    "missing tokenizer": (data(tokenizer="tok"), "tok: no such model folder"),
    "no tokenizer at all": (
        lambda w: w.recipe(stage={"teacher": None}),
        "no teacher to take the tokenizer from; name one in data.tokenizer",
    ),
    "student's vocabulary": (
        config(vocab_size=99),
        rf"student 'small': student.json: the model has 99 vocabulary rows, but .* of teacher has {len(VOCAB)} tokens",
    ),
    "student's heads": (
        config(num_attention_heads=3),
        "student.json: hidden_size 16 is not a multiple of num_attention_heads 3",
    ),
    "student's width": (
        config(hidden_size="wide"),
        "student.json: 'hidden_size' must be a whole number above 0, found \"wide\"",
    ),
    "student without a size": (
        file("student.json", {"model_type": "bert"}),
        "student.json: 'hidden_size' must be a whole number above 0, found null",
    ),
    "student's positions": (
        config(max_position_embeddings=-1),
        "student.json: 'max_position_embeddings' must be a whole number",
    ),
    "student's activation": (
        config(hidden_act="gelou"),
        "student.json: unknown hidden_act \"gelou\"; did you mean 'gelu'",
    ),
    "student is no BERT": (config(model_type="roberta"), "student.json: model_type is 'roberta'; only 'bert'"),
    "student config missing": (student(config="none.json"), "none.json: no such file"),
    "student config a list": (
        file("student.json", []),
        "student.json: a model config is a JSON object in braces, found",
    ),
    "init missing": (student(init="none"), "student 'small', init: none: no such model folder"),
    "init of another shape": (
        init_from("start", hidden_size=32),
        "config and init start have other shapes .hidden_size 16 against 32",
    ),
    "init without head": (init_from("start", head=False), "init: start: no masked-language-model head"),
    "text matches nothing": (data(text=["texts/*.txt"]), "stage 'one', data: texts/.*: no text found"),
    "empty files": (file("text/a.txt", ""), "empty corpus"),
    "all text is dev": (data(dev=["text"]), "all 1 text file.s. are dev files, such as text/a.txt"),
    "dev matches nothing": (data(dev=["dev"]), "dev: no text found"),
    "unknown segmenter": (
        data(segmenter="jeiba"),
        "stage 'one', data: segmenter 'jeiba': unknown, did you mean 'jieba'; use ltp:FOLDER",
    ),
    "LTP folder missing": (data(segmenter="ltp:nowhere"), "nowhere: no such LTP folder"),
    "LTP folder without model": (ltp_folder(), "ltp: cws_model.bin is missing"),
    "LTP model a pointer": (ltp_folder("cws_model.bin"), "git-lfs pointer"),
    "segmented file missing": (data(segmenter={"train": "seg.txt"}), "segmenter: seg.txt: no such file"),
    "match layer of the teacher": (
        matches({**HIDDEN, "layer_T": 5}),
        r"hidden layer 5 of the teacher does not exist, it has 0\.\.4",
    ),
    "match layer of the student": (
        matches({**HIDDEN, "layer_S": 3}),
        r"hidden layer 3 of the student does not exist, it has 0\.\.2",
    ),
    "match attention layer": (matches({**ATTENTION, "layer_T": 4}), r"attention layer 4 of the teacher .*count from 0"),
    "match width": (
        matches({**HIDDEN, "proj": ["linear", 16, 768]}),
        "hidden match 2->1 projects 16->768, but the student is 16 wide and the teacher 16",
    ),
    "match without projection": (
        both(config(hidden_size=8), matches(HIDDEN)),
        "has no 'proj', but the student is 8 wide",
    ),
    "match name": (matches("unifrm"), "student 'small': unknown match 'unifrm'; did you mean 'uniform'"),
    "match loss": (matches("uniform:hiden_mse"), "unknown loss 'hiden_mse' .*did you mean 'hidden_mse'"),
    "match loss in an object": (
        matches({**HIDDEN, "loss": "hiden_mse"}),
        "unknown loss 'hiden_mse'; did you mean 'hidden_mse'",
    ),
    "match key": (matches({**HIDDEN, "layerT": 1}), "unknown key 'layerT' in a match; did you mean 'layer_T'"),
    "match preset of 12 layers": (
        matches("L6_hidden_mse"),
        "hidden layer 6 of the teacher does not exist",
    ),
    "match file missing": (matches("none.json"), "none.json: no such file"),
    "match heads": (
        both(config(num_attention_heads=4), matches(ATTENTION)),
        "the student has 4 heads and the teacher 2; use attention_mse_sum",
    ),
    "init_layers count": (student(init_layers=[0]), "init_layers names 1 layers, but the student has 2"),
    "init_layers range": (student(init_layers=[0, 4]), r"the teacher has no layer 4, only 0\.\.3"),
    "init_layers width": (
        both(config(hidden_size=8), student(init_layers=[0, 1])),
        "init_layers copies whole layers, but hidden_size is 8 in the student and 16",
    ),
    "too many positions": (stage(max_seq_length=65), "max_seq_length 65 is over the 64 positions of small"),
    "too few tokens": (stage(max_seq_length=4), "max_seq_length: .*found 4"),
    "unknown scheduler": (student(scheduler="linaer"), "scheduler 'linaer' cannot be used here; take one of: linear"),
    "scheduler with arguments": (
        student(scheduler="reduce_lr_on_plateau"),
        "scheduler 'reduce_lr_on_plateau' cannot be used",
    ),
    "unknown kd_loss": (student(kd_loss="kl"), "unknown kd_loss 'kl'; known: ce, mse"),
    "nothing to learn": (student(kd_weight=0, matches=[]), "nothing is learned"),
    "fraction out of range": (data(dev=1.5), "dev: give dev files, or the fraction"),
    "output is a file": (file("out", "mine"), "out: cannot be made as output folder, out is a file"),
    "output below a file": (lambda w: w.recipe(output_dir="student.json/out"), "student.json is a file"),
    "recipe.json of somebody else": (
        file("out/recipe.json", {"flour": "500 g"}),
        "out/recipe.json .*unknown key 'flour'",
    ),
    "data json missing": (
        lambda w: w.recipe(defaults={"data": "none.json", "steps": 2}),
        "none.json: no such data file",
    ),
    "data json broken": (data_json("{"), "data.json, line 1: .*not valid JSON"),
    "data json key": (data_json({"trian": {}}), "data.json: unknown key 'trian'; did you mean 'train'"),
    "data json without text": (data_json({"train": {"train_files": []}}), "data.json: no training text"),
    "data json names nothing": (
        data_json({"train": {"train_files": ["text/b.txt"]}}),
        "text/b.txt, which is not a file; did you mean text/a.txt",
    ),
    "data json missing reference": (
        data_json({"train": {"train_files": ["text/a.txt"], "train_ref_files": ["ref/a_ref.txt"]}}),
        "ref/a_ref.txt, which is not a file",
    ),
    "data json uneven": (
        data_json({"train": {"train_files": ["text/a.txt"], "train_ref_files": ["text/a.txt", "text/a.txt"]}}),
        "1 text files but 2 reference files",
    ),
    "no references, no segmenter": (
        data_json({"train": {"train_files": ["text/a.txt"]}}),
        "text/a.txt has no reference file and there is no 'segmenter'",
    ),
}


@pytest.mark.parametrize("case", BEFORE_ANYTHING)
def test_it_is_found_before_anything_is_written(case, project, capsys):
    change, message = BEFORE_ANYTHING[case]
    change(project)
    start = time.monotonic()
    with nothing_written(project):
        line = complaint(capsys, "train", "recipe.json")
    assert re.search(message, line), line
    assert time.monotonic() - start < 10


def test_a_teacher_without_head_serves_where_no_logits_are_used(project, capsys):
    project.model("teacher", num_hidden_layers=4, head=False)
    project.recipe(student={"kd_weight": 0})
    assert run("train", "recipe.json", "--dry-run") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "none.json"], "error: none.json: no such file"),
        (["train"], "Missing argument 'recipe'"),
        (["train", "recipe.json", "--stage", "two"], "no stage 'two'; there are: one"),
        (["train", "recipe.json", "--stage", "two", "--dry-run"], "no stage 'two'; there are: one"),
        (["train", "recipe.json", "--steps"], "--steps has no value"),
        (["train", "recipe.json", "--steps", "--seed", "3"], "--steps has no value"),
        (["train", "recipe.json", "--step", "3"], "unknown key '--step'; did you mean 'steps'"),
        (["train", "recipe.json", "--steps", "-3"], "steps: .*greater than 0, found -3"),
        (["train", "recipe.json", "--steps", "few"], 'steps: .*found "few"'),
        (["train", "recipe.json", "more"], "'more' is not an option"),
        (["train", "--steps", "3", "recipe.json"], "the recipe comes first"),
        (["train", "recipe.json", "--set", "stages.one.steps"], "expected PATH=VALUE"),
        (["train", "recipe.json", "--set", "stages.two.steps=3"], "no 'two'; there are: one"),
        (["trian", "recipe.json"], "No such command 'trian'"),
        (["models", "none.json"], "none.json: no such file"),
        (
            ["pack", "--data", "none.json", "--tokenizer", "teacher", "--max-seq-length", "32"],
            "none.json: no such data file",
        ),
        (
            ["pack", "--data", "d", "--tokenizer", "teacher", "--max-seq-length", "4"],
            "'--max-seq-length'.*greater than or equal to 8; see `distill pack --help`",
        ),
        (
            ["pack", "--data", "d", "--tokenizer", "teacher", "--max-seq-length", "32", "--mask", "word"],
            'mask: .*found "word"',
        ),
        (
            ["ref", "--text", "none", "--output", "r", "--tokenizer", "teacher", "--segmenter", "words"],
            "none: no text found",
        ),
        (
            ["ref", "--text", "text", "--output", "r", "--tokenizer", "none", "--segmenter", "words"],
            "none: no such model folder",
        ),
        (
            ["ref", "--text", "text", "--output", "r", "--tokenizer", "teacher", "--segmenter", "word"],
            "segmenter 'word': unknown",
        ),
        (
            ["ref", "--text", "text", "--output", "student.json", "--tokenizer", "teacher", "--segmenter", "words"],
            "student.json",
        ),
        (["segmenter", "train", "--text", "none.txt", "--output", "s"], "none.txt: no text found"),
        (
            ["segmenter", "train", "--text", "text/a.txt", "--output", "student.json"],
            "student.json: a file; name a folder",
        ),
    ],
)
def test_a_mistake_on_the_command_line(arguments, message, project, capsys):
    with nothing_written(project):
        line = complaint(capsys, *arguments)
    assert re.search(message, line), line


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("NPROC", "abc", "NPROC: expected a whole number from 1, found 'abc'"),
        ("NPROC", "0", "from 1, found '0'"),
        ("NPROC", "²", "from 1"),
        ("NNODES", "-1", "NNODES"),
        ("NODE_RANK", "1", "NODE_RANK 1 does not fit NNODES 1"),
        ("MASTER_PORT", "x", "MASTER_PORT"),
    ],
)
def test_a_wrong_number_in_the_environment(name, value, message, project, capsys, monkeypatch):
    monkeypatch.setenv(name, value)
    with nothing_written(project):
        assert message in complaint(capsys, "train", "recipe.json")


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_that_may_not_be_written(project, capsys):
    (project.root / "locked").mkdir(mode=0o500)
    project.recipe(output_dir="locked/out")
    assert "you have no permission for" in complaint(capsys, "train", "recipe.json")


# ---- what only reading the text can find: no dataset is left, and the folder does not count as this recipe's


def with_references(project, lines):
    """A data JSON over text/a.txt with these lines as its references."""
    project.write("a_ref.txt", "".join(f"{line}\n" for line in lines))
    train = {"train_files": ["text/a.txt"], "train_ref_files": ["a_ref.txt"]}
    project.write("data.json", {"train": train})
    project.recipe(defaults={"data": "data.json", "steps": 2, "max_seq_length": 32})


def lines_of(project):
    return (project.root / "text/a.txt").read_text(encoding="utf-8").splitlines()


def misnumbered(project):
    with_references(project, ["[]"] * (len(lines_of(project)) - 2))


def beyond(project):
    lines = ["[]"] * len(lines_of(project))
    lines[2] = "[2, 999]"
    with_references(project, lines)


def unordered(project):
    lines = ["[]"] * len(lines_of(project))
    lines[6] = "[3, 2]"
    with_references(project, lines)


def invalid_text(project):
    lines = [line.encode() for line in lines_of(project)]
    lines[6] = b"\xc4\xe3\xba\xc3"
    project.write("text/a.txt", b"\n".join(lines))


WHILE_READING = {
    "misnumbered reference": (misnumbered, r"a_ref.txt: 75 lines, but text/a.txt has 77 \(62 of them not blank\)"),
    "position beyond the line": (beyond, "a_ref.txt: position 999 for line 3 of text/a.txt, which has 11 tokens"),
    "positions out of order": (unordered, r"a_ref.txt: line 7: found '\[3, 2\]'"),
    "invalid UTF-8": (invalid_text, r"text/a.txt: line 7: not UTF-8 \(byte 0xc4\)"),
    "blank text": (file("text/a.txt", "\n \n\n"), "empty corpus: no text in 1 file"),
    "one document": (file("text/a.txt", "天 气\n"), "has only one; name dev files"),
    "unsegmented training text": (
        both(file("seg.txt", "天气\n很好\n"), data(segmenter={"train": "seg.txt"})),
        "seg.txt: none of its 2 lines has two words",
    ),
    "segmented text not UTF-8": (
        both(file("seg.txt", b"\xc4\xe3 \xba\xc3\n"), data(segmenter={"train": "seg.txt"})),
        "seg.txt: line 1: not UTF-8",
    ),
    "damaged LTP model": (both(ltp_folder(), file("ltp/cws_model.bin", b"\0" * 100)), "cws_model.bin"),
}


@pytest.mark.parametrize("case", WHILE_READING)
def test_it_is_found_before_training_and_leaves_no_dataset(case, project, capsys):
    change, message = WHILE_READING[case]
    change(project)
    with nothing_written(project, but=("out",)):
        line = complaint(capsys, "train", "recipe.json")
    assert re.search(message, line), line
    assert not list((project.root / "out").rglob("info.json")) and not list((project.root / "out").rglob("*.partial"))
    assert not (project.root / "out/recipe.json").exists()


def test_bad_text_of_a_later_stage_is_found_before_the_first_trains(project, capsys):
    project.write("late/b.txt", b"\xff\n")
    later = {
        "name": "two",
        "teacher": "small",
        "students": {"smaller": {"config": "student.json"}},
        "data": {"text": ["late"]},
    }
    path = project.recipe()
    recipe = json.loads(path.read_text())
    recipe["stages"].append(later)
    project.write("recipe.json", recipe)
    assert "late/b.txt: line 1: not UTF-8" in complaint(capsys, "train", "recipe.json")
    assert not (project.root / "out/stages").exists()


# ---- the folder of another recipe


def record(project):
    """Leaves what a run of recipe.json would have recorded."""
    from distill.recipe_file import load_recipe

    project.write("out/recipe.json", load_recipe(project.root / "recipe.json").model_dump())
    project.write("out/models/small/config.json", bert())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": {"steps": 3}}, "stage 'one', steps was 2 and is now 3"),
        ({"stage": {"seed": 1}}, "stage 'one', seed was 0 and is now 1"),
        ({"student": {"temperature": 1}}, "stage 'one', student 'small', temperature was 8.0 and is now 1.0"),
        ({"data": {"dev": 0.2}}, "stage 'one', data.dev was 0.1 and is now 0.2"),
        ({"stage": {"name": "other"}}, "it has a stage 'one', this one has not"),
        ({"stage": {"students": {"tiny": {"config": "student.json"}}}}, "stage 'one', student 'small' is missing now"),
    ],
)
def test_the_output_folder_of_another_recipe_is_refused_by_what_differs(change, message, project, capsys):
    record(project)
    project.recipe(**change)
    with nothing_written(project):
        line = complaint(capsys, "train", "recipe.json")
    assert f"out: this folder was made by another recipe: {message}" in line or message in line, line
    assert "choose another output_dir" in line


def test_a_stage_that_has_not_begun_may_change(project):
    """A first run that stopped over a mistake in the recipe does not spoil its folder."""
    record(project)
    shutil.rmtree(project.root / "out/models")
    project.recipe(stage={"steps": 3})
    assert run("train", "recipe.json", "--dry-run") == 0


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"stage": {"micro_batch_size": 1, "save_every": 1, "eval_every": 1, "log_every": 1}},
        {"stage": {"students": {"small": {"config": "student.json"}, "tiny": {"config": "student.json"}}}},
    ],
)
def test_the_output_folder_takes_additions_and_what_changes_no_training(change, project, capsys):
    record(project)
    project.recipe(**change)
    assert run("train", "recipe.json", "--dry-run") == 0


# ---- as a user sees it: real processes


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("-m", ["distill", "train", "none.json"], "error: none.json: no such file"),
        ("train.py", ["recipe.json", "--stage", "two"], "no stage 'two'"),
        ("run_chinese_ref.py", [], "pretrained_model_path/ltp: nothing there"),
        ("my_datasets.py", [], "dataset/data.json: not there; run python run_chinese_ref.py first"),
        slow("scripts/init_checkpoint_TA.py", ["--teacher", "none", "--output", "ta"], "none: no such model folder"),
        slow(
            "scripts/init_checkpoint_TA.py",
            ["--teacher", "teacher", "--output", "ta"],
            "--layers: init_layers: the teacher has no layer 4, only 0..3",
        ),
        slow("scripts/init_checkpoint_TA.py", ["--layers", "a,b", "--output", "ta"], "--layers: expected numbers like"),
    ],
)
def test_a_program_says_one_line(command, arguments, message, project):
    program = command if command == "-m" else str(ROOT / command)
    done = subprocess.run([sys.executable, program, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert_one_line(done.stderr)
    assert message in done.stderr and done.stdout == ""


@pytest.mark.slow
def test_the_processes_of_a_stage_say_one_line_too(project, capsys):
    """What only a worker finds, here weights that are not finite, comes through the status file."""
    file = project.root / "teacher/model.safetensors"
    weights = load_file(file)
    weights["bert.embeddings.LayerNorm.bias"] += float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    capsys.readouterr()
    assert run("train", "recipe.json") == 2
    err = capsys.readouterr().err
    assert_one_line(err)
    assert "teacher: bert.embeddings.LayerNorm.bias holds NaN or infinity" in err


def test_debug_shows_the_traceback(project):
    done = subprocess.run(
        [sys.executable, "-m", "distill", "train", "none.json", "--debug"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert "Traceback" in done.stderr and "InputError: none.json: no such file" in done.stderr
