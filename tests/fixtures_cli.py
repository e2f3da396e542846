"""A tiny project folder for tests of the command line: text, vocabulary, models of 16 dimensions, recipes.

PYTEST_DONT_REWRITE: the test modules import functions from here before pytest takes the fixtures.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
beside_the_package = pytest.mark.skipif(
    not (ROOT / "distill").is_dir(), reason="the package is installed, not beside the tests (scripts/test_wheel.sh)"
)
SENTENCES = (ROOT / "tests/data/segmented_sentences.txt").read_text(encoding="utf-8").splitlines()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCAB = SPECIAL + sorted(set("".join(SENTENCES).lower()) - {" "})


def bert(**changes: Any) -> dict[str, Any]:
    """A BertConfig of 2 layers, 16 wide, as JSON value."""
    return {
        "model_type": "bert", "vocab_size": len(VOCAB), "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64, "type_vocab_size": 2,
        "pad_token_id": 0, **changes,
    }  # fmt: skip


@dataclass(frozen=True)
class Project:
    """The working directory of a test."""

    root: Path

    def write(self, name: str, content: Any) -> Path:
        """Writes bytes, text, or anything else as JSON."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            path.write_text(text, encoding="utf-8", newline="\n")
        return path

    def recipe(self, *, stage: dict = {}, student: dict = {}, data: dict = {}, **top: Any) -> Path:
        """Writes recipe.json: one stage, one student of two layers; changes go on top of it."""
        fields = {"teacher": "teacher", "students": {"small": {"config": "student.json", **student}}, "name": "one"}
        source = {"text": ["text"], "dev": 0.1, "segmenter": "words", **data}
        defaults = {"data": source, "max_seq_length": 32, "steps": 2, "global_batch_size": 4, "matches": ["uniform"]}
        recipe = {"output_dir": "out", "report": False, "defaults": defaults, "stages": [{**fields, **stage}], **top}
        return self.write("recipe.json", recipe)

    def model(self, name: str, *, head: bool = True, form: str = "safetensors", **config: Any) -> Path:
        """Writes a model folder with random weights and this project's vocabulary."""
        import torch
        from safetensors.torch import save_file
        from transformers import BertConfig, BertForMaskedLM

        folder = self.root / name
        shutil.rmtree(folder, ignore_errors=True)
        self.tokenizer(name)
        self.write(f"{name}/config.json", bert(**config))
        torch.manual_seed(0)
        state = BertForMaskedLM(BertConfig(**bert(**config))).state_dict()
        if not head:
            state = {key: value for key, value in state.items() if key.startswith("bert.")}
        if form == "bin":
            torch.save(state, folder / "pytorch_model.bin")
        else:
            state.pop("cls.predictions.decoder.weight", None)
            state.pop("cls.predictions.decoder.bias", None)
            save_file({key: value.contiguous() for key, value in state.items()}, folder / "model.safetensors",
                      metadata={"format": "pt"})  # fmt: skip
        return folder

    def tokenizer(self, name: str, vocab: list[str] = VOCAB) -> Path:
        """Writes a folder with vocab.txt."""
        return self.write(f"{name}/vocab.txt", "".join(f"{token}\n" for token in vocab)).parent

    def files(self) -> dict[str, int]:
        """Every path below the working directory, files with the time of their last change."""
        paths = sorted(self.root.rglob("*"))
        return {str(path.relative_to(self.root)): path.stat().st_mtime_ns if path.is_file() else 0 for path in paths}


@pytest.fixture(scope="session")
def _built_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = Project(tmp_path_factory.mktemp("project"))
    # Four lines a document, words split by spaces.
    documents = ["\n".join(SENTENCES[i : i + 4]) for i in range(0, len(SENTENCES), 4)]
    project.write("text/a.txt", "\n\n".join(documents) + "\n")
    project.write("student.json", bert())
    project.model("teacher", num_hidden_layers=4)
    project.recipe()
    return project.root


@pytest.fixture
def project(_built_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of the tiny project, which is the working directory; preparation works in this process."""
    root = tmp_path / "project"
    shutil.copytree(_built_project, root)
    monkeypatch.chdir(root)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    for name in ("NPROC", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "DISTILL_CHILD", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return Project(root)


def run(*arguments: str) -> int:
    """Runs a command in this process and returns its exit code."""
    from distill.cli import main

    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return int(left.value.code or 0)


def children_seconds() -> float:
    """Processor time of the processes that this one has waited for, which a busy machine does not make longer."""
    times = os.times()
    return times.children_user + times.children_system


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of a command that must fail with exit code 2."""
    capsys.readouterr()
    code = run(*arguments)
    err = capsys.readouterr().err
    assert code == 2, err
    assert_one_line(err)
    return err.strip()


def assert_one_line(err: str) -> None:
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert "Traceback" not in err


@contextlib.contextmanager
def nothing_written(project: Project, *, but: tuple[str, ...] = ()) -> Iterator[None]:
    """The working directory is the same afterwards, files below `but` set aside."""

    def seen() -> dict[str, int]:
        return {path: time for path, time in project.files().items() if not path.startswith(but or ("\0",))}

    before = seen()
    yield
    assert seen() == before
