"""Files that are replaced as a whole."""

import os

from distill import durable
from distill.durable import write_whole


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
