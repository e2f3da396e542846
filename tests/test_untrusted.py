"""Folders from strangers are data: nothing in them runs, nothing outside is touched, no small file takes all memory."""

import gzip
import json
import os
import pickle
import re
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from cases import both, stage
from fixtures_cli import ROOT, VOCAB, complaint, run
from transformers import BertConfig, BertForMaskedLM

import distill
from distill.corpus.inspection import Inspection, ShownRow, ShownToken
from distill.corpus.inspection_page import page
from distill.corpus.ltp_models import inspect_folder
from distill.corpus.rows import RowWriter
from distill.corpus.segment import load_segmenter
from distill.corpus.text import iter_lines
from distill.errors import InputError
from distill.modeling.config import load_config
from distill.modeling.counting import count_parameters
from distill.modeling.models import load_masked_lm, load_tokenizer
from distill.modeling.weights import read_weights
from distill.release.card import first_cards
from distill.release.run_folder import RunFolder

pytest_plugins = ["fixtures_cli"]


class Touches:
    """What a stranger's pickle holds: opened, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def old_pickle(path: Path, value: object) -> None:
    path.write_bytes(pickle.dumps(value))


def old_torch(path: Path, value: object) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [lambda path, value: torch.save(value, path), old_torch, old_pickle])
@pytest.mark.parametrize("hidden", [lambda touches: touches, lambda touches: {"bert.x": touches}])
def test_weights_that_would_run_code_are_refused_and_not_run(project, capsys, write, hidden):
    """transformers, torch and our own reader of weights: each of them is asked."""
    mark, folder = project.root / "was_run", project.model("teacher", num_hidden_layers=4, form="bin")
    write(folder / "pytorch_model.bin", hidden(Touches(mark)))
    for read in (load_masked_lm, read_weights):
        with pytest.raises(InputError, match="cannot be read as weights"):
            read(folder)
    with pytest.raises(Exception, match="[Ww]eights.only|Unsupported|pickle|loading"):
        BertForMaskedLM.from_pretrained(folder, config=load_config(folder), weights_only=True)
    assert "cannot be read as weights" in complaint(capsys, "train", "recipe.json")
    assert not mark.exists()


def test_the_pickle_of_these_tests_would_run(tmp_path):
    """Else they would show nothing."""
    torch.save(Touches(tmp_path / "was_run"), tmp_path / "x.bin")
    torch.load(tmp_path / "x.bin", weights_only=False).close()
    assert (tmp_path / "was_run").exists()


def test_code_beside_a_model_is_not_imported(project, capsys):
    """A modeling_*.py is what auto_map would name; without auto_map nobody looks at it."""
    project.write("teacher/modeling_bert.py", "open('was_run', 'w')\n")
    project.write("teacher/tokenization_bert.py", "open('was_run', 'w')\n")
    project.write("teacher/tokenizer_config.json", {"tokenizer_class": "EvilTokenizer"})
    load_masked_lm(project.root / "teacher")
    assert len(load_tokenizer(project.root / "teacher")) == len(VOCAB)
    assert run("train", "recipe.json", "--dry-run") == 0
    assert not (project.root / "was_run").exists()


def test_a_config_cannot_choose_a_kernel_of_the_hub(project):
    """transformers fetches and runs `attn_implementation: OWNER/NAME`; such keys do not reach it."""
    config = json.loads((project.root / "student.json").read_text())
    config |= {"attn_implementation": "evil/kernel", "_attn_implementation": "evil/kernel", "use_kernels": True,
               "dtype": "float16", "torch_dtype": "system"}  # fmt: skip
    project.write("student.json", config)
    loaded = load_config(project.root / "student.json")
    assert count_parameters(loaded).encoder > 0
    assert "evil" not in json.dumps(loaded.to_dict()) and loaded.dtype is None


def neural_folder(project, **backbone):
    """A neural LTP model of random weights, as LTP saves them."""
    from ltp.nerual import LTP

    sizes = {"model_type": "bert", "vocab_size": len(VOCAB), "hidden_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "intermediate_size": 32}  # fmt: skip
    head = {"_ltp_target_": "ltp_core.models.components.token.MLPTokenClassifier", "input_size": 16, "num_labels": 2,
            "dropout": 0.1}  # fmt: skip
    config = {
        "nerual": True, "vocabs": {"cws": ["I-W", "B-W"]},
        "model": {
            "_ltp_target_": "ltp_core.models.ltp_model.LTPModule",
            "backbone": {"_ltp_target_": "ltp_core.models.utils.load_transformers", "config": {**sizes, **backbone}},
            "processor": {"cws": {"_ltp_target_": "ltp_core.models.processor.TokenOnly"}}, "heads": {"cws": head},
        },
    }  # fmt: skip
    project.write("ltp/config.json", config)
    project.tokenizer("ltp")
    torch.save(LTP(config=config).model.state_dict(), project.root / "ltp/pytorch_model.bin")
    return project.root / "ltp"


def test_a_neural_ltp_folder_runs_nothing_of_its_own(project, capfd):
    """Told nothing of remote code, transformers would ask at the terminal whether to run it."""
    folder = neural_folder(project)
    assert load_segmenter(f"ltp:{folder}").segment(["天气很好"])
    project.write("ltp/tokenization_evil.py", "open('was_run', 'w')\n")
    evil = {"auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]}}
    for settings in (evil, {"tokenizer_class": "Evil"}):
        project.write("ltp/tokenizer_config.json", settings)
        try:
            load_segmenter(f"ltp:{folder}")
        except InputError as error:
            assert "\n" not in str(error)
    assert not (project.root / "was_run").exists() and "[y/N]" not in capfd.readouterr().out


def test_ltp_weights_that_would_run_code_are_refused(project):
    folder = neural_folder(project)
    torch.save({"x": Touches(project.root / "was_run")}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="not a plain state_dict of tensors"):
        load_segmenter(f"ltp:{folder}")
    assert not (project.root / "was_run").exists()


@pytest.mark.parametrize("target", ["instantiate.find_callable", "instantiate", "instantiate.importlib.import_module"])
def test_only_parts_of_models_are_built(project, target):
    """They lie in LTP's own modules, but import or call what they are told to."""
    folder = neural_folder(project)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["heads"]["cws"] = {
        "_ltp_target_": f"ltp_core.models.utils.{target}", "target": "os.system", "name": "antigravity",
    }  # fmt: skip
    project.write("ltp/config.json", config)
    with pytest.raises(InputError, match="wants to run|is not in the ltp"):
        load_segmenter(f"ltp:{folder}")


def test_a_model_of_wrong_arguments_is_one_line(project):
    folder = neural_folder(project)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["heads"]["cws"]["input_size"] = "wide"
    project.write("ltp/config.json", config)
    with pytest.raises(InputError, match="no model that ltp can build"):
        load_segmenter(f"ltp:{folder}")


def test_a_saved_dataset_names_no_python_class(project):
    """`datasets` looks up the types that dataset_info.json names; packed rows are read without it."""
    import numpy as np

    from distill.corpus.rows import PackedRows

    writer = RowWriter(project.root / "rows", max_seq_length=16, vocab_size=100)
    flags = np.zeros((1, 16), dtype=bool)
    writer.write(np.ones((1, 16), dtype=np.int64), flags, flags, np.full(1, 16))
    writer.close()
    project.write("rows/dataset_info.json", {"features": {"x": {"_type": "os.system", "command": "touch was_run"}}})
    assert len(PackedRows(project.root / "rows")) == 1
    assert not (project.root / "was_run").exists()


# ---- what lies outside stays as it is


@pytest.mark.parametrize("place", ["models/small", "stages/one", "stages/one/checkpoints"])
def test_a_link_in_the_output_folder_is_not_followed(project, capsys, place):
    project.write("mine/step-00000001/thesis.txt", "years of work")
    path = project.root / "out" / place
    path.parent.mkdir(parents=True)
    path.symlink_to(project.root / "mine")
    assert "a symbolic link" in complaint(capsys, "train", "recipe.json")
    assert (project.root / "mine/step-00000001/thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", ["../up", "/tmp/up", "a/b", "..", ".hidden", "a\\b", "a b", "a\n", "C:up", ""])
@pytest.mark.parametrize("change", [lambda name: stage(name=name),
                                    lambda name: stage(students={name: {"config": "student.json"}})])  # fmt: skip
def test_a_name_is_no_path(project, capsys, change, name):
    both(change(name))(project)
    assert "should match pattern" in complaint(capsys, "train", "recipe.json")


def test_an_index_reads_no_file_elsewhere(project):
    (project.root / "teacher/model.safetensors").rename(project.root / "model.safetensors")
    project.write("teacher/model.safetensors.index.json", {"weight_map": {"x": "../model.safetensors"}})
    with pytest.raises(InputError, match="which is no file beside it"):
        load_masked_lm(project.root / "teacher")


# ---- text that unpacks to more than there is memory for


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x.txt.gz", "x.txt.xz", "x.txt.zst", "x.jsonl.gz"])
def test_a_gigabyte_in_one_line_is_refused_in_little_memory(tmp_path, name):
    """1 MB that unpacks to 1 GB without a line's end; the system limits the memory of a process of its own."""
    import lzma

    import zstandard

    packed = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}[Path(name).suffix]
    (tmp_path / name).write_bytes(packed(b"0" * (10 << 20)) * 100)  # parts in a row, as pigz and pzstd write them
    assert (tmp_path / name).stat().st_size < 3 << 20
    code = (
        "import resource, sys; from distill.cli import guard; from distill.corpus.text import iter_lines\n"
        "guard(lambda: [len(line) for line in iter_lines(sys.argv[1])])"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))

    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / name)], capture_output=True, text=True, timeout=120,
        preexec_fn=limit, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2 and "line 1: over" in done.stderr, done.stderr[-2000:]
    assert done.stderr.count("\n") == 1


def test_the_longest_line_that_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.corpus.text.MOST_LINE_CHARS", 10)
    (tmp_path / "x.txt").write_text("天" * 10 + "\n" + "气" * 10 + "\r\n" + "好" * 10, encoding="utf-8")
    assert [len(line) for line in iter_lines(tmp_path / "x.txt")] == [10, 10, 10]
    (tmp_path / "x.txt").write_text("天\n" + "气" * 11 + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="x.txt: line 2: over 10 characters"):
        list(iter_lines(tmp_path / "x.txt"))


def test_a_checkpoint_bomb_is_not_unpacked(project):
    """A zip entry of 1 GB of zeros beside a small pickle: names and shapes are read without it."""
    folder = project.model("teacher", num_hidden_layers=4, form="bin")
    torch.save({}, folder / "pytorch_model.bin")
    with zipfile.ZipFile(folder / "pytorch_model.bin", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(100 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="weights are missing|cannot be read as weights"):
        load_masked_lm(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10


# ---- what we write from what others wrote


def test_the_inspection_page_shows_text_and_runs_none():
    evil = "<script>alert(1)</script>"
    tokens = [ShownToken(evil, "plain", None, True, True), ShownToken(evil, "replaced", evil, False, False)]
    html = page(Inspection(f"{evil}/data", evil, [ShownRow(0, tokens)], {}))
    assert "<script" not in html and html.count("&lt;script&gt;") >= 5


def test_a_model_card_shows_names_as_they_are():
    from distill.recipe import Recipe

    evil = "x`\n---\nlicense: evil\n---\n# <script>alert(1)</script> | y"
    data = {"text": ["a"], "mask": "token"}
    students = {"small": {"config": "c", "matches": [evil]}}
    recipe = Recipe.model_validate(
        {
            "output_dir": "out",
            "stages": [{"name": "one", "teacher": evil, "students": students, "data": data, "steps": 1}],
        }
    ).model_dump()
    card = first_cards(["small"], RunFolder(Path("out"), recipe))["small"]
    lines = card.splitlines()
    assert lines.count("---") == 2 and "license: evil" not in lines
    assert not any(line.startswith("# <script>") for line in lines)
    (row,) = [line for line in lines if "layer matches" in line]
    assert row.replace("\\|", "").count("|") == 3


def test_ltp_perceptrons_are_no_pickles(project):
    """Their file is Avro or JSON: what is a pickle is refused before LTP sees it."""
    project.write("ltp/config.json", {"nerual": False, "tasks": {"cws": "cws_model.bin"}})
    (project.root / "ltp/cws_model.bin").write_bytes(pickle.dumps(Touches(project.root / "was_run")))
    assert inspect_folder("ltp").files
    with pytest.raises(InputError, match="not an LTP perceptron model"):
        load_segmenter("ltp:ltp")
    assert not (project.root / "was_run").exists()


def test_no_reader_trusts_pickles_or_remote_code():
    """torch.load and from_pretrained say so each time, since their defaults have changed before."""
    for path in sorted(Path(distill.__file__).parent.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for call in ("torch.load(", "pickle.load", "allow_pickle=True", "trust_remote_code=True"):
            for at in (match.start() for match in re.finditer(re.escape(call), text)):
                arguments = text[at : text.index(")", at)]
                assert call == "torch.load(" and "weights_only=True" in arguments, f"{path}: {arguments}"


def test_bert_configs_have_no_field_that_is_not_known_here():
    """A new field of transformers' BertConfig is either taken over by load_config or named here as left out."""
    from dataclasses import fields

    from distill.modeling.config import _FIXED, _TAKEN

    left_out = {"use_cache", "bos_token_id", "eos_token_id"}
    own = {field.name for field in fields(BertConfig)} - {
        field.name for base in BertConfig.__mro__[1:] if hasattr(base, "__dataclass_fields__") for field in fields(base)
    }
    assert own <= _TAKEN | _FIXED.keys() | left_out
