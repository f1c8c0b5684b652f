"""Progress on a terminal as a bar; in the log, and where there is no terminal, as a line per validation."""

import logging
import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from un.runtime.stopwatch import Stopwatch

log = logging.getLogger(__name__)


class ProgressBar(TQDMProgressBar):
    """Shows loss, metric, samples per second and steps per second.

    Args:
        refresh_rate: batches between two updates of the bar.
    """

    def __init__(self, refresh_rate: int) -> None:
        super().__init__(refresh_rate=refresh_rate if sys.stdout.isatty() else 0)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands behind the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {**metrics, "samples/s": _describe_speed(trainer)}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the line."""
        super().on_validation_end(trainer, pl_module)
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        metrics = {k: float(v) for k, v in trainer.logged_metrics.items() if k.startswith(("train/loss", "val/"))}
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}" if trainer.state.fn == "fit" else "end"
        log.info("%s  step %d  %s  %s samples/s", epoch, trainer.global_step, numbers, _describe_speed(trainer))


def _describe_speed(trainer: Trainer) -> str:
    stopwatch = next((entry for entry in trainer.callbacks if isinstance(entry, Stopwatch)), None)  # type: ignore[attr-defined]
    speed = stopwatch.samples_per_second if stopwatch else None
    return f"{speed:.0f}" if speed else "?"
