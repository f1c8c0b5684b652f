"""Randomness without a state: every training batch starts from a seed of its own, so a resumed run needs none saved."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class StepSeeding(Callback):
    """Seeds torch, numpy and random before every training batch from (seed, rank, epoch, batch index).

    Dropout, stochastic depth and Mixup of a step then depend on nothing that came before it. The batch index, not the
    optimizer step, tells the batches apart whose gradients are accumulated.

    Args:
        seed: of the run, at least 0.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed_step(self.seed, trainer.global_rank, trainer.current_epoch, batch_idx)


def seed_step(*entropy: int) -> None:
    """Seeds torch (all devices), numpy and random from a tuple of integers that are at least 0."""
    torch_seed, numpy_seed, python_seed = np.random.SeedSequence(entropy).generate_state(3)
    torch.manual_seed(int(torch_seed))
    np.random.seed(int(numpy_seed))
    random.seed(int(python_seed))
