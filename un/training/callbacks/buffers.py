"""Gives all processes of a run the same buffers."""

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed


class BufferBroadcast(Callback):
    """Gives all processes rank 0's buffers before a validation, so that each evaluates what rank 0 saves.

    Norms without `sync` take each process's own batches into their statistics. DDP overwrites them with rank 0's, but
    only before the training forwards that follow an update.
    """

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:
            for buffer in pl_module.buffers():  # those of averaged weights included
                distributed.broadcast(buffer, src=0)
