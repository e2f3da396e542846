"""What text comes in: packed files, records, saved datasets, and everything that can be wrong with them."""

import gzip
import json
import logging
import lzma
import os
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from distill.corpus.reference import reference_paths
from distill.corpus.text import estimate_characters, expand_text, iter_lines, text_root
from distill.corpus.text_names import TextName, hash_text, skipping_bad
from distill.errors import InputError

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}
TEXT = "\ufeff天气很好。\r\n\r\n👨\u200d👩 T恤\u2028很好\n最后\x00一行".encode()
LINES = ["天气很好。", "", "👨\u200d👩 T恤\u2028很好", "最后\x00一行"]


def write_records(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


# ---- packed files


@pytest.mark.parametrize("ending", PACK)
def test_packed_text_has_the_lines_of_the_text(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"x.txt{ending}"
    file.write_bytes(PACK[ending](TEXT))
    assert list(iter_lines(file)) == LINES
    assert expand_text([tmp_path]) == [file]


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_packed_files_of_several_parts_are_read_to_the_end(tmp_path: Path, ending: str) -> None:
    """pigz, pixz and pzstd write them; a reader of the first part alone would lose the rest without a word."""
    file = tmp_path / f"x.txt{ending}"
    file.write_bytes(PACK[ending]("天\n".encode()) + PACK[ending](b"") + PACK[ending]("气\n".encode() * 50_000))
    assert list(iter_lines(file)) == ["天"] + ["气"] * 50_000


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_a_packed_file_cut_short_is_refused(tmp_path: Path, ending: str, keep: float) -> None:
    noise = random.Random(0)
    packed = PACK[ending]("".join(chr(noise.randrange(0x4E00, 0x9FA5)) for _ in range(50_000)).encode())
    file = tmp_path / f"x.txt{ending}"
    file.write_bytes(packed[: int(len(packed) * keep)])
    with pytest.raises(InputError, match=rf"x\.txt\{ending}: (damaged or cut short|cannot be read)") as error:
        list(iter_lines(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_text_under_a_packed_name_is_refused(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"x.txt{ending}").write_bytes(TEXT)
    with pytest.raises(InputError, match=r"(damaged or cut short|cannot be read)"):
        list(iter_lines(tmp_path / f"x.txt{ending}"))


@pytest.mark.parametrize("ending", PACK)
def test_invalid_utf8_in_a_packed_file_names_the_line(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"x.txt{ending}").write_bytes(PACK[ending](b"a\nb\n\xff\n"))
    with pytest.raises(InputError, match=r"line 3: not UTF-8 \(byte 0xff\).*--skip-bad"):
        list(iter_lines(tmp_path / f"x.txt{ending}"))


@pytest.mark.parametrize("ending", PACK)
def test_characters_are_estimated(tmp_path: Path, ending: str) -> None:
    noise = random.Random(0)
    text = "".join(chr(noise.randrange(0x4E00, 0x9FA5)) for _ in range(300_000)).encode()
    (tmp_path / f"x.txt{ending}").write_bytes(PACK[ending](text))
    assert estimate_characters([tmp_path / f"x.txt{ending}"]) == pytest.approx(300_000, rel=0.25)


# ---- what cannot be read


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_bytes(TEXT)
    file.chmod(0)
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        list(iter_lines(file))


@pytest.mark.parametrize("ending", PACK)
def test_a_missing_file_is_refused(tmp_path: Path, ending: str) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        list(iter_lines(tmp_path / f"x.txt{ending}"))


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.txt.zst"])
def test_an_empty_file_has_no_lines(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert list(iter_lines(tmp_path / name)) == []


def test_skipped_lines_stay_as_empty_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """References count lines: the line after a bad one must keep its number."""
    (tmp_path / "x.txt").write_bytes("天\n".encode() + "好\n".encode("gb18030") + b"b\xed\xa0\x80\r\n" + "气".encode())
    name = skipping_bad(tmp_path / "x.txt")
    with caplog.at_level(logging.WARNING):
        assert [list(iter_lines(name)) for _ in range(2)] == [["天", "", "", "气"]] * 2
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'x.txt'}: 2 of 4 lines left out, not UTF-8; the first is line 2"
    ]


# ---- records


@pytest.mark.parametrize("ending", PACK)
def test_a_record_is_a_document(tmp_path: Path, ending: str) -> None:
    records = [{"text": "一\n二\r\n\n \n三\r四\u2028五"}, {"id": 2, "text": "六"}, {"text": ""}]
    content = "\ufeff" + "\r\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (tmp_path / f"x.jsonl{ending}").write_bytes(PACK[ending](content.encode()))
    assert list(iter_lines(tmp_path / f"x.jsonl{ending}")) == ["一", "二", "三", "四\u2028五", "", "六", "", ""]


def test_another_field_is_named_after_the_path(tmp_path: Path) -> None:
    write_records(tmp_path / "x.jsonl", {"content": "天", "title": "气"})
    (tmp_path / "y.txt").write_text("文\n", encoding="utf-8")
    assert [list(iter_lines(file)) for file in expand_text([f"{tmp_path}#content"])] == [["天", ""], ["文"]]
    assert list(iter_lines(expand_text([f"{tmp_path}/*.jsonl#title"])[0])) == ["气", ""]
    with pytest.raises(InputError, match="lines of text have no fields"):
        expand_text([f"{tmp_path}/y.txt#title"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"content": "a"}', r"no field 'text' \(fields: content\); name another after #, as in x\.jsonl#content"),
        (b'{"text": null}', "field 'text' is null, not a text"),
        (b'{"text": ["a"]}', "not a text"),
        (b'{"text": "a"', "not JSON"),
        (b'["a"]', "a JSON list, not an object"),
        (b'{"text": "\xff"}', r"not UTF-8 \(byte 0xff\)"),
        (b"[" * 200_000, "JSON"),
    ],
)
def test_bad_records_are_named_or_left_out(tmp_path: Path, line: bytes, message: str) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"text": "a"}\n\n' + line + b'\n{"text": "b"}')
    with pytest.raises(InputError, match=rf"x\.jsonl: line 3: .*{message}"):
        list(iter_lines(file))
    assert list(iter_lines(skipping_bad(file))) == ["a", "", "", "b", ""]


def test_lone_surrogates_become_replacement_characters(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Scrapers cut emoji in half; no file and no tokenizer takes what is left."""
    (tmp_path / "x.jsonl").write_text('{"text": "天\\ud83d气\\ud83d\\ude00"}\n', encoding="utf-8")
    assert list(iter_lines(tmp_path / "x.jsonl")) == ["天\ufffd气😀", ""]
    assert "1 halves of surrogate pairs" in caplog.text


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
def test_tables(tmp_path: Path, kind: str) -> None:
    table = pa.table({"id": [1, 2], "text": ["天\n气", "好"]})
    file = tmp_path / ("x.parquet" if kind == "parquet" else "x.arrow")
    if kind == "parquet":
        pq.write_table(table, file)
    else:
        new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        with new(str(file), table.schema) as writer:
            writer.write_table(table)
    assert list(iter_lines(file)) == ["天", "气", "", "好", ""]
    with pytest.raises(InputError, match=r"no field 'content' \(fields: id, text\)"):
        list(iter_lines(Path(f"{file}#content")))
    with pytest.raises(InputError, match="row 1: field 'id' is 1, not a text"):
        list(iter_lines(Path(f"{file}#id")))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"x\.\w+: (damaged|cannot be read)"):
        list(iter_lines(file))


def test_datasets_on_disk(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    dataset = Dataset.from_dict({"text": ["一", "二", "三\n四"], "n": [1, 2, 3]})
    dataset.save_to_disk(tmp_path / "one", num_shards=2)
    DatasetDict(train=dataset, test=dataset).save_to_disk(tmp_path / "two")
    files = expand_text([tmp_path / "one"])
    assert [list(iter_lines(file)) for file in files] == [["一", "", "二", ""], ["三", "四", ""]]
    assert text_root([tmp_path / "one"]) == text_root([f"{tmp_path / 'one'}#text"]) == tmp_path / "one"
    assert len(expand_text([f"{tmp_path / 'two' / 'test'}#text"])) == 1
    with pytest.raises(InputError, match="several splits; name one: .*two/train"):
        expand_text([tmp_path / "two"])


def test_a_selection_is_saved_as_selected(tmp_path: Path) -> None:
    """A shuffled dataset is a list of row numbers beside the whole file; save_to_disk must have written it out."""
    from datasets import Dataset

    Dataset.from_dict({"text": ["一", "二", "三"]}).select([2, 0]).save_to_disk(tmp_path / "some")
    assert list(iter_lines(expand_text([tmp_path / "some"])[0])) == ["三", "", "一", ""]


def test_hub_dataset_is_read_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(*names: object, split: str) -> datasets.Dataset:
        asked.append((*names, split))
        return datasets.Dataset.from_file(str(tmp_path / "cache" / "data-00000-of-00001.arrow"))

    datasets.Dataset.from_dict({"content": ["天"]}).save_to_disk(tmp_path / "cache")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (file,) = expand_text(["hf:OWNER/NAME:zh:validation#content"])
    assert list(iter_lines(file)) == ["天", ""] and asked == [("OWNER/NAME", "zh", "validation")]
    assert text_root(["hf:OWNER/NAME"]) == tmp_path / "cache"


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(*_: object, split: str) -> None:
        raise ConnectionError("no route\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match=r"hf:A/B: cannot be loaded \(no route\)"):
        expand_text(["hf:A/B"])


# ---- names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x.txt", ("x.txt", None, False)),
        ("x.txt#skip-bad", ("x.txt", None, True)),
        ("x.jsonl#a", ("x.jsonl", "a", False)),
        ("x.jsonl#a#skip-bad", ("x.jsonl", "a", True)),
        ("is#here.txt", ("is#here.txt", None, False)),
        ("is#here.txt#skip-bad", ("is#here.txt", None, True)),
        ("c#/x.txt", ("c#/x.txt", None, False)),
    ],
)
def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: tuple) -> None:
    monkeypatch.chdir(tmp_path)
    Path("is#here.txt").touch()
    found = TextName.parse(name)
    assert (str(found.file), found.field, found.skip_bad) == expected


def test_references_of_all_kinds_do_not_collide(tmp_path: Path) -> None:
    for name in ("x.txt", "x.txt.gz", "x.txt.zst", "x.jsonl"):
        write_records(tmp_path / name, {"text": "a", "b": "c"})
    texts = [*expand_text([tmp_path]), Path(f"{tmp_path}/x.jsonl#b")]
    references = reference_paths([skipping_bad(text) for text in texts], tmp_path, tmp_path / "out")
    assert references == reference_paths(texts, tmp_path, tmp_path / "out")
    assert sorted(reference.name for reference in references) == [
        "x.jsonl#b_ref.txt", "x.jsonl_ref.txt", "x.txt.gz_ref.txt", "x.txt.zst_ref.txt", "x_ref.txt",
    ]  # fmt: skip


def test_references_beside_packed_texts_are_no_text(tmp_path: Path) -> None:
    for name in ("x.txt.gz", "x.txt.gz_ref.txt", "y.jsonl", "y.jsonl#b_ref.txt", "z_ref.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [file.name for file in expand_text([tmp_path])] == ["x.txt.gz", "y.jsonl", "z_ref.txt"]


def test_hash_is_of_content_and_of_how_it_is_read(tmp_path: Path) -> None:
    for name in ("x.txt", "y.txt", "x.jsonl"):
        write_records(tmp_path / name, {"text": "a", "b": "c"})
    assert hash_text(tmp_path / "x.txt") == hash_text(tmp_path / "y.txt")
    names = ["x.txt", "x.jsonl", "x.jsonl#b", "x.jsonl#skip-bad", "x.txt#skip-bad"]
    assert len({hash_text(tmp_path / name) for name in names}) == 5


def test_a_very_long_line_is_read_in_bounded_time(tmp_path: Path) -> None:
    import time

    write_records(tmp_path / "x.jsonl", {"text": "天" * 10_000_000})
    start = time.perf_counter()
    assert [len(line) for line in iter_lines(tmp_path / "x.jsonl")] == [10_000_000, 0]
    assert time.perf_counter() - start < 20
