"""Users' dictionaries on top of every segmenter that has words of its own."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.corpus.dictionary import read_dictionary, with_dictionary
from distill.corpus.perceptron_training import train_perceptron as train
from distill.corpus.segment import add_dictionary, check_segmenter, load_segmenter, segmenter_fingerprint
from distill.errors import InputError

SENTENCES = Path(__file__).parent / "data" / "segmented_sentences.txt"


def join(segmented: str, *words: str) -> str:
    cut = with_dictionary(lambda pieces: [segmented.split() for _ in pieces], set(words))
    return " ".join(cut([segmented.replace(" ", "")])[0])


@pytest.mark.parametrize(
    ("segmented", "words", "expected"),
    [
        ("研究 生命 起源", ["生命起源"], "研究 生命起源"),
        ("研究 生命 起源", ["生命"], "研究 生命 起源"),
        ("研究 生命 起源", ["研究生"], "研究 生命 起源"),  # three characters do not cut a word of the segmenter
        ("服阿 莫西林 片", ["阿莫西林"], "服 阿莫西林 片"),  # four do
        ("服阿 莫西林 片", ["阿莫西林片"], "服 阿莫西林片"),
        ("长江 大桥", ["长江大桥", "江大"], "长江大桥"),
        ("长江 大 桥 长江 大 桥", ["长江大桥"], "长江大桥 长江大桥"),
        ("卡拉 OK", ["卡拉OK"], "卡拉OK"),
        ("好", ["好"], "好"),
        ("天 气", ["天"], "天 气"),
    ],
)
def test_words_are_joined(segmented: str, words: list[str], expected: str) -> None:
    assert join(segmented, *words) == expected


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.text("天气很好", min_size=1, max_size=4), min_size=1), st.sets(st.text("天气很好", max_size=5)))
def test_nothing_is_lost(found: list[str], words: set[str]) -> None:
    (joined,) = with_dictionary(lambda pieces: [found], words)(["".join(found)])
    assert "".join(joined) == "".join(found) and all(joined)


def test_files_are_in_jiebas_format(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_bytes("\ufeff云计算 5\r\n李小福 2 nr\n\n创新办 i\nC++\n八一双鹿\n".encode())
    assert read_dictionary(file) == {"云计算", "李小福", "创新办", "C++", "八一双鹿"}


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\n", "no words"), (b"a b c 3\n", "line 1: 'a b c 3': a word has no space"), (b"\xff", "UTF")],
)
def test_bad_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        check_segmenter(f"jieba#{tmp_path / 'words.txt'}")
    with pytest.raises(InputError, match="no such file"):
        check_segmenter(f"jieba#{tmp_path / 'none.txt'}")


@pytest.mark.parametrize("kind", ["jieba", "ltp"])
def test_segmenters_keep_the_words_whole(tmp_path: Path, kind: str) -> None:
    dictionary = tmp_path / "words.txt"
    dictionary.write_text("研究生命起源论\n很好 3 a\n", encoding="utf-8")
    spec = "jieba"
    if kind == "ltp":
        train(SENTENCES, tmp_path / "model#1")
        spec = f"ltp:{tmp_path / 'model#1'}"
    (plain,), (joined,) = (
        load_segmenter(one).segment(["这本研究生命起源论天气"]) for one in (spec, add_dictionary(spec, dictionary))
    )
    assert "研究生命起源论" not in plain and "研究生命起源论" in joined
    before = segmenter_fingerprint(add_dictionary(spec, dictionary))
    dictionary.write_text("研究生命\n", encoding="utf-8")
    assert len({before, segmenter_fingerprint(spec), segmenter_fingerprint(add_dictionary(spec, dictionary))}) == 3


def test_words_takes_no_dictionary(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("天气\n", encoding="utf-8")
    with pytest.raises(InputError, match="the text's own spaces decide"):
        check_segmenter(f"words#{tmp_path / 'words.txt'}")
