"""Mutated files through every reader of what users and strangers give: InputError or success, soon, and nothing else.

MINIDISTILL_FUZZ=20000 runs that many cases instead of the few of a normal run. A case depends on its target and number
alone; a failure prints both and the mutated bytes.
"""

import contextlib
import gzip
import io
import json
import lzma
import os
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fixtures_cli import ROOT, VOCAB, bert
from mutations import NASTY, mutate_bytes, mutate_json
from references import read_reference

from distill.cli import one_line
from distill.commands.fields import parse_fields
from distill.corpus.data_json import read_data_json
from distill.corpus.ltp_models import inspect_folder
from distill.corpus.rows import PackedRows, RowWriter
from distill.corpus.shards import ShardSetup, tokenize_shard
from distill.corpus.source import iter_shards, scan_sources
from distill.corpus.text import estimate_characters, expand_text, iter_lines
from distill.errors import InputError
from distill.modeling.config import load_config
from distill.modeling.models import load_tokenizer
from distill.modeling.weight_files import weight_shapes
from distill.recipe_file import load_recipe
from distill.training.matches import resolve_matches

CASES = int(os.environ.get("MINIDISTILL_FUZZ", "1500"))
SECONDS = 5
MOST_GROWTH = 500 << 20
"""Bytes by which the process may grow over all cases of a target."""
TEXT = "天气很好\n\n研究生命起源\n今天 T恤 很好\n"
REFERENCE = b"[2, 4]\n[]\n[2, 3, 5]\n[]\n"


@dataclass(frozen=True)
class Target:
    """One reader: the name of the file it reads, its sound contents, and what reads it."""

    file: str
    seeds: list[bytes]
    read: Callable[[Path], object]
    share: int = 1
    is_json: bool = True
    refuses: bool = True
    """Whether its refusals are InputErrors that are counted; others leave out what is bad, or answer."""


def _recipes() -> list[bytes]:
    return [path.read_bytes() for path in sorted((ROOT / "jsons/recipes").glob("*.json"))]


def _read_recipe(path: Path) -> None:
    load_recipe(path)


def _read_with_settings(path: Path) -> None:
    """The mutated text as command-line values of a sound recipe."""
    words = path.read_bytes().decode("utf-8", "replace").replace("\0", "").split("\n")
    recipe = ROOT / "jsons/recipes/minirbt.json"
    load_recipe(recipe, settings=[word for word in words if not word.startswith("--")])
    load_recipe(recipe, parse_fields([word for word in words if word.startswith("--")]))


def _read_names(path: Path) -> None:
    for name in path.read_bytes().decode("utf-8", "replace").replace("\0", "").split("\n"):
        if not name.startswith(("/", "~", ".", "*", "hf:")):  # they would search the machine, or the hub
            for file in expand_text([path.parent / name if name else ""]):
                next(iter_lines(file), None)


def _read_text(path: Path) -> None:
    estimate_characters([path])
    assert sum(map(len, iter_lines(path))) < 1_000_000


def _read_skipping(path: Path) -> None:
    assert sum(map(len, iter_lines(Path(f"{path}#skip-bad")))) < 1_000_000


def _read_reference(path: Path) -> None:
    """Both ways to read references take and refuse the same lines."""
    text = path.with_name("text.txt")
    text.write_text(TEXT, encoding="utf-8")
    positions = read_reference(path, text)
    setup = ShardSetup(_tokenizer_json(), None)
    try:
        for shard in iter_shards(scan_sources([(text, path)])):
            tokenize_shard(shard, setup)
    except InputError as error:
        # What only this way knows: how many tokens a line has.
        assert "tokens; the reference belongs" in str(error) or "is blank" in str(error), (positions, error)


def _tokenizer_json() -> str:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(VOCAB)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer.to_str()


def _whole_tokenizer() -> bytes:
    added = [{"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, token in enumerate(VOCAB[:5])]  # fmt: skip
    return json.dumps({**json.loads(_tokenizer_json()), "added_tokens": added}).encode()


def _read_tokenizer(path: Path) -> None:
    tokenizer = load_tokenizer(path.parent)
    assert len(tokenizer.get_vocab()) < 10_000
    tokenizer("天气很好 T恤", return_offsets_mapping=True)


def _read_tokenizer_settings(path: Path) -> None:
    path.with_name("vocab.txt").write_text("\n".join(VOCAB) + "\n", encoding="utf-8")
    _read_tokenizer(path)


def _read_matches(path: Path) -> None:
    folder = path.parent
    for name, config in (("t.json", bert(num_hidden_layers=12)), ("s.json", bert(num_hidden_layers=6))):
        (folder / name).write_text(json.dumps(config))
    resolve_matches([str(path)], load_config(folder / "t.json"), load_config(folder / "s.json"))


def _read_ltp(path: Path) -> None:
    for name in ("cws_model.bin", "pytorch_model.bin", "vocab.txt"):
        path.with_name(name).write_text("\n".join(VOCAB))
    inspect_folder(str(path.parent))


def _read_rows(path: Path) -> None:
    split = path.parent
    (split / "state.json").write_text("{}")
    rows = PackedRows(split)
    if len(rows):
        rows.rows(np.array([0, len(rows) - 1]))
        rows.document_ids(np.array([0]))


def _packed_rows() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        writer = RowWriter(Path(folder) / "train", max_seq_length=16, vocab_size=100)
        flags = np.zeros((20, 16), dtype=bool)
        writer.write(np.arange(320).reshape(20, 16) % 100, flags, flags, np.full(20, 16))
        writer.close()
        return next((Path(folder) / "train").glob("*.arrow")).read_bytes()


def _safetensors() -> bytes:
    from safetensors.numpy import save

    return save({"bert.x": np.zeros((3, 4), dtype=np.float32), "cls.y": np.ones(2, dtype=np.float16)})


def _table(kind: str) -> bytes:
    table = pa.table({"text": ["天\n气", "很好", ""], "n": [1, 2, 3]})
    sink = io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, sink)
    else:
        new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        with new(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue()


def _checkpoint_state() -> list[bytes]:
    students = {"small": {"optimizer": {"lr": 1e-4}, "scheduler": {"last_epoch": 3}, "scaler": {}}}
    return [json.dumps({"step": 3, "tokens": 99, "students": students}).encode()]


def _read_checkpoint(path: Path) -> None:
    """manifest.json is mutated beside a sound state.json, or state.json beside a manifest that fits it."""
    from distill.training.checkpoint import find_damage

    if path.name == "state.json":
        path.with_name("manifest.json").write_text(json.dumps({"state.json": {"bytes": 1, "sha256": ""}}))
    else:
        path.with_name("state.json").write_bytes(_checkpoint_state()[0])
    assert find_damage(path.parent), "a mutated checkpoint counts as sound"


DATA = {"train": {"train_files": ["text.txt"], "train_ref_files": ["r.txt"]}, "dev": {"dev_files": ["text.txt"]}}
LTP = {"nerual": True, "vocabs": {"cws": ["I-W", "B-W"]},
       "model": {"_ltp_target_": "ltp_core.models.ltp_model.LTPModule", "heads": {"cws": {}}}}  # fmt: skip
TOKENIZER_SETTINGS = {"do_lower_case": True, "model_max_length": 512, "strip_accents": None, "mask_token": "[MASK]",
                      "extra_special_tokens": []}  # fmt: skip
MATCH = {"layer_T": 2, "layer_S": 1, "feature": "hidden", "loss": "hidden_mse", "weight": 1, "proj": ["linear", 16, 16]}
RECORDS = '{"text": "天气"}\n{"text": "a\\nb"}\n'.encode()
SETTINGS = [b"stages.from-rbt6.steps=3", b"stages.from-rbt6.students.minirbt-h256.temperature=4", b"--steps\n30",
            b'--matches=["uniform"]', b"stages.from-rbt6.data.dev=0.1", b'--data\n{"text": ["a"]}']  # fmt: skip
NAMES = [b"text.txt", b"a.jsonl#text", b"*.txt", b"text.txt#skip-bad", b"folder", b"\n".join(str(n).encode() for n in
         NASTY if isinstance(n, str) and n.isascii())]  # fmt: skip

TARGETS = {
    "recipe": Target("recipe.json", _recipes(), _read_recipe, share=6),
    "settings": Target("settings.txt", SETTINGS, _read_with_settings, share=2, is_json=False),
    "data json": Target("data.json", [json.dumps(DATA).encode()], lambda path: read_data_json(path), share=3),
    "reference": Target("r_ref.txt", [REFERENCE], _read_reference, share=3, is_json=False),
    "config": Target("student.json", [json.dumps(bert()).encode(), (ROOT / "distill_configs/RBT6.json").read_bytes()],
                     lambda path: load_config(path), share=3),
    "matches": Target("m.json", [json.dumps([MATCH]).encode()], _read_matches),
    "names": Target("names.bin", NAMES, _read_names, is_json=False),
    "ltp": Target("config.json", [json.dumps(LTP).encode(), b'{"nerual": false, "tasks": {"cws": "cws_model.bin"}}'],
                  _read_ltp),
    "tokenizer": Target("tokenizer.json", [_whole_tokenizer()], _read_tokenizer),
    "tokenizer settings": Target("tokenizer_config.json", [json.dumps(TOKENIZER_SETTINGS).encode()],
                                 _read_tokenizer_settings),
    "vocabulary": Target("vocab.txt", ["\n".join(VOCAB).encode()], _read_tokenizer, is_json=False),
    "safetensors": Target("model.safetensors", [_safetensors()], lambda path: weight_shapes(path.parent),
                          is_json=False),
    "saved dataset": Target("state.json", [b'{"_data_files": [{"filename": "a.arrow"}]}'],
                            lambda path: [list(iter_lines(file)) for file in expand_text([path.parent])]),
    "text": Target("x.txt", [TEXT.encode()], _read_text, is_json=False),
    "text, skipping": Target("x.txt", [TEXT.encode()], _read_skipping, is_json=False, refuses=False),
    "records": Target("x.jsonl", [RECORDS], _read_text, is_json=False),
    "records, skipping": Target("x.jsonl", [RECORDS], _read_skipping, is_json=False, refuses=False),
    "gz": Target("x.txt.gz", [gzip.compress(TEXT.encode() * 20)], _read_text, is_json=False),
    "xz": Target("x.txt.xz", [lzma.compress(TEXT.encode() * 20)], _read_text, is_json=False),
    "zst": Target("x.txt.zst", [zstandard.compress(TEXT.encode() * 20)], _read_text, is_json=False),
    "parquet": Target("x.parquet", [_table("parquet")], _read_text, is_json=False),
    "arrow": Target("x.arrow", [_table("stream"), _table("file")], _read_text, share=2, is_json=False),
    "packed rows": Target("data-00000-of-00001.arrow", [_packed_rows()], _read_rows, is_json=False),
    "checkpoint state": Target("state.json", _checkpoint_state(), _read_checkpoint, refuses=False),
    "checkpoint manifest": Target("manifest.json", [b'{"state.json": {"bytes": 1, "sha256": "0"}}'],
                                   _read_checkpoint, refuses=False),
}  # fmt: skip
SHARES = sum(target.share for target in TARGETS.values())


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def ring(_signum: int, _frame: object) -> None:
        raise TimeoutError(f"over {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def mutate(target: Target, random: Random) -> bytes:
    seed = random.choice(target.seeds)
    if target.is_json and random.random() < 0.6:
        return mutate_json(json.loads(seed), random)
    return mutate_bytes(seed, random)


@pytest.mark.parametrize("name", TARGETS)
def test_only_input_errors_come_out(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = TARGETS[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "r.txt").write_bytes(REFERENCE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused, number = 0, CASES * target.share // SHARES
    for case in range(number):
        content = mutate(target, Random(f"{name} {case}"))
        path = tmp_path / "case" / target.file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        try:
            with time_limit(SECONDS):
                target.read(path)
        except InputError as error:
            refused += 1
            line = one_line(str(error))
            assert len(line) > 10 and line.isprintable(), (case, line)
        except BaseException as error:
            raise AssertionError(f"{name}, case {case}: {type(error).__name__}: {error}\n{content!r:.2000}") from error
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < MOST_GROWTH
    assert refused > number / 20 or not target.refuses, "mutations that nothing refuses test nothing"
