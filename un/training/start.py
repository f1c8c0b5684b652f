"""The first steps of a run, before torch is imported: a mistake or a finished run costs one second, not ten."""

from __future__ import annotations

import logging
import os
from typing import Any

from omegaconf import DictConfig, OmegaConf

from un.command.checks import check_config
from un.command.errors import UserError
from un.command.ranks import is_first_process
from un.reports.result import read_result
from un.training.original import resolve_original
from un.training.run_folder import RunFolder, RunIdentity

NOTHING_TO_DO = ": nothing to do (force=true starts over)"
log = logging.getLogger(__name__)


def choose_mixed_precision(accelerator: str) -> str:
    """Returns the precision of `trainer=gpu`, which on a CPU would not be faster, and bfloat16."""
    return "32-true" if accelerator == "cpu" else "16-mixed"


OmegaConf.register_new_resolver("mixed_precision", choose_mixed_precision, replace=True)


def start_run(config: DictConfig) -> float | None:
    """Trains what a config composed from configs/train.yaml says, unless its folder holds a result already.

    Returns:
        For Hydra's optimizing sweepers, what `hparams_search.metric` names of the best checkpoint, whether the run was
        finished now or before; None without a search and for a run that diverged.

    Raises:
        UserError: a value out of range, a folder that is in use or holds a run of another config, or a search for a
            metric that the run does not have.
    """
    check_config(config)
    expand_home(config)
    identity = RunIdentity.from_hydra()
    resolve_original(config, identity)
    folder = RunFolder(identity.folder)
    if is_first_process():
        open_folder(folder, config)
    else:
        logging.getLogger().setLevel(logging.WARNING)  # the first process speaks for all
    if folder.result.exists() and not config.force:
        _tell_finished(folder, config)
    else:
        from un.training.train import train

        try:
            train(config, identity)
        except Exception:
            if is_first_process():
                folder.forget_start()
            raise
    search = config.get("hparams_search")
    return read_objective(folder, search.metric) if search is not None and is_first_process() else None


def read_objective(folder: RunFolder, metric: str) -> float | None:
    """Returns a metric of a run's result; None for a diverged run."""
    result = read_result(folder.result)
    if result.status == "diverged":
        return None
    if metric not in result.metrics:
        known = ", ".join(sorted(result.metrics))
        raise UserError(f"hparams_search.metric={metric} is not a metric of the run; it has {known}")
    return result.metrics[metric]


def open_folder(folder: RunFolder, config: DictConfig) -> None:
    """Takes the folder for this process, clears it if asked to, and writes config and fingerprint of the data."""
    folder.lock()
    if config.force:
        folder.clear()
    folder.write_config(_resolve(config))
    folder.write_fingerprint(OmegaConf.select(config, "data.path"))


def _resolve(config: DictConfig) -> dict[str, Any]:
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    return dict(resolved)


def _tell_finished(folder: RunFolder, config: DictConfig) -> None:
    status, missing = read_result(folder.result).status, ", ".join(folder.list_unrecorded(_resolve(config)))
    then = f", without {missing}: force=true starts over and records it" if missing else NOTHING_TO_DO
    log.info("%s is %s already%s", folder.path, status, then)


def expand_home(config: DictConfig) -> None:
    """Writes out a tilde at the start of `data.path`, which no shell does behind an equals sign."""
    path = OmegaConf.select(config, "data.path")
    if isinstance(path, str) and path.startswith("~"):
        config.data.path = os.path.expanduser(path)
