"""Training with the activation recorder against training without, on the batches of an experiment."""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback
from omegaconf import DictConfig
from torch import Tensor, nn

from benchmarks.common import Row
from un.command.errors import CONFIG_FOLDER
from un.finished.timing import compare, time_interleaved
from un.training.assembly import build_model, build_norm_factory, build_part

Batch = tuple[Tensor, Tensor]  # images and labels
WARMUP = 3  # intervals


def make_arm(
    model: nn.Module, batches: Iterator[Batch], callback: Callback, folder: Path, callbacks: DictConfig
) -> Callable[[], None]:
    """Returns an interval of training: as many steps as the recorder lets pass from one record to the next.

    Args:
        model: is trained with AdamW.
        batches: an endless iterator.
        callback: is called as Lightning would call it.
        folder: where the callback writes.
        callbacks: the config, for the intervals of records and checkpoints.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    trainer: Any = SimpleNamespace(global_step=0, is_global_zero=True, default_root_dir=str(folder))
    module: Any = SimpleNamespace(model=model)
    callback.setup(trainer, module, "fit")
    callback.on_fit_start(trainer, module)

    def run() -> None:
        for _ in range(callbacks.activation_stats.every_n_steps):
            train_step(trainer, module, next(batches), optimizer, callback)
            if trainer.global_step % callbacks.checkpoints.every_n_steps == 0:
                callback.state_dict()  # as a checkpoint does, which makes the recorder write

    return run


def train_step(trainer: Any, module: Any, batch: Batch, optimizer: torch.optim.Optimizer, callback: Callback) -> None:
    """Takes a step, with the callback's hooks where Lightning has them."""
    images, labels = batch
    callback.on_train_batch_start(trainer, module, batch, 0)
    optimizer.zero_grad()
    F.cross_entropy(module.model(images), labels).backward()
    callback.on_before_optimizer_step(trainer, module, optimizer)
    optimizer.step()
    trainer.global_step += 1
    callback.on_train_batch_end(trainer, module, None, batch, 0)


def repeat(loader: Iterable[Batch]) -> Iterator[Batch]:
    """Yields batches epoch after epoch."""
    while True:
        yield from loader


def measure(options: argparse.Namespace) -> list[Row]:
    """Returns the median milliseconds of a step in either arm, and the median of their ratio, over the intervals."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        overrides = [f"experiment={options.experiment}", "callbacks=activation_stats", *options.overrides]
        config = compose("train", overrides=overrides)
    data = build_part(config, "data")
    data.setup("fit")
    model = build_model(config, data.model_arguments(), build_norm_factory(config.norm)).train()
    callbacks = {"without": Callback(), "recorded": build_part(config.callbacks, "activation_stats")}
    with tempfile.TemporaryDirectory() as folder:
        arms = {
            name: make_arm(
                copy.deepcopy(model), repeat(data.train_dataloader()), callback, Path(folder) / name, config.callbacks
            )
            for name, callback in callbacks.items()
        }
        seconds = time_interleaved(arms, options.rounds, WARMUP)
    steps = config.callbacks.activation_stats.every_n_steps
    base = seconds["without"]
    return [
        {"arm": name, "ms_per_step": 1e3 * statistics.median(values) / steps, "ratio": compare(values, base)}
        for name, values in seconds.items()
    ]
