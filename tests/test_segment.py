"""Segmentation and LTP models. Uses the real LTP engine on a perceptron trained here, and a random neural model."""

import builtins
import copy
import json
import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.corpus.characters import DROPPED_RANGES, SPACE_RANGES, runs, windows
from distill.corpus.ltp_models import is_hub_id
from distill.corpus.perceptron_training import train_perceptron
from distill.corpus.scoring import word_f1
from distill.corpus.segment import (
    Segmenter,
    check_segmenter,
    is_neural,
    load_segmenter,
    resolve_segmenter,
    segmenter_fingerprint,
)
from distill.errors import InputError

SENTENCES = Path(__file__).parent / "data" / "segmented_sentences.txt"
# What breaks segmenters: white space of all kinds, control and zero-width characters, emoji with joiners, marks.
ODD_TEXT = st.text(
    st.one_of(
        st.sampled_from(
            "天气很好研究生命起源T恤卡拉OK5G，。！ \t\u3000\u00a0\u2028\u200b\u200d\ufeff\x00\x0b\x85\ufffd"
        ),
        st.sampled_from("👨👩é\u0301İ가ﬁＡ𠀀\u0378\U000e0041\ue000ß"),
        st.characters(blacklist_categories=["Cs"]),
    ),
    max_size=60,
)


@pytest.fixture(scope="module")
def perceptron(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segmenter") / "perceptron"
    train_perceptron(SENTENCES, folder, epochs=5)
    return folder


@pytest.fixture(scope="module")
def neural(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random neural LTP model of 2 layers, in the files a published one has."""
    import torch
    from ltp.nerual import LTP

    folder = tmp_path_factory.mktemp("segmenter") / "neural@main"  # LTP itself takes "@" for a hub revision
    folder.mkdir()
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"天气很好研究生命起源在恤卡拉，。", "ok", "t", "##k", "o"]
    backbone = {
        "model_type": "bert", "vocab_size": len(vocab), "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 512, "type_vocab_size": 2,
    }  # fmt: skip
    head = {"_ltp_target_": "ltp_core.models.components.token.MLPTokenClassifier", "input_size": 32, "num_labels": 2}
    config = {
        "nerual": True,
        "vocabs": {"cws": ["I-W", "B-W"]},
        "model": {
            "_ltp_target_": "ltp_core.models.ltp_model.LTPModule",
            "backbone": {"_ltp_target_": "ltp_core.models.utils.load_transformers", "config": backbone},
            "processor": {"cws": {"_ltp_target_": "ltp_core.models.processor.TokenOnly"}},
            "heads": {"cws": {**head, "dropout": 0.1}},
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    torch.manual_seed(0)
    state = LTP(config=copy.deepcopy(config)).model.state_dict()
    state["backbone.embeddings.position_ids"] = torch.arange(512)[None]  # saved by transformers before 4.31
    torch.save(state, folder / "pytorch_model.bin")
    return folder


@pytest.fixture
def broken(neural: Path, tmp_path: Path) -> Path:
    """A copy of the neural folder for a test to break."""
    return Path(shutil.copytree(neural, tmp_path / "broken"))


@pytest.fixture(scope="module")
def segmenters(perceptron: Path, neural: Path) -> dict[str, Segmenter]:
    return {
        "perceptron": load_segmenter(f"ltp:{perceptron}"),
        "neural": load_segmenter(f"ltp:{neural}"),
        "jieba": load_segmenter("jieba"),
        "words": load_segmenter("words"),
    }


def visible(line: str) -> str:
    """The line without white space and what BERT drops, by the tokenizer library itself."""
    from tokenizers.normalizers import BertNormalizer

    cleaner = BertNormalizer(clean_text=True, handle_chinese_chars=False, strip_accents=False, lowercase=False)
    return "".join(cleaner.normalize_str(line).split(" "))


# ---- characters


def test_dropped_and_space_characters_are_those_of_the_tokenizer() -> None:
    from tokenizers.normalizers import BertNormalizer

    cleaner = BertNormalizer(clean_text=True, handle_chinese_chars=False, strip_accents=False, lowercase=False)
    ours = {"": set[int](), " ": set[int]()}
    for kind, ranges in (("", DROPPED_RANGES), (" ", SPACE_RANGES)):
        for first, last in ranges:
            ours[kind].update(range(first, last + 1))
    ours[""] -= set(range(0xD800, 0xE000))
    plane = [*range(0xD800), *range(0xE000, 0x20000), *range(0xE0000, 0xE0200), 0x2FFFF, 0xFFFFD, 0x10FFFD, 0x10FFFF]
    theirs = {"": set[int](), " ": set[int]()}
    for point in plane:
        cleaned = cleaner.normalize_str(chr(point))
        if cleaned != chr(point) or cleaned == " ":
            theirs[cleaned].add(point)
    assert theirs[" "] == ours[" "]
    assert theirs[""] == ours[""] & set(plane)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", []),
        ("\u3000天气 很\t好 ", ["天气", "很", "好"]),
        ("天\u200b气\ufeff", ["天气"]),
        ("天\x0b气\x85很\x1c好", ["天气很好"]),
        ("天\u2028气", ["天", "气"]),
        ("\x00\u200b\ufffd", []),
        ("👨\u200d👩", ["👨👩"]),
    ],
)
def test_runs(line: str, expected: list[str]) -> None:
    assert runs(line) == expected


@given(ODD_TEXT)
def test_runs_are_what_the_tokenizer_sees(line: str) -> None:
    assert "".join(runs(line)) == visible(line)


@given(st.text("天气，。”a1 .é", max_size=200), st.integers(2, 20))
def test_windows_are_short_and_lose_nothing(run: str, limit: int) -> None:
    pieces = list(windows(run, limit))
    assert "".join(pieces) == run
    assert all(0 < len(piece) <= limit for piece in pieces) or not run


@pytest.mark.parametrize(
    ("run", "first"),
    [
        ("天气很好。”他说天气", "天气很好。”"),
        ("天气很好，他说天气很好", "天气很好，"),
        ("天气很好天气abc123很", "天气很好天气"),
        ("天气很好天气很好天气很好", "天气很好天气很好"),
        ("abcdefghijklmn", "abcdefgh"),
    ],
)
def test_windows_are_cut_where_it_hurts_least(run: str, first: str) -> None:
    assert next(windows(run, 8)) == first


# ---- every segmenter


@pytest.mark.parametrize("kind", ["perceptron", "neural", "jieba", "words"])
@settings(max_examples=60, deadline=None)
@given(lines=st.lists(ODD_TEXT, max_size=4))
def test_words_make_up_the_line(segmenters: dict[str, Segmenter], kind: str, lines: list[str]) -> None:
    words = segmenters[kind].segment(lines)
    assert ["".join(line_words) for line_words in words] == [visible(line) for line in lines]
    assert all(all(line_words) for line_words in words)


@pytest.mark.parametrize("kind", ["perceptron", "neural", "jieba", "words"])
def test_no_word_spans_white_space(segmenters: dict[str, Segmenter], kind: str) -> None:
    (words,) = segmenters[kind].segment(["天 气\u3000研\t究 生\u2028命"])
    assert words == ["天", "气", "研", "究", "生", "命"]


@pytest.mark.parametrize("kind", ["perceptron", "neural", "jieba", "words"])
def test_no_lines_give_no_words(segmenters: dict[str, Segmenter], kind: str) -> None:
    assert segmenters[kind].segment([]) == []
    assert segmenters[kind].segment(["", "\u200b"]) == [[], []]


@pytest.mark.parametrize("kind", ["perceptron", "jieba"])
def test_zero_width_characters_do_not_break_words(segmenters: dict[str, Segmenter], kind: str) -> None:
    assert segmenters[kind].segment(["今天\u200b天\u200b气很好"]) == segmenters[kind].segment(["今天天气很好"])


def test_perceptron_finds_the_words_it_learned(segmenters: dict[str, Segmenter]) -> None:
    lines = ["天气很好", "研究生在研究生命起源", "穿T恤的孩子", "我们去卡拉OK唱歌", "这里没有5G信号"]
    assert [" ".join(words) for words in segmenters["perceptron"].segment(lines)] == [
        "天气 很 好",
        "研究生 在 研究 生命 起源",
        "穿 T恤 的 孩子",
        "我们 去 卡拉OK 唱歌",
        "这里 没有 5G 信号",
    ]


@pytest.mark.parametrize("kind", ["perceptron", "neural", "jieba"])
def test_latin_words_and_numbers_are_whole(segmenters: dict[str, Segmenter], kind: str) -> None:
    """LTP cuts Tr|ansformer and 20|21, also with its own rules against it."""
    (words,) = segmenters[kind].segment(["他研究Transformer123和2021"])
    assert [word for word in words if "T" in word or "3" in word] == ["Transformer123"]


def test_words_takes_the_spaces_of_the_text(segmenters: dict[str, Segmenter]) -> None:
    assert segmenters["words"].segment(["天气 很 好", "T恤"]) == [["天气", "很", "好"], ["T恤"]]


def test_a_long_line_without_punctuation(segmenters: dict[str, Segmenter]) -> None:
    line = "研究生命起源" * 20_000
    assert "".join(segmenters["perceptron"].segment([line])[0]) == line


# ---- neural LTP


def test_neural_reads_a_long_line_to_its_end(neural: Path, segmenters: dict[str, Segmenter]) -> None:
    """LTP's own pipeline reads 510 word pieces and returns the rest of the line as one word, without a warning."""
    line = "天气很好，研究生在研究生命起源。" * 188
    (words,) = segmenters["neural"].segment([line])
    assert "".join(words) == line and len(line) > 3000
    sentence = segmenters["neural"].segment([line[:496]])[0]  # the first window: 31 sentences
    assert words[: len(sentence)] == sentence
    assert max(map(len, words[-20:])) <= max(map(len, sentence))


def test_neural_result_does_not_depend_on_the_batch(segmenters: dict[str, Segmenter]) -> None:
    lines = ["天气很好", "研究生在研究生命起源。" * 20, "", "在", "卡拉ok。天气"]
    together = segmenters["neural"].segment(lines)
    assert together == [segmenters["neural"].segment([line])[0] for line in lines]


def test_neural_window_is_smaller_for_characters_that_decompose(segmenters: dict[str, Segmenter]) -> None:
    """A Hangul syllable becomes up to three word pieces, so 500 of them would pass the limit of 510."""
    line = "가" * 900 + unicodedata.normalize("NFD", "각")
    assert "".join(segmenters["neural"].segment([line])[0]) == line


def test_loading_prints_nothing_to_stdout(neural: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_segmenter(f"ltp:{neural}")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [("vocab.txt", "vocab.txt or tokenizer.json is missing"), ("pytorch_model.bin", "pytorch_model.bin or")],
)
def test_neural_folder_with_a_missing_file_is_refused(broken: Path, name: str, message: str) -> None:
    (broken / name).unlink()
    with pytest.raises(InputError, match=message):
        check_segmenter(f"ltp:{broken}")


def test_neural_weights_of_another_model_are_refused(broken: Path) -> None:
    """LTP loads them with strict=False and would segment with random weights."""
    import torch

    state = torch.load(broken / "pytorch_model.bin", weights_only=True)
    torch.save({f"module.{key}": value for key, value in state.items()}, broken / "pytorch_model.bin")
    with pytest.raises(InputError, match="lacks .* weights such as"):
        load_segmenter(f"ltp:{broken}")


def test_neural_weights_with_other_objects_are_refused(broken: Path) -> None:
    import torch

    torch.save({"path": Path("x")}, broken / "pytorch_model.bin")
    with pytest.raises(InputError, match="not a plain state_dict"):
        load_segmenter(f"ltp:{broken}")


def test_neural_vocabulary_of_another_model_is_refused(broken: Path) -> None:
    (broken / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n天\n")
    with pytest.raises(InputError, match="6 tokens in the vocabulary"):
        load_segmenter(f"ltp:{broken}")


def replace_target(folder: Path, target: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model"]["heads"]["cws"] = {"_ltp_target_": target}
    (folder / "config.json").write_text(json.dumps(config))


def test_config_that_names_foreign_code_is_refused_before_loading(broken: Path) -> None:
    replace_target(broken, "os.system")
    with pytest.raises(InputError, match=r"'os\.system'"):
        check_segmenter(f"ltp:{broken}")


@pytest.mark.parametrize(
    "target",
    ["ltp_core.models.ltp_model.torch.hub.load", "ltp_core.models.utils.instantiate.importlib.import_module"],
)
def test_config_that_reaches_foreign_code_through_ltp_is_refused(broken: Path, target: str) -> None:
    replace_target(broken, target)
    with pytest.raises(InputError, match="no part of a model"):
        load_segmenter(f"ltp:{broken}")


# ---- specs


@pytest.mark.parametrize("spec", ["", "ltp", "ltp:", "LTP/small", "thulac"])
def test_unknown_segmenters_are_refused(spec: str) -> None:
    with pytest.raises(InputError, match="unknown; use ltp:FOLDER"):
        check_segmenter(spec)


def test_missing_folder_and_missing_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such LTP folder"):
        check_segmenter(f"ltp:{tmp_path}/none/deeper")
    with pytest.raises(InputError, match=r"no config\.json"):
        check_segmenter(f"ltp:{tmp_path}")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "not valid JSON"),
        ('{"model_type": "bert"}', "not an LTP config"),
        ('{"nerual": false, "tasks": {"pos": "pos_model.bin"}}', "no word segmentation model"),
        ('{"nerual": false, "tasks": {"cws": "cws_model.bin"}}', r"cws_model\.bin is missing"),
    ],
)
def test_bad_configs_are_refused(tmp_path: Path, config: str, message: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError, match=message):
        check_segmenter(f"ltp:{tmp_path}")


def test_git_lfs_pointer_is_recognised(perceptron: Path, tmp_path: Path) -> None:
    shutil.copy(perceptron / "config.json", tmp_path)
    (tmp_path / "cws_model.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(InputError, match="git lfs pull"):
        check_segmenter(f"ltp:{tmp_path}")


@pytest.mark.parametrize("keep", [4, 1000, -16, -2, -1])
def test_perceptron_cut_short_is_refused(perceptron: Path, tmp_path: Path, keep: int) -> None:
    """LTP's loader aborts the process on it."""
    shutil.copy(perceptron / "config.json", tmp_path)
    content = (perceptron / "cws_model.bin").read_bytes()
    content = content[:-17] + b"\0" + content[-16:]  # data may end as the header does, in a zero
    (tmp_path / "cws_model.bin").write_bytes(content[:keep])
    with pytest.raises(InputError, match="cut short"):
        load_segmenter(f"ltp:{tmp_path}")


@pytest.mark.parametrize(
    ("package", "spec", "message"),
    [
        ("jieba", "jieba", "pip install jieba"),
        ("ltp_extension", "ltp:PERCEPTRON", "pip install ltp.*paid for companies"),
    ],
)
def test_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, perceptron: Path, package: str, spec: str, message: str
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else found(name, *rest)
    )
    with pytest.raises(InputError, match=message):
        check_segmenter(spec.replace("PERCEPTRON", str(perceptron)))


def test_hub_ids_are_told_from_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pretrained_model_path").mkdir()
    assert is_hub_id("LTP/small") and is_hub_id("LTP/small@v1.0")
    assert not is_hub_id("pretrained_model_path/ltp")
    assert not any(map(is_hub_id, ["./ltp", "../ltp", "/abs/ltp", "ltp", "a/b/c"]))


@pytest.mark.parametrize("kind", ["perceptron", "neural"])
def test_hub_id_is_downloaded_to_a_folder(
    kind: str, perceptron: Path, neural: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    source = {"perceptron": perceptron, "neural": neural}[kind]
    asked: list[tuple[str, str | None]] = []

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        return str(source)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve_segmenter("ltp:LTP/model@v1") == f"ltp:{source}"
    assert set(asked) == {("LTP/model", "v1")}


def test_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    def snapshot_download(name: str, **_: object) -> str:
        raise ConnectionError("no route\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(InputError, match=r"LTP/small: cannot be downloaded \(no route\).*HF_ENDPOINT") as error:
        load_segmenter("ltp:LTP/small")
    assert "\n" not in str(error.value)


def test_kinds_of_models_are_told_apart(perceptron: Path, neural: Path) -> None:
    assert is_neural(f"ltp:{neural}")
    assert not any(map(is_neural, [f"ltp:{perceptron}", "jieba", "words"]))


def test_fingerprint_follows_contents_not_paths(perceptron: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(perceptron, tmp_path / "moved"))
    assert segmenter_fingerprint(f"ltp:{moved}") == segmenter_fingerprint(f"ltp:{perceptron}")
    (moved / "cws_model.bin").write_bytes((moved / "cws_model.bin").read_bytes() + b"x")
    prints = {segmenter_fingerprint(spec) for spec in (f"ltp:{moved}", f"ltp:{perceptron}", "jieba", "words")}
    assert len(prints) == 4


def test_perceptron_needs_no_torch(perceptron: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    importer = builtins.__import__

    def refuse_torch(name: str, *rest: object) -> object:
        assert name.split(".")[0] not in ("torch", "transformers", "ltp"), name
        return importer(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse_torch)
    assert load_segmenter(f"ltp:{perceptron}").segment(["天气很好"]) == [["天气", "很", "好"]]


# ---- training


def test_training_reports_and_writes_an_ltp_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = train_perceptron(SENTENCES, tmp_path / "model", epochs=2)
    lines = SENTENCES.read_text("utf-8").splitlines()
    assert result["sentences"] + result["held_out_sentences"] == len(lines)
    assert result["held_out_sentences"] == len(lines) // 10
    assert 0.3 < result["held_out_f1"] < 1
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "cws_model.bin"}
    assert capfd.readouterr().out == ""  # the Rust trainer prints its progress there

    from ltp import LTP

    assert LTP(str(tmp_path / "model")).pipeline(["天气很好"], tasks=["cws"]).cws == [["天气", "很", "好"]]


def test_training_takes_any_white_space_for_a_border(tmp_path: Path) -> None:
    """LTP's trainer itself parts words at the ASCII space only, and mislabels the rest without a word."""
    text = SENTENCES.read_text("utf-8")
    odd = "\ufeff" + text.replace(" 天气 ", "\u3000天\u200b气\t").replace(" 的 ", "  的\xa0").replace("\n", "\r\n\r\n")
    (tmp_path / "odd.txt").write_bytes(odd.encode())
    plain = train_perceptron(SENTENCES, tmp_path / "plain")
    result = train_perceptron(tmp_path / "odd.txt", tmp_path / "odd")
    assert {**result, "seconds": 0, "model_bytes": 0} == {**plain, "seconds": 0, "model_bytes": 0}


def test_training_is_deterministic(perceptron: Path, tmp_path: Path) -> None:
    train_perceptron(SENTENCES, tmp_path / "again", epochs=5)
    lines = [line.replace(" ", "") for line in SENTENCES.read_text("utf-8").splitlines()]
    first, second = (load_segmenter(f"ltp:{folder}").segment(lines) for folder in (perceptron, tmp_path / "again"))
    assert first == second


def test_training_on_a_spread_sample(tmp_path: Path) -> None:
    result = train_perceptron(SENTENCES, tmp_path / "model", max_sentences=20)
    assert (result["sentences"], result["held_out_sentences"]) == (18, 2)


def test_training_on_very_few_sentences(tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("天气 很 好\n今天 很 冷\n", encoding="utf-8")
    result = train_perceptron(tmp_path / "few.txt", tmp_path / "model")
    assert (result["sentences"], result["held_out_sentences"]) == (2, 0)


def test_training_replaces_its_own_model_and_keeps_a_readme(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("what to put here")
    train_perceptron(SENTENCES, tmp_path)
    train_perceptron(SENTENCES, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "config.json", "cws_model.bin"}


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "no sentences"),
        ("\n \u200b\n", {}, "no sentences"),
        ("天气很好\n今天很冷\n", {}, "none of its 2 lines has two words"),
        ("天气 很 好\n", {"threshold": 0.0}, "threshold: 0"),
        ("天气 很 好\n", {"epochs": 0}, "epochs: 0"),
        ("天气 很 好\n", {"max_sentences": 0}, "max_sentences: 0"),
    ],
)
def test_training_refuses(tmp_path: Path, text: str, options: dict, message: str) -> None:
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        train_perceptron(tmp_path / "text.txt", tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()


def test_training_does_not_overwrite_another_model(broken: Path) -> None:
    with pytest.raises(InputError, match="holds another model"):
        train_perceptron(SENTENCES, broken)


def test_word_f1() -> None:
    assert word_f1([["天气", "很", "好"]], [["天气", "很好"]]) == pytest.approx(2 * 1 / (3 + 2))


def test_neural_on_several_devices_gives_the_same_words(neural: Path) -> None:
    """Two copies share the batches; the words must go back to their pieces whichever copy found them."""
    from distill.corpus.ltp_models import inspect_folder
    from distill.corpus.ltp_neural import load_neural

    pieces = ["天气很好研究生命起源"[: 1 + i % 10] for i in range(1000)]
    one, two = (load_neural(inspect_folder(str(neural)), on=["cpu"] * copies)(pieces) for copies in (1, 2))
    assert one == two and ["".join(words) for words in one] == pieces
