"""A training stopped after any step resumes with the batches that an uninterrupted one would have seen."""

import lightning
import pytest
import torch
from torch import nn

from un.translation.data import TranslationDataModule

NUM_EPOCHS = 2


class TokenCounter(lightning.LightningModule):
    """Learns a number per token, and notes the sentences of every batch."""

    def __init__(self, num_tokens):
        super().__init__()
        self.weights = nn.Embedding(num_tokens, 1)
        self.seen, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["id"].tolist())
        return (self.weights(batch["target"]).mean() - self.weights(batch["net_input"]["src_tokens"]).mean()) ** 2

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.trainer.save_checkpoint(f"{self.trainer.default_root_dir}/step={self.trainer.global_step}.ckpt")

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch["id"].tolist())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


def fit(folder, resume=None, **options):
    data = TranslationDataModule(None, "de", "en", max_tokens=150, limit=40)
    lightning.seed_everything(0, verbose=False)
    module = TokenCounter(len(data.model_arguments()["source_dictionary"]))
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"max_epochs": NUM_EPOCHS, "num_sanity_val_steps": 0, "logger": False, **quiet, **options}
    trainer = lightning.Trainer(accelerator="cpu", default_root_dir=folder, **options)
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def uninterrupted(folder):
    return fit(folder)


@pytest.mark.parametrize("step", [3, 7])
def test_resumed_run_sees_the_same_batches_and_ends_the_same(folder, uninterrupted, step, tmp_path):
    assert len(uninterrupted.seen) > 7 > len(uninterrupted.seen) // NUM_EPOCHS
    resumed = fit(tmp_path, folder / f"step={step}.ckpt")
    assert resumed.seen == uninterrupted.seen[step:]
    assert torch.equal(resumed.weights.weight, uninterrupted.weights.weight)


def test_overfitting_takes_the_same_batches_in_training_and_validation(tmp_path):
    module = fit(tmp_path, overfit_batches=2)
    assert module.seen == module.validated
    assert len(module.seen) == 2 * NUM_EPOCHS
