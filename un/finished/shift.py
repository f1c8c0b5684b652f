"""Tests a finished run under shift: on noisier images, misspelt sentences, other text; see configs/shift."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, distributed

from un.command.checks import check_config
from un.command.errors import UserError
from un.finished.evaluate import format_metrics
from un.finished.fold_run import fold_run, require_inference
from un.finished.open_run import FinishedRun, open_run
from un.reports.shift import EXPLODED, Losses, ShiftResult, add_shifts
from un.training.config_keys import is_science
from un.training.parts import build_part
from un.training.preprocessors import check_changes
from un.training.run_folder import RunFolder


def evaluate_shifts(config: DictConfig) -> dict[str, ShiftResult]:
    """Tests a finished run under the shifts in the config, and shows the metrics beside the run's own.

    Args:
        config: composed from configs/eval.yaml.

    Raises:
        UserError: See `open_run`, `fold_run` and `test_shifts`.
    """
    check_shifts(config)
    run = open_run(config)
    report = None
    if config.fold:
        folded, report = fold_run(run)
        require_inference(run.module).use_inference_model(folded)
    results = test_shifts(run, config.shift, run.folder, folded=report is not None)
    columns = {"recorded": {k: v for k, v in run.recorded.metrics.items() if k.startswith("test/")}}
    columns |= {name: describe_shift(result) for name, result in results.items()}
    changes = ", ".join(f"{key}={value}" for key, value in run.changes.items())
    lines = [format_metrics(columns), *list_explosions(results)]
    print("\n".join([*lines, *([f"asked for: {changes}"] if changes else [])]))
    return results


def check_shifts(config: DictConfig) -> None:
    """Checks what can be said before a run is opened.

    Raises:
        UserError: A value that a shift leaves to the command line is missing, or a shift is no shift.
    """
    for name, shift in config.shift.items():
        if not isinstance(shift, DictConfig) or set(shift) != {"task", "data"}:
            raise UserError(f"shift.{name} must have the keys task and data, as in configs/shift")
        for key in shift.data:
            if OmegaConf.is_missing(shift.data, key):
                raise UserError(f"shift.{name}.data.{key} is missing: give shift.{name}.data.{key}=<value>")


def test_shifts(run: FinishedRun, shifts: DictConfig, output: RunFolder, folded: bool) -> dict[str, ShiftResult]:
    """Tests what a run's module infers with now, and writes `shift.json` into a folder beside what was there.

    Args:
        run: an open run.
        shifts: name -> task and changes of the data; see `check_shifts`.
        output: of the run or of what became of it; the task's own files go to `evaluation/<shift>/` there.
        folded: what the result says about the model.

    Raises:
        UserError: A shift is for another task, or changes what the run's preprocessor decides.
    """
    changed = {name: shift_run(run, name, shift) for name, shift in shifts.items()}
    changes = list_changes(run)
    results = {}
    for name, shifted in changed.items():
        trainer = shifted.build_trainer(output.evaluation_files / str(name))
        recorder = LossRecorder()
        trainer.callbacks.append(recorder)
        metrics = shifted.test(trainer)
        data: Any = OmegaConf.to_container(shifts[name].data, resolve=True)
        results[str(name)] = ShiftResult(dict(metrics), summarise(recorder.losses), data, changes, folded)
        if trainer.is_global_zero:
            add_shifts({str(name): results[str(name)]}, output.shift)
    return results


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

    def on_test_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
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
    numbers = (float(number) for number in (values.mean(), np.median(ordered), ordered.max()))
    return Losses(*numbers, len(values), int(exploded.sum()), int((~finite).sum()))


def describe_shift(result: ShiftResult) -> Mapping[str, float | None]:
    """Returns the lines of a table: the metrics, and the losses of single examples."""
    losses = {f"{name} loss": getattr(result.losses, name) for name in ("median", "largest")}
    return {**result.metrics, **losses}


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
