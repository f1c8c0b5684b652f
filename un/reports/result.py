"""The result of a run: what `result.json` holds, how it is written once and how it is checked when read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from un.files import replace_file
from un.reports.validation import STRICT, parse

SCHEMA_VERSION: Literal[1] = 1  # of the format of result.json


@dataclass(frozen=True, config=STRICT)
class Result:
    """What a run leaves behind as numbers.

    Attributes:
        status: "finished", or "diverged" when the loss or weights became non-finite or the loss exploded.
        task: the LightningModule's dotted name.
        experiment: name of the experiment config.
        norm: {"choice": option of the group, **options}; "layernorm" is the untouched model.
        model: {"choice": option of the group, **options}.
        data: {"choice": option of the group, **options}.
        seed: of the run.
        overrides: as typed on the command line.
        metrics: name with its split -> value, e.g. "test/acc1" in percent, of the best checkpoint by validation; its
            validation metrics are here too. None where the value was not finite. With `average_checkpoints` test
            metrics are of the mean of the last epochs' weights.
        best_epoch: epoch of that checkpoint, the first is 0; None when there is none.
        best_step: its optimizer step.
        diverged_step: optimizer step (the first is 1) at which that happened; None when finished.
        steps: updates done, by steps of the optimizer.
        wall_time_seconds: of training and testing, summed over resumes.
        parameters: number of trainable and frozen parameters of the model.
        peak_memory_bytes: of the device on a GPU, of the process otherwise.
        train_samples_per_second: over the whole training, loading included.
        git: {"commit": hash or None, "dirty": bool or None}.
        packages: distribution -> version.
        hardware: {"cpu": name, "threads": int, "gpu": names}.
        schema_version: of this file format.
        metric_details: metric -> what it is where a name does not say it, e.g. kind and signature of a BLEU; "test/*"
            names the checkpoints that were averaged. Missing in files of early runs.
        execution: {"processes", "batch_size" of one of them, "accumulate_grad_batches", "global_batch_size": their
            product, "precision", "norm": its options that follow from the accumulation}. Empty in files of early runs.
        diverged_layer: the first norm that counted a non-finite statistic at that step, or the first layer with weights
            that were not finite; None where neither is known, and in files of early runs.
    """

    status: Literal["finished", "diverged"]
    task: str
    experiment: str
    norm: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    seed: int
    overrides: list[str]
    metrics: dict[str, float | None]
    best_epoch: int | None
    best_step: int | None
    diverged_step: int | None
    steps: int
    wall_time_seconds: float
    parameters: int
    peak_memory_bytes: int
    train_samples_per_second: float | None
    git: dict[str, Any]
    packages: dict[str, str]
    hardware: dict[str, Any]
    schema_version: Literal[1]
    metric_details: dict[str, str] = field(default_factory=dict)
    execution: dict[str, Any] = field(default_factory=dict)
    diverged_layer: str | None = None

    def __post_init__(self) -> None:
        if (self.status == "diverged") != (self.diverged_step is not None):
            raise ValueError(f"status is {self.status!r} with diverged_step {self.diverged_step}")


def write_result(result: Result, path: Path) -> None:
    """Writes a result atomically; whoever finds the file finds all of it."""
    write_json(asdict(result), path)


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Writes a JSON file atomically; values that are not finite become null, because JSON has no NaN."""
    with replace_file(path) as file:
        json.dump(_drop_non_finite(content), file, indent=2, allow_nan=False)
        file.write("\n")


def read_result(path: Path) -> Result:
    """Reads and checks a result.

    Raises:
        ValueError: the file is cut short, lacks or has unknown fields, or a field has a wrong type or value.
        FileNotFoundError: there is no such file.
    """
    return parse(Result, path.read_bytes(), str(path))


def _drop_non_finite(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _drop_non_finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_drop_non_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node
