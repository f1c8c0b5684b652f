"""Logs what the norms of a model do while it trains."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from un.command.value_types import FromOne
from un.training.callbacks.metrics_file import log_values

# Summed up over all norms under `norm/<name>`: fraction of norms that skipped, batches that were not finite.
SUMMARIES: dict[str, Callable[[Tensor], Tensor]] = {"filtered_fraction": torch.mean, "nonfinite_count": torch.sum}


class WatchNorms(Callback):
    """Logs `norm/<site>/<name>` for every norm that has `watch()`, and summaries over all of them, every n steps.

    Args:
        every_n_steps: optimizer steps between two looks; each costs one transfer from the device.
    """

    def __init__(self, every_n_steps: FromOne) -> None:
        self.every_n_steps = every_n_steps
        self._last_step = -1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._last_step or step % self.every_n_steps != 0:
            return
        self._last_step = step
        values = watch_norms(getattr(pl_module, "model", pl_module))
        if values:
            log_values(trainer, values)

    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last_step = state_dict["last_step"]


def watch_norms(model: nn.Module) -> dict[str, float]:
    """Returns `norm/<site>/<name>` and summaries; empty when no norm of the model has anything to watch."""
    scalars: dict[str, Tensor] = {}
    for site, module in model.named_modules():
        watch = getattr(module, "watch", None)
        if callable(watch):
            scalars |= {f"{site}/{name}": value for name, value in watch().items()}
    if not scalars:
        return {}
    stacked = torch.stack([value.detach().float() for value in scalars.values()])
    names = list(scalars)
    summaries = {}
    for name, summarise in SUMMARIES.items():
        places = [place for place, full_name in enumerate(names) if full_name.rsplit("/", 1)[-1] == name]
        if places:
            summaries[name] = summarise(stacked[places])
    values = torch.cat([torch.stack(list(summaries.values())), stacked]) if summaries else stacked
    return {f"norm/{name}": value for name, value in zip([*summaries, *names], values.tolist(), strict=True)}
