"""MiniRBT's data JSON: what is read, and one line for each mistake."""

import json
from pathlib import Path

import pytest

from distill.corpus.data_json import read_data_json
from distill.errors import InputError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt", "a_ref.txt", "b_ref.txt", "dev.txt"):
        Path(name).write_text("天气很好\n", encoding="utf-8")
    return tmp_path


def read(data):
    Path("data.json").write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return read_data_json("data.json")


def test_files_and_references_in_order(folder):
    files = read(
        {
            "train": {"train_files": ["b.txt", "a.txt"], "train_ref_files": ["b_ref.txt", "a_ref.txt"]},
            "dev": {"dev_files": ["dev.txt"], "dev_ref_files": []},
        }
    )
    assert files.train == [(Path("b.txt"), Path("b_ref.txt")), (Path("a.txt"), Path("a_ref.txt"))]
    assert files.dev == [(Path("dev.txt"), None)]


def test_dev_and_references_may_be_missing(folder):
    files = read({"train": {"train_files": ["a.txt"]}})
    assert files.train == [(Path("a.txt"), None)] and files.dev == []


@pytest.mark.parametrize(
    "data, message",
    [
        ("{", "data.json, line 1: .*not valid JSON"),
        ([], "a JSON object in braces, found"),
        ({"trian": {}}, "unknown key 'trian'; did you mean 'train'"),
        ({"train": []}, "'train': expected an object"),
        ({"train": {"train_file": ["a.txt"]}}, "'train': unknown key 'train_file'; did you mean 'train_files'"),
        ({"train": {"train_files": "a.txt"}}, "'train_files' must be a list"),
        ({"train": {"train_files": []}}, "no training text"),
        ({"dev": {"dev_files": ["dev.txt"]}}, "no training text"),
        ({"train": {"train_files": ["a.txt", "b.txt"], "train_ref_files": ["a_ref.txt"]}}, "2 text files but 1 ref"),
        ({"train": {"train_files": ["aa.txt"]}}, "aa.txt, which is not a file; did you mean a.txt"),
        ({"train": {"train_files": ["no/a.txt"]}}, "there is no folder no"),
        ({"train": {"train_files": ["a.txt"]}, "dev": {"dev_files": ["devv.txt"]}}, "'dev_files' names devv.txt"),
    ],
)
def test_a_mistake_is_one_line_that_says_where(folder, data, message):
    with pytest.raises(InputError, match=message) as error:
        read(data)
    assert "\n" not in str(error.value) and "data.json" in str(error.value)


def test_missing_json_names_the_nearest(folder):
    read({"train": {"train_files": ["a.txt"]}})
    with pytest.raises(InputError, match="no such data file; did you mean .*data.json"):
        read_data_json("date.json")
