"""Exporting a model folder to ONNX: files, checks, sizes and times in a folder that is served without torch.

1. The graph is written (onnx_model.py) and, if asked for, its int8 and int4 forms.
2. Each file is run on real rows beside the model itself (parity.py); what is beyond the bounds is refused.
3. Everything is timed side by side on the CPU, the teacher too if there is one.
4. The folder gets its name when all is in it: *.onnx, tokenizer files, config.json, and export.json, which says what a
   server must know and what was measured.
"""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.corpus.tokenizing import save_tokenizer
from distill.downstream.exportable import Exportable, GraphModule, plain_attention
from distill.downstream.latency import Shape, Timing, describe_processor, make_shapes, time_shape, using_threads
from distill.downstream.onnx_model import INPUTS, Inputs, Run, open_onnx, write_int4, write_int8, write_onnx
from distill.downstream.parity import Bounds, Rows, check_exact, check_kept, check_parity, make_reference
from distill.downstream.scores import Table
from distill.downstream.tags import tag_names
from distill.durable import whole_folder, write_json
from distill.errors import InputError
from distill.modeling.config import config_file
from distill.modeling.weight_files import list_weight_files

EXPORT_FILE = "export.json"
FILES = {"onnx": "model.onnx", "int8": "model_int8.onnx", "int4": "model_int4.onnx"}
_QUANTIZERS = {"int8": write_int8, "int4": write_int4}
_LENGTHS = (32, 128)
_BATCH_SIZES = (1, 32)
_NAMES = {"torch": "PyTorch", "onnx": "ONNX", "int8": "ONNX int8", "int4": "ONNX int4", "teacher": "teacher, PyTorch"}


def check_output(output: Path) -> None:
    """InputError if something else than an earlier export is at `output`."""
    if output.exists() and not (output / EXPORT_FILE).is_file() and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(f"{output}: there, and no export (no {EXPORT_FILE}); name a new folder")


def export_model(
    exportable: Exportable, output: Path, rows: Rows, *, quantized: Sequence[str], bounds: Bounds,
    teacher: Exportable | None = None, threads: int, seconds: float, show: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Writes the export folder, whole or not at all; what was there is replaced.

    Args:
        rows: what parity is checked on.
        quantized: further forms, "int8" and "int4".
        teacher: a larger model for the tables of sizes and times.
        threads: of the forwards that are timed.
        seconds: each model is timed in each shape, at least.
    Returns: what export.json holds.
    Raises:
        InputError: an export beyond the bounds; nothing of it is left.
    """
    with whole_folder(output.absolute()) as folder:
        return _fill_folder(exportable, folder, rows, quantized, bounds, teacher, threads, seconds, show)


def _fill_folder(
    exportable: Exportable, folder: Path, rows: Rows, quantized: Sequence[str], bounds: Bounds,
    teacher: Exportable | None, threads: int, seconds: float, show: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    reference = make_reference(exportable, rows)
    forms: dict[str, dict[str, Any]] = {
        "torch": {"bytes": weight_bytes(exportable.folder), "metrics": reference.metrics}
    }
    for form in ("onnx", *quantized):
        path = folder / FILES[form]
        if form == "onnx":
            write_graph(exportable, path)
        else:
            _QUANTIZERS[form](folder / FILES["onnx"], path)
        parity = check_parity(exportable, open_onnx(path, threads=threads), rows, reference)
        where = f"{exportable.folder}: {path.name}"
        if form == "onnx":
            check_exact(where, parity)
        else:
            check_kept(where, parity, reference.metrics, bounds)
        forms[form] = {
            "file": path.name, "bytes": path.stat().st_size, "max_abs_difference": parity.max_abs,
            "cosine": parity.cosine, "metrics": parity.metrics,
        }  # fmt: skip
        show(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB, differs by {parity.max_abs:.1e}, cosine "
             f"{parity.cosine:.5f}")  # fmt: skip
    if teacher:
        forms["teacher"] = {"model": teacher.folder.resolve().name, "bytes": weight_bytes(teacher.folder)}
    timings = time_forms(exportable, folder, tuple(forms), teacher, threads=threads, seconds=seconds)
    write_tokenizer(exportable, folder)
    shutil.copyfile(config_file(exportable.folder), folder / "config.json")
    machine = {**describe_processor(), "onnxruntime": version("onnxruntime")}
    found = {
        **_description(exportable), "rows": {"from": rows.origin, "count": rows.count}, "forms": forms,
        "timings": [asdict(timing) for timing in timings], "machine": machine,
    }  # fmt: skip
    write_json(folder / EXPORT_FILE, found)
    return found


def write_graph(exportable: Exportable, path: Path) -> None:
    """Writes the float32 file of a model."""
    shape = (2, 3, 4) if exportable.kind == "choice" else (2, 4)
    example = [torch.ones(shape, dtype=torch.long), torch.ones(shape, dtype=torch.long),
               torch.zeros(shape, dtype=torch.long)]  # fmt: skip
    with plain_attention(exportable), torch.no_grad():
        write_onnx(GraphModule(exportable), example, exportable.outputs, path)


def time_forms(
    exportable: Exportable, folder: Path, forms: Sequence[str], teacher: Exportable | None, *, threads: int,
    seconds: float,
) -> list[Timing]:  # fmt: skip
    """The time of a forward of every form on the CPU, for a short and a longer text, and for a batch of each."""
    models = [model for model in (exportable, teacher) if model]
    positions = min(model.model.config.max_position_embeddings for model in models)
    lengths = sorted({min(length, positions) for length in _LENGTHS})
    runs: dict[str, Run] = {}
    for form in ("teacher", "torch", *FILES):
        if form in forms:
            model = teacher if form == "teacher" and teacher else exportable
            runs[form] = model.run if form in ("teacher", "torch") else open_onnx(folder / FILES[form], threads=threads)
    timings = []
    with using_threads(threads):
        for shape in make_shapes(_BATCH_SIZES, lengths, [threads]):
            inputs = _random_inputs(models, shape)
            forwards = {_NAMES[form]: partial(run, inputs) for form, run in runs.items()}
            timings += time_shape(forwards, shape, seconds=seconds)
    return timings


def _random_inputs(models: Sequence[Exportable], shape: Shape) -> Inputs:
    """Random tokens that all models know, without padding; of a multiple-choice task, two choices a question."""
    vocabulary = min(model.model.config.vocab_size for model in models)
    choices = [2] if models[0].kind == "choice" else []
    size = (shape.batch_size, *choices, shape.length)
    tokens = np.random.default_rng(0).integers(vocabulary, size=size, dtype=np.int64)
    return dict(zip(INPUTS, (tokens, np.ones_like(tokens), np.zeros_like(tokens)), strict=True))


def write_tokenizer(exportable: Exportable, folder: Path) -> None:
    """Writes the tokenizer's files, tokenizer.json and vocab.txt among them, which need no transformers."""
    save_tokenizer(exportable.tokenizer, folder)
    vocabulary = exportable.folder / "vocab.txt"
    if vocabulary.is_file():
        shutil.copyfile(vocabulary, folder / "vocab.txt")
    else:  # of a fine-tuned model, whose tokens stand in tokenizer.json
        exportable.tokenizer.backend_tokenizer.model.save(str(folder))


def _description(exportable: Exportable) -> dict[str, Any]:
    """What a server must know."""
    task = exportable.task
    labels = exportable.labels
    if exportable.kind == "tags":
        labels = tag_names(labels)
    return {
        "kind": exportable.kind, "model": exportable.folder.resolve().name, "inputs": list(INPUTS),
        "outputs": list(exportable.outputs), "max_length": exportable.max_length,
        "num_texts": len(task.texts) if task else 1, "labels": list(labels), "task": task.name if task else None,
        "pooling": exportable.pooling, "max_answer_length": task.max_answer_length if task else None,
    }  # fmt: skip


def weight_bytes(folder: Path) -> int:
    """The size of a model folder's weights."""
    return sum(path.stat().st_size for path in list_weight_files(folder))


def forms_table(found: Mapping[str, Any]) -> Table:
    """A row a form: size, difference, task metrics, and what of them is lost."""
    metrics = found["forms"]["torch"]["metrics"] or {}
    head = ("Form", "MB", "of PyTorch's", "Max difference", "Cosine", *metrics)
    full = found["forms"]["torch"]["bytes"]
    rows = []
    for form, values in found["forms"].items():
        measured = values.get("metrics") or {}
        told = [f"{measured[name]:.2f} ({measured[name] - metrics[name]:+.2f})" if form in FILES else f"{value:.2f}"
                for name, value in measured.items()]  # fmt: skip
        difference, cosine = values.get("max_abs_difference", math.nan), values.get("cosine", math.nan)
        rows.append((
            _NAMES[form], f"{values['bytes'] / 1e6:.2f}", f"{values['bytes'] / full:.0%}",
            "-" if math.isnan(difference) else f"{difference:.1e}", "-" if math.isnan(cosine) else f"{cosine:.5f}",
            *(told or ["-"] * len(metrics)),
        ))  # fmt: skip
    return Table(head, tuple(rows))
