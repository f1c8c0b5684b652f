"""Tells the norms of a model about optimizer steps, and undoes what a skipped step left in them."""

from __future__ import annotations

import logging
import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from un.datasets import count_updates
from un.norms.core.schedule import set_training_length
from un.norms.core.updates import NormState, call_after_step, end_update, scale_gradient_state
from un.training.callbacks.batches import begins_step, ends_step

log = logging.getLogger(__name__)


class NormUpdates(Callback):
    """Tells norms the length of the training, ends an update of those with `count=updates`; keeps state under float16.

    Loss scaling skips a step whose gradients overflowed. The batches of that step then leave no trace in any norm, but
    for their number in `nonfinite_counter`; and what norms keep about gradients follows the scale (the official code
    leaves both as they are).
    """

    def __init__(self) -> None:
        self._taken = False
        self._state: NormState | None = None
        self._scale = 1.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _tell_length(trainer, pl_module)
        for optimizer in trainer.optimizers:
            call_after_step(optimizer, self._note_step)
        self._state = NormState(pl_module.get_submodule("model")) if _get_scaler(trainer) is not None else None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not begins_step(trainer, batch_idx):
            return
        self._taken = False
        if self._state is not None:
            self._state.keep()
            self._scale = _get_scaler(trainer).get_scale()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not ends_step(trainer, batch_idx):
            return
        model = pl_module.get_submodule("model")
        if self._taken or self._state is None:
            end_update(model)
        else:
            self._state.restore()
        if self._state is not None and (scale := _get_scaler(trainer).get_scale()) != self._scale:
            scale_gradient_state(model, scale / self._scale)

    def _note_step(self) -> None:
        self._taken = True


def _tell_length(trainer: Trainer, pl_module: LightningModule) -> None:
    """Tells the norms, averaged models' included, how long the training is; a resumed state is loaded by now."""
    steps, steps_per_epoch = count_updates(trainer)
    if not math.isfinite(steps):
        return
    calls = round(steps * trainer.num_training_batches / steps_per_epoch)
    late = set_training_length(pl_module, int(steps), calls)
    if late and trainer.is_global_zero:
        log.warning(
            "the schedule of %d norms, first %s, ends after the %d steps of this training", len(late), late[0], steps
        )


def _get_scaler(trainer: Trainer) -> Any:
    """Returns the GradScaler; None where gradients are not scaled."""
    return getattr(trainer.precision_plugin, "scaler", None)
