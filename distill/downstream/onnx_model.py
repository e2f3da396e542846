"""A model as an ONNX file: the graph that torch exports, its int8 and int4 forms, and running them by onnxruntime.

int8: matrix products with constant weights are done in integers, activations quantised as they come (onnxruntime's
dynamic quantisation, a scale a column of weights). int4: the weights of these products have four bits, with a scale for
every 32 (onnxruntime's MatMulNBits). In both, embedding tables keep one byte a value and a scale a row, and the rows
that are looked up become floats again. The float32 and int8 forms are standard ONNX, so any runtime can read them.
"""

# B sequences, L tokens, H width, V rows of a table

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.errors import InputError

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OPSET = 18
MIN_ROWS = 16
"""Tables with fewer rows (token types) stay as they are."""
INT4_BLOCK = 32
"""Weights of a column that share a scale and a zero point."""
INT4_ACTIVATIONS = 4
"""MatMulNBits' accuracy_level: activations become int8, too."""
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")

Inputs = Mapping[str, NDArray[np.int64]]
"""The three inputs by name, each [B, L]; [B, choices, L] for multiple choice."""
Outputs = tuple[NDArray[np.float32], ...]
Run = Callable[[Inputs], Outputs]


def check_packages() -> None:
    """InputError if the packages of the extra `onnx` are missing."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(f"export: {', '.join(missing)} not installed; pip install {' '.join(_PACKAGES)}, the extra "
                         f"onnx; see docs/export.md")  # fmt: skip


def write_onnx(module: nn.Module, example: Sequence[Tensor], outputs: Sequence[str], path: Path) -> None:
    """Writes one file that takes any batch size and length.

    Args:
        module: takes INPUTS by position, gives one tensor for each of `outputs`.
        example: inputs of at least 2 in every dimension.
    """
    dimensions = ("batch", "length") if example[0].dim() == 2 else ("batch", "choices", "length")
    shapes = tuple(dict(enumerate(dimensions)) for _ in INPUTS)
    with warnings.catch_warnings(), _no_log():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            module.eval(), tuple(example), input_names=list(INPUTS), output_names=list(outputs), dynamo=True,
            dynamic_shapes=shapes, opset_version=OPSET, verbose=False,
        )  # fmt: skip
    import onnx

    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # where in Python it comes from: half a megabyte
    del model.graph.value_info[:]
    onnx.save(model, path)


def write_int8(source: Path, target: Path) -> None:
    """Writes the int8 form of a file of `write_onnx`."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    quantize_tables(model)
    with tempfile.TemporaryDirectory() as folder, _no_log():
        tables = Path(folder) / "tables.onnx"
        onnx.save(model, tables)
        quantize_dynamic(
            tables, target, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QUInt8,
            extra_options={"MatMulConstBOnly": True},
        )  # fmt: skip


def write_int4(source: Path, target: Path) -> None:
    """Writes the int4 form of a file of `write_onnx`."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = onnx.load(source)
    quantize_tables(model)
    with _no_log():
        quantizer = MatMulNBitsQuantizer(
            model, bits=4, block_size=INT4_BLOCK, is_symmetric=False, accuracy_level=INT4_ACTIVATIONS
        )
        quantizer.process()
    onnx.save(quantizer.model.model, target)


def quantize_tables(model: Any) -> None:
    """Replaces every large float table that rows are looked up in by int8 rows with a scale each, in place.

    onnxruntime's own quantisation of Gather has one scale for a whole table, so that the few rows with large values
    decide how coarse all others get.

    Args:
        model: an onnx.ModelProto.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    tables = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    nodes, quantized = [], set()
    for node in graph.node:
        table = tables.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or len(table.dims) != 2 or table.dims[0] < MIN_ROWS:
            nodes.append(node)
            continue
        name, (values, ids), result = table.name, node.input, node.output[0]
        if name not in quantized:
            rows, scales = quantize_rows(numpy_helper.to_array(table))
            graph.initializer.append(numpy_helper.from_array(rows, f"{name}_int8"))
            graph.initializer.append(numpy_helper.from_array(scales, f"{name}_scale"))
            quantized.add(values)
        nodes += [
            helper.make_node("Gather", [f"{name}_int8", ids], [f"{result}_int8"]),
            helper.make_node("Cast", [f"{result}_int8"], [f"{result}_float"], to=TensorProto.FLOAT),
            helper.make_node("Gather", [f"{name}_scale", ids], [f"{result}_scale"]),
            helper.make_node("Mul", [f"{result}_float", f"{result}_scale"], [result]),
        ]
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    for field, values in ((graph.node, nodes), (graph.initializer, kept)):
        del field[:]
        field.extend(values)


def quantize_rows(table: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A table [V, H] as int8 and scales [V, 1]: table is about rows * scales, off by half a scale at most."""
    largest = np.abs(table).max(axis=1, keepdims=True)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.round(table / scales).astype(np.int8), scales


def open_onnx(path: Path, *, threads: int) -> Run:
    """A function that runs a file on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: tuple(session.run(None, {name: inputs[name] for name in INPUTS}))


@contextmanager
def _no_log() -> Iterator[None]:
    """Without the exporter's and the quantiser's advice, which is about their own options."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
