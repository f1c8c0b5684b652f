"""Logs what the norms of a model do while it trains."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from un.command.value_types import FromOne
from un.training.callbacks.batches import ends_step
from un.training.callbacks.metrics_file import log_values

# Summed up over all norms under `norm/<name>`: fraction of norms that skipped, batches that were not finite, and the
# training-inference discrepancy.
SUMMARIES: dict[str, Callable[[list[float]], float]] = {
    "filtered_fraction": statistics.fmean,
    "nonfinite_count": sum,
    "mean_discrepancy": statistics.fmean,
    "scale_discrepancy": statistics.fmean,
}


class WatchNorms(Callback):
    """Logs `norm/<site>/<name>` for every norm that has `watch()`, and summaries over all of them, every n steps.

    Args:
        every_n_steps: optimizer steps between two looks; each costs one transfer from the device.
    """

    def __init__(self, every_n_steps: FromOne) -> None:
        self.every_n_steps = every_n_steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if ends_step(trainer, batch_idx) and trainer.global_step % self.every_n_steps == 0:
            values = watch_norms(pl_module.get_submodule("model"))
            if values:
                log_values(trainer, values)


def watch_norms(model: nn.Module) -> dict[str, float]:
    """Returns `norm/<site>/<name>` and summaries; empty when no norm of the model has anything to watch."""
    scalars: dict[str, Tensor] = {}
    for site, module in model.named_modules():
        watch = getattr(module, "watch", None)
        if callable(watch):
            scalars |= {f"{site}/{name}": value for name, value in watch().items()}
    if not scalars:
        return {}
    read = torch.stack([value.detach().float() for value in scalars.values()]).tolist()  # in one transfer
    values = dict(zip(scalars, read, strict=True))
    for name, summarise in SUMMARIES.items():
        if found := [value for full_name, value in values.items() if full_name.endswith(f"/{name}")]:
            values[name] = summarise(found)
    return {f"norm/{name}": value for name, value in values.items()}
