"""A callback that writes down every process's buffers when it trains and when it validates."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class BufferProbe(Callback):
    """Leaves `probe-<rank>.json` in the run folder: [where, sum of all float buffers and those of norms by name]."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, dict[str, float]]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.note("train", pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            self.note("val", pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = Path(trainer.default_root_dir) / f"probe-{trainer.global_rank}.json"
        path.write_text(json.dumps(self.notes))

    def note(self, where: str, module: LightningModule) -> None:
        self.notes.append((where, {name: buffer.double().sum().item() for name, buffer in module.named_buffers()}))
