"""Stops a run whose loss is no longer a number; that is a result, not a crash."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

NEVER = -1


class DivergedError(RuntimeError):
    """The loss became non-finite.

    Args:
        step: optimizer step, the first is 1.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss became non-finite at step {step}")
        self.step = step


class DivergenceStop(Callback):
    """Raises `DivergedError` after a non-finite training loss.

    The first bad step is noted on the device and read every n steps, so that a GPU is not waited for at each.

    Args:
        every_n_steps: how often to look; also before each validation.
    """

    def __init__(self, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._first: Tensor | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes whether this step's loss is the first non-finite one."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if loss is None:
            return
        if self._first is None:
            self._first = torch.full((), NEVER, dtype=torch.int64, device=loss.device)
        bad = ~torch.isfinite(loss.detach()).all() & (self._first == NEVER)
        self._first = torch.where(bad, trainer.global_step, self._first)
        if trainer.global_step % self.every_n_steps == 0:
            self._check(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks before numbers of a broken model are taken for a result."""
        self._check(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the steps since the last look."""
        self._check(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The first bad step, for a run killed before it was noticed."""
        return {"first": NEVER if self._first is None else int(self._first)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the first bad step."""
        self._first = None if state_dict["first"] == NEVER else torch.tensor(state_dict["first"])

    def _check(self, trainer: Trainer) -> None:
        """Raises in all processes when it is so in one."""
        first = NEVER if self._first is None else int(self._first)
        if trainer.strategy.reduce_boolean_decision(first != NEVER, all=False):
            raise DivergedError(trainer.global_step if first == NEVER else first)
