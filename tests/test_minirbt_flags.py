"""MiniRBT's command line: what its flags become, and what is said about those that never did anything."""

import os
import subprocess
import sys

import pytest
from fixtures_cli import ROOT, assert_one_line, nothing_written

from distill.commands.minirbt_flags import DEAD_SWITCHES, DEAD_WITH_VALUE, looks_like_minirbt, recipe_of_flags
from distill.errors import InputError
from distill.recipe_file import resolve_recipe

pytest_plugins = ["fixtures_cli"]

REQUIRED = ["--teacher_name_or_path", "t", "--student_config", "x/h256.json", "--data_files_json", "d.json",
            "--output_dir", "o", "--num_train_steps", "10", "--data_cache_dir", "cache"]  # fmt: skip
# pretraining/distill.sh of MiniRBT, 8 GPUs.
PUBLISHED = [
    *REQUIRED, "--max_seq_length", "512", "--do_train", "--random_seed", "1337", "--train_batch_size", "256",
    "--learning_rate", "4e-4", "--official_schedule", "linear", "--gradient_accumulation_steps", "8",
    "--ckpt_steps", "10000", "--temperature", "8", "--matches", "L6h256_roberta_hidden_mse", "--fp16",
]  # fmt: skip


def stage_of(*flags, world_size=1):
    raw, notes = recipe_of_flags([*REQUIRED, *flags], world_size=world_size)
    stage = resolve_recipe(raw, where="flags").stages[0]
    return stage, next(iter(stage.students.values())), notes


def test_a_switch_that_another_way_replaces_is_named():
    assert any("CUDA_VISIBLE_DEVICES" in note for note in stage_of("--no_cuda")[2])
    assert not any("CUDA_VISIBLE_DEVICES" in note for note in stage_of()[2])


def test_minirbts_own_script_is_understood():
    raw, notes = recipe_of_flags(PUBLISHED, world_size=8)
    recipe = resolve_recipe(raw, where="flags")
    stage = recipe.stages[0]
    assert (recipe.output_dir, stage.teacher, stage.data.files) == ("o", "t", "d.json")
    assert (stage.global_batch_size, stage.micro_batch_size, stage.max_seq_length) == (2048, 32, 512)
    assert (stage.steps, stage.save_every, stage.seed, stage.precision) == (10, 10_000, 1337, "auto")
    student = stage.students["h256"]
    assert (student.config, student.matches) == ("x/h256.json", ["L6h256_roberta_hidden_mse"])
    assert (student.learning_rate, student.temperature, student.kd_scale) == (4e-4, 8, "none")
    assert any("256 on 8 process(es) makes 2,048 sequences" in note and "4,096" in note for note in notes)


def test_its_defaults_are_minirbts():
    stage, student, _ = stage_of()
    assert (stage.max_seq_length, stage.global_batch_size, stage.seed, stage.precision) == (416, 32, 10236797, "fp32")
    assert (student.learning_rate, student.temperature, student.warmup_ratio) == (3e-5, 1, 0.1)
    assert (student.weight_decay, student.matches, student.scheduler) == (0.01, [], "linear")


@pytest.mark.parametrize(
    ("batch", "accumulation", "processes", "total", "micro"),
    [(256, 8, 8, 2048, 32), (512, 4, 8, 4096, 128), (32, 1, 1, 32, 32)],
)
def test_train_batch_size_counts_a_process_and_an_optimiser_step(batch, accumulation, processes, total, micro):
    flags = ["--train_batch_size", str(batch), "--gradient_accumulation_steps", str(accumulation)]
    stage, _, notes = stage_of(*flags, world_size=processes)
    assert (stage.global_batch_size, stage.micro_batch_size) == (total, micro)
    assert any(f"makes {total:,} sequences" in note for note in notes)
    assert any("the published models have 4,096" in note for note in notes) == (total != 4096)


@pytest.mark.parametrize("flag", ["--init_checkpoint_S", "--student_pretrained_weights"])
def test_the_two_names_of_the_starting_weights_are_one(flag):
    assert stage_of(flag, "start")[1].init == "start"


@pytest.mark.parametrize(("name", "scheduler"), [("linear", "linear"), ("const", "constant_with_warmup")])
def test_its_schedules_have_transformers_names(name, scheduler):
    assert stage_of("--official_schedule", name)[1].scheduler == scheduler


@pytest.mark.parametrize(
    "flag",
    [*([f"--{name}", "3"] for name in DEAD_WITH_VALUE), *([f"--{name}"] for name in DEAD_SWITCHES)],
    ids=lambda flag: flag[0],
)
def test_a_dead_flag_warns_and_changes_nothing(flag):
    stage, student, notes = stage_of(*flag)
    assert (stage, student) == stage_of()[:2]
    assert f"warning: {flag[0]} never had an effect in MiniRBT and has none here" in notes


def test_flags_without_effect_here_say_why():
    notes = stage_of("--local_rank", "0", "--preprocessing_num_workers", "4")[2]
    assert any("--local_rank has no effect here: the launcher" in note for note in notes)
    assert any("--preprocessing_num_workers has no effect here" in note for note in notes)
    assert any("--data_cache_dir has no effect here" in note for note in notes)


def test_no_warning_without_a_reason():
    assert not [note for note in stage_of()[2] if "warning" in note and "data_cache_dir" not in note]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temprature", "8"], "unrecognized arguments: --temprature 8"),
        (["--temperature", "hot"], "argument --temperature: invalid float value: 'hot'"),
        (["--train_batch_size", "10", "--gradient_accumulation_steps", "3"], "10 must be a multiple of .* 3"),
        (["--train_batch_size", "0"], "0 must be a multiple"),
        (["--max_seq_len", "5"], "unrecognized arguments"),
    ],
)
def test_a_wrong_flag_is_one_line(flags, message):
    with pytest.raises(InputError, match=message):
        stage_of(*flags)


def test_a_missing_flag_is_named():
    with pytest.raises(InputError, match="required: .*--output_dir.*takes recipes instead of flags"):
        recipe_of_flags(REQUIRED[:6], world_size=1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (REQUIRED, True),
        (["--student_config=x"], True),
        (["recipe.json", "--steps", "3"], False),
        (["--help"], False),
        ([], False),
    ],
)
def test_flags_are_told_from_recipes(arguments, expected):
    assert looks_like_minirbt(arguments) is expected


@pytest.mark.parametrize("flag", ["--unknown", "--num_train_steps"])
def test_train_py_says_one_line_about_a_wrong_flag(flag, project):
    environment = {**os.environ, "NPROC": "1"}
    with nothing_written(project):
        done = subprocess.run([sys.executable, str(ROOT / "train.py"), *REQUIRED, flag, "x"], env=environment,
                              capture_output=True, text=True, timeout=100)  # fmt: skip
    assert done.returncode == 2
    assert_one_line(done.stderr)
    assert flag in done.stderr
