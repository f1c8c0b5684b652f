"""A training stopped after any step resumes with the batches that an uninterrupted one would have seen."""

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from timm.optim import create_optimizer_v2
from torch import nn

from un.vision.module import ImageClassification
from un.vision.optimization import create_scheduler

NUM_EPOCHS, NUM_BATCHES = 3, 6


class TinyModel(nn.Sequential):
    num_classes = 3

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(3 * 12 * 12, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


class BatchRecorder(Callback):
    """Notes the epoch and the sum of every training batch, and saves a checkpoint at each of the points asked for."""

    def __init__(self, folder, points):
        self.batches, self.folder, self.points = [], folder, points

    def save(self, trainer, point):
        if point in self.points:
            trainer.save_checkpoint(self.folder / f"{point}.ckpt")

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.save(trainer, f"step={trainer.global_step}")

    def on_validation_end(self, trainer, module):
        self.save(trainer, f"validated={trainer.current_epoch}")

    def on_train_epoch_end(self, trainer, module):
        self.save(trainer, f"end={trainer.current_epoch}")

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.batches.append((trainer.current_epoch, batch_idx, batch[0].double().sum().item(), batch[1].tolist()))


def fit(data, folder, points=(), interval="step", resume=None, **trainer_options):
    """Returns the recorded batches, the final weights and the learning rates."""
    lightning.seed_everything(0)
    module = ImageClassification(
        TinyModel(),
        optimizer=lambda model: create_optimizer_v2(model, "adamw", lr=1e-2),
        scheduler=lambda *arguments: create_scheduler(*arguments, interval=interval, warmup_epochs=1),
        ema_decay=0.9,
    )
    recorder = BatchRecorder(folder, points)
    trainer = lightning.Trainer(
        **{"max_epochs": NUM_EPOCHS, "num_sanity_val_steps": 0, **trainer_options},
        accelerator="cpu",
        callbacks=[recorder],
        enable_checkpointing=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return recorder.batches, module.state_dict(), [group["lr"] for group in trainer.optimizers[0].param_groups]


# Within an epoch, at its last step, after its validation and after its end: the number of batches then done.
POINTS = {"step=4": 4, "step=6": 6, "end=0": 6, "validated=1": 12, "step=17": 17}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def uninterrupted(make_data, folder):
    batches, weights, rates = fit(make_data(limit=48, batch_size=8), folder, POINTS)
    assert [(epoch, number) for epoch, number, *_ in batches] == list(np.ndindex(NUM_EPOCHS, NUM_BATCHES))
    assert len({total for *_, total, _ in batches}) == NUM_EPOCHS * NUM_BATCHES
    return batches, weights, rates


@pytest.mark.parametrize("point", POINTS)
def test_resumed_run_sees_the_same_batches_and_ends_the_same(make_data, folder, uninterrupted, point):
    batches, weights, rates = uninterrupted
    resumed = fit(make_data(limit=48, batch_size=8), folder, resume=folder / f"{point}.ckpt")
    assert resumed[0] == batches[POINTS[point] :]
    assert resumed[2] == rates
    for name, value in weights.items():
        assert torch.equal(value, resumed[1][name]), name


def test_resume_with_accumulation_and_limits(make_data, tmp_path):
    options = {"accumulate_grad_batches": 2, "limit_train_batches": 4, "max_epochs": 2, "interval": "epoch"}
    batches, weights, rates = fit(make_data(limit=48, batch_size=8), tmp_path, ["step=1"], **options)
    assert len(batches) == 2 * 4
    resumed = fit(make_data(limit=48, batch_size=8), tmp_path, resume=tmp_path / "step=1.ckpt", **options)
    assert resumed[0] == batches[2:]
    assert resumed[2] == rates
    assert all(torch.equal(value, resumed[1][name]) for name, value in weights.items())


def test_overfitting_takes_the_same_batches_in_every_epoch(make_data, tmp_path):
    batches, _, _ = fit(make_data(limit=48, batch_size=8), tmp_path, overfit_batches=2)
    assert [seen for *_, seen, _ in batches] == [seen for *_, seen, _ in batches[:2]] * NUM_EPOCHS
