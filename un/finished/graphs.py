"""Exported graphs read back: from the file of a graph and the record beside it to something to call."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from un.command.console import hide_output
from un.folding.verify import list_tensors
from un.tasks import GraphPart

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}
Graph = Callable[..., tuple[Tensor, ...]]


class Format(NamedTuple):
    """How a graph is written to a file, and read back as something to call."""

    name: str
    write: Callable[[GraphPart, Path], None]
    load: Callable[[Path], Graph]


def choose_format(name: str) -> Format:
    if name == "onnx":
        from un.finished.onnx_graph import GraphSession, write_graph  # of optional packages

        return Format(name, write_graph, GraphSession)
    return Format(name, write_program, load_program)


def write_program(part: GraphPart, path: Path) -> None:
    with hide_output(), torch.no_grad():
        inputs = tuple(part.inputs.values())
        torch.export.save(torch.export.export(part.module, inputs, dynamic_shapes=part.dynamic_shapes), path)


def load_program(path: Path) -> Graph:
    module = torch.export.load(path).module()
    return lambda *tensors: tuple(list_tensors(module(*tensors)))


def name_record(path: Path) -> Path:
    """Returns the path of what is written about a graph."""
    return path.with_name(f"{path.name}.json")


def name_preprocessor(path: Path) -> Path:
    """Returns the folder of the preprocessor beside a graph."""
    return path.with_name(f"{path.name}.preprocessor")


def read_record(path: Path) -> dict[str, Any]:
    """Returns what `scripts/export.py` wrote about a graph.

    Raises:
        ValueError: The graph or its record is missing or damaged.
    """
    record = name_record(path)
    for file in (path, record):
        if not file.is_file():
            raise ValueError(f"weights={path}: there is no {file}, which scripts/export.py writes")
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        missing = [key for key in ("format", "folded", "left_out", "digest") if key not in content]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{record} is damaged ({error})") from None
    if missing:
        raise ValueError(f"{record} does not say {', '.join(missing)}: export the run again")
    return dict(content)


def digest_weights(model: nn.Module) -> str:
    """Returns a SHA-256 of names and values of a model's state."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        if isinstance(tensor, Tensor):
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
