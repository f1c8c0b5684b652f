"""Evaluates a finished run again, from nothing but its folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from un.reports.result import Result, read_result, write_json
from un.runtime.assembly import build, build_trainer
from un.runtime.averaging import load_tested
from un.runtime.checks import check_config
from un.runtime.console import quiet_libraries
from un.runtime.errors import UserError
from un.runtime.run_folder import RunFolder
from un.runtime.training import describe_metrics

RUN_FORM = "python eval.py run=runs/<experiment>/norm=<choice>/seed=<n>"
log = logging.getLogger(__name__)


def evaluate(config: DictConfig) -> dict[str, float]:
    """Tests a finished run's weights, shows the metrics beside the run's own and writes `eval.json` into its folder.

    Args:
        config: composed from configs/eval.yaml; what is not null replaces the value in the run's config. The task's own
            files go to `evaluation/` in the run's folder, so that those of the run stay.

    Returns:
        The test metrics.

    Raises:
        UserError: no run folder, or one whose run is unfinished or diverged; an average over epochs of which none
            was kept.
    """
    quiet_libraries()
    if OmegaConf.is_missing(config, "run"):
        raise UserError(f"run is missing: say which, as in {RUN_FORM}")
    folder = RunFolder(Path(str(config.run)))
    recorded = _read_finished(folder)
    run_config = OmegaConf.create(folder.read_config())
    changes = _list_changes(config)
    for key, value in changes.items():
        OmegaConf.update(run_config, key, value)
    check_config(run_config)
    count = run_config.get("average_checkpoints")
    if config.average_checkpoints and not folder.list_epochs():
        raise UserError(f"average_checkpoints={count}: {folder.path} kept no epochs, as it was trained without it")
    run_config.init_weights = None  # the checkpoints hold all weights
    run_config.callbacks = {"progress_bar": run_config.callbacks.get("progress_bar")}
    data, module = build(run_config)
    tested = load_tested(folder, module, count)
    trainer = build_trainer(run_config, folder.evaluation_files, loggers=[])
    metrics = {k: float(v) for k, v in trainer.test(module, datamodule=data, verbose=False)[0].items()}
    if trainer.is_global_zero:
        same = all(recorded.metrics.get(name) == value for name, value in metrics.items())
        content = {
            "metrics": metrics,
            "recorded": {name: recorded.metrics.get(name) for name in metrics},
            "same": same,
            "metric_details": describe_metrics(module, tested),
            "changes": changes,
            "data_path": run_config.data.get("path"),
        }
        write_json(content, folder.evaluation)
        print(_format_table(metrics, recorded, same, changes))
    return metrics


def _list_changes(config: DictConfig) -> dict[str, Any]:
    """Returns what is to differ from the run's config: dotted key -> value."""
    groups: Any = OmegaConf.to_container(config, resolve=True)
    changes = {f"{group}.{key}": value for group in ("data", "task", "trainer") for key, value in groups[group].items()}
    changes["average_checkpoints"] = groups["average_checkpoints"]
    return {key: value for key, value in changes.items() if value is not None}


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


def _format_table(metrics: dict[str, float], recorded: Result, same: bool, changes: dict[str, Any]) -> str:
    lines = [f"{'metric':<16}{'recorded':>14}{'now':>14}"]
    for name, value in metrics.items():
        old = recorded.metrics.get(name)
        lines.append(f"{name:<16}{'none' if old is None else format(old, '14.6f'):>14}{value:>14.6f}")
    asked = f" (asked for: {', '.join(f'{key}={value}' for key, value in changes.items())})" if changes else ""
    return "\n".join([*lines, "the same to the last bit" if same else f"DIFFERENT from the run's own{asked}"])
