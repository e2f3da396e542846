"""The table must give what the tokenizer gives, on any text, for any kind of vocabulary."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import BertTokenizer

from distill.corpus import alignment, lookup
from distill.corpus.lookup import character_table

HAN = "天气很好研究生命起源恤卡拉，。！“”—…·《》"
WORDS = "t ok 5 ##g g be ##rt a ##b b i ##i trans ##former e 3 14 . , [ ] # ##天 T OK é σ ς ß k ; İ K 가 ᄀ ##ᅡ".split()
ODD = st.one_of(
    st.sampled_from("天气很好研究生龍龘㐀\uf900𠀀，。！？“”—…·《》〈（）：；～｡･"),
    st.sampled_from("天气T恤OK5GbeBERTab3.,[]#;' \t\u3000\u00a0\u2028\u200b\u200d\ufeff\x00\x0b\x85\ufffd\n"),
    st.sampled_from("👨👩é\u0301\u0300\u0338\u3099İ가ﬁＡΣßKｶﾞ\u0378\U000e0041\ue000\u037e〇々ー"),
    st.sampled_from(["[MASK]", "[SEP]", "[unused1]", "天气", "new", "New", "b" * 101, "天" * 120]),
    st.characters(exclude_categories=["Cs"]),
)
TEXT = st.lists(ODD, max_size=60).map("".join)


def build(folder: Path, **options: bool) -> BertTokenizer:
    folder.mkdir()
    tokens = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *HAN, *WORDS]
    (folder / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    return BertTokenizer.from_pretrained(str(folder), **options)


def tokenizers(folder: Path) -> dict[str, Tokenizer]:
    made = {
        "uncased": build(folder / "uncased"),
        "cased": build(folder / "cased", do_lower_case=False),
        "accents": build(folder / "accents", strip_accents=False),
        "han whole": build(folder / "whole", tokenize_chinese_chars=False),
        "added": build(folder / "added"),
        "added han": build(folder / "added-han"),
        "added word": build(folder / "added-word"),
        "added strip": build(folder / "added-strip"),
    }
    made["added"].add_tokens(["new", "[unused1]"])
    made["added han"].add_tokens(["天气"])
    made["added word"].add_tokens([AddedToken("new", single_word=True)])
    made["added strip"].add_tokens([AddedToken("new", lstrip=True)])
    return {name: tokenizer.backend_tokenizer for name, tokenizer in made.items()}


KINDS = ["uncased", "cased", "accents", "han whole", "added", "added han", "added word", "added strip"]


@pytest.fixture(scope="module")
def backends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    return tokenizers(tmp_path_factory.mktemp("vocabularies"))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=250, deadline=None)
@given(lines=st.lists(TEXT, min_size=1, max_size=4), piece=st.sampled_from([3, 40, 2000]))
def test_any_text_gives_the_tokenizers_tokens(
    backends: dict[str, Tokenizer], kind: str, lines: list[str], piece: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "_PIECE_CHARS", piece)
        patch.setattr(lookup, "_BATCH_PIECES", 2)
        ids, starts, num_tokens = alignment.tokenize_lines(lines, backends[kind])
    expected = [backends[kind].encode(line, add_special_tokens=False) for line in lines]
    line_starts = np.cumsum([0, *map(len, lines)]).tolist()
    assert num_tokens.tolist() == [len(encoding) for encoding in expected]
    assert ids.tolist() == [number for encoding in expected for number in encoding.ids]
    assert starts.tolist() == [
        start + first for encoding, first in zip(expected, line_starts, strict=False) for start, _ in encoding.offsets
    ]


@pytest.mark.parametrize(("kind", "used"), [(kind, "added " not in kind) for kind in KINDS])
def test_table_is_used_where_it_can_be(backends: dict[str, Tokenizer], kind: str, used: bool) -> None:
    table = character_table(backends[kind], backends[kind].get_vocab_size())
    assert (table is not None) == used
    if table is not None:
        is_known = table[ord("天")] == backends[kind].token_to_id("天")
        assert is_known == (kind != "han whole")
        assert table[ord("，")] == backends[kind].token_to_id("，")
        assert table[ord("a")] == table[0xF900] == table[ord("[")] == -1


def test_every_character_of_the_table_gives_its_token_between_any_two(backends: dict[str, Tokenizer]) -> None:
    """All 28,000 of them, beside letters, marks, digits and each other."""
    table = character_table(backends["uncased"], backends["uncased"].get_vocab_size())
    assert table is not None
    characters = np.flatnonzero(table >= 0)
    assert len(characters) > 27_000
    lines = [f"a{chr(c)}\u0301b{chr(c)}{chr(c)}5 {chr(c)}\u200b" for c in characters]
    ids, _, num_tokens = alignment.tokenize_lines(lines, backends["uncased"])
    expected = backends["uncased"].encode_batch(lines, add_special_tokens=False)
    assert ids.tolist() == [number for encoding in expected for number in encoding.ids]
    assert num_tokens.tolist() == list(map(len, expected))
