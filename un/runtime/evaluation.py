"""Evaluates a finished run again, from nothing but its folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from un.reports.result import Result, read_result, write_json
from un.runtime.assembly import build, build_trainer
from un.runtime.console import quiet_libraries
from un.runtime.errors import UserError
from un.runtime.run_folder import RunFolder
from un.runtime.training import load_best

RUN_FORM = "python eval.py run=runs/<experiment>/norm=<choice>/seed=<n>"
log = logging.getLogger(__name__)


def evaluate(config: DictConfig) -> dict[str, float]:
    """Tests a run's best checkpoint, shows its metrics beside the run's own and writes `eval.json` into its folder.

    Args:
        config: composed from configs/eval.yaml; what is not null replaces the value in the run's config.

    Returns:
        The test metrics.

    Raises:
        UserError: no run folder, or one whose run is unfinished or diverged.
    """
    quiet_libraries()
    if OmegaConf.is_missing(config, "run"):
        raise UserError(f"run is missing: say which, as in {RUN_FORM}")
    folder = RunFolder(Path(str(config.run)))
    recorded = _read_finished(folder)
    run_config = OmegaConf.create(folder.read_config())
    for group in ("data", "trainer"):
        for key, value in config[group].items():
            if value is not None:
                run_config[group][key] = value
    run_config.init_weights = None  # best.ckpt holds all weights
    run_config.callbacks = {"progress_bar": run_config.callbacks.get("progress_bar")}
    data, module = build(run_config)
    load_best(folder, module)
    trainer = build_trainer(run_config, folder.path, loggers=[])
    metrics = {k: float(v) for k, v in trainer.test(module, datamodule=data, verbose=False)[0].items()}
    if trainer.is_global_zero:
        write_json(_describe(metrics, recorded, run_config), folder.evaluation)
        print(_format_table(metrics, recorded))
    return metrics


def _read_finished(folder: RunFolder) -> Result:
    if not folder.path.is_dir():
        raise UserError(f"{folder.path}: no such folder; run= takes one as in {RUN_FORM}")
    folder.read_config()
    if not folder.result.exists():
        raise UserError(f"{folder.path} is not finished: start the same train.py command again to complete it")
    result = read_result(folder.result)
    if result.status == "diverged":
        raise UserError(f"{folder.path} diverged at step {result.diverged_step}: there is no model to evaluate")
    return result


def _describe(metrics: dict[str, float], recorded: Result, config: DictConfig) -> dict[str, Any]:
    return {
        "metrics": metrics,
        "recorded": {name: recorded.metrics.get(name) for name in metrics},
        "same": all(recorded.metrics.get(name) == value for name, value in metrics.items()),
        "data_path": config.data.get("path"),
    }


def _format_table(metrics: dict[str, float], recorded: Result) -> str:
    lines = [f"{'metric':<16}{'recorded':>14}{'now':>14}"]
    for name, value in metrics.items():
        old = recorded.metrics.get(name)
        lines.append(f"{name:<16}{'none' if old is None else format(old, '14.6f'):>14}{value:>14.6f}")
    same = all(recorded.metrics.get(name) == value for name, value in metrics.items())
    return "\n".join([*lines, "the same to the last bit" if same else "DIFFERENT from the run's own"])
