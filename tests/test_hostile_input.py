"""Files that are not merely mistaken but broken or hostile: one clear line, exit code 2, soon, and nothing written.

The table runs in this process; what is only found in the text, and the real process, come after it.
"""

import gzip
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cases import both, config, cut, data, data_json, file, other_vocabulary, stage, student, teacher
from fixtures_cli import ROOT, VOCAB, assert_one_line, bert, complaint, nothing_written

pytest_plugins = ["fixtures_cli"]

SECONDS = 5
TRAIN = ("train", "recipe.json")


def top(**fields):
    return lambda project: project.recipe(**fields)


def link(name, target):
    def make(project):
        path = project.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    return make


def folder(name):
    def make(project):
        path = project.root / name
        if path.is_file():
            path.unlink()
        path.mkdir(parents=True, exist_ok=True)

    return make


def pipe(name):
    def make(project):
        (project.root / name).unlink()
        os.mkfifo(project.root / name)

    return make


def replaced(old, new):
    """recipe.json with a piece of its text replaced, so that it can be what no JSON writer writes."""

    def make(project):
        text = project.recipe().read_text()
        assert old in text
        project.write("recipe.json", text.replace(old, new))

    return make


def two_stages(first, second):
    """Two stages, each (teacher or None, student name, further fields of the student)."""

    def make(project):
        source = {"text": ["text"], "segmenter": "words", "tokenizer": "teacher"}
        stages = [
            {"name": name, "teacher": teacher, "students": {student: {"config": "student.json", **more}}}
            for name, (teacher, student, more) in zip(("one", "two"), (first, second), strict=True)
        ]
        defaults = {"data": source, "max_seq_length": 32, "steps": 2}
        project.write("recipe.json", {"output_dir": "out", "defaults": defaults, "stages": stages})

    return make


def safetensors(header, data=b"", *, says=None):
    """The teacher's weights as a header (JSON value or bytes) and data; `says` lies about the header's length."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return file("teacher/model.safetensors", struct.pack("<Q", len(header) if says is None else says) + header + data)


def tensor(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def index(weight_map):
    def make(project):
        (project.root / "teacher/model.safetensors").unlink()
        project.write("teacher/model.safetensors.index.json", {"weight_map": weight_map})

    return make


def tokenizer_json(**parts):
    """A tokenizer.json beside the teacher's vocab.txt, which transformers prefers."""

    def make(project):
        vocabulary = {token: i for i, token in enumerate(VOCAB)}
        model = {"type": "WordPiece", "unk_token": "[UNK]", "vocab": vocabulary, "continuing_subword_prefix": "##",
                 "max_input_chars_per_word": 100}  # fmt: skip
        whole = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "model": model}
        project.write("teacher/tokenizer.json", {**whole, **parts})

    return make


def ltp(config, **files):
    def make(project):
        project.write("ltp/config.json", config)
        for name, content in files.items():
            project.write(f"ltp/{name.replace('__', '.')}", content)
        project.recipe(data={"segmenter": "ltp:ltp"})

    return make


def neural(**changes):
    """A neural LTP config, changed, with files that are there."""
    model = {"_ltp_target_": "ltp_core.models.ltp_model.LTPModule", "backbone": {}, "processor": {}, "heads": {}}
    config = {"nerual": True, "vocabs": {"cws": ["I-W", "B-W"]}, "model": {**model, **changes}}
    return ltp(config, vocab__txt="\n".join(VOCAB), pytorch_model__bin="x")


def saved_dataset(**files):
    def make(project):
        for name, content in files.items():
            project.write(f"saved/{name}.json", content)
        project.recipe(data={"text": ["saved"]})

    return make


DEEP = "[" * 10_000 + "]" * 10_000
BIG = "9" * 400

# name: (what is done to the tiny project, what the line must say)
HOSTILE = {
    # ---- any JSON file
    "brackets without end": (file("recipe.json", DEEP), "recipe.json: brackets nested over 100 deep"),
    "objects without end": (file("recipe.json", '{"a":' * 10_000), "recipe.json: brackets nested over 100 deep"),
    "brackets in a config": (file("student.json", DEEP), "student.json: brackets nested over 100 deep"),
    "brackets in a data json": (data_json(DEEP), "data.json: brackets nested over 100 deep"),
    "100 MB": (file("recipe.json", b" " * 100_000_000), "recipe.json: over 64 MB"),
    "empty recipe": (file("recipe.json", ""), "recipe.json, line 1: Expecting value"),
    "invalid UTF-8": (file("recipe.json", b'{"output_dir": "\xff"}'), "recipe.json: not UTF-8 at byte 16"),
    "UTF-16": (file("recipe.json", "{}".encode("utf-16")), "recipe.json: not UTF-8 at byte 0"),
    "NUL bytes": (file("recipe.json", b"\0" * 1000), "recipe.json, line 1"),
    "byte-order mark alone": (file("recipe.json", b"\xef\xbb\xbf"), "recipe.json, line 1: Expecting value"),
    "half a character": (replaced('"out"', '"\\ud800"'), "recipe.json: a string holds half of a character"),
    "NUL in a path": (replaced('"out"', '"o\\u0000t"'), "recipe.json: a string holds a NUL character"),
    "a key twice": (replaced('"stages"', '"stages": [], "stages"'), "recipe.json: 'stages' stands twice"),
    "a student twice": (
        file("recipe.json", '{"stages": [{"students": {"a": {}, "a": {}}}]}'),
        "recipe.json: 'a' stands twice in one object",
    ),
    "Infinity": (replaced('"steps": 2', '"steps": Infinity'), "recipe.json: Infinity is no number"),
    "1e400": (replaced('"steps": 2', '"epochs": 1e400'), "recipe.json: the number 1e400 is too large"),
    "400 digits": (replaced('"steps": 2', f'"steps": {BIG}'), r"recipe.json: the number 9+\.\.\. is too large"),
    "5000 digits": (replaced('"steps": 2', f'"steps": {"9" * 5000}'), r"recipe.json: the number 9+\.\.\. is too large"),
    "a folder as recipe": (both(lambda p: (p.root / "recipe.json").unlink(), folder("recipe.json")), "found a folder"),
    "a link to itself": (link("recipe.json", "recipe.json"), "recipe.json: cannot be read .Too many levels"),
    "a pipe": (pipe("recipe.json"), "recipe.json: found no plain file"),
    "a device": (link("recipe.json", "/dev/zero"), "recipe.json: found no plain file"),
    "a dangling link": (link("recipe.json", "nowhere"), "recipe.json: no such file"),
    # ---- recipes
    "a list": (file("recipe.json", "[]"), "recipe.json: a recipe is a JSON object"),
    "null": (file("recipe.json", "null"), "recipe.json: a recipe is a JSON object"),
    "no stages": (top(stages=[]), "stages: .*at least 1"),
    "stages an object": (top(stages={}), "'stages' must be a list of stages"),
    "a stage that is a string": (top(stages=["one"]), r"stages\[0\]: expected an object"),
    "students a list": (stage(students=["small"]), "stage 'one': students: expected an object"),
    "no students": (stage(students={}), "stage 'one', students: .*at least 1"),
    "true for steps": (stage(steps=True), "stage 'one', steps: .*found true"),
    "true for a rate": (student(learning_rate=True), "student 'small', learning_rate: .*found true"),
    "a string for steps": (stage(steps="2"), "stage 'one', steps: .*found \"2\""),
    "a broken number of steps": (stage(steps=2.5), "stage 'one', steps: .*found 2.5"),
    "too many steps": (stage(steps=10**12), "stage 'one', steps: .*found 1000000000000"),
    "a list for a rate": (student(learning_rate=[1]), "learning_rate: .*found"),
    "1 for true": (data(skip_bad=1), "data, skip_bad: .*found 1"),
    "steps and epochs": (stage(steps=2, epochs=1), "give either 'steps' or 'epochs'"),
    "null data": (stage(data=None), "stage 'one', data: "),
    "data a number": (stage(data=7), "stage 'one', data: "),
    "text a number": (data(text=7), "data, text: .*found 7"),
    "an empty text name": (data(text=[""]), "a text has an empty name"),
    "mask probability true": (data(mask_probability=True), "mask_probability: .*found true"),
    "stage name with a slash": (stage(name="a/b"), "stage 'a/b', name: .*found \"a/b\""),
    "stage name that climbs": (stage(name="../up"), 'name: .*found "../up"'),
    "stage name a dot": (stage(name=".."), "name: .*found"),
    "stage name with a newline": (stage(name="one\n"), "name: .*found"),
    "stage name of 101 letters": (stage(name="a" * 101), "name: .*at most 100 characters"),
    "student name that climbs": (stage(students={"../../up": {"config": "student.json"}}), r"student '../../up'"),
    "absolute student name": (stage(students={"/tmp/up": {"config": "student.json"}}), "student '/tmp/up'"),
    "empty student name": (stage(students={"": {"config": "student.json"}}), "student ''"),
    "a key of a megabyte": (top(**{"k" * 1_000_000: 1}), "unknown key 'kkk"),
    "escape sequences in a key": (top(**{"\x1b[2J\n\r": 1}), r"unknown key '\\x1b\[2J \\r'"),
    "a teacher made later": (
        two_stages(("second", "first", {}), (None, "second", {})),
        "stage 'one', teacher: 'second' is made by the later stage 'two'",
    ),
    "a teacher that is its own student": (
        two_stages(("first", "first", {}), (None, "second", {})),
        "stage 'one', teacher: 'first' is made by this stage itself",
    ),
    "an init made later": (
        two_stages((None, "first", {"init": "second"}), (None, "second", {})),
        "stage 'one', student 'first', init: 'second' is made by the later stage 'two'",
    ),
    "a match weight that is true": (
        student(matches=[{"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "hidden_mse", "weight": True}]),
        "match weight must be a number",
    ),
    "a match that is a number": (student(matches=[3]), "matches"),
    "a match with a list as loss": (
        student(matches=[{"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": ["hidden_mse"]}]),
        "unknown loss",
    ),
    "a match with an object as feature": (
        student(matches=[{"layer_T": 0, "layer_S": 0, "feature": {}, "loss": "hidden_mse"}]),
        "unknown feature",
    ),
    "an empty output folder": (top(output_dir=""), "output_dir: "),
    "a link as model folder": (
        both(folder("mine"), link("out/models/small", "../../mine")),
        "out/models/small: a symbolic link",
    ),
    "a link as checkpoints": (
        both(folder("mine"), folder("out/stages/one"), link("out/stages/one/checkpoints", "../../../mine")),
        "out/stages/one/checkpoints: a symbolic link",
    ),
    "somebody's files as model folder": (
        file("out/models/small/thesis.txt", "mine"),
        "out/models/small: something else than a model is there",
    ),
    # ---- configs of students
    "true layers": (config(num_hidden_layers=True), "student.json: 'num_hidden_layers' must be a whole number"),
    "negative layers": (config(num_hidden_layers=-2), "'num_hidden_layers' must be a whole number above 0, found -2"),
    "no layers": (config(num_hidden_layers=0), "'num_hidden_layers' must be a whole number above 0, found 0"),
    "a broken width": (config(hidden_size=16.0), "'hidden_size' must be a whole number above 0, found 16.0"),
    "a million layers": (config(num_hidden_layers=10**6), "'num_hidden_layers' is 1,000,000, over 512"),
    "a width of a billion": (config(hidden_size=10**9), "'hidden_size' is 1,000,000,000, over"),
    "dropout a string": (config(hidden_dropout_prob="0.1"), "'hidden_dropout_prob' must be a number .*found \"0.1\""),
    "dropout of 2": (
        config(hidden_dropout_prob=2),
        "'hidden_dropout_prob' must be a number from 0 to below 1, found 2",
    ),
    "epsilon null": (config(layer_norm_eps=None), "'layer_norm_eps' must be a number .*found null"),
    "epsilon negative": (config(layer_norm_eps=-1), "'layer_norm_eps' must be a number .*found -1"),
    "activation a list": (config(hidden_act=["gelu"]), r'unknown hidden_act \["gelu"\]'),
    "padding beyond the vocabulary": (config(pad_token_id=10**6), "'pad_token_id' must be one of .*found 1000000"),
    "a decoder": (config(is_decoder=True), "'is_decoder' is true; only false is BERT's encoder"),
    "other positions": (config(position_embedding_type="relative_key"), 'only "absolute" is BERT\'s encoder'),
    "code in a config": (config(auto_map={"AutoModel": "evil.Model"}), "student.json: 'auto_map' names Python code"),
    "quantised": (config(quantization_config={"quant_method": "bitsandbytes"}), "'quantization_config'"),
    "model type a list": (config(model_type=["bert"]), "model_type is .*only 'bert' models"),
    "a config that is a folder": (
        both(lambda p: (p.root / "student.json").unlink(), folder("student.json")),
        "student.json/config.json: no such file",
    ),
    # ---- weights
    "a header longer than the file": (safetensors({}, says=10**12), "model.safetensors: cannot be read as weights"),
    "a header of no length": (safetensors(b"", says=0), "model.safetensors: cannot be read as weights"),
    "a header that is no JSON": (safetensors(b"{" * 100), "model.safetensors: cannot be read as weights"),
    "a header of a list": (safetensors([]), "model.safetensors: cannot be read as weights"),
    "a tensor beyond the file": (
        safetensors({"x": tensor(offsets=(0, 10**15), shape=(10**14, 2))}),
        "model.safetensors: cannot be read as weights",
    ),
    "overlapping tensors": (
        safetensors({"x": tensor(), "y": tensor()}, b"\0" * 4),
        "model.safetensors: cannot be read as weights",
    ),
    "no tensors": (safetensors({}), "teacher: 69 weights are missing, the first is bert.embeddings"),
    "empty weights": (file("teacher/model.safetensors", b""), "model.safetensors: cannot be read as weights"),
    "weights of other widths": (
        file("teacher/config.json", bert(num_hidden_layers=4, intermediate_size=64)),
        r"teacher: bert\..* is \[.*32.*\], but by config.json it must be \[.*64.*\]",
    ),
    "weights of fewer layers": (file("teacher/config.json", bert(num_hidden_layers=9)), "80 weights are missing"),
    "an index that climbs": (index({"x": "../student.json"}), 'lists "../student.json", which is no file beside it'),
    "an absolute index": (index({"x": "/etc/passwd"}), 'lists "/etc/passwd", which is no file beside it'),
    "an index of numbers": (index({"x": 3}), "lists 3, which is no file beside it"),
    "an empty index": (index({}), "no index of weight files"),
    "an adapter": (file("teacher/adapter_config.json", {}), "teacher: an adapter for a model"),
    "a pickle of a list": (
        both(teacher(form="bin"), lambda p: __import__("torch").save([1, 2], p.root / "teacher/pytorch_model.bin")),
        "pytorch_model.bin: cannot be read as weights .it holds a list",
    ),
    "a zip that is no checkpoint": (
        both(teacher(form="bin"), file("teacher/pytorch_model.bin", b"PK\x03\x04" + b"\0" * 100)),
        "pytorch_model.bin: cannot be read as weights",
    ),
    # ---- tokenizers
    "a vocabulary with a token twice": (
        other_vocabulary("teacher", [*VOCAB[:-1], VOCAB[5]]),
        rf"the model has {len(VOCAB)} vocabulary rows, but the tokenizer of teacher has {len(VOCAB) - 1} tokens.*check",
    ),
    "a vocabulary without [MASK]": (
        other_vocabulary("teacher", [t if t != "[MASK]" else "x" for t in VOCAB]),
        r"teacher: the vocabulary has no \[MASK\]",
    ),
    "a vocabulary with a byte-order mark": (
        file("teacher/vocab.txt", "\ufeff" + "\n".join(VOCAB)),
        r"teacher: the vocabulary has no \[PAD\]",
    ),
    "an empty vocabulary": (file("teacher/vocab.txt", ""), "teacher/vocab.txt: no tokens in it"),
    "a vocabulary in GBK": (file("teacher/vocab.txt", "[PAD]\n天".encode("gbk")), "teacher/vocab.txt: not UTF-8"),
    "a vocabulary that is a folder": (
        both(lambda p: (p.root / "teacher/vocab.txt").unlink(), folder("teacher/vocab.txt")),
        "teacher: no tokenizer there",
    ),
    "tokenizer.json broken": (file("teacher/tokenizer.json", "{"), "teacher/tokenizer.json, line 1"),
    "tokenizer.json without model": (tokenizer_json(model=None), "tokenizer.json: its model is null"),
    "tokenizer.json of BPE": (tokenizer_json(model={"type": "BPE", "vocab": {}}), 'its model is "BPE"; only BERT'),
    "tokenizer.json with ids that repeat": (
        tokenizer_json(model={"type": "WordPiece", "vocab": {"a": 0, "b": 0}}),
        "model.vocab gives ids twice",
    ),
    "tokenizer.json with an id of a billion": (
        tokenizer_json(model={"type": "WordPiece", "vocab": {"a": 0, "b": 10**9}}),
        "model.vocab gives ids twice or far beyond",
    ),
    "tokenizer.json with ids that are words": (
        tokenizer_json(model={"type": "WordPiece", "vocab": {"a": "0"}}),
        "tokenizer.json: has no model.vocab",
    ),
    "tokenizer.json with added tokens that are none": (
        tokenizer_json(added_tokens=[{"id": -1}]),
        "tokenizer.json: 'added_tokens' is no list of tokens",
    ),
    "tokenizer.json with a normalizer that is none": (
        tokenizer_json(normalizer={"type": "Replace", "pattern": {"Regex": "(a+)+$"}}),
        "teacher: its tokenizer files cannot be used",
    ),
    "code in a tokenizer": (
        file("teacher/tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}),
        "teacher/tokenizer_config.json: 'auto_map' names Python code",
    ),
    "tokenizer settings a list": (file("teacher/tokenizer_config.json", []), "tokenizer_config.json: .*JSON object"),
    "tokenizer settings of other types": (
        file("teacher/tokenizer_config.json", {"do_lower_case": {"a": 1}}),
        "tokenizer_config.json: 'do_lower_case' must be true or false",
    ),
    "special tokens that are none": (
        file("teacher/tokenizer_config.json", {"mask_token": {"a": 1}}),
        "teacher: its tokenizer files cannot be used",
    ),
    "special tokens a list": (file("teacher/special_tokens_map.json", [1]), "special_tokens_map.json: .*JSON object"),
    # ---- data JSON
    "data json a number": (data_json("3"), "data.json: .*JSON object in braces, found 3"),
    "data json with a section twice": (data_json('{"train": {}, "train": {}}'), "data.json: 'train' stands twice"),
    "data json of numbers": (data_json({"train": {"train_files": [1]}}), "'train_files' must be a list of file names"),
    "data json with an empty name": (data_json({"train": {"train_files": [""]}}), "must be a list of file names"),
    "data json with NUL": (data_json({"train": {"train_files": ["a\0"]}}), "must be a list of file names"),
    "data json with false": (data_json({"train": {"train_files": False}}), "must be a list of file names, found false"),
    "data json that is a folder": (
        both(data_json({}), lambda p: (p.root / "data.json").unlink(), folder("data.json")),
        "data.json: found a folder",
    ),
    "data json with a folder as text": (data_json({"train": {"train_files": ["text"]}}), "text, which is not a file"),
    "data json with a name too long": (
        data_json({"train": {"train_files": ["x" * 300]}}),
        "x, which is not a file",
    ),
    # ---- segmenters
    "an LTP config that is a list": (ltp([]), "ltp/config.json: not an LTP config"),
    "an LTP config nested deep": (ltp(DEEP), "ltp/config.json: brackets nested"),
    "an LTP config of another kind": (ltp({"nerual": "yes"}), "ltp/config.json: not an LTP config"),
    "an LTP model elsewhere": (
        ltp({"nerual": False, "tasks": {"cws": "../student.json"}}),
        "names no word segmentation model beside it",
    ),
    "an LTP model at an absolute path": (
        ltp({"nerual": False, "tasks": {"cws": "/etc/passwd"}}),
        "names no word segmentation model beside it",
    ),
    "LTP that runs a command": (
        neural(_ltp_target_="os.system", command="touch pwned"),
        "wants to run 'os.system', which is not LTP's",
    ),
    "LTP that runs a command in a list": (
        neural(heads={"cws": [{"_ltp_target_": "subprocess.run"}]}),
        "wants to run 'subprocess.run', which is not LTP's",
    ),
    "LTP that reaches through its own modules": (
        neural(heads={"cws": {"_ltp_target_": "ltp_core.models.lit_model.torch.hub.load"}}),
        "wants to run 'ltp_core.models.lit_model.torch.hub.load'",
    ),
    "LTP whose target is a number": (neural(heads={"_ltp_target_": 3}), "wants to run '3'"),
    "LTP with code of its own": (
        neural(backbone={"config": {"auto_map": {"AutoModel": "x"}}}),
        "'auto_map' names code",
    ),
    "LTP with a kernel of its own": (
        neural(backbone={"config": {"attn_implementation": "evil/kernel"}}),
        "'attn_implementation' names code",
    ),
    "a dictionary with NUL": (
        both(file("words.txt", "天\0气 x y\n"), data(segmenter="jieba", dictionary="words.txt")),
        "dictionary words.txt: line 1",
    ),
    "an empty dictionary": (
        both(file("words.txt", ""), data(segmenter="jieba", dictionary="words.txt")),
        "dictionary words.txt: no words",
    ),
    # ---- texts
    "a saved dataset without its files": (saved_dataset(state={}), "saved/state.json: not what `datasets` writes"),
    "a saved dataset elsewhere": (
        saved_dataset(state={"_data_files": [{"filename": "../student.json"}]}),
        "saved/state.json: not what `datasets` writes",
    ),
    "a saved dataset nested deep": (saved_dataset(state=DEEP), "saved/state.json: brackets nested"),
    "splits that are numbers": (saved_dataset(dataset_dict={"splits": [3]}), "saved/dataset_dict.json: not what"),
    "a loop of links as text": (
        both(link("loop.txt", "loop.txt"), data(text=["loop.txt"])),
        "data: loop.txt: no text found",
    ),
    "a name that is no UTF-8": (
        lambda p: Path(os.fsdecode(os.fsencode(p.root) + b"/text/\xff.txt")).write_text("x"),
        r"text/\\udcff.txt: the name of this file is not UTF-8",
    ),
    "a field of lines": (data(text=["text/a.txt#title"]), "lines of text have no fields"),
    # ---- the folder of a run
    "recipe.json a list": (file("out/recipe.json", "[]"), "out/recipe.json .*a recipe is a JSON object"),
    "recipe.json cut short": (file("out/recipe.json", '{"stages": ['), "out/recipe.json, line 1: "),
    "recipe.json a folder": (folder("out/recipe.json"), "out/recipe.json: found a folder"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_give_one_line_and_write_nothing(case, project, capsys):
    change, message = HOSTILE[case]
    change(project)
    start = time.monotonic()
    with nothing_written(project):
        line = complaint(capsys, *TRAIN)
    assert re.search(message, line), line
    assert time.monotonic() - start < SECONDS
    assert not (project.root / "pwned").exists() and len(line) < 1_100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", "true"), "steps: .*found true"),
        (("--steps", "1e400"), "steps: .*found"),
        (("--learning-rate", "NaN"), 'learning_rate: .*found "NaN"'),
        (("--matches", "[" * 2000), "unknown match|matches"),
        (("--set", "stages.one.data.text.a.b=1"), "no 'a'"),
        (("--set", "stages.one.students.small.matches.x=1"), "--set stages.one.students.small.matches.x"),
        (("--set", "stages=1"), "name a field of one stage or student"),
        (("--set", "=1"), "--set"),
        (("--output-dir", ""), "output_dir"),
        (("--stage", "zz"), "recipe.json: no stage 'zz'; there are: one"),
        (("--stage", "../one"), "recipe.json: no stage '../one'"),
        (("--nothing\x1b[2J", "1"), r"unknown key '--nothing\\x1b\[2J'"),
    ],
)
def test_hostile_arguments(arguments, message, project, capsys):
    with nothing_written(project):
        line = complaint(capsys, *TRAIN, *arguments)
    assert re.search(message, line), line


def test_a_whole_float_is_a_whole_number(project, capsys):
    """1e5 steps is what people write."""
    from fixtures_cli import run

    project.recipe(stage={"steps": 2.0})
    assert run(*TRAIN, "--global-batch-size", "1e1", "--show-recipe") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["stages"][0]["steps"] == 2 and shown["stages"][0]["global_batch_size"] == 10


# ---- packed datasets


@pytest.fixture
def packed(project, capsys):
    """The project with its text packed; returns it and the dataset's folder."""
    from fixtures_cli import run

    project.write("data.json", {"train": {"train_files": ["text/a.txt"]}})
    done = run("pack", "--data", "data.json", "--tokenizer", "teacher", "--max-seq-length", "32", "--segmenter",
               "words", "--output", "packed", "--processes", "1")  # fmt: skip
    assert done == 0
    return project, Path(capsys.readouterr().out.strip().splitlines()[-1])


def rewrite(folder, change):
    """Writes the rows of a split again, changed by a function of the pyarrow table."""
    import pyarrow as pa

    (path,) = (folder / "train").glob("*.arrow")
    table = change(pa.ipc.open_stream(path.read_bytes()).read_all())
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def damage(name, how):
    def make(folder):
        path = next((folder / "train").glob(name))
        path.write_bytes(how(path.read_bytes()))

    return make


DATASETS = {
    "no state": (lambda f: (f / "train/state.json").unlink(), "not a packed dataset"),
    "no rows": (lambda f: next((f / "train").glob("*.arrow")).unlink(), "damaged or cut short"),
    "cut short": (damage("*.arrow", lambda b: b[: len(b) // 2]), "damaged or cut short|rows are there"),
    "cut at its head": (damage("*.arrow", lambda b: b[:100]), "damaged or cut short"),
    "empty": (damage("*.arrow", lambda b: b""), "damaged or cut short"),
    "no Arrow": (damage("*.arrow", lambda b: b"x" * 5000), "damaged or cut short"),
    "a column missing": (lambda f: rewrite(f, lambda t: t.drop_columns(["continuation"])), "holds other columns"),
    "a column of another length": (
        lambda f: rewrite(f, lambda t: t.set_column(0, "input_ids", t.column("document_start"))),
        "holds other columns",
    ),
    "rows missing": (lambda f: rewrite(f, lambda t: t.slice(1)), "rows are there; remove the packed dataset"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "has no tokenizer/; remove the packed dataset"),
    "an info that is a list": (lambda f: (f / "info.json").write_text("[]"), "info.json: .*JSON object"),
    "an info that is broken": (lambda f: (f / "info.json").write_text("{"), "info.json, line 1"),
}


@pytest.mark.parametrize("case", DATASETS)
def test_a_damaged_dataset_gives_one_line(case, packed, capsys):
    project, folder = packed
    change, message = DATASETS[case]
    change(folder)
    with nothing_written(project):
        line = complaint(capsys, "inspect", str(folder))
    assert re.search(message, line), line


# ---- what only reading the text finds: rows and references are not left behind


def references(*lines):
    """A data JSON whose references are these lines, then empty lists."""

    def make(project):
        number = len((project.root / "text/a.txt").read_text(encoding="utf-8").splitlines())
        project.write("a_ref.txt", "".join(f"{line}\n" for line in [*lines, *["[]"] * (number - len(lines))]))
        train = {"train_files": ["text/a.txt"], "train_ref_files": ["a_ref.txt"]}
        data_json({"train": train})(project)

    return make


def text(name, content):
    return both(lambda p: (p.root / "text/a.txt").unlink(), file(f"text/{name}", content))


REFERENCE = r"a_ref.txt: line 1: found .*, not a JSON list of ascending positions"
READ = {
    "a reference that is an object": (references("{}"), REFERENCE),
    "a reference that is a number": (references("3"), REFERENCE),
    "a negative mark": (references("[-1]"), REFERENCE),
    "the mark of [CLS]": (references("[0]"), REFERENCE),
    "a mark that is true": (references("[true]"), REFERENCE),
    "a broken mark": (references("[1.5]"), REFERENCE),
    "a mark of 30 digits": (references(f"[{'9' * 30}]"), REFERENCE),
    "a mark of 5000 digits": (references(f"[{'9' * 5000}]"), REFERENCE),
    "a mark with a leading zero": (references("[01]"), REFERENCE),
    "marks nested deep": (references(DEEP), REFERENCE),
    "a mark twice": (references("[2, 2]"), REFERENCE),
    "marks out of range": (references("[999999]"), "a_ref.txt: position 999999 for line 1 of text/a.txt"),
    "no references": (both(references(), file("a_ref.txt", "")), "a_ref.txt: 0 lines, but text/a.txt has"),
    "references not UTF-8": (both(references(), file("a_ref.txt", b"\xff\n")), "a_ref.txt: line 1: not UTF-8"),
    "a .gz that is none": (text("a.txt.gz", b"x" * 100), "a.txt.gz: cannot be read: Not a gzipped file"),
    "a .gz cut short": (text("a.txt.gz", gzip.compress(b"a b\n" * 1000)[:30]), "a.txt.gz: damaged or cut short"),
    "a .xz that is none": (text("a.txt.xz", b"x" * 100), "a.txt.xz: damaged or cut short"),
    "a .zst that is none": (text("a.txt.zst", b"x" * 100), "a.txt.zst: damaged or cut short"),
    "records nested deep": (text("a.jsonl", DEEP), "a.jsonl: line 1: JSON nested too deep"),
    "a record that is a list": (text("a.jsonl", "[]"), "a.jsonl: line 1: a JSON list, not an object"),
    "a record with an object as text": (text("a.jsonl", '{"text": {}}'), "a.jsonl: line 1: field 'text' is"),
    "a .parquet that is none": (text("a.parquet", b"PAR1" * 30), "a.parquet: damaged, or not a .parquet file"),
    "an empty .parquet": (both(text("a.parquet", b""), file("text/b.txt", "a b")), "a.parquet: damaged"),
}


@pytest.mark.parametrize("case", READ)
def test_hostile_text_gives_one_line_and_leaves_no_dataset(case, project, capsys):
    change, message = READ[case]
    change(project)
    start = time.monotonic()
    with nothing_written(project, but=("out",)):
        line = complaint(capsys, *TRAIN)
    assert re.search(message, line), line
    assert time.monotonic() - start < SECONDS
    assert not list((project.root / "out").rglob("info.json")) and not (project.root / "out/recipe.json").exists()


# ---- as a user sees it


@pytest.mark.slow
@pytest.mark.parametrize("case", ["brackets without end", "a key twice", "100 MB", "code in a config", "no tensors"])
def test_the_real_process_says_the_same(case, project):
    change, message = HOSTILE[case]
    change(project)
    done = subprocess.run([sys.executable, "-m", "distill", *TRAIN], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert_one_line(done.stderr)
    assert re.search(message, done.stderr) and done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps"], "--steps has no value"),
        (["--step", "3"], "unknown key '--step'"),
        (["--stage", "zz"], "no stage 'zz'"),
    ],
)
def test_distill_sh_checks_its_arguments_before_it_writes_the_sample(arguments, message, tmp_path):
    """The sample world takes seconds to write; a mistake is said before."""
    if not (ROOT / ".venv").exists() and "VIRTUAL_ENV" not in os.environ:
        pytest.skip("distill.sh would set up an environment")
    script = (ROOT / "distill.sh").read_text()
    lines = [line for line in script.splitlines() if "jsons/recipes/sample.json" in line or "distill sample" in line]
    assert "--show-recipe" in lines[0] and "distill sample" in lines[1]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), str(ROOT / "jsons/recipes/sample.json"), *arguments, "--show-recipe"],
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2 and message in done.stderr
    assert_one_line(done.stderr)
    assert not list(tmp_path.iterdir())


def test_a_config_that_may_not_be_read(project, capsys):
    if not hasattr(os, "geteuid") or os.geteuid() == 0:
        pytest.skip("root reads everything")
    (project.root / "student.json").chmod(0)
    assert "student.json: cannot be read (Permission denied)" in complaint(capsys, *TRAIN)


def test_a_damaged_half_of_the_weights(project, capsys):
    cut("teacher/model.safetensors")(project)
    assert "cannot be read as weights" in complaint(capsys, *TRAIN)
