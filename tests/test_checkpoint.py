"""Checkpoints: damage of any file is seen, a damaged checkpoint is passed over, and only the last few are kept."""

import json
import os
import shutil

import pytest
import torch
from test_loop import BATCH, run, start_run

from distill.training.checkpoint import (
    checkpoint_students,
    clear_other_checkpoints,
    find_damage,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    set_damaged_aside,
)

TENSORS = {
    "a": {"w": torch.arange(6.0).view(2, 3), "b": torch.ones(2).t()},
    "a+optimizer": {"w.step": torch.tensor(3.0)},
}
STATE = {"step": 3, "tokens": 70, "students": {"a": {"scheduler": {"last_epoch": 3}, "scaler": {}}}}
FILES = ["a.safetensors", "a+optimizer.safetensors", "state.json", "manifest.json"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def append(path):
    path.write_bytes(path.read_bytes() + b"0")


def flip(position):
    def flip_bit(path):
        content = bytearray(path.read_bytes())
        content[int(position * (len(content) - 1))] ^= 1
        path.write_bytes(content)

    return flip_bit


def delete(path):
    path.unlink()


def make_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = {"truncated": truncate, "half": halve, "empty": empty, "appended": append, "first_byte": flip(0),
           "middle_byte": flip(0.5), "last_byte": flip(1), "deleted": delete, "folder": make_folder}  # fmt: skip


def test_what_is_loaded_is_what_was_saved(tmp_path):
    folder = save_checkpoint(tmp_path / "checkpoints", 3, TENSORS, STATE)
    assert folder.name == "step-00000003"
    assert newest_checkpoint(tmp_path / "checkpoints") == folder
    assert find_damage(folder) is None
    tensors, state = load_checkpoint(folder)
    assert state == STATE
    assert {stem: set(named) for stem, named in tensors.items()} == {"a": {"w", "b"}, "a+optimizer": {"w.step"}}
    assert torch.equal(tensors["a"]["w"], TENSORS["a"]["w"])


def test_every_file_is_in_the_manifest(tmp_path):
    folder = save_checkpoint(tmp_path, 3, TENSORS, STATE)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted([*manifest, "manifest.json"]) == sorted(path.name for path in folder.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_renamed_and_the_one_before_is_used(tmp_path, file, damage, caplog):
    before = save_checkpoint(tmp_path, 2, TENSORS, {**STATE, "step": 2})
    newest = save_checkpoint(tmp_path, 3, TENSORS, STATE)
    DAMAGES[damage](newest / file)
    assert find_damage(newest)
    assert newest_checkpoint(tmp_path) == before and newest.exists(), "looking changes nothing"
    (line,) = set_damaged_aside(tmp_path)
    assert names(tmp_path) == ["damaged-step-00000003", "step-00000002"]
    assert "step-00000003 is damaged" in line and line in caplog.text
    assert newest_checkpoint(tmp_path) == before and set_damaged_aside(tmp_path) == []


def test_what_was_set_aside_is_never_overwritten(tmp_path):
    for content in ("first", "second", "third"):
        (save_checkpoint(tmp_path, 3, TENSORS, STATE) / "state.json").write_text(content)
        set_damaged_aside(tmp_path)
    assert names(tmp_path) == [f"damaged-step-00000003{end}" for end in ("", "-2", "-3")]
    found = [(path / "state.json").read_text() for path in sorted(tmp_path.iterdir())]
    assert found == ["first", "second", "third"]


def test_the_newest_is_that_of_the_highest_step_whatever_the_clock_says(tmp_path):
    for step in (2, 3):
        os.utime(save_checkpoint(tmp_path, step, TENSORS, STATE), (10**9 - step, 10**9 - step))
    assert newest_checkpoint(tmp_path).name == "step-00000003"
    assert save_checkpoint(tmp_path, 10**8, TENSORS, STATE, keep=3) == newest_checkpoint(tmp_path)


def test_a_users_copy_is_neither_used_nor_removed(tmp_path):
    save_checkpoint(tmp_path, 2, TENSORS, STATE).rename(tmp_path / "step-00000002-before-the-change")
    for step in (3, 4, 5):
        save_checkpoint(tmp_path, step, TENSORS, STATE)
    assert names(tmp_path) == ["step-00000002-before-the-change", "step-00000004", "step-00000005"]


def test_damaged_checkpoints_do_not_count_among_those_that_stay(tmp_path):
    """Keeping one and finding it damaged would leave none."""
    for step in (1, 2):
        save_checkpoint(tmp_path, step, TENSORS, STATE)
    truncate(tmp_path / "step-00000002" / "a.safetensors")
    save_checkpoint(tmp_path, 3, TENSORS, STATE)
    assert names(tmp_path) == ["step-00000001", "step-00000002", "step-00000003"]
    save_checkpoint(tmp_path, 4, TENSORS, STATE)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def test_a_checkpoint_that_cannot_be_removed_ends_nothing(tmp_path, monkeypatch, caplog):
    def refuse(path, *_args, **_kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    for step in (1, 2):
        save_checkpoint(tmp_path, step, TENSORS, STATE)
    monkeypatch.setattr(shutil, "rmtree", refuse_unless_ignoring(refuse))
    save_checkpoint(tmp_path, 3, TENSORS, STATE)
    assert "could not be removed" in caplog.text
    assert newest_checkpoint(tmp_path).name == "step-00000003"
    monkeypatch.undo()
    save_checkpoint(tmp_path, 4, TENSORS, STATE)
    assert names(tmp_path) == ["step-00000003", "step-00000004"], "tried again at the next save"


def refuse_unless_ignoring(refuse):
    return lambda path, ignore_errors=False: None if ignore_errors else refuse(path)


def test_a_full_disk_leaves_the_older_checkpoints_and_nothing_half(tmp_path, monkeypatch):
    before = save_checkpoint(tmp_path, 2, TENSORS, STATE)

    def full(_descriptor, _content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 3, TENSORS, STATE)
    assert names(tmp_path) == ["step-00000002"] and find_damage(before) is None


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_two_damaged_checkpoints_leave_none(tmp_path):
    for step in (2, 3):
        truncate(save_checkpoint(tmp_path, step, TENSORS, STATE) / "a.safetensors")
    assert newest_checkpoint(tmp_path) is None
    assert checkpoint_students(tmp_path) == []
    clear_other_checkpoints(tmp_path, ["a"])
    assert len(set_damaged_aside(tmp_path)) == 2, "a new pass does not remove what somebody may want to look at"


def test_no_folder_has_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path / "nothing") is None


def test_only_the_last_are_kept(tmp_path):
    for step in (5, 90, 100, 1000):
        save_checkpoint(tmp_path, step, TENSORS, {**STATE, "step": step})
    assert names(tmp_path) == ["step-00000100", "step-00001000"]
    save_checkpoint(tmp_path, 1001, TENSORS, STATE, keep=1)
    assert names(tmp_path) == ["step-00001001"]


def test_a_checkpoint_that_was_being_written_is_no_checkpoint(tmp_path):
    before = save_checkpoint(tmp_path, 2, TENSORS, STATE)
    partial = tmp_path / ".partial-step-00000003"
    partial.mkdir()
    (partial / "a.safetensors").write_bytes(b"cut sho")
    assert newest_checkpoint(tmp_path) == before
    assert find_damage(save_checkpoint(tmp_path, 3, TENSORS, STATE)) is None
    assert not partial.exists()


def test_a_step_saved_again_replaces_the_one_there(tmp_path):
    save_checkpoint(tmp_path, 3, TENSORS, STATE)
    folder = save_checkpoint(tmp_path, 3, {"a": {"w": torch.zeros(1)}}, STATE)
    assert set(load_checkpoint(folder)[0]) == {"a"} and find_damage(folder) is None


def test_students_of_the_newest_sound_checkpoint(tmp_path):
    save_checkpoint(tmp_path, 3, TENSORS, {**STATE, "students": {"a": {}, "b": {}}})
    assert checkpoint_students(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("students, kept", [
    (["a", "b"], True), (["b", "a"], True), (["b"], True), (["c"], False), (["a", "c"], False),
])  # fmt: skip
def test_checkpoints_serve_a_pass_whose_students_they_hold(tmp_path, students, kept):
    """With fewer students, too: a run that is ended between two finished models must not train the second again."""
    save_checkpoint(tmp_path / "checkpoints", 3, TENSORS, {**STATE, "students": {"a": {}, "b": {}}})
    clear_other_checkpoints(tmp_path / "checkpoints", students)
    assert bool(names(tmp_path / "checkpoints")) is kept


def saved(student):
    return {stem: {name: value.detach().clone() for name, value in named.items()}
            for stem, named in student.tensors().items()}  # fmt: skip


def test_a_student_comes_back_with_weights_projections_moments_schedule_and_scaler(tmp_path):
    student = start_run(steps=6, warmup_ratio=0.5)
    student.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
    list(run([student], [[BATCH]] * 3))
    folder = save_checkpoint(tmp_path, 3, student.tensors(), {"students": {"student": student.state()}})
    tensors, state = load_checkpoint(folder)
    fresh = start_run(steps=6, warmup_ratio=0.5)
    fresh.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
    fresh.load(tensors, state["students"]["student"])
    ours, theirs = saved(student), saved(fresh)
    assert ours.keys() == theirs.keys() == {"student", "student+optimizer"}
    for stem in ours:
        assert ours[stem].keys() == theirs[stem].keys()
        assert all(torch.equal(value, theirs[stem][name]) for name, value in ours[stem].items())
    assert any(name.startswith("projections.") for name in ours["student"])
    assert len(ours["student+optimizer"]) == 3 * len(student.parameters)
    assert fresh.scheduler.state_dict() == student.scheduler.state_dict()
    assert [g["lr"] for g in fresh.optimizer.param_groups] == [g["lr"] for g in student.optimizer.param_groups]
    assert fresh.scaler.get_scale() == student.scaler.get_scale() == 128.0


def test_the_tied_decoder_is_saved_once(tmp_path):
    student = start_run()
    names = set(student.tensors()["student"])
    assert "student.cls.predictions.decoder.weight" not in names
    assert "student.bert.embeddings.word_embeddings.weight" in names


def test_names_with_dots_do_not_share_a_file(tmp_path):
    students = [start_run("rbt4"), start_run("rbt4.h312"), start_run("rbt4.h3")]
    list(run(students, [[BATCH]]))
    tensors = {stem: named for student in students for stem, named in student.tensors().items()}
    loaded, _ = load_checkpoint(save_checkpoint(tmp_path, 1, tensors, STATE))
    assert loaded.keys() == tensors.keys() and len(loaded) == 6
