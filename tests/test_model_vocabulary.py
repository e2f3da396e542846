"""Models with another vocabulary: rows of shared tokens bit for bit, equal logits, and mismatches found and mended."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel, BertTokenizer

from distill.corpus.tokenizing import load_tokenizer
from distill.corpus.vocabulary import count_tokens
from distill.errors import InputError
from distill.modeling.vocabulary import prune_vocabulary, replace_vocabulary
from distill.modeling.vocabulary_check import check_vocabulary_files, repair_vocabulary

TOKENS = (
    "[unused1] [PAD] [UNK] [CLS] [SEP] [MASK] 天 气 很 好 我 们 去 公 园 。 walk ##ing talk ##er to ##ky ##o".split()
)
ROWS = "bert.embeddings.word_embeddings.weight"


def tiny_config(vocab_size, **options):
    return BertConfig(
        vocab_size=vocab_size, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, hidden_dropout_prob=0, attention_probs_dropout_prob=0, **options,
    )  # fmt: skip


def write_model(folder, *, tokens=TOKENS, rows=None, model_class=BertForMaskedLM, **options):
    torch.manual_seed(0)
    model = model_class(tiny_config(rows or len(tokens), pad_token_id=tokens.index("[PAD]"), **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    return folder


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model")


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("天气好。天气好。\n天气很好，我\n", encoding="utf-8")
    return file


def logits_of(folder, text):
    model, tokenizer = BertForMaskedLM.from_pretrained(folder).eval(), BertTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).logits[0], tokenizer.get_vocab()


def assert_shared_tokens_agree(old, new, text):
    """Rows and biases are equal bit for bit, logits up to the order of additions; the decoder stays tied."""
    (logits, old_ids), (new_logits, new_ids) = logits_of(old, text), logits_of(new, text)
    shared = sorted(old_ids.keys() & new_ids.keys())
    there, here = [old_ids[token] for token in shared], [new_ids[token] for token in shared]
    torch.testing.assert_close(new_logits[:, here], logits[:, there], rtol=1e-5, atol=1e-6)
    old_weights, new_weights = load_file(old / "model.safetensors"), load_file(new / "model.safetensors")
    assert old_weights.keys() == new_weights.keys()
    for name, tensor in new_weights.items():
        per_token = name in (ROWS, "cls.predictions.bias")
        assert torch.equal(tensor[here] if per_token else tensor, old_weights[name][there if per_token else ...]), name
    opened = BertForMaskedLM.from_pretrained(new)
    assert opened.cls.predictions.decoder.weight is opened.bert.embeddings.word_embeddings.weight
    assert opened.config.pad_token_id == new_ids["[PAD]"] == opened.bert.embeddings.word_embeddings.padding_idx


def prune(model, output, text, **options):
    counts = count_tokens([text], load_tokenizer(model)) if text else None
    return prune_vocabulary(model, output, counts=counts, **options)


def test_pruned_model_says_the_same_about_what_stays(model, text, tmp_path):
    result = prune(model, tmp_path / "small", text)
    assert list(load_tokenizer(tmp_path / "small").get_vocab()) and result["kept_share"] == 1
    kept = (tmp_path / "small/vocab.txt").read_text(encoding="utf-8").split()
    assert kept == "[PAD] [UNK] [CLS] [SEP] [MASK] 天 气 很 好 我 。".split()
    assert_shared_tokens_agree(model, tmp_path / "small", "天气很好。")
    assert not check_vocabulary_files(tmp_path / "small").problems


def test_rare_tokens_go(model, text, tmp_path):
    result = prune(model, tmp_path / "small", text, min_count=3)
    assert (tmp_path / "small/vocab.txt").read_text(encoding="utf-8").split()[5:] == ["天", "气", "好"]
    assert result["kept_share"] == pytest.approx(10 / 14)  # with the one [UNK]


def test_size_keeps_the_most_frequent(model, text, tmp_path):
    prune(model, tmp_path / "small", text, size=8)
    assert (tmp_path / "small/vocab.txt").read_text(encoding="utf-8").split()[5:] == ["天", "气", "好"]


def test_listed_tokens_stay(model, tmp_path):
    result = prune(model, tmp_path / "small", None, listed=["walk", "[unused1]", "missing"])
    assert (tmp_path / "small/vocab.txt").read_text(encoding="utf-8").split()[0] == "[unused1]"
    assert (result["tokens_after"], result["unknown_listed"]) == (7, 1)


def test_size_below_what_must_stay_is_refused(model, text, tmp_path):
    with pytest.raises(InputError, match="5 special and listed tokens"):
        prune(model, tmp_path / "small", text, size=4)


@pytest.mark.parametrize("asked", [{"listed": ["missing"]}, {"min_count": 100}])
def test_a_model_of_special_tokens_alone_is_not_made(asked, model, text, tmp_path):
    with pytest.raises(InputError, match="nothing but its special tokens would stay"):
        prune(model, tmp_path / "small", None if "listed" in asked else text, **asked)
    assert not (tmp_path / "small").exists()


def test_lower_casing_survives(text, tmp_path):
    model = write_model(tmp_path / "cased", tokens=[*TOKENS, "Walk"])
    (model / "tokenizer_config.json").write_text('{"do_lower_case": false, "model_max_length": 16}')
    prune(model, tmp_path / "small", None, listed=["Walk"])
    tokenizer = BertTokenizer.from_pretrained(tmp_path / "small")
    assert tokenizer.tokenize("Walk") == ["Walk"] and tokenizer.model_max_length == 16


@pytest.mark.parametrize("model_class", [BertModel, BertForSequenceClassification])
def test_other_heads_are_carried_over(model_class, text, tmp_path):
    model = write_model(tmp_path / "model", model_class=model_class)
    prune(model, tmp_path / "small", text)
    old, new = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "small"))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old if "word_embeddings" not in name)
    model_class.from_pretrained(tmp_path / "small")


def test_untied_decoder_and_bin_file_keep_their_own_rows(text, tmp_path):
    model = write_model(tmp_path / "model", tie_word_embeddings=False)
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(weights, model / "pytorch_model.bin")
    prune(model, tmp_path / "small", text)
    new = load_file(tmp_path / "small/model.safetensors")
    old_ids, new_ids = (load_tokenizer(folder).get_vocab() for folder in (model, tmp_path / "small"))
    name = "cls.predictions.decoder.weight"
    assert torch.equal(new[name][new_ids["天"]], weights[name][old_ids["天"]])
    assert not torch.equal(new[name], new[ROWS])


def write_vocabulary(file, words):
    file.write_text("".join(f"{token}\n" for token in words.split()), encoding="utf-8")
    return file


NEW = "[PAD] [UNK] [CLS] [SEP] [MASK] 好 天 公园 Talking ##king 新 [unused7] walk"


def test_replaced_vocabulary_keeps_shared_rows(model, tmp_path):
    result = replace_vocabulary(model, write_vocabulary(tmp_path / "v.txt", NEW), tmp_path / "new")
    assert result == {"shared": 8, "mean": 2, "random": 3, "dropped": len(TOKENS) - 8}
    assert_shared_tokens_agree(model, tmp_path / "new", "天好 walk")


def test_new_token_is_the_mean_of_its_pieces(model, tmp_path):
    vocabulary = write_vocabulary(tmp_path / "v.txt", NEW + " ##kyo ##我")
    replace_vocabulary(model, vocabulary, tmp_path / "new")
    old, new = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "new"))
    old_ids, new_ids = (load_tokenizer(folder).get_vocab() for folder in (model, tmp_path / "new"))
    for token, pieces in {"公园": "公 园", "Talking": "talk ##ing", "##kyo": "##ky ##o", "##我": "我"}.items():
        rows = [old_ids[piece] for piece in pieces.split()]
        for name in (ROWS, "cls.predictions.bias"):
            torch.testing.assert_close(new[name][new_ids[token]], old[name][rows].mean(dim=0))


def test_random_rows_follow_the_config_and_the_seed(tmp_path):
    model = write_model(tmp_path / "model", initializer_range=0.5)
    many = NEW + "".join(f" 新{number}" for number in range(500))
    vocabulary = write_vocabulary(tmp_path / "v.txt", many)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        replace_vocabulary(model, vocabulary, tmp_path / name, new_rows="random", seed=seed)
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert a[ROWS][13:].std().item() == pytest.approx(0.5, rel=0.05)
    assert torch.equal(a[ROWS], b[ROWS]) and not torch.equal(a[ROWS], c[ROWS])
    assert not a["cls.predictions.bias"][13:].any()


def test_tokenizer_folder_brings_its_lower_casing(model, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    write_vocabulary(tmp_path / "tokenizer/vocab.txt", NEW)
    (tmp_path / "tokenizer/tokenizer_config.json").write_text('{"do_lower_case": false}')
    replace_vocabulary(model, tmp_path / "tokenizer", tmp_path / "new")
    assert BertTokenizer.from_pretrained(tmp_path / "new").tokenize("Talking") == ["Talking"]


@pytest.mark.parametrize(
    "words, message", [("[PAD] [UNK] [CLS] [SEP]", r"no \[MASK\]"), (NEW + " 天", "1 of 14 tokens occur twice")]
)
def test_bad_new_vocabulary_is_refused(model, tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        replace_vocabulary(model, write_vocabulary(tmp_path / "v.txt", words), tmp_path / "new")


def test_mismatched_model_is_refused_with_the_remedy(text, tmp_path):
    model = write_model(tmp_path / "model", rows=40)
    with pytest.raises(InputError, match="40 rows for 23 tokens.*distill vocab repair"):
        prune(model, tmp_path / "small", text)
    assert not (tmp_path / "small").exists()


def test_too_many_rows_are_found_and_dropped(tmp_path):
    model = write_model(tmp_path / "model", rows=40)
    assert check_vocabulary_files(model).problems == ["40 embedding rows for 23 tokens"]
    actions = repair_vocabulary(model, tmp_path / "mended")
    assert "kept the rows of 23 token ids, dropped 17" in actions[0]
    assert_shared_tokens_agree(model, tmp_path / "mended", "天气很好。")
    assert not check_vocabulary_files(tmp_path / "mended").problems


def test_missing_rows_are_added(tmp_path):
    model = write_model(tmp_path / "model")
    write_vocabulary(model / "vocab.txt", " ".join([*TOKENS, "公园", "新"]))
    assert check_vocabulary_files(model).problems == ["23 embedding rows for 25 tokens"]
    actions = repair_vocabulary(model, tmp_path / "mended")
    assert "1 rows as the mean of their pieces, such as '公园'" in actions[0] and "1 random rows" in actions[1]
    rows = load_file(tmp_path / "mended/model.safetensors")[ROWS]
    torch.testing.assert_close(rows[23], rows[[TOKENS.index("公"), TOKENS.index("园")]].mean(dim=0))
    assert torch.equal(rows[:23], load_file(model / "model.safetensors")[ROWS])


def test_missing_special_token_is_found_and_added(tmp_path):
    """transformers gives [MASK] the id behind the vocabulary, whatever the row there was for."""
    tokens = [token for token in TOKENS if token != "[MASK]"]
    model = write_model(tmp_path / "model", tokens=tokens, rows=30)
    assert "the vocabulary has no [MASK]" in check_vocabulary_files(model).problems
    repair_vocabulary(model, tmp_path / "mended")
    old, new = (load_file(folder / "model.safetensors")[ROWS] for folder in (model, tmp_path / "mended"))
    assert len(new) == 23 and torch.equal(new[:22], old[:22]) and not torch.equal(new[22], old[22])
    assert not check_vocabulary_files(tmp_path / "mended").problems


def test_duplicates_are_found_and_the_unreachable_rows_dropped(tmp_path):
    model = write_model(tmp_path / "model", tokens=[*TOKENS, "天"])
    assert check_vocabulary_files(model).problems == ["vocab.txt: 1 tokens occur twice, such as '天'"]
    repair_vocabulary(model, tmp_path / "mended")
    assert_shared_tokens_agree(model, tmp_path / "mended", "天气很好。")


def test_byte_order_mark_is_found_and_removed(tmp_path):
    tokens = sorted(TOKENS, key=lambda token: token != "[PAD]")
    model = write_model(tmp_path / "model", tokens=tokens)
    (model / "vocab.txt").write_text("\ufeff" + (model / "vocab.txt").read_text(encoding="utf-8"), encoding="utf-8")
    assert any("byte-order mark" in problem for problem in check_vocabulary_files(model).problems)
    repair_vocabulary(model, tmp_path / "mended")
    assert load_tokenizer(tmp_path / "mended").get_vocab() == {token: number for number, token in enumerate(tokens)}
    old, new = (load_file(folder / "model.safetensors")[ROWS] for folder in (model, tmp_path / "mended"))
    assert torch.equal(old, new)


def test_cased_vocabulary_that_loses_its_case_is_found_and_mended(tmp_path):
    """Tencent's RoBERTa-tiny-cased ships without do_lower_case, and transformers lower-cases then."""
    model = write_model(tmp_path / "model", tokens=[*TOKENS, "Obama"])
    assert "'Obama', but text is lower-cased" in check_vocabulary_files(model).problems[0]
    repair_vocabulary(model, tmp_path / "mended")
    assert BertTokenizer.from_pretrained(tmp_path / "mended").tokenize("Obama") == ["Obama"]


def test_stated_lower_casing_is_only_noted(tmp_path):
    model = write_model(tmp_path / "model", tokens=[*TOKENS, "Obama"])
    (model / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    findings = check_vocabulary_files(model)
    assert not findings.problems and "Obama" in findings.notes[0]


def test_other_ids_in_tokenizer_json_are_found(model, tmp_path):
    load_tokenizer(write_model(tmp_path / "other", tokens=TOKENS[::-1])).save_pretrained(tmp_path / "saved")
    (model / "tokenizer.json").write_bytes((tmp_path / "saved/tokenizer.json").read_bytes())
    assert "tokenizer.json and vocab.txt give tokens different ids" in check_vocabulary_files(model).problems


def test_config_that_disagrees_is_found_and_mended(model, tmp_path):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": 50, "pad_token_id": 0}))
    assert len(check_vocabulary_files(model).problems) == 2
    repair_vocabulary(model, tmp_path / "mended")
    assert not check_vocabulary_files(tmp_path / "mended").problems


def test_sound_model_is_not_written_again(model, tmp_path):
    assert repair_vocabulary(model, tmp_path / "mended") == []
    assert not (tmp_path / "mended").exists()


@pytest.mark.parametrize("missing, message", [("vocab.txt", "no tokenizer"), ("model.safetensors", "no weights")])
def test_incomplete_folder_is_refused(model, missing, message):
    (model / missing).unlink()
    with pytest.raises(InputError, match=message):
        check_vocabulary_files(model)


def test_commands(model, text, tmp_path, capsys):
    from distill.cli import main

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main(["vocab", *map(str, arguments)])
        return left.value.code, capsys.readouterr().out

    code, out = run("prune", "--model", model, "--text", text, "--output", tmp_path / "a")
    assert code == 0 and "11 of 23 tokens stay" in out
    vocabulary = write_vocabulary(tmp_path / "v.txt", NEW)
    code, out = run(
        "replace", "--model", model, "--vocab", vocabulary, "--output", tmp_path / "b", "--new_rows", "random"
    )
    assert code == 0 and "8 tokens kept their rows, 0 new ones" in out
    (model / "vocab.txt").write_text("".join(f"{token}\n" for token in TOKENS[:-2]), encoding="utf-8")
    code, out = run("check", model)
    assert code == 1 and "23 embedding rows for 21 tokens" in out and "distill vocab repair" in out
    code, out = run("repair", model, "--output", tmp_path / "c")
    assert code == 0 and "dropped 2" in out
    assert run("check", tmp_path / "c")[0] == 0
    assert run("prune", "--model", model, "--output", tmp_path / "d")[0] == 2
