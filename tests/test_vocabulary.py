"""Vocabularies trained from text, token counts, and CLUE's rules on a small table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import BertTokenizer

from distill.corpus.clue_vocabulary import apply_clue_rules, read_simplification
from distill.corpus.tokenizing import load_tokenizer
from distill.corpus.vocabulary import (
    SPECIAL_TOKENS,
    count_tokens,
    read_vocabulary,
    train_vocabulary,
    write_tokenizer_folder,
)
from distill.errors import InputError

TEXT = """天气很好，我们去公园。Walking and talking, Tokyo's tower 333.
天气不好，他们去公园。WALKING, talking, walker カタカナ.
"""


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT * 3, encoding="utf-8")
    return file


def open_trained(tokens, folder, *, cased=False):
    write_tokenizer_folder(folder, tokens, {"do_lower_case": not cased})
    return BertTokenizer.from_pretrained(str(folder))


def test_trained_vocabulary_opens_and_covers_its_text(text, tmp_path):
    tokens = train_vocabulary([text], size=200)
    tokenizer = open_trained(tokens, tmp_path / "vocabulary")
    assert tuple(tokens[:5]) == SPECIAL_TOKENS
    assert len(tokenizer) == len(tokens)
    assert tokenizer.unk_token not in tokenizer.tokenize(TEXT)
    assert {"walking", "talking", "天", "カタカナ"} <= set(tokens)


def test_han_characters_are_never_joined(text):
    assert not [token for token in train_vocabulary([text], size=500) if len(token) > 1 and "天" in token]


def test_cased_vocabulary_keeps_capitals(text, tmp_path):
    tokenizer = open_trained(train_vocabulary([text], size=200, cased=True), tmp_path / "vocabulary", cased=True)
    assert "".join(tokenizer.tokenize("Tokyo WALKING")).replace("##", "") == "TokyoWALKING"


@pytest.mark.parametrize("size", [20, 40, 60, 90])
def test_size_is_a_limit(text, size):
    tokens = train_vocabulary([text], size=size)
    assert len(tokens) <= size
    assert len(set(tokens)) == len(tokens)


def test_what_is_common_stays_when_room_is_short(tmp_path):
    (tmp_path / "text.txt").write_text("地地天天天气气气气", encoding="utf-8")
    assert train_vocabulary([tmp_path / "text.txt"], size=7) == [*SPECIAL_TOKENS, "天", "气"]


def test_every_process_trains_the_same_vocabulary(text):
    """The library's trainer alone numbers '##' characters in another order in each process."""
    code = (
        "import sys, pathlib; from distill.corpus.vocabulary import train_vocabulary;"
        "print(train_vocabulary([pathlib.Path(sys.argv[1])], size=70))"
    )
    command = [sys.executable, "-c", code, str(text)]
    outputs = {subprocess.run(command, capture_output=True, check=True).stdout for _ in range(3)}
    assert len(outputs) == 1


@pytest.mark.parametrize("cased", [False, True])
def test_no_character_is_left_to_the_library_to_number(tmp_path, cased):
    """A character that we overlooked would come last, as a '##' piece of one letter in random order."""
    odd = "e\u0301te\u0301 สวัสดี a\x1cb\u200bc x\u00a0y 天a气 İstanbul ﬁne 한국어 don't\ta-b 😂😂 𠀀b か゛\n"
    (tmp_path / "text.txt").write_text(odd * 3, encoding="utf-8")
    tokens = train_vocabulary([tmp_path / "text.txt"], size=400, cased=cased)
    letters = [token for token in tokens[5:] if len(token.removeprefix("##")) == 1]
    pieces = [token for token in letters if token.startswith("##")]
    assert tokens[5 : 5 + len(letters)] == sorted(set(letters) - set(pieces)) + sorted(pieces)


def test_text_without_repeated_characters_is_refused(tmp_path):
    (tmp_path / "text.txt").write_text("天气", encoding="utf-8")
    with pytest.raises(InputError, match="nothing to learn"):
        train_vocabulary([tmp_path / "text.txt"], size=100)


def test_counts_are_those_of_the_tokenizer(text, tmp_path):
    tokenizer = open_trained(train_vocabulary([text], size=60), tmp_path / "vocabulary")
    counts = count_tokens([text], tokenizer)
    ids = tokenizer(TEXT * 3, add_special_tokens=False)["input_ids"]
    assert counts.tolist() == [ids.count(number) for number in range(len(tokenizer))]


def test_progress_reaches_the_number_of_characters(text):
    seen = []
    train_vocabulary([text], size=60, progress=seen.append)
    assert sum(seen) == 2 * sum(len(line) for line in (TEXT * 3).splitlines())


def test_token_that_is_no_line_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="one line of its own"):
        write_tokenizer_folder(tmp_path / "vocabulary", [*SPECIAL_TOKENS, "a\nb"], {"do_lower_case": True})
    assert not list(tmp_path.iterdir())


def test_existing_output_is_refused(tmp_path):
    with pytest.raises(InputError, match="exists already"):
        write_tokenizer_folder(tmp_path, list(SPECIAL_TOKENS), {})


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_vocabulary_is_refused(tmp_path, content):
    (tmp_path / "vocab.txt").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="empty"):
        read_vocabulary(tmp_path / "vocab.txt")


def test_vocabulary_is_read_as_transformers_reads_it(tmp_path):
    """A line separator of Unicode inside a line (Google's Chinese vocabulary has two) ends no line."""
    (tmp_path / "vocab.txt").write_bytes("\n".join([*SPECIAL_TOKENS, "\u2028", "##\u2028", "天 "]).encode())
    tokens = read_vocabulary(tmp_path / "vocab.txt")
    assert {token: number for number, token in enumerate(tokens)} == load_tokenizer(tmp_path).get_vocab()


# CLUE's rules: what goes in, and what is left of it.
RULES = {
    "Han": ("天 萬 ##天 ##萬 国", "天 国"),
    "Hangul": ("한 ##ᄀ ᄀ", ""),
    "kana": ("の ##カ ｲ ##ﾝ ｯ", "ｯ"),
    "Latin": ("a ##a the ##ing ##中", "a ##a ##ing"),
    "emoji": ("😂 ##😂 ❤2017 ★", "★"),
    "numbers": ("7 ##7 2017 ##00 １", "7 ##7 １"),
    "zhuyin": ("ㄅ ##ㄅ ㄧ", "ㄧ"),
    "special": ("[PAD] [unused3] <S>", "[PAD] [unused3] <S>"),
    "other": ("! ##。 α", "! ##。 α"),
    "listed": ("▲top ok", ""),
    "repeated": ("! !", "!"),
}


@pytest.mark.parametrize("given, expected", RULES.values(), ids=RULES)
def test_clue_rules(given, expected):
    kept, _ = apply_clue_rules(given.split(), simplified={"萬": "万", "の": "的"}, dropped={"▲top", "ok"})
    assert kept == expected.split()


def test_clue_rules_add_quotes_and_numbers_behind_their_neighbours():
    kept, counts = apply_clue_rules(['"', "9", "##9"], simplified={}, dropped=())
    assert kept[:4] == ['"', "“", "‘", "9"]
    assert kept[4:-1] == [str(n) for n in (*range(10, 101), *range(2016, 2023))]
    assert counts == {"number kept": 100, "other kept": 3}


def test_line_separator_of_google_becomes_the_odd_token():
    assert apply_clue_rules(["\u2028", "##\u2028"], simplified={}, dropped=())[0] == ["##"]


def test_simplification_table_takes_the_first_form(tmp_path):
    (tmp_path / "t2s.txt").write_text("# comment\n萬\t万\n乾 干 乾\n\n", encoding="utf-8")
    assert read_simplification(tmp_path / "t2s.txt") == {"萬": "万", "乾": "干"}


@pytest.mark.parametrize("content, message", [("萬\n", "line 1"), ("中國 中国\n", "line 1"), ("# x\n", "no pair")])
def test_bad_simplification_table_is_refused(tmp_path, content, message):
    (tmp_path / "t2s.txt").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_simplification(tmp_path / "t2s.txt")


def run_distill(capsys, *arguments) -> tuple[int, str, str]:
    from distill.cli import main

    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return left.value.code or 0, *capsys.readouterr()


def test_train_and_clue_commands(text, tmp_path, capsys):
    code, out, _ = run_distill(capsys, "vocab", "train", "--text", text, "--size", 65, "--output", tmp_path / "v")
    assert code == 0 and "65 tokens" in out
    assert json.loads((tmp_path / "v/tokenizer_config.json").read_text())["do_lower_case"] is True
    (tmp_path / "t2s.txt").write_text("氣 气\n", encoding="utf-8")
    (tmp_path / "drop.txt").write_text("天\n", encoding="utf-8")
    code, out, _ = run_distill(
        capsys, "vocab", "clue", "--google_vocab", tmp_path / "v/vocab.txt", "--t2s", tmp_path / "t2s.txt",
        "--drop", tmp_path / "drop.txt", "--output", tmp_path / "c",
    )  # fmt: skip
    assert code == 0 and "1 listed dropped" in out
    assert "天" not in read_vocabulary(Path(tmp_path / "c/vocab.txt"))


def test_mistake_is_one_line(tmp_path, capsys):
    code, _, err = run_distill(
        capsys, "vocab", "train", "--text", tmp_path / "none.txt", "--size", 80, "--output", tmp_path / "v"
    )
    assert code == 2 and err.count("\n") == 1 and "none.txt" in err
