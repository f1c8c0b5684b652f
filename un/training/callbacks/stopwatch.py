"""How long a run took and how many samples per second it trained."""

import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class Stopwatch(Callback):
    """Counts training samples and seconds, those of a resumed run's earlier processes included."""

    def __init__(self) -> None:
        self.samples = 0
        self.train_seconds = 0.0
        self._earlier_seconds = 0.0
        self._start = self._tick = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the start, with those of earlier processes."""
        return self._earlier_seconds + time.monotonic() - self._start

    @property
    def samples_per_second(self) -> float | None:
        """Training samples per second, loading included, validation excluded; None before the first step."""
        return self.samples / self.train_seconds if self.train_seconds > 0 else None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tick = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        self.samples += _count_samples(batch) * trainer.world_size
        self.train_seconds += now - self._tick
        self._tick = now

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tick = time.monotonic()  # the time of a validation does not count

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tick = time.monotonic()  # where a run is resumed in the middle of an epoch

    def state_dict(self) -> dict[str, Any]:
        return {"samples": self.samples, "train_seconds": self.train_seconds, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.samples, self.train_seconds = state_dict["samples"], state_dict["train_seconds"]
        self._earlier_seconds = state_dict["seconds"]


def _count_samples(batch: Any) -> int:
    """Returns the length of the batch's first tensor; Lightning's way warns where a batch holds numbers, too."""
    values = batch.values() if isinstance(batch, Mapping) else batch
    return len(next(value for value in values if isinstance(value, Tensor)))
