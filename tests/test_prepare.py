"""One pass from text to packed rows and references: equal to its parts, on any text, by any number of processes."""

import contextlib
import errno
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references import continuation_of, read_reference
from tokenizers.normalizers import BertNormalizer

from distill.corpus import rows as rows_module
from distill.corpus import source, workers
from distill.corpus.lock import exclusive
from distill.corpus.packing import pack_corpus, work_folder
from distill.corpus.perceptron_training import train_perceptron
from distill.corpus.prepare import prepare_dataset, prepare_references
from distill.corpus.rows import PackedRows
from distill.corpus.segment import load_segmenter
from distill.corpus.shards import tokenize_shard
from distill.corpus.text import is_blank, iter_lines
from distill.corpus.tokenizing import load_tokenizer
from distill.errors import InputError
from distill.recipe_file import check_data_fields

SENTENCES = Path(__file__).parent / "data" / "segmented_sentences.txt"
HAN = "天气很好研究生在命起源恤卡拉，。！"
LINE = st.text(
    st.one_of(
        st.sampled_from("天气很好研究生命起源T恤卡拉OK5GbeBERTab3.，。！ \t\u3000\u200b\u200d\ufeff\x00\x0b\x85\ufffd"),
        st.sampled_from("👨👩é\u0301İ가ﬁＡ𠀀\u0378\U000e0041\ue000ß[]"),
        st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"),
    ),
    max_size=40,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(segmenter, folder of the tokenizer)"""
    folder = tmp_path_factory.mktemp("models")
    train_perceptron(SENTENCES, folder / "ltp", epochs=5)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *HAN, *"t ok 5 ##g be ##rt a ##b b i . [ ]".split()]
    (folder / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    return f"ltp:{folder / 'ltp'}", str(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def joined(path: Path) -> tuple[list[int], list[bool]]:
    """Ordinary tokens of all rows, and whether they continue a word."""
    input_ids, continuation, length = (rows := PackedRows(path)).rows(np.arange(len(rows)))
    inside = [slice(1, end - 1) for end in length]
    return (
        np.concatenate([ids[part] for ids, part in zip(input_ids, inside, strict=True)]).tolist(),
        np.concatenate([bits[part] for bits, part in zip(continuation, inside, strict=True)]).tolist(),
    )


@pytest.mark.parametrize(
    "processes", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_packed_tokens_are_those_of_the_text(
    models: tuple[str, str], tmp_path_factory: pytest.TempPathFactory, processes: int
) -> None:
    segmenter, tokenizer_dir = models
    tokenizer, cut = load_tokenizer(tokenizer_dir), load_segmenter(segmenter)

    @settings(max_examples=15 if processes == 1 else 2, deadline=None)
    @given(files=st.lists(st.lists(LINE, max_size=8), min_size=1, max_size=3))
    def check(files: list[list[str]]) -> None:
        folder = tmp_path_factory.mktemp("any")
        texts = [folder / f"{number}.txt" for number in range(len(files) + 1)]
        for text, lines in zip(texts, [["好"], *files], strict=True):
            text.write_bytes("".join(f"{line}\n" for line in lines).encode())
        made = {text: folder / f"references/{text.name}" for text in texts}
        common = {"dev": 0, "tokenizer_dir": tokenizer_dir, "max_seq_length": 8, "processes": processes}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(source, "SHARD_LINES", 2)
            pack_corpus(train=[(text, None) for text in texts], output=folder / "one", segmenter=segmenter,
                        references=made, **common)  # fmt: skip
            pack_corpus(train=list(made.items()), output=folder / "two", **common)
        lines = [line for text in texts for line in iter_lines(text)]
        words = cut.segment(lines)
        expected = continuation_of(lines, words, tokenizer)
        ids, continuation = joined(folder / "one" / "train")
        assert ids == [number for line in lines for number in tokenizer.encode(line, add_special_tokens=False)]
        first_of_row = np.arange(len(ids)) % 6 == 0
        wanted = np.concatenate([bits for _, bits in expected]) & ~first_of_row
        assert continuation == wanted.tolist()
        # Text that comes with the references just written goes the same way.
        assert contents(folder / "one") == contents(folder / "two")
        found = [positions for text in texts for positions in read_reference(made[text], text)]
        assert found == [(np.flatnonzero(bits) + 1).tolist() for _, bits in expected]

    check()


def test_words_are_the_text_and_bits_lie_inside_words(models: tuple[str, str]) -> None:
    tokenizer, cut = load_tokenizer(models[1]), load_segmenter(models[0])
    clean = BertNormalizer(clean_text=True, handle_chinese_chars=False, strip_accents=False, lowercase=False)

    @settings(max_examples=100, deadline=None)
    @given(lines=st.lists(LINE, max_size=5))
    def check(lines: list[str]) -> None:
        words = cut.segment(lines)
        made = continuation_of(lines, words, tokenizer)
        for line, line_words, (ids, continuation) in zip(lines, words, made, strict=True):
            assert "".join(line_words) == "".join(clean.normalize_str(line).split())
            pieces = np.array([token.startswith("##") for token in tokenizer.convert_ids_to_tokens(ids.tolist())], bool)
            # A word of n characters holds at most n - 1 tokens that continue it and are no pieces.
            assert (continuation & ~pieces).sum() <= sum(len(word) - 1 for word in line_words)
            assert not len(ids) or not continuation[0]

    check()


# ---- going on after an interruption


@contextlib.contextmanager
def no_progress(what: str, total: int):
    yield lambda characters: None


@pytest.fixture
def prepare(models: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    segmenter, tokenizer_dir = models
    monkeypatch.setattr(source, "SHARD_CHARS", 100)
    lines = [line.replace(" ", "") for line in SENTENCES.read_text("utf-8").splitlines()][:60]
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    data = check_data_fields("test", text=[str(tmp_path / "a.txt")], dev=0.0, segmenter=segmenter)

    def run(folder: Path, max_seq_length: int = 16) -> Path:
        return prepare_dataset(
            data, tokenizer=Path(tokenizer_dir), max_seq_length=max_seq_length, folder=folder, processes=1,
            progress=no_progress, report=lambda line: None,
        )  # fmt: skip

    return run


@pytest.fixture
def worked_on(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the shards that were tokenised, with None for a failure after five."""
    numbers: list[int] = []

    def count(shard, setup):
        numbers.append(shard.number)
        return tokenize_shard(shard, setup)

    monkeypatch.setattr(workers, "tokenize_shard", count)
    return numbers


def fail_after(monkeypatch: pytest.MonkeyPatch, num_batches: int) -> None:
    monkeypatch.setattr(rows_module, "_ROWS_PER_BATCH", 2)
    original, written = rows_module.RowWriter._write_batch, []

    def write(self, columns):
        written.append(1)
        if len(written) > num_batches:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, columns)

    monkeypatch.setattr(rows_module.RowWriter, "_write_batch", write)


def test_an_interrupted_run_goes_on_after_the_last_finished_shard(prepare, worked_on, tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(rows_module, "_ROWS_PER_BATCH", 2)
        undisturbed = prepare(tmp_path / "undisturbed")
    num_shards = len(worked_on)
    worked_on.clear()
    with monkeypatch.context() as patch:
        fail_after(patch, 10)
        with pytest.raises(OSError, match="No space left"):
            prepare(tmp_path / "out")
    packed = tmp_path / "out" / undisturbed.name
    assert not packed.exists() and not list((tmp_path / "out").glob("references*/*"))
    done = list(worked_on)
    assert 0 < len(done) < num_shards
    damaged = sorted((work_folder(packed) / "shards").iterdir())[1]
    damaged.write_bytes(damaged.read_bytes()[:100])
    worked_on.clear()
    with monkeypatch.context() as patch:
        patch.setattr(rows_module, "_ROWS_PER_BATCH", 2)
        prepare(tmp_path / "out")
    assert worked_on == [1, *range(len(done), num_shards)]
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_finished_output_is_reused_and_references_serve_other_lengths(prepare, worked_on, tmp_path) -> None:
    first = prepare(tmp_path / "out")
    worked_on.clear()
    assert prepare(tmp_path / "out") == first and not worked_on
    references = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("references*/*")}
    longer = prepare(tmp_path / "out", max_seq_length=32)
    assert longer != first and worked_on
    assert references == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("references*/*")}
    assert prepare(tmp_path / "fresh", max_seq_length=32).name == longer.name
    assert contents(tmp_path / "fresh" / longer.name) == contents(longer)


def test_references_are_made_again_only_for_other_input(models, tmp_path) -> None:
    segmenter, tokenizer_dir = models
    text = tmp_path / "text/a.txt"
    text.parent.mkdir()
    text.write_text("天气很好\n", encoding="utf-8")
    said: list[str] = []

    def run(segmenter: str) -> dict[str, int]:
        return prepare_references(
            [text.parent], output=tmp_path / "out", tokenizer=Path(tokenizer_dir), segmenter=segmenter, processes=1,
            progress=no_progress, report=said.append,
        )  # fmt: skip

    counts = run(segmenter)
    assert counts["files"] == 1 and (tmp_path / "out/a_ref.txt").read_text() == "[2]\n"
    assert run(segmenter) == counts and said == [f"{tmp_path / 'out'}: up to date"]
    run("words")
    assert (tmp_path / "out/a_ref.txt").read_text() == "[2, 3, 4]\n"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_ref.txt", "references.json"]


def test_bad_input_leaves_no_work_folder(models, tmp_path) -> None:
    text = tmp_path / "a.txt"
    text.write_bytes("天气\n".encode() + b"\xff\n")
    with pytest.raises(InputError, match="line 2"):
        pack_corpus(train=[(text, None)], dev=0, tokenizer_dir=models[1], max_seq_length=8, output=tmp_path / "out",
                    segmenter=models[0])  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_blank_lines_first_and_many_files(models, tmp_path) -> None:
    for number, content in enumerate(["\n\n天气\n", "", "\n好", "\r\n \r\n\r\n天\r\n\r\n气"]):
        (tmp_path / f"{number}.txt").write_text(content, encoding="utf-8", newline="")
    texts = sorted(tmp_path.glob("*.txt"))
    info = pack_corpus(train=[(text, None) for text in texts], dev=0.4, tokenizer_dir=models[1], max_seq_length=8,
                       output=tmp_path / "out", segmenter="words")  # fmt: skip
    assert info["train"]["documents"] + info["dev"]["documents"] == 4
    assert info["train"]["tokens"] + info["dev"]["tokens"] == 5
    assert sum(is_blank(line) for text in texts for line in iter_lines(text)) == 7


# ---- the lock


def hold(folder: Path, ready, release) -> None:
    with exclusive(folder, print):
        ready.set()
        release.wait(60)


def test_lock_is_waited_for_and_a_stale_file_is_none(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(f"process {os.getpid() + 1} on gone\n")
    said: list[str] = []
    with exclusive(tmp_path, said.append):
        assert not said and str(os.getpid()) in (tmp_path / ".lock").read_text()
    assert not (tmp_path / ".lock").exists()
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    holder = context.Process(target=hold, args=(tmp_path, ready, release))
    holder.start()
    assert ready.wait(60)

    def report(line: str) -> None:
        said.append(line)
        release.set()

    with exclusive(tmp_path, report):
        assert len(said) == 1 and f"waiting for process {holder.pid}" in said[0]
    holder.join()


# ---- Ray


@pytest.mark.slow
def test_two_ray_nodes_give_the_same_bytes_even_if_one_dies(models, tmp_path) -> None:
    """In a process of its own, which Ray's threads and servers leave with it."""
    pytest.importorskip("ray")
    lines = SENTENCES.read_text("utf-8").splitlines()
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("\n".join(lines[number::3] * 10), encoding="utf-8")
    driver = Path(__file__).with_name("ray_driver.py")
    environment = {**os.environ, "PYTHONPATH": str(driver.parents[1])}
    command = [sys.executable, str(driver), str(tmp_path), models[1]]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    one = contents(tmp_path / "one")
    assert len(one) == 3 and one == contents(tmp_path / "ray") == contents(tmp_path / "dying")


def test_ray_without_the_package_is_refused(models, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    from distill.corpus.ray_workers import check_ray

    check_ray(None)
    with pytest.raises(InputError, match="not installed"):
        check_ray("auto")
