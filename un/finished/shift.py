"""Tests a finished run under shift: on noisier images, misspelt sentences, other text; see configs/shift."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, distributed

from un.command.checks import check_config
from un.command.errors import UserError
from un.command.ranks import is_first_process
from un.finished.evaluate import format_metrics
from un.finished.fold_run import fold_run, require_inference
from un.finished.open_run import FinishedRun, open_run
from un.reports.shift import EXPLODED, Losses, ShiftResult, add_shifts
from un.training.config_keys import is_science
from un.training.parts import build_part
from un.training.preprocessors import check_changes


def evaluate_shifts(config: DictConfig) -> dict[str, ShiftResult]:
    """Tests a finished run under the shifts in the config, and shows the metrics beside the run's own.

    Each goes to `shift.json` in its folder as soon as it is known; those under other shifts stay there.

    Args:
        config: composed from configs/eval.yaml.

    Raises:
        UserError: See `open_run`, `fold_run` and `measure_shifts`.
    """
    check_shifts(config.shift)
    run = open_run(config)
    if config.fold:
        require_inference(run.module).use_inference_model(fold_run(run)[0])
    results = {}
    for name, result in measure_shifts(run, config.shift, folded=bool(config.fold)):
        results[name] = result
        if is_first_process():
            add_shifts({name: result}, run.folder.shift)
    columns = {"recorded": {k: v for k, v in run.recorded.metrics.items() if k.startswith("test/")}}
    columns |= {name: describe_shift(result) for name, result in results.items()}
    changes = ", ".join(f"{key}={value}" for key, value in run.changes.items())
    lines = [format_metrics(columns), *list_explosions(results)]
    print("\n".join([*lines, *([f"asked for: {changes}"] if changes else [])]))
    return results


def check_shifts(shifts: DictConfig) -> None:
    """Checks what can be said before a run is opened.

    Raises:
        UserError: A value that a shift leaves to the command line is missing, or a shift is no shift.
    """
    for name, shift in ((str(key), shifts[key]) for key in shifts):
        if not isinstance(shift, DictConfig) or set(shift) != {"task", "data"}:
            raise UserError(f"shift.{name} must have the keys task and data, as in configs/shift")
        for key in map(str, shift.data):
            if OmegaConf.is_missing(shift.data, key):
                raise UserError(f"shift.{name}.data.{key} is missing: give shift.{name}.data.{key}=<value>")


def measure_shifts(run: FinishedRun, shifts: DictConfig, folded: bool = False) -> Iterator[tuple[str, ShiftResult]]:
    """Yields the tests of what a run's module infers with now; the task's files go to `evaluation/<shift>/`.

    Args:
        run: an open run.
        shifts: name -> task and changes of the data; see `check_shifts`.
        folded: what the results say about the model.

    Raises:
        UserError: A shift is for another task, or changes what the run's preprocessor decides.
    """
    changed = {str(name): shift_run(run, str(name), shift) for name, shift in shifts.items()}
    changes = list_changes(run)
    for name, shifted in changed.items():
        recorder = LossRecorder()
        metrics = shifted.test(shifted.build_trainer(run.folder.evaluation_files / name, recorder))
        data: Any = OmegaConf.to_container(shifts[name].data, resolve=True)
        yield name, ShiftResult(dict(metrics), summarise(recorder.losses), data, changes, folded)


def shift_run(run: FinishedRun, name: str, shift: DictConfig) -> FinishedRun:
    """Returns the run with other data, and with its module and preprocessor.

    Raises:
        UserError: The shift is for another task, or changes what the run's preprocessor decides.
    """
    config = copy.deepcopy(run.config)
    task = str(config.task._target_).split(".")[1]
    if shift.task != task:
        raise UserError(f"shift={name} is for {shift.task}, and {run.folder.path} is of {task}")
    config.data = OmegaConf.merge(config.data, shift.data)
    check_config(config)
    check_changes(run.config, config)
    data = build_part(config, "data")
    data.use_preprocessor(run.inference_data.preprocessor)
    data.prepare_data()
    return replace(run, config=config, data=data)


def list_changes(run: FinishedRun) -> dict[str, Any]:
    """Returns those changes of an open run that make other metrics, dotted key -> value."""
    changes = {key: value for key, value in run.changes.items() if is_science(key)}
    try:
        run.folder.check_data(run.config.data.get("path"))
    except UserError:  # it was given other data, not another place of the same
        changes["data.path"] = run.config.data.path
    return changes


class LossRecorder(Callback):
    """Keeps the loss of every test example, of all processes."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_test_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        task = require_inference(module)
        losses: Tensor = task.measure_losses(task.inference_model, batch)
        self.losses += losses.double().tolist()

    def on_test_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            distributed.all_gather_object(parts, self.losses)
            self.losses = [loss for part in parts for loss in part]


def summarise(losses: Sequence[float]) -> Losses:
    """Returns what a reader needs to see of the losses of examples."""
    values = np.array(losses)
    finite = np.isfinite(values)
    ordered = np.where(np.isnan(values), np.inf, values)  # a NaN counts as worse than any number, also in the median
    exploded = ~(finite & (values <= EXPLODED))
    return Losses(
        mean=float(values.mean()),
        median=float(np.median(ordered)),
        largest=float(ordered.max()),
        examples=len(values),
        exploded=int(exploded.sum()),
        not_finite=int((~finite).sum()),
    )


def describe_shift(result: ShiftResult) -> dict[str, float | None]:
    """Returns the lines of a table: the metrics, and the losses of single examples."""
    losses = {f"{name} loss": getattr(result.losses, name) for name in ("median", "largest")}
    return {**result.metrics, **losses}


def compare_shifted(name: str, results: Mapping[str, ShiftResult]) -> str:
    """Returns a table of two models' tests under a shift, the second beside the first."""
    first, second = columns = {kind: describe_shift(result) for kind, result in results.items()}
    pairs = [(metric, value, columns[second][metric]) for metric, value in columns[first].items()]
    difference = {metric: new - old for metric, old, new in pairs if old is not None and new is not None}
    exploded = list_explosions({f"{name}, {kind}": result for kind, result in results.items()})
    return "\n".join([f"under shift: {name}", format_metrics({**columns, "difference": difference}), *exploded])


def list_explosions(results: Mapping[str, ShiftResult]) -> list[str]:
    """Returns a line for each shift under which losses explode."""
    lines = []
    for name, result in results.items():
        losses = result.losses
        if losses.exploded:
            finite = f", {losses.not_finite} of them not finite" if losses.not_finite else ""
            lines.append(
                f"{name}: EXPLODES: {losses.exploded} of {losses.examples} examples have a loss over {EXPLODED:g} nats"
                f"{finite}"
            )
    return lines
