"""Which weights a finished training is tested with: the best checkpoint's, or the mean of the last epochs'."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from un.command.errors import UserError
from un.training.callbacks.checkpoints import list_epoch_checkpoints
from un.training.run_folder import RunFolder
from un.weights import check_state, read_checkpoint

log = logging.getLogger(__name__)


def load_tested(folder: RunFolder, module: LightningModule, count: int | None) -> list[str]:
    """Loads into the module what is tested and returns the names of the checkpoints that went into it.

    `Trainer.test(ckpt_path=...)` would take the callbacks back to that time, too.

    Args:
        folder: of the run.
        module: of the run's task and model.
        count: the mean of this many last epoch checkpoints, or of all where there are fewer; None, 0 or no epoch
            checkpoint at all (a training which ended in its first epoch) for best.ckpt.

    Raises:
        UserError: a file is missing, cut short or of another model.
    """
    paths = choose_tested(folder, count)
    there = len(paths) if paths != [folder.best] else 0
    if count and there < count:
        found = f"the mean of the {there} there are" if there else "best.ckpt"
        log.warning("average_checkpoints=%d, but %s has %d: %s is tested", count, folder.path, there, found)
    states = (_read_state(path, module) for path in paths)
    module.load_state_dict(average_states(states) if len(paths) > 1 else next(states))
    return [path.name for path in paths]


def choose_tested(folder: RunFolder, count: int | None) -> list[Path]:
    """Returns the checkpoints that `load_tested` takes the mean of."""
    return (list_epoch_checkpoints(folder.checkpoints)[-count:] if count else []) or [folder.best]


def average_states(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the mean of state dicts with the same names, shapes and types; one state at a time is in memory.

    Floating-point entries, running statistics included, are summed in float64; integer entries are summed and divided
    with floor, as in the official scripts; entries that are not tensors are those of the last state.
    """
    sums: dict[str, Tensor] = {}
    last: Mapping[str, Any] = {}
    count = 0
    for count, last in enumerate(states, 1):  # noqa: B007  both are used after the loop
        for name, value in last.items():
            if isinstance(value, Tensor):
                wide = value.to(torch.int64 if _counts(value) else torch.promote_types(value.dtype, torch.float64))
                sums[name] = sums[name] + wide if name in sums else wide
    means = {name: total // count if _counts(total) else total / count for name, total in sums.items()}
    return {name: means[name].to(value.dtype) if name in means else value for name, value in last.items()}


def _counts(value: Tensor) -> bool:
    return not (value.is_floating_point() or value.is_complex())


def _read_state(path: Path, module: LightningModule) -> dict[str, Any]:
    checkpoint = read_checkpoint(path)
    if "state_dict" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of a run")
    module.on_load_checkpoint(checkpoint)
    check_state(module, checkpoint["state_dict"], path)
    return dict(checkpoint["state_dict"])
