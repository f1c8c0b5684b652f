"""A training stopped after any step goes on with the batches that an uninterrupted one would have seen."""

import lightning
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
    """Notes the epoch and the sum of every training batch, and saves a checkpoint wherever one may be saved."""

    def __init__(self, folder):
        self.batches, self.folder = [], folder

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            trainer.save_checkpoint(self.folder / f"step={trainer.global_step}.ckpt")

    def on_validation_end(self, trainer, module):
        trainer.save_checkpoint(self.folder / f"validated={trainer.current_epoch}.ckpt")

    def on_train_epoch_end(self, trainer, module):
        trainer.save_checkpoint(self.folder / f"end={trainer.current_epoch}.ckpt")

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.batches.append((trainer.current_epoch, batch_idx, batch[0].double().sum().item(), batch[1].tolist()))


def fit(data, folder, interval="step", resume=None, **trainer_options):
    """Returns the recorded batches, the final weights and the learning rates."""
    lightning.seed_everything(0)
    module = ImageClassification(
        TinyModel(),
        optimizer=lambda model: create_optimizer_v2(model, "adamw", lr=1e-2),
        scheduler=lambda *arguments: create_scheduler(*arguments, interval=interval, warmup_epochs=1),
        ema_decay=0.9,
    )
    recorder = BatchRecorder(folder)
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def uninterrupted(make_data, folder):
    return fit(make_data(limit=48, batch_size=8), folder)


def test_uninterrupted_run_is_as_long_as_expected(uninterrupted, folder):
    batches, _, _ = uninterrupted
    assert [(epoch, number) for epoch, number, *_ in batches] == [
        (epoch, number) for epoch in range(NUM_EPOCHS) for number in range(NUM_BATCHES)
    ]
    assert len({total for *_, total, _ in batches}) == NUM_EPOCHS * NUM_BATCHES


STOPS = [*(f"step={step}" for step in (1, 4, 5, 6, 7, 11, 12, 17)), "end=0", "end=1", "validated=1"]


@pytest.mark.parametrize("stop", STOPS)
def test_resumed_run_sees_the_same_batches_and_ends_the_same(make_data, folder, uninterrupted, stop, tmp_path):
    batches, weights, rates = uninterrupted
    number = int(stop.split("=")[1])
    done = number if stop.startswith("step") else (number + 1) * NUM_BATCHES
    resumed = fit(make_data(limit=48, batch_size=8), tmp_path, resume=folder / f"{stop}.ckpt")
    assert resumed[0] == batches[done:]
    assert resumed[2] == rates
    for name, value in weights.items():
        assert torch.equal(value, resumed[1][name]), name


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_resume_with_accumulation_and_limits(make_data, tmp_path, interval):
    options = {"accumulate_grad_batches": 2, "limit_train_batches": 4, "interval": interval}
    batches, weights, rates = fit(make_data(limit=48, batch_size=8), tmp_path / "first", **options)
    assert len(batches) == NUM_EPOCHS * 4
    for step in (1, 2, 3):
        path = tmp_path / "first" / f"step={step}.ckpt"
        resumed = fit(make_data(limit=48, batch_size=8), tmp_path / f"from{step}", resume=path, **options)
        assert resumed[0] == batches[2 * step :]
        assert resumed[2] == rates
        assert all(torch.equal(value, resumed[1][name]) for name, value in weights.items())


def test_overfitting_takes_the_same_batches_in_training_and_validation(make_data, tmp_path):
    batches, _, _ = fit(make_data(limit=48, batch_size=8), tmp_path, overfit_batches=2)
    assert [(total, labels) for *_, total, labels in batches[:2]] * NUM_EPOCHS == [
        tuple(entry[2:]) for entry in batches
    ]
