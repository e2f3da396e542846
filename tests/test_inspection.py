"""Inspection of a packed dataset against numbers counted by hand, its masks, and the HTML page."""

import io
import re
import shutil

import numpy as np
import pytest
from rich.console import Console

from distill.corpus.inspection import inspect_dataset
from distill.corpus.inspection_page import page, write_page
from distill.corpus.inspection_terminal import print_inspection, row_text
from distill.corpus.packing import pack_corpus
from distill.corpus.rows import PackedRows
from distill.corpus.statistics import script_of
from distill.corpus.tokenizing import load_tokenizer
from distill.errors import InputError

TOKENS = "[PAD] [UNK] [CLS] [SEP] [MASK] 天 气 很 好 。 walk ##ing < & 3 か".split()


def write_tokenizer(folder, tokens=TOKENS):
    folder.mkdir()
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    return str(folder)


@pytest.fixture
def tokenizer(tmp_path):
    return write_tokenizer(tmp_path / "tokenizer")


def pack(tmp_path, tokenizer, text, reference):
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    (tmp_path / "text_ref.txt").write_text(reference, encoding="utf-8")
    output = tmp_path / "packed"
    pair = (tmp_path / "text.txt", tmp_path / "text_ref.txt")
    pack_corpus(train=[pair], dev=0, tokenizer_dir=tokenizer, max_seq_length=12, output=output)
    return output


@pytest.fixture
def dataset(tmp_path, tokenizer):
    """Two rows: [CLS] 天 气 很 好 。 walk ##ing < & 3 [SEP] and [CLS] か 龘 [SEP] with 8 [PAD]; 天气 is a word."""
    return pack(tmp_path, tokenizer, "天气很好。\n\nwalking < & 3 か 龘\n", "[2]\n[]\n[]\n")


def test_statistics_are_those_counted_by_hand(dataset):
    of_train = inspect_dataset(dataset).statistics["train"]
    assert (of_train.rows, of_train.tokens, of_train.documents) == (2, 12, 2)
    assert of_train.fill_rate == pytest.approx(16 / 24)
    assert of_train.unknown_share == pytest.approx(1 / 12)
    counts = {name: round(12 * share) for name, share in of_train.scripts.items()}
    assert counts == {"Han": 4, "Latin": 2, "digits": 1, "punctuation": 3, "other": 1, "[UNK]": 1}
    assert of_train.words_per_row == pytest.approx(10 / 2)  # 天气 and walking are the words of two tokens
    assert of_train.tokens_per_word == pytest.approx(12 / 10)
    assert of_train.characters_per_word == pytest.approx((5 + 7 + 5) / 10)
    assert of_train.frequent[0][1] == pytest.approx(1 / 12) and len(of_train.frequent) == 12


def test_words_and_documents_are_marked(dataset):
    rows = {row.number: row_text(row).plain for row in inspect_dataset(dataset).rows}
    without_masks = [re.sub(r"[\[\]{}]|<(?=.>)|(?<=<.)>|>[^|]+(?=})", "", text) for text in rows.values()]
    assert len(rows) == 2 and "¶" in without_masks[0]
    assert re.search(r"天\W*气\W*\|", rows[0]) and not re.search(r"天[^气]*\|[^气]*气", rows[0])


def test_masks_are_drawn_by_the_seed(tmp_path, tokenizer):
    dataset = pack(tmp_path, tokenizer, "天气很好。" * 400, "[]\n")
    fates = [
        [token.fate for row in inspect_dataset(dataset, num_rows=200, seed=seed).rows for token in row.tokens]
        for seed in (1, 1, 2)
    ]
    assert fates[0] == fates[1] != fates[2]
    counts = {fate: fates[0].count(fate) for fate in ("masked", "replaced", "kept", "special")}
    assert counts["special"] == 2 * 200
    chosen = counts["masked"] + counts["replaced"] + counts["kept"]
    assert chosen / (10 * 200) == pytest.approx(0.2, abs=0.01)  # 2 of 10 tokens a row: 0.15 rounded to whole tokens
    assert counts["masked"] / chosen == pytest.approx(0.8, abs=0.08)


def test_rows_are_those_of_the_dataset(dataset, tokenizer):
    shown = inspect_dataset(dataset, num_rows=9).rows
    input_ids, _, length = PackedRows(dataset / "train").rows(np.array([row.number for row in shown]))
    for row, ids, end in zip(shown, input_ids, length, strict=True):
        tokens = load_tokenizer(tokenizer).convert_ids_to_tokens(ids[:end])
        assert [token.text for token in row.tokens] == [token.removeprefix("##") for token in tokens]


def test_one_split_can_be_inspected(dataset):
    assert inspect_dataset(dataset / "train").split == "train"


def test_page_is_complete_escaped_and_of_one_file(dataset, tmp_path):
    write_page(inspect_dataset(dataset), tmp_path / "new" / "page.html")
    text = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert text == page(inspect_dataset(dataset))
    assert "&lt;" in text and "&amp;" in text and "prefers-color-scheme: dark" in text
    assert not re.search(r"https?:|<script|src=|@import|url\(", text)
    assert text.count("<span") == text.count("</span>") and text.count('<p class="row">') == 2
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]


def test_terminal_shows_signs_without_colours(dataset):
    stream = io.StringIO()
    print_inspection(inspect_dataset(dataset), Console(file=stream, width=100))
    text = stream.getvalue()
    assert "\x1b" not in text and "[masked]" in text and "66.67%" in text and "train row 0" in text


@pytest.mark.parametrize(
    "text, script",
    [("天", "Han"), ("〇", "Han"), ("é", "Latin"), ("3", "digits"), ("。", "punctuation"), ("€", "punctuation"),
     ("か", "other"), ("я", "other"), ("", "other"), ("😂", "punctuation")],
)  # fmt: skip
def test_scripts(text, script):
    assert script_of(text) == script


def test_the_dataset_has_the_tokenizer_that_it_was_packed_with(dataset, tokenizer):
    original, kept = load_tokenizer(tokenizer), load_tokenizer(dataset / "tokenizer")
    assert kept.backend_tokenizer.to_str() == original.backend_tokenizer.to_str()


def test_another_tokenizer_in_its_place_is_noticed(dataset, tmp_path):
    shutil.rmtree(dataset / "tokenizer")
    write_tokenizer(dataset / "tokenizer", TOKENS[:10])
    with pytest.raises(InputError, match="train: holds token 15, its tokenizer has 10; remove the packed dataset"):
        inspect_dataset(dataset)


def test_folder_without_dataset_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a packed dataset.*make it with"):
        inspect_dataset(tmp_path)


def test_the_datasets_below_a_folder_are_named(dataset):
    with pytest.raises(InputError, match=f"not a packed dataset.*there are below it: {dataset}; name one"):
        inspect_dataset(dataset.parent)


def test_command_prints_and_writes_the_page(dataset, tmp_path, capsys):
    from distill.cli import main

    with pytest.raises(SystemExit) as left:
        main(["inspect", str(dataset), "--n", "1", "--html", str(tmp_path / "page.html")])
    assert not left.value.code
    assert "train row" in capsys.readouterr().out and (tmp_path / "page.html").exists()
