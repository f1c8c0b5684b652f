"""Exports the model of a finished run as a graph, checks it against PyTorch and tests it where it is quantised."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from un.command.console import hide_output
from un.command.errors import UserError
from un.finished.fold_run import fold_run, require_inference
from un.finished.open_run import FinishedRun, open_run
from un.folding.verify import measure_difference
from un.reports.result import write_json
from un.surgery import is_norm
from un.tasks import GraphPart
from un.training.preprocessors import save_preprocessor

FOLDER = "exports"  # in the run folder
SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}
QUANTIZATIONS = (None, "int8")
TOLERANCE = 1e-4  # relative, of float32 outputs
EXAMPLES, OTHER_EXAMPLES = 2, (1, 3)  # examples of the export, and of the checks beside the whole batch
REASON_LENGTH = 200  # characters of an exporter's error that are shown
Graph = Callable[..., tuple[Tensor, ...]]


def export_run(config: DictConfig) -> Path:
    """Exports a run's model.

    Beside the graph, a file of its name with .json behind it says what it holds, and a folder with .preprocessor behind
    it has the vocabulary, or class names and normalisation.

    Args:
        config: composed from configs/export.yaml.

    Returns:
        The graph; of quantize=int8 the quantised one.

    Raises:
        UserError: a value that is not allowed; see `open_run` and `fold_run`; a model that cannot be exported, or whose
            graph does not compute what PyTorch does.
    """
    check_options(config)
    if config.format == "onnx":
        import un.finished.onnx_graph  # noqa: F401  that a package is missing should be said before the work
    run = open_run(config)
    task = require_inference(run.module)
    sites = [name for name, module in task.inference_model.named_modules(remove_duplicate=False) if is_norm(module)]
    report = None
    if config.fold:
        folded, report = fold_run(run)
        task.use_inference_model(folded)
    path = choose_path(config, run)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = task.cut_graph(task.inference_model, run.inference_data.make_example_batch(seed=0))
    description: dict[str, Any] = {"format": config.format, "folded": config.fold, "inputs": list(part.inputs)}
    description |= {"dynamic": {name: list(axes.values()) for name, axes in part.dynamic.items()}}
    description |= {"outputs": part.outputs, "left_out": part.left_out}
    if report is not None:
        description["norms_left"] = [f"{row.site}: {row.outcome}" for row in report.remaining]
    graph = write_checked(config, run, part, path, description)
    if config.format == "onnx":
        description |= describe_operators(path, sites)
    if config.quantize is not None:
        path = quantize_tested(config, run, graph, path, description)
    beside = path.with_name(f"{path.name}.preprocessor")
    save_preprocessor(run.inference_data, beside)
    write_json({**description, "preprocessor": beside.name}, path.with_name(f"{path.name}.json"))
    print_description(description, path)
    return path


def check_options(config: DictConfig) -> None:
    """Checks what is said about the export.

    Raises:
        UserError: names the key, its value and what is allowed.
    """
    if config.format not in SUFFIXES:
        raise UserError(f"format={config.format} must be one of {', '.join(SUFFIXES)}")
    if config.quantize not in QUANTIZATIONS:
        raise UserError(f"quantize={config.quantize} must be int8 or null")
    if config.quantize is not None and config.format != "onnx":
        raise UserError(f"quantize={config.quantize} is for format=onnx, not for format={config.format}")
    if not isinstance(config.fold, bool):
        raise UserError(f"fold={config.fold} must be true or false")
    if not isinstance(config.calibration, int) or config.calibration < 0:
        raise UserError(f"calibration={config.calibration} must be a whole number of at least 0")
    if config.calibration and config.quantize is None:
        raise UserError(f"calibration={config.calibration} is for quantize=int8")


def choose_path(config: DictConfig, run: FinishedRun) -> Path:
    """The file to write: `output`, or one in the run folder whose name says what it holds."""
    if config.output:
        return Path(str(config.output))
    name = "folded" if config.fold else "unfolded"
    return run.folder.path / FOLDER / f"{name}{SUFFIXES[config.format]}"


def write_checked(
    config: DictConfig, run: FinishedRun, part: GraphPart, path: Path, description: dict[str, Any]
) -> Graph:
    """Writes a graph under a temporary name, compares it with PyTorch, and then gives it its own.

    Raises:
        UserError: it cannot be exported, or computes something else.
    """
    temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")
    few = {name: tensor[:EXAMPLES] for name, tensor in part.inputs.items()}
    try:
        write = _write_onnx if config.format == "onnx" else _write_program
        write(replace(part, inputs=few), temporary)
        description["difference"] = compare_graph(part, _load_graph(temporary))
    except Exception as error:  # exporters fail with whatever they meet
        temporary.unlink(missing_ok=True)
        name = type(part.module).__name__
        raise UserError(
            f"{name} of {run.folder.path} cannot be exported as {config.format}: {find_reason(error)}"
        ) from error
    if not description["difference"] <= TOLERANCE:
        temporary.unlink()
        raise UserError(
            f"the {config.format} graph of {run.folder.path} differs from PyTorch by {description['difference']:.1e} "
            f"of the largest output, more than {TOLERANCE:.0e}: it is not kept"
        )
    os.replace(temporary, path)
    description["megabytes"] = path.stat().st_size / 1e6
    return _load_graph(path)


def find_reason(error: BaseException) -> str:
    """The first lines of the error behind an exporter's, which only tells how to ask for help."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:REASON_LENGTH]


def compare_graph(part: GraphPart, graph: Graph) -> float:
    """Largest difference of the graph's outputs from the module's over the largest output, for several batch sizes."""
    differences = []
    for count in (*OTHER_EXAMPLES, None):
        inputs = [tensor[:count] for tensor in part.inputs.values()]
        with torch.no_grad():
            expected = part.module(*inputs)
            expected = expected if isinstance(expected, tuple) else (expected,)
            differences.append(measure_difference(expected, graph(*inputs)))
    return max(differences)


def describe_operators(path: Path, sites: list[str]) -> dict[str, Any]:
    """What an ONNX graph is made of, and what of it computes norms."""
    from un.finished.onnx_graph import count_operators

    return {"operators": count_operators(path), "operators_of_norms": count_operators(path, sites)}


def quantize_tested(
    config: DictConfig, run: FinishedRun, graph: Graph, path: Path, description: dict[str, Any]
) -> Path:
    """Quantises a graph and tests both on the test split; returns the path of the quantised one."""
    from un.finished.onnx_graph import GraphSession, list_feeds, quantize_graph

    output = path.with_name(f"{path.stem}_int8.onnx")
    count = config.calibration
    quantize_graph(path, output, list_feeds(draw_examples(run, count)) if count else None)
    task = require_inference(run.module)
    metrics: dict[str, dict[str, Any]] = {
        "recorded": {k: v for k, v in run.recorded.metrics.items() if k.startswith("test/")}
    }
    graphs: dict[str, Graph] = {"float": graph, "int8": GraphSession(output)}
    for name, candidate in graphs.items():
        task.use_graph(candidate)
        metrics[name] = run.test(run.build_trainer(path.parent / name))
    description["quantization"] = f"int8, ranges from {count} training examples" if count else "int8, dynamic"
    description |= {"metrics": metrics, "megabytes_int8": output.stat().st_size / 1e6}
    return output


def draw_examples(run: FinishedRun, count: int) -> Iterator[dict[str, Tensor]]:
    """Inputs of the graph from shuffled training batches, until there are enough examples."""
    task = require_inference(run.module)
    found = 0
    for batch in run.data.train_dataloader():
        inputs = dict(task.cut_graph(task.inference_model, batch).inputs)
        found += len(next(iter(inputs.values())))
        yield inputs
        if found >= count:
            return


def _write_onnx(part: GraphPart, path: Path) -> None:
    from un.finished.onnx_graph import write_graph

    write_graph(part, path)


def _write_program(part: GraphPart, path: Path) -> None:
    sizes = {name: torch.export.Dim(name) for axes in part.dynamic.values() for name in axes.values()}
    shapes = tuple({axis: sizes[size] for axis, size in part.dynamic.get(name, {}).items()} for name in part.inputs)
    with hide_output(), torch.no_grad():
        program = torch.export.export(part.module, tuple(part.inputs.values()), dynamic_shapes=shapes)
        torch.export.save(program, path)


def _load_graph(path: Path) -> Graph:
    if path.suffix == SUFFIXES["onnx"]:
        from un.finished.onnx_graph import GraphSession

        return GraphSession(path)
    module = torch.export.load(path).module()

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        out = module(*tensors)
        return out if isinstance(out, tuple) else (out,)

    return run


def print_description(description: dict[str, Any], path: Path) -> None:
    """Prints what was exported."""
    if description["left_out"]:
        print(f"not exported: {description['left_out']}")
    for line in description.get("norms_left", ()):
        print(f"norm left: {line}")
    for key in ("operators", "operators_of_norms"):
        if key in description:
            counts = ", ".join(f"{name} {count}" for name, count in description[key].items())
            print(f"{key.replace('_', ' ')}: {counts or 'none'}")
    print(f"outputs differ from PyTorch's by {description['difference']:.1e} of the largest")
    metrics = description.get("metrics", {})
    if metrics:
        print(f"{'metric':<16}" + "".join(f"{name:>14}" for name in metrics))
        for name in metrics["int8"]:
            values = [column.get(name) for column in metrics.values()]
            print(f"{name:<16}" + "".join(f"{'none' if v is None else format(v, '.6f'):>14}" for v in values))
    sizes = [f"{description[key]:.2f} MB" for key in ("megabytes", "megabytes_int8") if key in description]
    print(f"{path}: {' float, '.join(sizes)}{' int8' if metrics else ''}")
