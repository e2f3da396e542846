"""Bad text through the whole preparation: references and rows stay aligned, or one line says what is wrong."""

import gzip
import json
import logging
from pathlib import Path

import pytest

from distill.cli import main
from distill.corpus.prepare import check_data, list_files
from distill.errors import InputError
from distill.recipe import Data

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"天气很好研究生命起源今冷，。", "t", "##恤", "恤"]
BAD = "今天天气很好。\n".encode() + b"\xff\xfe\n" + "研究\x00生命\x07起源\r\n\r\n👨\u200d👩天气T恤\ufeff".encode()


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return folder


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as done:
        main([str(argument) for argument in arguments])
    return int(done.value.code or 0)


def write_references(folder: Path, tokenizer: Path, *more: str) -> int:
    return run("ref", "--text", folder / "text", "--output", folder / "ref", "--tokenizer", tokenizer, "--segmenter",
               "jieba", "--processes", 1, *more)  # fmt: skip


def test_bad_lines_are_refused_or_left_out_and_references_stay_aligned(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "x.txt").write_bytes(BAD)
    assert write_references(tmp_path, tokenizer) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "x.txt: line 2: not UTF-8" in error and "--skip-bad" in error
    assert write_references(tmp_path, tokenizer, "--skip-bad") == 0
    references = [json.loads(line) for line in (tmp_path / "ref" / "x_ref.txt").read_text("utf-8").splitlines()]
    assert [bool(found) for found in references] == [True, False, True, False, True]
    data = {"train": {"train_files": [str(tmp_path / "text" / "x.txt")],
                      "train_ref_files": [str(tmp_path / "ref" / "x_ref.txt")]}}  # fmt: skip
    (tmp_path / "data.json").write_text(json.dumps(data))
    pack = ("pack", "--data", tmp_path / "data.json", "--tokenizer", tokenizer, "--max-seq-length", 16, "--output",
            tmp_path / "packed", "--processes", 1)  # fmt: skip
    assert run(*pack) == 2
    with caplog.at_level(logging.WARNING):
        assert run(*pack, "--skip-bad") == 0
    assert len(list((tmp_path / "packed").glob("*/info.json"))) == 1


def test_a_packed_text_cut_short_ends_with_one_line(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "x.txt.gz").write_bytes(gzip.compress("天气很好\n".encode() * 1000)[:-10])
    assert write_references(tmp_path, tokenizer) == 2
    assert "x.txt.gz: damaged or cut short" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list((tmp_path / "ref").rglob("*_ref.txt"))


@pytest.mark.parametrize("name", ["text", "files"])
def test_skip_bad_of_a_recipe_reaches_every_text(tmp_path: Path, name: str) -> None:
    for file_name in ("x.txt", "dev.txt"):
        (tmp_path / file_name).write_bytes(BAD)
    source = {"text": [str(tmp_path / "x.txt")], "dev": [str(tmp_path / "dev.txt")]}
    if name == "files":
        file = str(tmp_path / "x.txt")
        (tmp_path / "data.json").write_text(
            json.dumps({"train": {"train_files": [file]}, "dev": {"dev_files": [file]}})
        )
        source = {"files": str(tmp_path / "data.json")}  # type: ignore[dict-item]
    train, dev = list_files(Data(**source, segmenter="jieba", skip_bad=True))  # type: ignore[arg-type]
    assert not isinstance(dev, float)
    assert {str(text).endswith("#skip-bad") for text, _ in [*train, *dev]} == {True}


def test_dictionary_of_a_recipe_is_checked(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("天\n", encoding="utf-8")
    data = Data(text=[str(tmp_path / "x.txt")], segmenter="jieba", dictionary=str(tmp_path / "none.txt"))
    with pytest.raises(InputError, match="dictionary .*none.txt: no such file"):
        check_data(data, where="recipe")
    with pytest.raises(ValueError, match="needs a 'segmenter'"):
        Data(text=["x"], segmenter="words", dictionary="words.txt")
