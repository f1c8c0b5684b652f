"""Exports the model of a finished run as a graph, checks it against PyTorch, and tests it where it is quantised."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from un.command.errors import UserError
from un.finished.evaluate import format_metrics
from un.finished.fold_run import fold_run, require_inference
from un.finished.graphs import SUFFIXES, Format, Graph, choose_format, digest_weights, name_preprocessor, name_record
from un.finished.open_run import FinishedRun, open_run
from un.folding.verify import list_tensors, measure_difference
from un.reports.result import write_json
from un.surgery import is_norm
from un.tasks import GraphPart
from un.training.preprocessors import save_preprocessor

FOLDER = "exports"  # in the run folder
TOLERANCE = 1e-4  # relative, of float32 outputs
EXAMPLES, OTHER_EXAMPLES = 2, (1, 3)  # examples of the export, and of the checks beside the whole batch
REASON_LENGTH = 200  # characters of an exporter's error that are shown


def export_run(config: DictConfig) -> Path:
    """Exports a run's model.

    Beside the graph stand a file of the same name with .json added, which says what the graph holds, and a folder with
    .preprocessor added, with the vocabulary or the class names and normalisation.

    Args:
        config: composed from configs/export.yaml.

    Returns:
        The file of the graph, with quantize=int8 the quantised one.

    Raises:
        UserError: A value is not allowed, the model cannot be exported, or its graph does not compute what PyTorch
            does; see also `open_run` and `fold_run`.
    """
    check_options(config)
    chosen = choose_format(config.format)
    run = open_run(config)
    task = require_inference(run.module)
    trained, report = task.inference_model, None
    if config.fold:
        folded, report = fold_run(run)
        task.use_inference_model(folded)
    name = "folded" if config.fold else "unfolded"
    path = Path(str(config.output or run.folder.path / FOLDER / f"{name}{SUFFIXES[chosen.name]}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = task.cut_graph(task.inference_model, run.inference_data.make_example_batch(seed=0))
    difference = write_checked(part, chosen, path, run.folder.path)
    description: dict[str, Any] = {
        "format": chosen.name,
        "folded": config.fold,
        "inputs": list(part.inputs),
        "dynamic": {name: list(axes.values()) for name, axes in part.dynamic.items()},
        "outputs": part.outputs,
        "left_out": part.left_out,
        "digest": digest_weights(trained),
        "difference": difference,
        "megabytes": path.stat().st_size / 1e6,
    }
    if report is not None:
        description["norms_left"] = [f"{row.site}: {row.outcome}" for row in report.remaining]
    if chosen.name == "onnx":
        description |= describe_operators(trained, path)
    write_beside(run, description, path)
    if config.quantize is not None:
        path, quantized = quantize_tested(run, chosen.load(path), path, config.calibration)
        description |= quantized
        write_beside(run, description, path)
    print_description(description, path)
    return path


def write_beside(run: FinishedRun, description: dict[str, Any], path: Path) -> None:
    """Writes what there is to say about a graph, and the run's preprocessor, beside it."""
    preprocessor = name_preprocessor(path)
    save_preprocessor(run.inference_data, preprocessor)
    write_json({**description, "preprocessor": preprocessor.name}, name_record(path))


def check_options(config: DictConfig) -> None:
    """Checks the options of the export.

    Raises:
        UserError: Names the key, its value and what is allowed.
    """
    if config.format not in SUFFIXES:
        raise UserError(f"format={config.format} must be one of {', '.join(SUFFIXES)}")
    if config.quantize not in (None, "int8"):
        raise UserError(f"quantize={config.quantize} must be int8 or null")
    if config.quantize is not None and config.format != "onnx":
        raise UserError(f"quantize={config.quantize} is for format=onnx, not for format={config.format}")
    if not isinstance(config.fold, bool):
        raise UserError(f"fold={config.fold} must be true or false")
    if not isinstance(config.calibration, int) or config.calibration < 0:
        raise UserError(f"calibration={config.calibration} must be a whole number of at least 0")
    if config.calibration and config.quantize is None:
        raise UserError(f"calibration={config.calibration} is for quantize=int8")


def write_checked(part: GraphPart, chosen: Format, path: Path, run: Path) -> float:
    """Writes a graph under a temporary name, compares it with PyTorch, and then gives it its own.

    Returns:
        The largest difference of an output over the largest output.

    Raises:
        UserError: The model cannot be exported, or the graph computes something else.
    """
    temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")
    few = {name: tensor[:EXAMPLES] for name, tensor in part.inputs.items()}
    try:
        chosen.write(replace(part, inputs=few), temporary)
        difference = compare_graph(part, chosen.load(temporary))
    except Exception as error:  # exporters raise whatever they meet
        temporary.unlink(missing_ok=True)
        model, reason = type(part.module).__name__, find_reason(error)
        raise UserError(f"{model} of {run} cannot be exported as {chosen.name}: {reason}") from error
    if not difference <= TOLERANCE:
        temporary.unlink()
        raise UserError(
            f"the {chosen.name} graph of {run} differs from PyTorch by {difference:.1e} of the largest output, more "
            f"than {TOLERANCE:.0e}: it is not kept"
        )
    os.replace(temporary, path)
    return difference


def find_reason(error: BaseException) -> str:
    """Returns the first words of the error behind an exporter's own, which only says how to ask for help."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:REASON_LENGTH]


def compare_graph(part: GraphPart, graph: Graph) -> float:
    """Returns the largest difference of outputs from the module's over the largest output, at several batch sizes."""
    differences = []
    for count in (*OTHER_EXAMPLES, None):
        inputs = [tensor[:count] for tensor in part.inputs.values()]
        with torch.no_grad():
            differences.append(measure_difference(list_tensors(part.module(*inputs)), graph(*inputs)))
    return max(differences)


def describe_operators(trained: nn.Module, path: Path) -> dict[str, dict[str, int]]:
    """Returns what an ONNX graph is made of, and what of it computes the norms that the trained model had."""
    from un.finished.onnx_graph import count_operators

    sites = [name for name, module in trained.named_modules(remove_duplicate=False) if is_norm(module)]
    return {"operators": count_operators(path), "operators_of_norms": count_operators(path, sites)}


def quantize_tested(run: FinishedRun, graph: Graph, path: Path, calibration: int) -> tuple[Path, dict[str, Any]]:
    """Quantises a graph and tests both on the test split; returns the new file and what there is to say about it."""
    from un.finished.onnx_graph import GraphSession, quantize_graph

    output = path.with_name(f"{path.stem}_int8.onnx")
    quantize_graph(path, output, draw_examples(run, calibration) if calibration else None)
    task = require_inference(run.module)
    recorded = {name: value for name, value in run.recorded.metrics.items() if name.startswith("test/")}
    metrics: dict[str, Any] = {"recorded": recorded}
    graphs: dict[str, Graph] = {"float": graph, "int8": GraphSession(output)}
    for name, candidate in graphs.items():
        task.use_graph(candidate)
        metrics[name] = run.test(run.build_trainer(path.parent / name))
    ranges = f"ranges from {calibration} training examples" if calibration else "dynamic"
    size = output.stat().st_size / 1e6
    return output, {"quantization": f"int8, {ranges}", "metrics": metrics, "megabytes_int8": size}


def draw_examples(run: FinishedRun, count: int) -> Iterator[dict[str, Tensor]]:
    """Yields inputs of the graph from shuffled training batches, until there are enough examples."""
    task = require_inference(run.module)
    found = 0
    for batch in run.data.train_dataloader():
        inputs = dict(task.cut_graph(task.inference_model, batch).inputs)
        found += len(next(iter(inputs.values())))
        yield inputs
        if found >= count:
            return


def print_description(description: dict[str, Any], path: Path) -> None:
    if description["left_out"]:
        print(f"not exported: {description['left_out']}")
    for line in description.get("norms_left", ()):
        print(f"norm left: {line}")
    for key in ("operators", "operators_of_norms"):
        if key in description:
            counts = ", ".join(f"{name} {count}" for name, count in description[key].items())
            print(f"{key.replace('_', ' ')}: {counts or 'none'}")
    print(f"outputs differ from PyTorch's by {description['difference']:.1e} of the largest")
    sizes = f"{description['megabytes']:.2f} MB"
    if "metrics" in description:
        print(format_metrics(description["metrics"]))
        sizes = f"{sizes} float, {description['megabytes_int8']:.2f} MB int8"
    print(f"{path}: {sizes}")
