"""Evaluates a finished run again, from nothing but its folder, as it was trained or folded."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial
from itertools import islice
from typing import Any

import pandas as pd
import torch
from lightning import Trainer
from lightning.fabric.utilities import move_data_to_device
from omegaconf import DictConfig
from torch import nn

from un.command.errors import UserError
from un.finished.fold_run import fold_run, require_inference
from un.finished.open_run import FinishedRun, open_run
from un.finished.timing import compare, measure_call, measure_on_gpu, time_interleaved
from un.reports.result import write_json
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
        UserError: See `open_run` and `fold_run`.
    """
    run = open_run(config)
    trainer = run.build_trainer(run.folder.evaluation_files)
    unfolded, report = None, None
    against = None
    if config.get("against") is not None:
        if not config.fold:
            raise UserError(f"against={config.against} needs fold=true: it is what the folded model is timed beside")
        against = open_run(config, str(config.against))
    if config.fold:
        task = require_inference(run.module)
        unfolded = task.inference_model if against is None else require_inference(against.module).inference_model
        folded, report = fold_run(run)
        task.use_inference_model(folded)
    metrics = run.test(trainer)
    if trainer.is_global_zero:
        recorded = {name: run.recorded.metrics.get(name) for name in metrics}
        content = {
            "metrics": metrics,
            "recorded": recorded,
            "same": recorded == metrics,
            "metric_details": describe_metrics(run.module, run.tested, run.config.get("final_statistics")),
            "changes": run.changes,
            "data_path": run.config.data.get("path"),
            "folded": report is not None,
        }
        if unfolded is not None and report is not None:
            if against is not None:
                content["against"] = {"run": str(config.against), "norm": against.recorded.norm.get("choice")}
            content["fold"] = {"norms": len(report.rows), "folded": len(report.folded)}
            content["speed"] = measure_speed(run, trainer, unfolded)
        write_json(content, run.folder.evaluation)
        print(format_evaluation(content))
    return metrics


def measure_speed(run: FinishedRun, trainer: Trainer, unfolded: nn.Module) -> dict[str, float]:
    """Times the folded model of a run's module and the unfolded one in turn on the first test batches.

    Returns:
        Median seconds per batch of both, and the median of their ratios.
    """
    task = require_inference(run.module)
    device = trainer.strategy.root_device
    batches = [move_data_to_device(batch, device) for batch in islice(run.data.test_dataloader(), TIMED_BATCHES)]

    def predict(model: nn.Module) -> None:
        for batch in batches:
            task.predict(model, batch)

    models = {"unfolded": unfolded, "folded": task.inference_model}
    with torch.inference_mode():
        arms = {name: partial(predict, model.to(device).eval()) for name, model in models.items()}
        measure = measure_on_gpu if device.type == "cuda" else measure_call
        seconds = time_interleaved(arms, TIMED_ROUNDS, WARMUP_ROUNDS, measure)
    medians = {f"{name}_seconds": statistics.median(values) / len(batches) for name, values in seconds.items()}
    return {**medians, "speed_up": compare(seconds["unfolded"], seconds["folded"])}


def format_metrics(columns: Mapping[str, Mapping[str, float | None]]) -> str:
    """Returns a table with one line per metric."""
    table = pd.DataFrame(columns, dtype=float)
    return table.to_string(float_format="{:.6f}".format, na_rep="none", col_space=14)


def format_evaluation(content: Mapping[str, Any]) -> str:
    """Returns what `eval.json` holds for a reader."""
    metrics, recorded = content["metrics"], content["recorded"]
    lines = [format_metrics({"recorded": recorded, "now": metrics})]
    if content["folded"]:
        fold, speed = content["fold"], content["speed"]
        other = f"by {content['against']['run']}" if "against" in content else "unfolded"
        lines += [
            f"{fold['folded']} of {fold['norms']} norms folded",
            f"a batch took {speed['folded_seconds']:.4g} s folded, {speed['unfolded_seconds']:.4g} s {other}: "
            f"{speed['speed_up']:.2f} times as fast",
        ]
    changes = ", ".join(f"{key}={value}" for key, value in content["changes"].items())
    asked = f" (asked for: {changes})" if changes else ""
    pairs = [(value, recorded[name]) for name, value in metrics.items() if recorded[name] is not None]
    difference = max((abs(now - old) / max(abs(old), TINY) for now, old in pairs), default=0.0)
    if content["same"]:
        lines.append("the same to the last bit")
    elif content["folded"] and difference <= ROUNDING:
        lines.append(f"the same to rounding{asked}: relative difference {difference:.1e}")
    else:
        lines.append(f"DIFFERENT from the run's own{asked}")
    return "\n".join(lines)
