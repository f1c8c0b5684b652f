"""Evaluates a finished run again, from nothing but its folder, as it was trained or folded."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.utilities import move_data_to_device
from omegaconf import DictConfig
from torch import nn

from un.finished.fold_run import fold_run, require_inference
from un.finished.open_run import FinishedRun, open_run
from un.finished.timing import compare, measure_call, measure_on_gpu, time_interleaved
from un.folding import FoldReport
from un.reports.result import Result, write_json
from un.training.train import describe_metrics

TIMED_BATCHES, TIMED_ROUNDS, WARMUP_ROUNDS = 4, 5, 1  # for the speed-up of folding
TINY = 1e-12  # in place of a metric that is 0
ROUNDING = 1e-5  # largest relative difference of a metric that is called rounding


def evaluate(config: DictConfig) -> dict[str, float]:
    """Tests a finished run's weights, shows the metrics beside the run's own and writes `eval.json` into its folder.

    Args:
        config: composed from configs/eval.yaml; what is not null replaces the value in the run's config. The task's own
            files go to `evaluation/` in the run's folder, so that those of the run stay.

    Returns:
        The test metrics.

    Raises:
        UserError: no run folder, or one whose run is unfinished or diverged; an average over epochs of which none
            was kept; a model that cannot be folded.
    """
    run = open_run(config)
    trainer = run.build_trainer(run.folder.evaluation_files)
    unfolded, report = None, None
    if config.fold:
        task = require_inference(run.module)
        unfolded = task.inference_model.eval()
        folded, report = fold_run(run)
        task.use_inference_model(folded)
    metrics = run.test(trainer)
    if trainer.is_global_zero:
        speed = measure_speed(run, trainer, unfolded) if unfolded is not None else None
        content = describe_evaluation(run, metrics, report, speed)
        write_json(content, run.folder.evaluation)
        print(_format_table(metrics, run.recorded, content["same"], run.changes, report, speed))
    return metrics


def describe_evaluation(
    run: FinishedRun, metrics: dict[str, float], report: FoldReport | None, speed: dict[str, float] | None
) -> dict[str, Any]:
    """Returns what `eval.json` holds."""
    content = {
        "metrics": metrics,
        "recorded": {name: run.recorded.metrics.get(name) for name in metrics},
        "same": all(run.recorded.metrics.get(name) == value for name, value in metrics.items()),
        "metric_details": describe_metrics(run.module, run.tested),
        "changes": run.changes,
        "data_path": run.config.data.get("path"),
        "folded": report is not None,
    }
    if report is not None:
        content |= {"fold": {"norms": len(report.rows), "folded": len(report.folded)}, "speed": speed}
    return content


def measure_speed(run: FinishedRun, trainer: Trainer, unfolded: nn.Module) -> dict[str, float]:
    """Times the folded model of a run's module and the unfolded one in turn on the first test batches.

    Returns:
        Median seconds of a batch of both, and the median of their ratios.
    """
    task = require_inference(run.module)
    device = trainer.strategy.root_device
    models = {"unfolded": unfolded, "folded": task.inference_model}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        placed = {name: model.to(device).eval() for name, model in models.items()}
        for batch in islice(run.data.test_dataloader(), TIMED_BATCHES):
            moved = move_data_to_device(batch, device)
            arms: dict[str, Callable[[], object]] = {
                name: partial(task.predict, model, moved) for name, model in placed.items()
            }
            measure = measure_on_gpu if device.type == "cuda" else measure_call
            for name, values in time_interleaved(arms, TIMED_ROUNDS, WARMUP_ROUNDS, measure).items():
                seconds[name] += values
    medians = {f"{name}_seconds": statistics.median(values) for name, values in seconds.items()}
    return {**medians, "speed_up": compare(seconds["unfolded"], seconds["folded"])}


def _format_table(
    metrics: dict[str, float],
    recorded: Result,
    same: bool,
    changes: dict[str, Any],
    report: FoldReport | None,
    speed: dict[str, float] | None,
) -> str:
    lines = [f"{'metric':<16}{'recorded':>14}{'now':>14}"]
    for name, value in metrics.items():
        old = recorded.metrics.get(name)
        lines.append(f"{name:<16}{'none' if old is None else format(old, '14.6f'):>14}{value:>14.6f}")
    asked = f" (asked for: {', '.join(f'{key}={value}' for key, value in changes.items())})" if changes else ""
    if report is not None and speed is not None:
        lines.append(f"{len(report.folded)} of {len(report.rows)} norms folded")
        lines.append(
            f"a batch took {speed['folded_seconds']:.4g} s folded, {speed['unfolded_seconds']:.4g} s unfolded: "
            f"{speed['speed_up']:.2f} times as fast"
        )
    if same:
        return "\n".join([*lines, "the same to the last bit"])
    recorded_values = ((value, recorded.metrics.get(name)) for name, value in metrics.items())
    largest = max(
        (abs(now - old) / max(abs(old), TINY) for now, old in recorded_values if old is not None), default=0.0
    )
    if report is not None and largest <= ROUNDING:
        return "\n".join([*lines, f"the same to rounding{asked}: relative difference {largest:.1e}"])
    return "\n".join([*lines, f"DIFFERENT from the run's own{asked}"])
