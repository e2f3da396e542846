"""Packing against hand-written rows; nothing lost; what comes out does not depend on processes or paths; bad input."""

import itertools
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import load_from_disk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.corpus import rows as rows_module
from distill.corpus import source as source_module
from distill.corpus.hashing import data_hash
from distill.corpus.packing import pack_corpus
from distill.corpus.rows import PackedRows
from distill.corpus.tokenizing import load_tokenizer
from distill.errors import InputError

TOKENS = "[PAD] [unused1] [UNK] [CLS] [SEP] [MASK] 天 气 很 好 我 们 去 公 园 玩 。 t ##we ##et 的".split()
ID = {token: number for number, token in enumerate(TOKENS)}


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(TOKENS), encoding="utf-8")
    return str(folder)


@pytest.fixture
def pack(tmp_path, tokenizer_dir):
    """Packs texts given as strings (or (text, reference) pairs) and returns info and the output folder."""
    count = itertools.count()

    def write(item):
        text, reference = item if isinstance(item, tuple) else (item, None)
        number = next(count)
        paths = [tmp_path / f"{number}.txt", tmp_path / f"{number}_ref.txt"]
        for path, content in zip(paths, (text, reference), strict=True):
            if content is not None:
                path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return paths[0], paths[1] if reference is not None else None

    def run(*train, dev=0, max_seq_length=8, **options):
        output = tmp_path / f"packed{next(count)}"
        dev = [write(item) for item in dev] if isinstance(dev, list) else dev
        info = pack_corpus(
            train=[write(item) for item in train],
            dev=dev,
            tokenizer_dir=tokenizer_dir,
            max_seq_length=max_seq_length,
            output=output,
            **options,
        )
        return info, output

    return run


def texts_of(output, split="train"):
    """Tokens of each row as text without padding, and the marks: '|' before a document, '+' before a continuation."""
    rows = []
    for row in load_from_disk(str(output / split)):
        parts = []
        for i in range(row["length"]):
            parts.append("|" * row["document_start"][i] + "+" * row["continuation"][i] + TOKENS[row["input_ids"][i]])
        assert set(row["input_ids"][row["length"] :]) <= {ID["[PAD]"]}
        assert not any(row["document_start"][row["length"] :] + row["continuation"][row["length"] :])
        rows.append(" ".join(parts))
    return rows


def joined_ids(output, split):
    """All ordinary tokens of a split in order."""
    input_ids, _, length = (rows := PackedRows(output / split)).rows(np.arange(len(rows)))
    return [token for ids, end in zip(input_ids, length, strict=True) for token in ids[1 : end - 1].tolist()]


def test_rows_are_as_written_by_hand(pack):
    text = "天气很好 tweet\n我们\n\n去公园玩。\n"
    references = "[2, 4]\n[2]\n[]\n[2, 3]\n"
    _, output = pack((text, references), "好玩\n")
    assert texts_of(output) == [
        "[CLS] |天 +气 很 +好 t +##we [SEP]",
        # the border cut the word: its rest counts as a word of its own
        "[CLS] ##et 我 +们 |去 +公 +园 [SEP]",
        "[CLS] 玩 。 |好 玩 [SEP]",
    ]


def test_tail_is_padded_and_its_length_kept(pack):
    info, output = pack("天气\n")
    input_ids, continuation, length = PackedRows(output / "train").rows(np.array([0]))
    assert input_ids.tolist() == [[ID["[CLS]"], ID["天"], ID["气"], ID["[SEP]"], 0, 0, 0, 0]]
    assert length.tolist() == [4] and not continuation.any()
    assert info["train"] | {"fill_rate": 0} == {
        "rows": 1, "tokens": 2, "documents": 1, "lines": 1, "characters": 2, "unk_tokens": 0, "fill_rate": 0
    }  # fmt: skip
    assert info["train"]["fill_rate"] == 0.5


def test_columns_are_small_and_of_fixed_size(pack):
    _, output = pack("天气很好\n")
    features = load_from_disk(str(output / "train")).features
    assert str(features["input_ids"]) == "List(Value('uint16'), length=8)"
    assert str(features["continuation"]) == str(features["document_start"]) == "List(Value('bool'), length=8)"
    assert features["length"].dtype == "int32"


def test_reference_without_lines_for_blank_lines(pack):
    """MiniRBT's script skips blank lines of the text."""
    text = "\n天气\n\n\n很好\n\n"
    _, with_blank = pack((text, "[]\n[2]\n[]\n[]\n[2]\n[]\n"))
    _, without = pack((text, "[2]\n[2]\n"))
    assert texts_of(with_blank) == texts_of(without) == ["[CLS] |天 +气 |很 +好 [SEP]"]


def test_a_line_never_continues_the_line_before(pack):
    _, output = pack(("天\n气\n", "[1]\n[1]\n"))
    assert texts_of(output) == ["[CLS] |天 气 [SEP]"]


def test_document_of_a_line_without_tokens_starts_at_its_first_token(pack):
    _, output = pack("天\n\n\x01\x02\n气\n")
    assert texts_of(output) == ["[CLS] |天 |气 [SEP]"]


def test_special_token_written_in_the_text_is_kept_as_the_tokenizer_gives_it(pack):
    _, output = pack("天[SEP]气\n")
    assert texts_of(output) == ["[CLS] |天 [SEP] 气 [SEP]"]


line = st.text("天气很好我们 t0\t", max_size=12).map(lambda s: s + "好")
document = st.lists(line, min_size=1, max_size=4)
corpus = st.lists(st.lists(document, min_size=1, max_size=5), min_size=1, max_size=3)


@given(files=corpus, max_seq_length=st.sampled_from([8, 9, 13, 16, 64]), fraction=st.sampled_from([0, 0.3]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_token_is_lost(pack, tokenizer_dir, files, max_seq_length, fraction):
    documents = [document for file in files for document in file]
    if len(documents) == 1:
        fraction = 0
    texts = ["\n\n".join("\n".join(document) for document in file) for file in files]
    info, output = pack(*texts, max_seq_length=max_seq_length, dev=fraction)
    encode = load_tokenizer(tokenizer_dir).backend_tokenizer.encode
    tokens = [[i for line in d for i in encode(line, add_special_tokens=False).ids] for d in documents]
    splits = [joined_ids(output, split) for split in ("train", "dev") if split in info]
    if not fraction:
        assert splits == [[token for document in tokens for token in document]]
        return
    assert sum(map(len, splits)) == sum(map(len, tokens))
    assert info["dev"]["documents"] == max(1, round(0.3 * len(documents)))
    for ids in tokens:  # each document is whole on one side
        assert any(ids == side[i : i + len(ids)] for side in splits for i in range(len(side) - len(ids) + 1))


def test_any_number_of_processes_writes_the_same_bytes(pack, monkeypatch):
    monkeypatch.setattr(source_module, "SHARD_LINES", 7)
    monkeypatch.setattr(rows_module, "_ROWS_PER_BATCH", 5)
    rng = np.random.default_rng(0)
    lines = ["".join(rng.choice(list("天气很好我们去"), rng.integers(0, 30))) for _ in range(400)]
    references = [
        json.dumps(sorted(set(rng.integers(2, len(text) + 1, 5).tolist()))) if len(text) > 1 else "[]" for text in lines
    ]
    train = ("\n".join(lines), "\n".join(references))
    seen = []
    info, one = pack(train, dev=0.2, processes=1, progress=seen.append)
    also_info, two = pack(train, dev=0.2, processes=2)
    assert info == also_info and sum(seen) == info["train"]["characters"] + info["dev"]["characters"]
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(files) == 9
    assert [(one / file).read_bytes() for file in files] == [(two / file).read_bytes() for file in files]


def test_dev_files_become_dev(pack):
    info, output = pack("天气\n", dev=["很好\n\n我们\n", "去\n"])
    assert texts_of(output, "dev") == ["[CLS] |很 好 |我 们 |去 [SEP]"]
    assert info["train"]["documents"] == 1 and info["dev"]["documents"] == 3


@pytest.mark.parametrize("nothing", [0, 0.0, []])
def test_without_dev_there_is_no_dev_folder(pack, nothing):
    info, output = pack("天气\n", dev=nothing)
    assert "dev" not in info and not (output / "dev").exists()


def test_dev_fraction_takes_at_least_one_document_and_warns_when_that_is_much(pack, caplog):
    info, _ = pack("天气\n\n很好\n\n我们\n", dev=0.005)
    assert (info["train"]["documents"], info["dev"]["documents"]) == (2, 1)
    assert "3 documents" in caplog.text


@pytest.mark.parametrize("packing, rows", [
    ("chunks", ["[CLS] |天 气 很 好 |我 们 [SEP]", "[CLS] 去 [SEP]"]),
    ("documents", ["[CLS] |天 气 很 好 [SEP]", "[CLS] |我 们 去 [SEP]"]),
    ("full_sentences", ["[CLS] |天 气 [SEP] 很 好 [SEP]", "[CLS] |我 们 去 [SEP]"]),
    ("doc_sentences", ["[CLS] |天 气 [SEP] 很 好 [SEP]", "[CLS] |我 们 去 [SEP]"]),
    ("lines", ["[CLS] |天 气 [SEP]", "[CLS] 很 好 [SEP]", "[CLS] |我 们 去 [SEP]"]),
])  # fmt: skip
def test_packing_kind_decides_the_rows(pack, packing, rows):
    info, output = pack("天气\n很好\n\n我们去\n", packing=packing)
    assert texts_of(output) == rows
    assert (info["packing"], info["train"]["documents"], info["train"]["lines"]) == (packing, 2, 3)


def test_a_document_a_line_without_blank_lines_is_warned_of(pack, caplog):
    pack("天气\n" * 100, packing="documents")
    assert "100 lines make only 1 documents" in caplog.text


def test_commonest_token_is_counted_in_train_and_scored_on_dev(pack):
    info, output = pack("天天天气猫猫猫猫猫\n", dev=["天气气气\n"])
    assert info["most_common_token"] == {"id": ID["天"], "token": "天", "train_share": 0.75, "dev_share": 0.25}
    assert info["train"]["unk_tokens"] == 5
    assert json.loads((output / "info.json").read_text(encoding="utf-8")) == info


@pytest.mark.parametrize("max_seq_length", [8, 11, 16])
def test_rows_in_any_order_across_record_batches(pack, monkeypatch, max_seq_length):
    """Lengths that are no multiple of 8 make rows begin inside a byte of the bit column."""
    monkeypatch.setattr(rows_module, "_ROWS_PER_BATCH", 3)
    rng = np.random.default_rng(1)
    text = "".join(rng.choice(list("天气很好"), 200))
    reference = json.dumps(sorted(set(rng.integers(2, 200, 80).tolist())))
    _, output = pack((text, reference), max_seq_length=max_seq_length)
    rows, dataset = PackedRows(output / "train"), load_from_disk(str(output / "train"))
    assert len(rows) == len(dataset) and rows.max_seq_length == max_seq_length
    order = rng.permutation(len(rows)).tolist() + [0, 0]
    input_ids, continuation, length = rows.rows(np.array(order))
    assert (input_ids.dtype, continuation.dtype, length.dtype) == (np.int64, bool, np.int64)
    assert input_ids.tolist() == [dataset[i]["input_ids"] for i in order]
    assert continuation.tolist() == [dataset[i]["continuation"] for i in order]
    assert length.tolist() == [dataset[i]["length"] for i in order]
    with pytest.raises(IndexError):
        rows.rows(np.array([-1]))


def test_large_vocabulary_takes_wider_ids(pack, tmp_path):
    folder = tmp_path / "large"
    folder.mkdir()
    extra = [f"x{i}" for i in range(70_000)]
    (folder / "vocab.txt").write_text("\n".join(TOKENS[:6] + extra), encoding="utf-8")
    (tmp_path / "large.txt").write_text("x69999", encoding="utf-8")
    pack_corpus(
        train=[(tmp_path / "large.txt", None)],
        dev=0,
        tokenizer_dir=str(folder),
        max_seq_length=8,
        output=tmp_path / "o",
    )
    assert PackedRows(tmp_path / "o" / "train").rows(np.array([0]))[0][0, 1] == 70_005


@pytest.mark.parametrize(
    "train, options, message",
    [
        (["\n  \n"], {}, "empty corpus: no text in 1 file.*[.]txt"),
        (["\x01\x02\n"], {}, "empty corpus: the text for train has no token"),
        (["天\n"], {"dev": ["\n"]}, "empty corpus: no text in 1 file.*for dev"),
        (["天\n"], {"dev": 0.5}, "has only one; name dev files"),
        (["天\n"], {"dev": 1.5}, "1.5 is no fraction"),
        (["天\n"], {"max_seq_length": 7}, "max_seq_length: 7 is too short"),
        (["天\n"], {"packing": "chunk"}, "packing: unknown kind 'chunk'; there is chunks, documents, full"),
        ([("天气\n好\n", "[2]\n[2]\n")], {}, r"_ref.txt: position 2 for line 2 of .*[.]txt, which has 1 tokens"),
        ([("天\n\n气好\n", "[]\n[5]\n")], {}, r"_ref.txt: position 5 for line 3 of .*[.]txt"),
        ([("天\n\n气好\n", "[]\n[2]\n[]\n")], {}, r"_ref.txt: line 2 has positions, but line 2 of .* is blank"),
        ([("天\n\n气\n", "[]\n")], {}, "1 lines.*3"),
        (["天\n", ("天\n气\n", "[]\n[]\n[]\n[]\n")], {}, "4 lines.*2"),
        ([("天\n气\n", "[]\n{}\n")], {}, "line 2"),
        ([b"\xe5\xa4\xa9\n\xff\xfe\n"], {}, "[.]txt.*line 2.*UTF-8"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(pack, tmp_path, train, options, message):
    with pytest.raises(InputError, match=message) as error:
        pack(*train, **options)
    assert "\n" not in str(error.value)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_bad_position_found_in_another_process(pack):
    with pytest.raises(InputError, match="position 9 for line 1"):
        pack(("天气\n", "[9]\n"), processes=2)


def test_existing_output_missing_files_and_missing_vocabulary_are_refused(tmp_path, tokenizer_dir):
    text = tmp_path / "a.txt"
    text.write_text("天\n", encoding="utf-8")
    settings = {"dev": 0, "tokenizer_dir": tokenizer_dir, "max_seq_length": 8}
    with pytest.raises(InputError, match="exists already"):
        pack_corpus(train=[(text, None)], output=tmp_path, **settings)
    with pytest.raises(InputError, match="b.txt: no such text file"):
        pack_corpus(train=[(tmp_path / "b.txt", None)], output=tmp_path / "o", **settings)
    with pytest.raises(InputError, match="b_ref.txt: no such reference file"):
        pack_corpus(train=[(text, tmp_path / "b_ref.txt")], output=tmp_path / "o", **settings)
    with pytest.raises(InputError, match="no tokenizer there"):
        pack_corpus(train=[(text, None)], output=tmp_path / "o", **{**settings, "tokenizer_dir": str(tmp_path)})
    with pytest.raises(InputError, match="not a packed dataset"):
        PackedRows(tmp_path)


def test_hash_names_the_content_not_the_paths(tmp_path, tokenizer_dir):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
        return path

    text, reference = write("a.txt", "天气\n"), write("a_ref.txt", "[2]\n")
    same_text, other = write("b/c.txt", "天气\n"), write("d.txt", "很好\n")
    vocabulary = Path(tokenizer_dir, "vocab.txt").read_text(encoding="utf-8")
    copy, longer, cased = tmp_path / "copy", tmp_path / "longer", tmp_path / "cased"
    for folder, content in ((copy, vocabulary), (longer, vocabulary + "\n们们"), (cased, vocabulary)):
        write(f"{folder.name}/vocab.txt", content)
    write("cased/tokenizer_config.json", json.dumps({"do_lower_case": False}))

    def of(train, dev=0.1, folder=tokenizer_dir, max_seq_length=128):
        return data_hash(train=train, dev=dev, tokenizer_dir=str(folder), max_seq_length=max_seq_length)

    base = of([(text, reference)])
    assert len(base) == 16 and int(base, 16) >= 0
    assert base == of([(same_text, reference)]) == of([(text, reference)], folder=copy)
    assert of([(text, None)], dev=0) == of([(text, None)], dev=[])
    changed = [
        of([(other, reference)]),
        of([(text, None)]),
        of([(text, text)]),
        of([(text, reference), (other, None)]),
        of([(other, None), (text, reference)]),
        of([(text, reference)], dev=0.2),
        of([(text, reference)], dev=[(other, None)]),
        of([(text, reference)], folder=longer),
        of([(text, reference)], folder=cased),
        of([(text, reference)], max_seq_length=64),
    ]
    assert len({base, *changed}) == 1 + len(changed)


def test_leftovers_of_a_killed_run_are_replaced(pack, tmp_path, tokenizer_dir):
    text = tmp_path / "a.txt"
    text.write_text("天\n", encoding="utf-8")
    (tmp_path / ".out.work" / "packed" / "train").mkdir(parents=True)
    pack_corpus(train=[(text, None)], dev=0, tokenizer_dir=tokenizer_dir, max_seq_length=8, output=tmp_path / "out")
    assert texts_of(tmp_path / "out") == ["[CLS] |天 [SEP]"]
    assert not (tmp_path / ".out.work").exists()


def test_folder_can_be_moved(pack, tmp_path):
    _, output = pack("天气很好\n")
    shutil.move(output, tmp_path / "moved")
    assert len(PackedRows(tmp_path / "moved" / "train")) == 1


def test_rows_travel_to_another_process_as_a_path(pack):
    _, output = pack("天气很好\n" * 50)
    rows = PackedRows(output / "train")
    sent = pickle.dumps(rows)
    assert len(sent) < 500
    for a, b in zip(pickle.loads(sent).rows(np.arange(9)), rows.rows(np.arange(9)), strict=True):
        assert np.array_equal(a, b)
