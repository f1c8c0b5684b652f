"""Opens finished runs: the config, data and weights that a run was tested with, from its folder alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import Callback, LightningDataModule, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from un.command.checks import check_config
from un.command.console import quiet_libraries
from un.command.errors import UserError
from un.reports.result import Result
from un.tasks import InferenceData
from un.training.assembly import build, build_trainer
from un.training.averaging import load_tested
from un.training.callbacks.checkpoints import list_epoch_checkpoints
from un.training.final_statistics import load_final
from un.training.preprocessors import check_changes
from un.training.run_folder import RunFolder

RUN_FORM = "run=runs/<experiment>/norm=<choice>/seed=<n>"


@dataclass(frozen=True)
class FinishedRun:
    """A run that can be used again, with the tested weights in its module and its preprocessor in its data."""

    folder: RunFolder
    recorded: Result
    config: DictConfig  # of the run, with the changes
    changes: dict[str, Any]  # what differs from the config of the run, dotted key -> value
    data: LightningDataModule
    module: LightningModule
    tested: list[str]  # names of the checkpoints that the weights come from

    @property
    def inference_data(self) -> InferenceData:
        data: Any = self.data
        return data

    def build_trainer(self, folder: Path, *callbacks: Callback) -> Trainer:
        """Builds a trainer for testing, with further callbacks; the task writes its own files to the folder."""
        return build_trainer(self.config, folder, [], callbacks)

    def test(self, trainer: Trainer) -> dict[str, float]:
        """Returns the test metrics of what the module infers with now."""
        return {k: float(v) for k, v in trainer.test(self.module, datamodule=self.data, verbose=False)[0].items()}


def open_run(config: DictConfig, path: str | None = None) -> FinishedRun:
    """Rebuilds a run.

    Args:
        config: built on configs/finished.yaml; what is not null in `data`, `task`, `trainer` and `average_checkpoints`
            replaces the value in the run's config.
        path: the run folder; None is `config.run`.

    Raises:
        UserError: The folder is not a run folder, its run is unfinished or diverged, or an average over epochs is asked
            for and none was kept, or the statistics were measured for another one.
    """
    quiet_libraries()
    if OmegaConf.is_missing(config, "run"):
        raise UserError(f"run is missing: say which, as in {RUN_FORM}")
    folder = RunFolder(Path(path or str(config.run)))
    if not folder.path.is_dir():
        raise UserError(f"{folder.path}: no such folder; give one as in {RUN_FORM}")
    recorded = folder.read_finished()
    run_config = OmegaConf.create(folder.read_config())
    for key, value in recorded.execution.get("norm", {}).items():
        OmegaConf.update(run_config, f"norm.{key}", value)
    before = copy.deepcopy(run_config)
    asked: Any = OmegaConf.to_container(config, resolve=True)
    changes = {f"{group}.{key}": value for group in ("data", "task", "trainer") for key, value in asked[group].items()}
    changes["average_checkpoints"] = asked["average_checkpoints"]
    changes = {key: value for key, value in changes.items() if value is not None}
    for key, value in changes.items():
        OmegaConf.update(run_config, key, value)
    check_config(run_config)
    check_changes(before, run_config)
    count, has_final = run_config.get("average_checkpoints"), bool(run_config.get("final_statistics"))
    if has_final and config.average_checkpoints is not None:
        raise UserError(
            f"average_checkpoints={config.average_checkpoints}: the statistics of {folder.path} were measured for the "
            "weights that it tested, and for no others (final_statistics=train)"
        )
    if config.average_checkpoints and not list_epoch_checkpoints(folder.checkpoints):
        raise UserError(f"average_checkpoints={count}: {folder.path} kept no epochs, as it was trained without it")
    run_config.init_weights = run_config.retrofit = None  # the checkpoints hold all weights
    run_config.callbacks = {"progress_bar": run_config.callbacks.get("progress_bar")}
    data, module = build(run_config, folder)
    tested = load_final(folder, module) if has_final else load_tested(folder, module, count)
    return FinishedRun(folder, recorded, run_config, changes, data, module, tested)
