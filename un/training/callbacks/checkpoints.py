"""In checkpoints/: last.ckpt to resume from; best.ckpt, or the mean of the last epoch=<n>.ckpt, to test.

Lightning's ModelCheckpoint also saves where its loops cannot resume exactly: between the last batch before a validation
and that validation (which a resumed run would skip), and in the middle of accumulated gradients. Here last.ckpt is
saved only after a batch which no validation follows, and after a validation. A signal that asks the run to stop
(`un.command.signals`) is answered at the next such place, with last.ckpt.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from un.command import signals
from un.command.value_types import FromOne
from un.files import replace_file
from un.norms.core.base import Norm
from un.training.callbacks.batches import ends_epoch, ends_step

KEPT = (
    "best_metrics",
    "best_epoch",
    "best_step",
    "best_settled",
    "validated_step",
    "saved_step",
    "epoch",
)  # on resuming
EPOCH_CHECKPOINT = re.compile(r"epoch=(\d+)\.ckpt")


def list_epoch_checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints at the end of epochs in `checkpoints/`, in their order."""
    found = [(EPOCH_CHECKPOINT.fullmatch(path.name), path) for path in folder.glob("epoch=*.ckpt")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]


class Checkpoints(Checkpoint):
    """Saves the last and the best state; the task's `monitor` and `monitor_mode` say what is best.

    A model with norms that are still giving way (TaperNorm) is never better than one whose norms have done so.

    Args:
        every_n_steps: optimizer steps between two saves of last.ckpt inside an epoch; every validation saves it too.
        keep_epochs: how many epoch=<n>.ckpt to keep, of the last whole epochs; the first is 0. 0 or None keeps none. An
            epoch that max_steps cuts short does not count, as in fairseq.

    Attributes:
        best_metrics: validation metrics of best.ckpt; empty before the first validation.
        best_epoch: its epoch, the first is 0.
        best_step: its optimizer step.
        best_settled: whether its norms were what they are at the end.
    """

    def __init__(self, every_n_steps: FromOne, keep_epochs: int | None = None) -> None:
        super().__init__()
        self.every_n_steps, self.keep_epochs = every_n_steps, keep_epochs or 0
        self.best_metrics: dict[str, float] = {}
        self.best_epoch: int | None = None
        self.best_step: int | None = None
        self.best_settled = False
        self.validated_step = -1
        self.saved_step = 0
        self.epoch = 0
        self._is_between_steps = True  # no gradient is kept for the next batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.epoch = trainer.current_epoch  # Lightning advances it when a training ends inside an epoch

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves a whole epoch, and last.ckpt if it is due and this is a place to resume from."""
        if self.keep_epochs and ends_epoch(trainer, batch_idx):
            self._save_epoch(trainer)
        self._is_between_steps = ends_step(trainer, batch_idx)
        stop = self._is_stopping(trainer)
        due = stop or trainer.global_step - self.saved_step >= self.every_n_steps
        if due and self._is_between_steps and not self._ends_stretch(trainer, batch_idx):
            self._save_last(trainer, stop)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves best.ckpt if this validation is the best so far, then last.ckpt, which knows about it."""
        self.validated_step = trainer.global_step
        self._save_best(trainer, pl_module)
        if trainer.state.fn == "fit" and self._is_between_steps:
            self._save_last(trainer, self._is_stopping(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves last.ckpt, so that a kill while testing costs no training."""
        self._save_last(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in KEPT}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update({"best_settled": True, **state_dict})  # runs that began before it was kept have no such norms

    def _ends_stretch(self, trainer: Trainer, batch_idx: int) -> bool:
        """Tells that the epoch ends or a validation may follow; a validation that does saves by itself."""
        if ends_epoch(trainer, batch_idx):
            return True
        every = trainer.val_check_batch
        if every is None or every == float("inf"):
            return False
        total = trainer.fit_loop.total_batch_idx if trainer.check_val_every_n_epoch is None else batch_idx
        return (total + 1) % int(every) == 0

    def _is_stopping(self, trainer: Trainer) -> bool:
        """Tells in all processes alike whether a signal asked one of them to stop."""
        return trainer.strategy.reduce_boolean_decision(signals.is_stopping(), all=False)

    def _save_best(self, trainer: Trainer, pl_module: LightningModule) -> None:
        monitor, sign = str(pl_module.monitor), -1 if pl_module.monitor_mode == "min" else 1
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        if monitor not in metrics:
            raise ValueError(f"the task monitors {monitor!r} but logged {', '.join(sorted(metrics)) or 'nothing'}")
        # Written so that NaN never beats anything, and everything beats NaN.
        best, settled = self.best_metrics.get(monitor), _is_settled(pl_module)
        if self.best_settled and not settled:
            return
        beaten = settled and not self.best_settled
        if not beaten and best is not None and best == best and not sign * metrics[monitor] > sign * best:
            return
        self.best_settled = settled
        self.best_metrics, self.best_epoch, self.best_step = metrics, self.epoch, trainer.global_step
        trainer.save_checkpoint(self._place(trainer, "best.ckpt"), weights_only=True)

    def _save_epoch(self, trainer: Trainer) -> None:
        """Saves epoch=<n>.ckpt and deletes older ones; after a kill the training passes here again before it ends."""
        trainer.save_checkpoint(self._place(trainer, f"epoch={self.epoch}.ckpt"), weights_only=True)
        if trainer.is_global_zero:
            for path in list_epoch_checkpoints(self._place(trainer, ""))[: -self.keep_epochs]:
                path.unlink()

    def _save_last(self, trainer: Trainer, stop: bool = False) -> None:
        self.saved_step = trainer.global_step
        trainer.save_checkpoint(self._place(trainer, "last.ckpt"), weights_only=False)
        if stop:
            raise signals.make_stop(f" at step {trainer.global_step}")

    def _place(self, trainer: Trainer, name: str) -> Path:
        return Path(trainer.default_root_dir) / "checkpoints" / name


def _is_settled(pl_module: LightningModule) -> bool:
    """Tells that no norm of the model is on its way to what it is at inference."""
    return not any(isinstance(norm, Norm) and norm.describe_obstacle() for norm in pl_module.modules())


class AtomicCheckpointIO(TorchCheckpointIO):
    """Renames finished files into place.

    Lightning's own moves them from the system's temporary folder; between disks that is a copy and can be cut short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path, binary=True) as file:
            torch.save(checkpoint, file)
