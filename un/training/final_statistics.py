"""`final_statistics=train`: the norms' inference statistics measured again once the weights are final.

What training leaves are running averages: of weights that still moved, of images that were augmented and mixed, and
under dropout and stochastic depth. Measured here are the weights that are tested, in evaluation mode, over all training
examples as a test prepares them (ours: neither augmented nor mixed, because these are the activations that the
statistics will normalise). Idea: xinghaochen/SLAB, issue 6. The result is `checkpoints/tested.ckpt`, made anew by a run
that was killed before its result stood; the checkpoints it is made of stay as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.utilities import move_data_to_device
from torch import nn

from un.command.errors import UserError
from un.files import replace_file
from un.norms import calibrate
from un.norms.core.calibration import find_statistics
from un.training.run_folder import RunFolder
from un.weights import check_state, read_checkpoint

PASSES = 3  # over the training set; on the digits, the fourth moves second moments by 0.1 %, as a mean over channels
SOURCES = "averaged"  # key of the names of the checkpoints that the weights come from
log = logging.getLogger(__name__)


def check_statistics(module: LightningModule) -> None:
    """Raises a UserError where no norm of the model has statistics."""
    if not find_statistics(module.get_submodule("model")):
        raise UserError("final_statistics=train needs a norm with running statistics, and the model has none")


def measure_final_statistics(
    folder: RunFolder, module: Any, data: LightningDataModule, trainer: Trainer, sources: list[str]
) -> None:
    """Measures the statistics of the model that is tested, and writes tested.ckpt.

    Several processes share the training examples, and end with the same statistics.

    Args:
        folder: of the run.
        module: with the weights that are tested.
        data: of the run, attached to the trainer.
        trainer: that has trained.
        sources: names of the checkpoints that the weights come from.
    """
    device, precision = trainer.strategy.root_device, trainer.precision_plugin

    def run(model: nn.Module, batch: Any) -> None:
        batch = precision.convert_input(move_data_to_device(batch, device))
        with precision.forward_context():
            module.call_model(model, batch)

    loader: Any = data.make_loader("train", training=False)  # type: ignore[attr-defined]
    module.to(device)
    for _ in range(PASSES):  # a pass measures each norm behind the old statistics of those before it
        batches = _limit(loader, trainer.limit_train_batches)
        count = calibrate(module.inference_model, batches, run, sync=True)
    log.info("inference statistics of %d norms measured again over the training set", count)
    if trainer.is_global_zero:
        with replace_file(folder.tested, binary=True) as file:
            torch.save({"state_dict": module.state_dict(), SOURCES: sources}, file)


def load_final(folder: RunFolder, module: LightningModule) -> list[str]:
    """Loads tested.ckpt into the module, and returns the names of the checkpoints that its weights come from.

    Raises:
        UserError: there is none, or it is cut short or of another model.
    """
    checkpoint = read_checkpoint(folder.tested)
    check_state(module, checkpoint.get("state_dict", {}), folder.tested)
    module.load_state_dict(checkpoint["state_dict"])
    return list(checkpoint[SOURCES])


def _limit(loader: Any, limit: int | float | None) -> Iterable[Any]:
    """Returns as many batches as `trainer.limit_train_batches` leaves of an epoch: a number, or a share of all."""
    if limit is None:
        return iter(loader)
    return islice(loader, limit if isinstance(limit, int) else int(len(loader) * limit))
