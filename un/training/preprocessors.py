"""Keeps what a run's data mean to its model in the run folder, and reads it there: see `un.tasks.Preprocessor`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from un.command.errors import UserError
from un.files import replace_folder
from un.tasks import InferenceData, Preprocessor
from un.training.run_folder import RunFolder

log = logging.getLogger(__name__)


def keep_preprocessor(data: InferenceData, folder: RunFolder, *, resumes: bool, writes: bool) -> None:
    """Writes a new run's preprocessor, in one of its processes, or compares it with that of the resumed run."""
    if resumes and folder.preprocessor.exists():  # runs of early versions have none
        difference = data.preprocessor.explain_difference(read_preprocessor(data, folder.preprocessor))
        if difference:
            raise UserError(
                f"{folder.path} was started with other data (they have {difference} now): use force=true to start "
                "over, or another paths.runs"
            )
    elif writes:
        save_preprocessor(data, folder.preprocessor)


def save_preprocessor(data: InferenceData, path: Path) -> None:
    """Writes the preprocessor into a folder that is there whole or not at all."""
    with replace_folder(path) as folder:
        data.preprocessor.save(folder)


def use_kept_preprocessor(data: InferenceData, folder: RunFolder) -> None:
    """Lets the data of a finished run work with the preprocessor of its training, whatever these data are now."""
    if folder.preprocessor.exists():
        data.use_preprocessor(read_preprocessor(data, folder.preprocessor))
    else:
        log.warning("%s is of a version that kept no preprocessor: it is made anew from the training data", folder.path)


def read_preprocessor(data: InferenceData, path: Path) -> Preprocessor:
    """Reads a preprocessor of the kind that the data have, or raises a UserError where it is damaged."""
    try:
        return data.preprocessor_class.load(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be used: {error}") from error


def check_initial_weights(data: InferenceData, weights: Path, key: str = "init_weights") -> None:
    """Raises a UserError, which names the config's key, where a run's weights are no start for these data."""
    trained = RunFolder(weights.resolve().parent.parent).preprocessor
    if not trained.is_dir():
        return
    try:
        data.preprocessor.check_initial_weights(read_preprocessor(data, trained))
    except ValueError as error:
        raise UserError(f"{key}={weights} cannot be used: {error}") from error


def check_changes(run_config: DictConfig, changed: DictConfig) -> None:
    """Raises a UserError where a finished run's config was changed in what its preprocessor decides."""
    data: Any = get_object(run_config.data._target_)
    for name in getattr(data, "fixed_arguments", ()):
        old, new = (OmegaConf.select(config, f"data.{name}") for config in (run_config, changed))
        if old != new:
            raise UserError(f"data.{name}={new} comes too late: the run was trained with data.{name}={old}")
