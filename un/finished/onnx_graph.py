"""ONNX: writing a graph, reading its operators, running it in onnxruntime and quantising it."""

from __future__ import annotations

import ast
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

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
        Exception: Of many kinds, where torch cannot export it.
    """
    with hide_output(), torch.no_grad():
        program = torch.onnx.export(
            part.module,
            tuple(part.inputs.values()),
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            dynamic_shapes=part.dynamic_shapes,
            dynamo=True,
            verbose=False,
        )
    assert program is not None, "the dynamo exporter returns it"
    model = program.model_proto
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        kept = [entry for entry in node.metadata_props if entry.key == SCOPES]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
        node.ClearField("doc_string")
    onnx.save(model, path)


def count_operators(path: Path, sites: Collection[str] | None = None) -> dict[str, int]:
    """Returns how often each operator occurs in a graph, the most frequent first.

    Args:
        path: a file written by `write_graph`.
        sites: dotted names of modules, to count only what was computed inside them.
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
    """

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = FATAL
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.names = [entry.name for entry in self.session.get_inputs()]

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Returns the results on the device of the first input."""
        found = self.session.run(None, self.make_feed(tensors))
        return tuple(torch.from_numpy(array).to(tensors[0].device) for array in found)

    def make_feed(self, tensors: Iterable[Tensor]) -> dict[str, NDArray[Any]]:
        return dict(zip(self.names, map(to_array, tensors), strict=True))


class CalibrationReader(quantization.CalibrationDataReader):
    """Hands batches, name -> tensor, to onnxruntime's calibration."""

    def __init__(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        batch = next(self.batches, None)
        return None if batch is None else {name: to_array(tensor) for name, tensor in batch.items()}


def to_array(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().contiguous().numpy()


def quantize_graph(path: Path, output: Path, examples: Iterable[Mapping[str, Tensor]] | None = None) -> None:
    """Writes a graph with 8-bit weights, each channel with a scale of its own.

    Args:
        path: of the graph.
        output: file to write.
        examples: batches of inputs from which the range of every activation is measured; None has the graph compute it
            at each call.
    """
    common: dict[str, Any] = {"per_channel": True, "weight_type": quantization.QuantType.QInt8}
    common["extra_options"] = {"MatMulConstBOnly": True}  # products of two activations, as in attention, stay float
    with hide_output(), tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quantization.quant_pre_process(path, prepared, skip_symbolic_shape=True)
        if examples is None:
            operators = [name for name in QUANTIZED if name != "Conv"]  # computing ranges pays off for matrices only
            quantization.quantize_dynamic(prepared, output, op_types_to_quantize=operators, **common)
        else:
            reader = CalibrationReader(examples)
            quantization.quantize_static(prepared, output, reader, op_types_to_quantize=QUANTIZED, **common)
