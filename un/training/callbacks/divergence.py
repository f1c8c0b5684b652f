"""Stops a run whose loss is no longer a number or has exploded; that is a result, not a crash."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm

from un.command.value_types import FromOne
from un.training.callbacks.batches import ends_epoch

NEVER = -1
# Loss scaling skips a step whose loss is not finite and halves its factor, from torch's first, 2**16, to 1 in so many.
SKIPPED_STEPS = 16


class DivergedError(RuntimeError):
    """The loss became non-finite or exploded, or the weights became non-finite.

    Args:
        reason: what happened, as the start of a sentence.
        step: optimizer step, the first is 1.
        layer: dotted name of the first layer that met or made a non-finite value, where it is known.
        is_finite: the loss exploded and is still a number, so that there is no such layer.
    """

    def __init__(self, reason: str, step: int, layer: str | None = None, is_finite: bool = False) -> None:
        super().__init__(f"{reason} at step {step}" + (f", first in {layer}" if layer else ""))
        self.step, self.layer, self.is_finite = step, layer, is_finite


class DivergenceStop(Callback):
    """Raises `DivergedError` after a training loss that is not finite, or far above the first one of the run.

    Under float16 a non-finite loss is an overflow, whose step is skipped, unless too many follow one another.

    The first bad step is noted on the device and read every n steps, so that a GPU is not waited for at each. It is
    also read, and the weights are looked at, before each validation and each checkpoint: none is taken of a run that
    has diverged.

    Args:
        every_n_steps: how often to look.
        max_loss_ratio: how many times the first finite loss of the run is an explosion; None allows any finite loss.
            It is far above what a spike or a bad start reaches: cross-entropy starts near the logarithm of the number
            of classes.
    """

    def __init__(self, every_n_steps: FromOne, max_loss_ratio: float | None = 1000.0) -> None:
        if max_loss_ratio is not None and not max_loss_ratio > 1:
            raise ValueError(f"max_loss_ratio must be above 1 or null, got {max_loss_ratio}")
        self.every_n_steps = every_n_steps
        self.max_loss_ratio = math.inf if max_loss_ratio is None else max_loss_ratio
        # On the device from the start of the training; NaN and NEVER until there is one.
        self._first_loss = torch.tensor(math.nan)
        self._bad_loss = torch.tensor(math.nan)
        self._bad_step = torch.tensor(NEVER)
        self._streak = torch.tensor(0)  # non-finite losses in a row
        self._counters: dict[str, Tensor] = {}  # by norm: batches with a non-finite statistic
        self._counts_before = self._counts_then = torch.zeros(0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._counters = {
            name: module.nonfinite_counter
            for name, module in pl_module.get_submodule("model").named_modules()
            if isinstance(getattr(module, "nonfinite_counter", None), Tensor)
        }
        self._counts_before = self._counts_then = self._count()
        self._first_loss, self._bad_loss, self._bad_step, self._streak = (
            value.to(pl_module.device) for value in (self._first_loss, self._bad_loss, self._bad_step, self._streak)
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if loss is not None:
            is_scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
            self._note(loss.detach().float(), trainer.global_step, allowed=SKIPPED_STEPS if is_scaled else 0)
        if ends_epoch(trainer, batch_idx):  # epoch=<n>.ckpt may be saved next
            self._check(trainer, pl_module)
        elif trainer.global_step % self.every_n_steps == 0:
            self._check_loss(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._check(trainer, pl_module)  # last.ckpt at the end of the training included

    def state_dict(self) -> dict[str, Any]:
        # There is no bad step to keep, since nothing is saved after one.
        return {"first_loss": float(self._first_loss)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._first_loss = torch.tensor(state_dict["first_loss"])

    def _note(self, loss: Tensor, step: int, allowed: int) -> None:
        """Notes whether this step's loss is the first bad one."""
        finite = torch.isfinite(loss)
        self._first_loss = torch.where(finite & self._first_loss.isnan(), loss, self._first_loss)
        self._streak = torch.where(finite, 0, self._streak + 1)
        exploded = finite & (loss > self._first_loss.abs() * self.max_loss_ratio)
        is_first = (exploded | (self._streak > allowed)) & (self._bad_step == NEVER)
        self._bad_step = torch.where(is_first, step, self._bad_step)
        self._bad_loss = torch.where(is_first, loss, self._bad_loss)
        if self._counters:
            self._counts_then = torch.where(is_first, self._count(), self._counts_then)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_loss(trainer)
        self._check_weights(trainer, pl_module)

    def _check_loss(self, trainer: Trainer) -> None:
        """Raises in all processes when it is so in one."""
        bad_step = int(self._bad_step)
        if trainer.strategy.reduce_boolean_decision(bad_step != NEVER, all=False):
            raise self._describe(trainer.global_step if bad_step == NEVER else bad_step)
        self._counts_before = self._count()

    def _check_weights(self, trainer: Trainer, pl_module: LightningModule) -> None:
        largest = get_total_norm(pl_module.parameters(), norm_type=math.inf)
        if trainer.strategy.reduce_boolean_decision(not bool(torch.isfinite(largest)), all=False):
            model = pl_module.get_submodule("model")
            names = (name for name, value in model.named_parameters() if not bool(torch.isfinite(value).all()))
            raise DivergedError("the weights became non-finite", trainer.global_step, next(names, None))

    def _describe(self, step: int) -> DivergedError:
        loss, first = float(self._bad_loss), float(self._first_loss)
        if math.isfinite(loss):
            text = f"the loss became {loss:.4g}, over {self.max_loss_ratio:g} times the first ({first:.4g}),"
            return DivergedError(text, step, is_finite=True)
        moved = (self._counts_then > self._counts_before).tolist()  # by norm, as the model orders them
        layer = next((name for name, has_moved in zip(self._counters, moved, strict=True) if has_moved), None)
        return DivergedError("the loss became non-finite", step, layer)

    def _count(self) -> Tensor:
        counts = [counter.reshape(1) for counter in self._counters.values()]
        return torch.cat(counts) if counts else torch.zeros(0)
