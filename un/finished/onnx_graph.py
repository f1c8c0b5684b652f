"""ONNX: writing a graph, reading its operators, running it in onnxruntime and quantising it."""

from __future__ import annotations

import ast
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxscript  # noqa: F401  torch's exporter needs it and would say so late
import torch
from numpy.typing import NDArray
from onnxruntime import quantization
from torch import Tensor

from un.command.console import hide_output
from un.tasks import GraphPart

SCOPES = "pkg.torch.onnx.name_scopes"  # metadata of a node: dotted names of the modules around it
QUANTIZED = ["MatMul", "Gemm", "Conv"]  # operators whose weights are quantised
FATAL = 4  # onnxruntime's log severity


def write_graph(part: GraphPart, path: Path) -> None:
    """Writes a part of a model as an ONNX graph, without what the exporter notes about the machine.

    Raises:
        Exception: of many kinds, where torch cannot export it.
    """
    sizes = {name: torch.export.Dim(name) for axes in part.dynamic.values() for name in axes.values()}
    shapes = tuple({axis: sizes[size] for axis, size in part.dynamic.get(name, {}).items()} for name in part.inputs)
    with hide_output(), torch.no_grad():
        program = torch.onnx.export(
            part.module,
            tuple(part.inputs.values()),
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
    assert program is not None, "returned by the dynamo exporter"
    model = program.model_proto
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        kept = [entry for entry in node.metadata_props if entry.key == SCOPES]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
        node.ClearField("doc_string")
    onnx.save(model, path)


def count_operators(path: Path, sites: Collection[str] | None = None) -> dict[str, int]:
    """How often each operator occurs in a graph, the most frequent first.

    Args:
        path: of a file of `write_graph`.
        sites: dotted names of modules; counts only what was computed inside them.
    """
    nodes = onnx.load(path, load_external_data=False).graph.node
    if sites is not None:
        nodes = [node for node in nodes if not set(sites).isdisjoint(_list_scopes(node))]
    return dict(Counter(node.op_type for node in nodes).most_common())


def _list_scopes(node: Any) -> list[str]:
    found = [entry.value for entry in node.metadata_props if entry.key == SCOPES]
    return [str(name) for name in ast.literal_eval(found[0])] if found else []


class GraphSession:
    """Runs a graph in onnxruntime on the CPU.

    Args:
        path: of the graph.
        threads: null takes as many as torch uses.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = FATAL
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.names = [entry.name for entry in self.session.get_inputs()]

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Returns the results on the device of the first input."""
        found = self.session.run(None, self.make_feed(tensors))
        return tuple(torch.from_numpy(array).to(tensors[0].device) for array in found)

    def make_feed(self, tensors: Iterable[Tensor]) -> dict[str, NDArray[Any]]:
        """Inputs as onnxruntime takes them."""
        return {name: tensor.detach().cpu().numpy() for name, tensor in zip(self.names, tensors, strict=True)}


class CalibrationReader(quantization.CalibrationDataReader):
    """Hands examples to onnxruntime's calibration.

    Args:
        examples: name -> array.
    """

    def __init__(self, examples: Iterable[Mapping[str, NDArray[Any]]]) -> None:
        self.examples = iter(examples)

    def get_next(self) -> Mapping[str, NDArray[Any]] | None:
        """Called by onnxruntime."""
        return next(self.examples, None)


def quantize_graph(path: Path, output: Path, examples: Iterable[Mapping[str, NDArray[Any]]] | None = None) -> None:
    """Writes a graph with weights of 8 bits, a scale for every channel.

    Args:
        path: of the graph.
        output: file to write.
        examples: inputs from which the range of every activation is measured; null has the graph compute it anew at
            each call.
    """
    common: dict[str, Any] = {"per_channel": True, "weight_type": quantization.QuantType.QInt8}
    common["extra_options"] = {"MatMulConstBOnly": True}  # products of two activations, as in attention, stay float
    with hide_output(), tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quantization.quant_pre_process(path, prepared, skip_symbolic_shape=True)
        if examples is None:
            operators = [name for name in QUANTIZED if name != "Conv"]  # scales at each call pay for matrices only
            quantization.quantize_dynamic(prepared, output, op_types_to_quantize=operators, **common)
        else:
            reader = CalibrationReader(examples)
            quantization.quantize_static(prepared, output, reader, op_types_to_quantize=QUANTIZED, **common)


def list_feeds(batches: Iterable[Mapping[str, Tensor]]) -> Iterator[dict[str, NDArray[Any]]]:
    """Inputs of a graph as arrays."""
    for batch in batches:
        yield {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in batch.items()}
