import errno
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references import continuation_of, read_reference
from transformers import BertTokenizer

from distill.corpus import alignment, reference, source
from distill.corpus.characters import runs
from distill.corpus.perceptron_training import train_perceptron
from distill.corpus.reference import reference_paths, write_references
from distill.corpus.segment import Segmenter, load_segmenter
from distill.errors import InputError

SENTENCES = Path(__file__).parent / "data" / "segmented_sentences.txt"
HAN = "天气很好研究生在命起源恤卡拉，。！"
LATIN = [
    "t",
    "ok",
    "5",
    "##g",
    "g",
    "be",
    "##rt",
    "a",
    "##b",
    "b",
    "i",
    "##i",
    "trans",
    "##former",
    "e",
    "3",
    "14",
    ".",
]
ODD_TEXT = st.text(
    st.one_of(
        st.sampled_from(
            "天气很好研究生命起源T恤卡拉OK5GbeBERTab3.，。！ \t\u3000\u00a0\u2028\u200b\u200d\ufeff\x00\x0b\x85\ufffd"
        ),
        st.sampled_from("👨👩é\u0301\u0300İ가ﬁＡ𠀀\u0378\U000e0041\ue000ß[]"),
        st.characters(blacklist_categories=["Cs"]),
    ),
    max_size=80,
)


@pytest.fixture(scope="module", params=["uncased", "cased"])
def tokenizer_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *HAN, *LATIN, "T", "OK", "##G", "B", "##E"]
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": request.param == "uncased"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir: Path) -> BertTokenizer:
    return BertTokenizer.from_pretrained(str(tokenizer_dir))


@pytest.fixture(scope="module")
def perceptron_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segmenter")
    train_perceptron(SENTENCES, folder, epochs=5)
    return folder


@pytest.fixture(scope="module")
def perceptron(perceptron_dir: Path) -> Segmenter:
    return load_segmenter(f"ltp:{perceptron_dir}")


def positions(tokenizer: BertTokenizer, line: str, words: str) -> list[int]:
    """Positions that continue a word, for words given with "/" between them, [CLS] being position 0."""
    ((_, continuation),) = continuation_of([line], [words.split("/") if words else []], tokenizer)
    return (np.flatnonzero(continuation) + 1).tolist()


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    return path


# ---- alignment


@pytest.mark.parametrize(
    ("line", "words", "expected"),
    [
        ("天气很好", "天气/很/好", [2]),
        ("研究生在研究生命起源", "研究生/在/研究/生命/起源", [2, 3, 6, 8, 10]),
        ("T恤很好", "T恤/很/好", [2]),
        ("在5G", "在/5G", [3]),
        ("在卡拉OK", "在/卡拉OK", [3, 4]),
        ("", "", []),
        (" \u3000天气 很", "天气/很", [2]),
        ("天\u200b气很\ufeff好", "天气/很好", [2, 4]),
        ("\x00\u200b\ufffd", "", []),
        ("天\x0b气", "天气", [2]),
        ("天\u2028气", "天/气", []),
        ("在3.14在", "在/3.14/在", [3, 4]),
        ("👨\u200d👩天气", "👨👩/天气", [3]),
    ],
)
def test_positions(tokenizer: BertTokenizer, line: str, words: str, expected: list[int]) -> None:
    assert positions(tokenizer, line, words) == expected


def test_a_word_whose_first_character_is_no_token_does_not_join_the_word_before(tokenizer: BertTokenizer) -> None:
    """Uncased tokenizers strip the accent; for cased ones it is a token, which the next one continues."""
    uncased = tokenizer.backend_tokenizer.normalizer.lowercase
    assert positions(tokenizer, "很\u0301天", "很/\u0301天") == ([] if uncased else [3])


def test_pieces_continue_whatever_the_segmenter_says(tokenizer: BertTokenizer) -> None:
    ((ids, continuation),) = continuation_of(["在trans5g"], [["在", "tr", "ans5", "g"]], tokenizer)
    pieces = [token.startswith("##") for token in tokenizer.convert_ids_to_tokens(ids.tolist())]
    assert all(np.array(continuation)[np.array(pieces)])


def test_words_of_other_text_are_an_error(tokenizer: BertTokenizer) -> None:
    with pytest.raises(ValueError, match=r"words \['天气很'\] do not make up the line '天气很好'"):
        continuation_of(["天气", "天气很好"], [["天气"], ["天气很"]], tokenizer)


def test_no_lines(tokenizer: BertTokenizer) -> None:
    assert continuation_of([], [], tokenizer) == []
    ((ids, continuation),) = continuation_of([""], [[]], tokenizer)
    assert ids.shape == continuation.shape == (0,)


def test_truncation_of_the_tokenizer_does_not_count(tokenizer_dir: Path) -> None:
    tokenizer = BertTokenizer.from_pretrained(str(tokenizer_dir))
    tokenizer(["天气很好"], truncation=True, max_length=3, padding="max_length")
    ((ids, _),) = continuation_of(["天气" * 400], [["天气"] * 400], tokenizer)
    assert len(ids) == 800


@settings(max_examples=300, deadline=None)
@given(lines=st.lists(ODD_TEXT, min_size=1, max_size=5), data=st.data())
def test_any_text_and_any_words(tokenizer: BertTokenizer, lines: list[str], data: st.DataObject) -> None:
    """Ids are the tokenizer's own; every continuation bit is a "##" piece or lies inside a word."""
    words = []
    for line in lines:
        cuts = [data.draw(st.lists(st.booleans(), min_size=len(run), max_size=len(run))) for run in runs(line)]
        words.append([word for run, cut in zip(runs(line), cuts, strict=True) for word in cut_at(run, cut)])
    result = continuation_of(lines, words, tokenizer)
    plain = tokenizer(lines, add_special_tokens=False, return_offsets_mapping=True)
    for i, (ids, continuation) in enumerate(result):
        assert ids.tolist() == plain["input_ids"][i]
        word_of = word_of_each_character(lines[i], words[i])
        starts = [start for start, _ in plain["offset_mapping"][i]]
        tokens = tokenizer.convert_ids_to_tokens(ids.tolist())
        for j, continues in enumerate(continuation.tolist()):
            same_word = j > 0 and word_of[starts[j]] is not None and word_of[starts[j]] == word_of[starts[j - 1]]
            assert continues == (tokens[j].startswith("##") or same_word)
            if continues and not tokens[j].startswith("##"):
                assert word_of[starts[j]] == word_of[starts[j] - 1] or lines[i][starts[j] - 1] not in "".join(words[i])


def cut_at(run: str, cuts: list[bool]) -> list[str]:
    borders = [0, *(i for i in range(1, len(run)) if cuts[i]), len(run)]
    return [run[start:end] for start, end in zip(borders, borders[1:], strict=False)]


def word_of_each_character(line: str, words: list[str]) -> list[int | None]:
    """By a plain loop over characters: the reference for the vectorised look-up."""
    numbers = iter([number for number, word in enumerate(words) for _ in word])
    return [next(numbers) if runs(character) else None for character in line]


@settings(max_examples=50, deadline=None)
@given(line=st.text("天气很ab1 \u3000\u200b\u0301é，。", max_size=200))
def test_long_lines_are_cut_where_it_changes_nothing(tokenizer: BertTokenizer, line: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignment, "PIECE_CHARS", 7)
        patch.setattr(alignment, "BATCH_CHARS", 20)
        ((ids, continuation),) = continuation_of([line], [runs(line)], tokenizer)
    ((whole_ids, whole_continuation),) = continuation_of([line], [runs(line)], tokenizer)
    assert ids.tolist() == whole_ids.tolist()
    assert continuation.tolist() == whole_continuation.tolist()


# ---- paths


def test_references_mirror_folders_and_keep_dots_in_names(tmp_path: Path) -> None:
    texts = [tmp_path / name for name in ("wiki.00.txt", "wiki.01.txt", "a/x.txt", "b/x.txt", "b/x.md")]
    assert [str(path) for path in reference_paths(texts, tmp_path, Path("out"))] == [
        "out/wiki.00_ref.txt",
        "out/wiki.01_ref.txt",
        "out/a/x_ref.txt",
        "out/b/x_ref.txt",
        "out/b/x.md_ref.txt",
    ]


def test_references_that_would_collide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="would both have the reference"):
        reference_paths([tmp_path / "x.txt", tmp_path / "x"], tmp_path, tmp_path / "out")


def test_a_text_outside_the_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not below"):
        reference_paths([tmp_path / "x.txt"], tmp_path / "a", tmp_path / "out")


# ---- writing


def test_one_list_a_line_blank_lines_included(tmp_path: Path, tokenizer_dir: Path, perceptron_dir: Path) -> None:
    text = write(tmp_path / "x.txt", "天气很好\r\n\r\n \u3000\n研究生在研究生命起源\n\u200b\u200d\n  卡拉 \n好")
    counts = write_references(
        [text], [tmp_path / "out/x_ref.txt"], segmenter=f"ltp:{perceptron_dir}", tokenizer_dir=str(tokenizer_dir)
    )
    assert (tmp_path / "out/x_ref.txt").read_bytes() == b"[2]\n[]\n[]\n[2, 3, 6, 8, 10]\n[]\n[2]\n[]\n"
    assert counts == {"lines": 7, "characters": 24, "words": 10, "marks": 7}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x_ref.txt"]
    assert read_reference(tmp_path / "out/x_ref.txt", text) == [[2], [], [], [2, 3, 6, 8, 10], [], [2], []]


def test_processes_and_chunks_change_nothing(
    tmp_path: Path, tokenizer_dir: Path, perceptron_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line.replace(" ", "") for line in SENTENCES.read_text("utf-8").splitlines()]
    contents = ["\n".join(lines), "", "\n\n".join(reversed(lines)) + "\n", "", "".join(lines * 3)]
    texts = [write(tmp_path / f"{number}.txt", content) for number, content in enumerate(contents)]
    common = {"segmenter": f"ltp:{perceptron_dir}", "tokenizer_dir": str(tokenizer_dir)}
    once = [tmp_path / f"once/{number}" for number in range(5)]
    twice = [tmp_path / f"twice/{number}" for number in range(5)]
    counts = write_references(texts, once, **common)
    monkeypatch.setattr(source, "SHARD_CHARS", 50)
    done: list[int] = []
    assert write_references(texts, twice, **common, processes=2, progress=done.append) == counts
    assert [path.read_bytes() for path in once] == [path.read_bytes() for path in twice]
    assert sum(done) == counts["characters"]
    assert once[1].read_bytes() == once[3].read_bytes() == b""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_mistake_in_the_text_leaves_no_half_file(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(source, "SHARD_LINES", 2)
    good = write(tmp_path / "good.txt", "天气\n" * 10)
    bad = tmp_path / "bad.txt"
    bad.write_bytes("天气\n".encode() * 3000 + b"\xff\n")
    old = write(tmp_path / "out/bad_ref.txt", "the old one")
    with pytest.raises(InputError, match=r"bad\.txt: line 3001: "):
        write_references(
            [good, bad], [tmp_path / "out/good_ref.txt", old],
            segmenter="words", tokenizer_dir=str(tokenizer_dir), processes=processes,
        )  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bad_ref.txt", "good_ref.txt"]
    assert old.read_text() == "the old one"


def test_an_error_in_a_worker_is_raised(tmp_path: Path, tokenizer_dir: Path, perceptron_dir: Path) -> None:
    """The model file is sound for the checks at the start, and damaged for the worker that loads it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes((perceptron_dir / "config.json").read_bytes())
    (folder / "cws_model.bin").write_bytes(b"Obj\x01" + b"a" * 100)
    text = write(tmp_path / "x.txt", "天气\n" * 100)
    with pytest.raises(InputError, match="not an LTP perceptron model"):
        write_references(
            [text], [tmp_path / "x_ref.txt"], segmenter=f"ltp:{folder}", tokenizer_dir=str(tokenizer_dir), processes=2
        )
    assert not list(tmp_path.glob("x_ref*"))


def test_a_full_disk_leaves_nothing(tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_fails(self: object, number: int, lines: bytes) -> None:
        self._open_until(number)  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reference.ReferenceFiles, "write", write_fails)
    with pytest.raises(OSError, match="No space left"):
        write_references(
            [write(tmp_path / "x.txt", "天气\n")], [tmp_path / "out/x_ref.txt"],
            segmenter="words", tokenizer_dir=str(tokenizer_dir),
        )  # fmt: skip
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(("content", "warnings"), [("今天天气很好研究生命起源\n", 1), ("今天 天气 很 好\n", 0)])
def test_unsplit_text_for_the_segmenter_words_is_noticed(
    tmp_path: Path, tokenizer_dir: Path, caplog: pytest.LogCaptureFixture, content: str, warnings: int
) -> None:
    text = write(tmp_path / "x.txt", content)
    write_references([text], [tmp_path / "r.txt"], segmenter="words", tokenizer_dir=str(tokenizer_dir))
    assert len([record for record in caplog.records if "is the text split?" in record.message]) == warnings


def test_a_folder_without_vocabulary_is_refused(tmp_path: Path) -> None:
    """transformers would make a tokenizer of five tokens from it."""
    text = write(tmp_path / "x.txt", "天气\n")
    with pytest.raises(InputError, match=r"vocab\.txt or tokenizer\.json"):
        write_references([text], [tmp_path / "x_ref.txt"], segmenter="words", tokenizer_dir=str(tmp_path))


@settings(max_examples=40, deadline=None)
@given(lines=st.lists(ODD_TEXT.filter(lambda line: "\n" not in line and "\r" not in line), max_size=6))
def test_what_is_written_is_what_alignment_says(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer_dir: Path,
    tokenizer: BertTokenizer,
    perceptron_dir: Path,
    perceptron: Segmenter,
    lines: list[str],
) -> None:
    folder = tmp_path_factory.mktemp("any")
    text = write(folder / "x.txt", "".join(line + "\n" for line in ["好", *lines]))
    spec = f"ltp:{perceptron_dir}"
    write_references([text], [folder / "x_ref.txt"], segmenter=spec, tokenizer_dir=str(tokenizer_dir))
    expected = continuation_of(["好", *lines], perceptron.segment(["好", *lines]), tokenizer)
    found = read_reference(folder / "x_ref.txt", text)
    assert found == [(np.flatnonzero(continuation) + 1).tolist() for _, continuation in expected]


# ---- reading


def test_references_without_blank_lines_load(tmp_path: Path) -> None:
    """MiniRBT's and transformers' scripts write no line for a blank text line."""
    text = write(tmp_path / "x.txt", "天气很好\n\n\u3000\n很好\n")
    assert read_reference(write(tmp_path / "r.txt", "[2]\n[]\n"), text) == [[2], [], [], []]
    assert read_reference(write(tmp_path / "r.txt", "[2]\n[]\n[]\n[2]"), text) == [[2], [], [], [2]]


@pytest.mark.parametrize("references", ["", "[2]\n", "[2]\n[]\n[]\n", "[2]\n" * 5])
def test_a_reference_of_another_length_is_refused(tmp_path: Path, references: str) -> None:
    text = write(tmp_path / "x.txt", "天气很好\n\n\n很好\n")
    with pytest.raises(InputError, match=r"r\.txt: \d lines, but .*x\.txt has 4 \(2 of them not blank\)"):
        read_reference(write(tmp_path / "r.txt", references), text)


@pytest.mark.parametrize("line", ["", "2", "[2", "[0]", "[-1]", "[3, 2]", "[2, 2]", "[2.0]", '["2"]', "[true]", "{}"])
def test_a_malformed_line_is_named(tmp_path: Path, line: str) -> None:
    text = write(tmp_path / "x.txt", "天气很好\n很好\n好\n")
    reference_file = write(tmp_path / "r.txt", f"[2]\n{line}\n[]\n")
    with pytest.raises(InputError, match=r"r\.txt: line 2: found .*not a JSON list of ascending positions"):
        read_reference(reference_file, text)


def test_a_missing_reference_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.txt: cannot be read"):
        read_reference(tmp_path / "none.txt", write(tmp_path / "x.txt", "天\n"))
