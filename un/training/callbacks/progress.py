"""Progress: a bar on a terminal, and a line per validation in the log."""

import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from un.command.console import log_to_files
from un.training.callbacks.stopwatch import Stopwatch

log = logging.getLogger(__name__)


class ProgressBar(TQDMProgressBar):
    """Shows loss, metric, samples per second and steps per second."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {**metrics, "samples/s": _describe_speed(trainer)}


class ProgressLog(Callback):
    """Writes loss, metrics and samples per second after each validation; to the console, too, where there is no bar."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        metrics = {k: float(v) for k, v in trainer.logged_metrics.items() if k.startswith(("train/loss", "val/"))}
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        counts_epochs = trainer.state.fn == "fit" and trainer.max_epochs != -1
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  " if counts_epochs else ""
        line = f"{epoch}step {trainer.global_step}  {numbers}  {_describe_speed(trainer)} samples/s"
        if trainer.progress_bar_callback is None:
            log.info(line)
        else:
            log_to_files(line)


def _describe_speed(trainer: Trainer) -> str:
    stopwatch = next((entry for entry in trainer.callbacks if isinstance(entry, Stopwatch)), None)  # type: ignore[attr-defined]
    speed = stopwatch.samples_per_second if stopwatch else None
    return f"{speed:.0f}" if speed else "?"
