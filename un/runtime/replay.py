"""Finds the layer where a run's numbers broke, at no cost to a healthy run: the last steps are done once more.

A resumed run repeats the steps of the one that was stopped, to the last bit on the same machine, so that the outputs of
all layers can be looked at in the one step that matters.
"""

from __future__ import annotations

import copy
import logging
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from un.runtime.assembly import build, build_trainer
from un.runtime.console import hide_output
from un.runtime.run_folder import RunFolder

log = logging.getLogger(__name__)


def find_layer(config: DictConfig, folder: RunFolder, step: int) -> str | None:
    """Trains from the last checkpoint, or from the start where there is none, to a step whose loss was not finite.

    Args:
        config: of the run.
        folder: of the run; nothing is written to it.
        step: optimizer step of that loss, the first is 1.

    Returns:
        Dotted name of the first layer, in the order of execution, with an output that is not finite; None where all
        are, so that it is the loss itself, and where the step does not repeat itself.
    """
    quiet = copy.deepcopy(config)
    quiet.callbacks = {"seeding": config.callbacks.get("seeding")}
    OmegaConf.update(quiet, "trainer.enable_checkpointing", False, force_add=True)  # Lightning's own, else
    log.info("looking for the layer: the steps up to %d are done once more", step)
    with hide_output():
        data, module = build(quiet)
        trainer = build_trainer(quiet, folder.path, loggers=[])
        trainer.callbacks.append(OutputWatch(step))  # type: ignore[attr-defined]
        try:
            last = str(folder.last) if folder.last.exists() else None
            trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
        except ReplayedError as error:
            return error.layer
    return None


class ReplayedError(Exception):
    """The step was reached; `layer` is what was found there."""

    def __init__(self, layer: str | None) -> None:
        super().__init__(layer)
        self.layer = layer


class OutputWatch(Callback):
    """Raises `ReplayedError` at the first output that is not finite in one step, or at its end.

    Args:
        step: the optimizer step whose forward passes are watched.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self._handles: list[RemovableHandle] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Attaches the hooks when the step begins."""
        if trainer.global_step + 1 < self.step or self._handles:
            return
        for name, layer in getattr(pl_module, "model", pl_module).named_modules():
            self._handles.append(layer.register_forward_hook(partial(self._look, name)))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends the replay after the step."""
        if trainer.global_step >= self.step:
            raise ReplayedError(None)

    def _look(self, name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        tensors = (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            raise ReplayedError(name)
