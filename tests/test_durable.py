"""Files that are replaced as a whole."""

import os
import stat

import pytest

from distill import durable
from distill.durable import place_folder, write_whole


def test_two_processes_that_write_the_same_file_both_succeed(tmp_path, monkeypatch):
    """As `distill report` may while a run writes its own."""
    path, flushed = tmp_path / "page.html", durable.write_flushed

    def write_in_the_middle_of_the_other(partial, content):
        flushed(partial, content)
        if content == "first":
            with monkeypatch.context() as other:
                other.setattr(os, "getpid", lambda: -1)
                write_whole(path, "second")

    monkeypatch.setattr(durable, "write_flushed", write_in_the_middle_of_the_other)
    write_whole(path, "first")
    assert path.read_text() == "first" and [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_a_folder_is_readable_for_those_who_may_read_new_files(tmp_path):
    """safetensors makes its files readable for their owner alone."""
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial/model.safetensors").touch(mode=0o600)
    place_folder(tmp_path / "partial", tmp_path / "model")
    (tmp_path / "new").touch()
    rights = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "model/model.safetensors")]
    assert rights[0] == rights[1]


def test_a_folder_in_the_place_of_a_file_is_named_itself(tmp_path):
    (tmp_path / "answers").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_whole(tmp_path / "answers", "")
    assert caught.value.filename == str(tmp_path / "answers") and not [*(tmp_path / "answers").iterdir()]
