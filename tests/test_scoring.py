"""Scores of segmenters, perceptrons that learn from another segmenter, and the time that neural LTP will take."""

import gzip
from pathlib import Path

import pytest

from distill.cli import main
from distill.corpus.labelling import write_labelled
from distill.corpus.neural_time import characters_per_second, describe_time
from distill.corpus.scoring import join_words, read_gold, score_segmenter
from distill.corpus.segment import load_segmenter
from distill.errors import InputError

SENTENCES = Path(__file__).parent / "data" / "segmented_sentences.txt"
CONLLU = """# sent_id = 1\n# text =\t天气很好
1\t天气\t_\tNOUN
2\t很\t_\tADV
3\t好\t_\tADJ

# 2
1-2\t我们\t_\t_
1\t我\t_\tPRON
2\t们\t_\tPART
2.1\t空\t_\tX
3\tGNU\u200b\t_\tX
4\tLinux\t_\tX
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


class Fixed:
    """Finds the words that a test wants it to."""

    def __init__(self, *lines: str) -> None:
        self.words = {line.replace(" ", ""): line.split() for line in lines}

    def segment(self, lines: list[str]) -> list[list[str]]:
        return [self.words.get(line, []) for line in lines]


@pytest.mark.parametrize("name", ["x.conll", "x.CoNLLU", "x.conllu.gz"])
def test_gold_words_are_the_second_column(tmp_path: Path, name: str) -> None:
    content = CONLLU.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert list(read_gold(tmp_path / name)) == [["天气", "很", "好"], ["我们", "GNU", "Linux"]]


def test_gold_text_is_split_by_spaces(tmp_path: Path) -> None:
    assert list(read_gold(write(tmp_path / "x.txt", "天气\u3000很  好\r\n\n \u200b\n"))) == [["天气", "很", "好"]]


def test_latin_words_keep_the_space_between_them() -> None:
    assert join_words(["用", "GNU", "Linux", "2", "次", "。"]) == "用GNU Linux 2次。"


def test_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Fixed("天气 很好", "我 们 研究 生命 起源")
    monkeypatch.setattr("distill.corpus.scoring.load_segmenter", lambda _: found)
    gold = write(tmp_path / "gold.txt", "天气 很 好\n我们 研究 生命 起源\n")
    score = score_segmenter("x", [gold], training_words=write(tmp_path / "known.txt", "天气 很\n研究 我们\n"))
    assert (score.sentences, score.characters, score.gold_words, score.found_words) == (2, 12, 7, 7)
    assert score.right_words == 4  # 天气, 研究, 生命, 起源
    assert (score.precision, score.recall, score.f1) == pytest.approx((4 / 7, 4 / 7, 4 / 7))
    assert (score.unknown_words, score.unknown_recall) == (3, pytest.approx(2 / 3))  # 好, 生命, 起源
    assert score_segmenter("x", [gold]).unknown_recall is None


def test_the_text_itself_scores_one_hundred(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """jieba against jieba's own words: any loss would be the scorer's."""
    lines = [line.replace(" ", "") for line in SENTENCES.read_text("utf-8").splitlines()]
    gold = write(tmp_path / "gold.txt", "\n".join(map(" ".join, load_segmenter("jieba").segment(lines))))
    with pytest.raises(SystemExit) as done:
        main(["segmenter", "score", "--segmenter", "jieba", "--gold", str(gold), "--training-words", str(gold)])
    assert done.value.code == 0
    assert "precision 100.00, recall 100.00, F1 100.00" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "text"), [("x.txt", ""), ("x.conll", "# none\n\n")])
def test_gold_without_sentences_is_refused(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(InputError, match="no sentences"):
        score_segmenter("words", [write(tmp_path / name, text)])


def test_gold_without_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 2: '2 很' has no second column"):
        score_segmenter("words", [write(tmp_path / "x.conll", "1\t天气\n2 很\n")])


# ---- learning from another segmenter


def test_labelled_sentences_are_spread_over_the_text(tmp_path: Path) -> None:
    text = write(tmp_path / "x.txt", "\n\n".join(f"第{i}天。天气{i}很好！”他说" for i in range(100)))
    done: list[int] = []
    written = write_labelled([text], tmp_path / "out.txt", segmenter=load_segmenter("jieba"), max_sentences=70,
                             progress=done.append)  # fmt: skip
    lines = (tmp_path / "out.txt").read_text("utf-8").splitlines()
    assert written == len(lines) == sum(done) == 70
    kept = [line.replace(" ", "") for line in lines]
    assert len(set(kept)) > 40 and all(line.endswith(("。", "”", "他说")) for line in kept)


def test_no_text_to_learn_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no text to learn from"):
        write_labelled([write(tmp_path / "x.txt", "\n")], tmp_path / "y", segmenter=Fixed(), max_sentences=9)


def test_a_perceptron_learns_from_jieba(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write(tmp_path / "raw.txt", SENTENCES.read_text("utf-8").replace(" ", "") * 3)
    with pytest.raises(SystemExit) as done:
        main(["segmenter", "train", "--from", "jieba", "--text", str(raw), "--output", str(tmp_path / "model")])
    assert done.value.code == 0
    assert "word F1 against jieba" in capsys.readouterr().out
    line = "天气很好"
    jieba, learned = (load_segmenter(spec).segment([line]) for spec in ("jieba", f"ltp:{tmp_path / 'model'}"))
    assert jieba == learned


def test_another_model_is_not_overwritten_before_hours_of_labelling(tmp_path: Path) -> None:
    write(tmp_path / "config.json", '{"model_type": "bert"}')
    with pytest.raises(SystemExit) as done:
        main(["segmenter", "train", "--from", "jieba", "--text", str(SENTENCES), "--output", str(tmp_path)])
    assert done.value.code == 2


# ---- time


def test_rate_is_that_of_the_largest_batch(tmp_path: Path) -> None:
    """A model is slow in its first batch (kernels are loaded); the clock here gives 1 s a call."""
    ticks = iter(range(100))
    text = write(tmp_path / "x.txt", "天气很好\n\n" * 1_000)
    # start, then two readings a batch and one before each: batches of 8 and 16 lines fit into five seconds
    assert characters_per_second(Fixed(), [text], clock=lambda: float(next(ticks))) == 16 * 4
    assert characters_per_second(Fixed(), [write(tmp_path / "y.txt", "\n")], clock=lambda: 0.0) == 0


@pytest.mark.parametrize(
    ("rate", "expected", "hint"),
    [(2_500.0, "about 1 h 7 min for 10.0 million", True), (10_000.0, "about 17 min", False), (1e6, "than a", False)],
)
def test_time_and_hint(rate: float, expected: str, hint: bool) -> None:
    line = describe_time("ltp:small", rate=rate, characters=10_000_000)
    assert expected in line and "\n" not in line
    assert ("distill segmenter train --from ltp:small" in line) == hint
