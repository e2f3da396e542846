"""`"micro_batch_size": "auto"`: what is chosen, from what, that trying leaves no trace, and that it is kept."""

import json

import psutil
import pytest
import torch
from test_loop import BATCH, start_run, start_teacher
from test_stage import HIDDEN, LABELS, make_paths, make_stage, metrics, stop_before, train, weights
from tiny import ALONE

from distill.errors import InputError
from distill.recipe_file import resolve_recipe
from distill.training import micro_batch
from distill.training.loop import rehearse_step
from distill.training.memory import PeakMemory, memory_left
from distill.training.micro_batch import Trial, try_until_full, try_while_faster
from distill.training.stage import heaviest_step

MB = 1 << 20


def machine(*, speed, megabytes, asked):
    """A `try_rows` with so many rows a second, and so many megabytes, at a number of rows."""

    def try_rows(rows: int) -> Trial:
        asked.append(rows)
        return Trial(rows, True, rows / speed(rows), int(megabytes(rows) * MB))

    return try_rows


@pytest.mark.parametrize("largest, limit_mb, chosen, tried", [
    (64, 10_000, 64, [1, 2, 4, 8, 16, 32, 64]),  # everything fits and helps
    (24, 10_000, 24, [1, 2, 4, 8, 16, 24]),  # not more than a process's part of a step
    (64, 200, 16, [1, 2, 4, 8, 16]),  # 20 + 10 a row: 32 rows would take 340
    (64, 180, 16, [1, 2, 4, 8, 16]),
    (64, 179, 8, [1, 2, 4, 8]),
    (1, 1, 1, [1]),  # one row must be tried, whatever there is
])  # fmt: skip
def test_on_the_cpu_the_predicted_peak_decides(largest, limit_mb, chosen, tried):
    asked: list[int] = []
    trials = try_while_faster(machine(speed=lambda rows: rows, megabytes=lambda rows: 20 + 10 * rows, asked=asked),
                              largest, limit_mb * MB)  # fmt: skip
    assert trials[-1].rows == chosen and asked == tried


def test_on_the_cpu_a_size_that_is_not_faster_is_not_taken():
    asked: list[int] = []
    speeds = {1: 10, 2: 15, 4: 18, 8: 18.3, 16: 100}
    trials = try_while_faster(machine(speed=speeds.get, megabytes=lambda rows: rows, asked=asked), 16, 1e12)
    assert trials[-1].rows == 4 and asked == [1, 2, 4, 8]


@pytest.mark.parametrize("fitting, largest, chosen", [(20, 64, 16), (64, 64, 64), (1, 64, 1), (5, 3, 3)])
def test_on_cuda_the_last_size_that_fits_is_taken(fitting, largest, chosen):
    assert try_until_full(lambda rows: Trial(rows, rows <= fitting, 1.0), largest)[-1].rows == chosen


def test_on_cuda_one_sequence_that_does_not_fit_is_an_out_of_memory_error():
    with pytest.raises(torch.OutOfMemoryError):
        try_until_full(lambda rows: Trial(rows, False), 4)


def test_trying_changes_no_weights_no_optimiser_and_no_random_state():
    run = start_run()
    teacher = start_teacher(run)
    rehearse_step([run], teacher, BATCH)  # the second time nothing is set up any more
    state = {name: value.clone() for named in run.tensors().values() for name, value in named.items()}
    scaler, scheduler, random = run.scaler.state_dict(), run.scheduler.state_dict(), torch.get_rng_state()
    rehearse_step([run], teacher, BATCH)
    after = {name: value for named in run.tensors().values() for name, value in named.items()}
    assert state.keys() == after.keys() and all(torch.equal(state[name], after[name]) for name in state)
    assert (run.scaler.state_dict(), run.scheduler.state_dict()) == (scaler, scheduler)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in run.parameters)


def test_the_size_is_kept_and_trains_what_the_same_number_does(world, monkeypatch):
    """Dropout depends on the cut, so a resumed run must not choose again."""
    students = {"a": HIDDEN, "b": LABELS}
    stage = make_stage(students, micro_batch_size="auto")
    stopped = stop_before(world, stage, "stopped", 5)
    chosen = json.loads((stopped.stage / "micro_batch_size.json").read_text())
    rows = chosen["micro_batch_size"]
    assert [trial["rows"] for trial in chosen["tried"]] == [1, 2, 4][: rows.bit_length()]
    monkeypatch.setattr(micro_batch, "_try_batch", None)  # trying again would fail
    train(world, stage, "stopped")
    given = train(world, make_stage(students, micro_batch_size=rows), "given")
    assert metrics(stopped) == metrics(given)
    assert weights(stopped, "a") == weights(given, "a")


def test_a_stage_that_begins_anew_tries_anew(world):
    """Students or machine may be others than when the file was written."""
    paths = make_paths(world, "out")
    paths.stage.mkdir(parents=True)
    (paths.stage / "micro_batch_size.json").write_text('{"micro_batch_size": 4096}')
    train(world, make_stage({"a": HIDDEN}, micro_batch_size="auto"), "out")
    assert json.loads((paths.stage / "micro_batch_size.json").read_text())["micro_batch_size"] <= 4


@pytest.mark.parametrize("start, end, step", [(0.3, 0.15, 0), (0.15, 0.3, 9), (0.15, 0.15, 0)])
def test_the_step_that_masks_most_is_tried(start, end, step):
    data = {"text": ["x.txt"], "mask": "token", "mask_probability": {"start": start, "end": end}}
    assert heaviest_step(make_stage({"a": HIDDEN}, data=data), 10) == step


def test_a_stage_with_a_cache_tries_its_teacher_too(world):
    student = {"config": "student.json", "temperature": 2.0}
    train(world, make_stage({"a": student}, micro_batch_size="auto", teacher_cache={}), "out")


def test_a_teacher_over_the_processes_takes_a_number():
    with pytest.raises(ValueError, match="'shard_teacher' needs a number as 'micro_batch_size'"):
        make_stage({"a": HIDDEN}, micro_batch_size="auto", shard_teacher=True)


@pytest.mark.parametrize("value, message", [
    (0, "micro_batch_size: input should be greater than 0, found 0"),
    ("atuo", "micro_batch_size: input should be 'auto', found \"atuo\""),
])  # fmt: skip
def test_what_is_no_size_is_said_in_one_line(value, message):
    stage = {"name": "one", "data": {"text": ["x"], "mask": "token"}, "steps": 1, "micro_batch_size": value,
             "students": {"a": {"config": "x.json"}}}  # fmt: skip
    with pytest.raises(InputError, match=f"^r.json: stage 'one', {message}$"):
        resolve_recipe({"output_dir": "out", "stages": [stage]}, where="r.json")


# ---- memory


def test_the_peak_of_memory_is_seen_though_it_is_given_back():
    with PeakMemory() as peak:
        for _ in range(3):
            torch.ones(16 * MB).sum()  # 64 MB
    assert 50 * MB < peak.growth < 400 * MB


def test_a_machine_without_limits_has_what_psutil_says(tmp_path):
    assert memory_left(tmp_path) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


@pytest.mark.parametrize("files, left", [
    ({"memory.max": "1000000", "memory.current": "700000", "memory.stat": "anon 5\ninactive_file 50000\n"}, 350_000),
    ({"memory.max": "1000000", "memory.current": "700000"}, 300_000),
    ({"memory/memory.limit_in_bytes": "1000000", "memory/memory.usage_in_bytes": "400000",
      "memory/memory.stat": "cache 1\ntotal_inactive_file 100000\n"}, 700_000),
    ({"memory.max": "1000", "memory.current": "2000"}, 0),
])  # fmt: skip
def test_a_containers_limit_counts(tmp_path, files, left):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert memory_left(tmp_path) == left


def test_a_container_without_limit_counts_for_nothing(tmp_path):
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5\n")
    assert memory_left(tmp_path) > MB
    assert ALONE.world_size == 1
