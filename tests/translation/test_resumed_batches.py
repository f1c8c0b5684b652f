"""A training stopped after any step goes on with the batches that an uninterrupted one would have seen."""

import itertools

import lightning
import pytest
import torch
from torch import nn

from un.translation.data import TranslationDataModule

NUM_EPOCHS = 3


class TokenCounter(lightning.LightningModule):
    """Learns a number per token, and notes the sentences of every batch."""

    def __init__(self, num_tokens):
        super().__init__()
        self.weights = nn.Embedding(num_tokens, 1)
        self.seen, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.trainer.current_epoch, batch["id"].tolist()))
        return (self.weights(batch["target"]).mean() - self.weights(batch["net_input"]["src_tokens"]).mean()) ** 2

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.trainer.save_checkpoint(f"{self.trainer.default_root_dir}/step={self.trainer.global_step}.ckpt")

    def validation_step(self, batch, batch_idx):
        texts = self.trainer.datamodule.texts("val")
        preprocessor = self.trainer.datamodule.preprocessor
        for number, target in zip(batch["id"].tolist(), batch["target"], strict=True):
            words = zip(preprocessor.decode(target).split(), texts.tokenized_reference[number].split(), strict=True)
            assert all(word in ("<unk>", expected) for word, expected in words)
        self.validated.append(batch["id"].tolist())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


def fit(folder, resume=None, **options):
    """Returns the module and its data."""
    data = TranslationDataModule(None, "de", "en", max_tokens=150, limit=40)
    lightning.seed_everything(0, verbose=False)
    module = TokenCounter(len(data.model_arguments()["source_dictionary"]))
    trainer = lightning.Trainer(
        **{"max_epochs": NUM_EPOCHS, "num_sanity_val_steps": 0, **options},
        accelerator="cpu",
        default_root_dir=folder,
        enable_checkpointing=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return module, data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def uninterrupted(folder):
    return fit(folder)


def test_every_epoch_has_every_sentence_in_another_order(uninterrupted):
    module, data = uninterrupted
    epochs = [[ids for number, ids in module.seen if number == epoch] for epoch in range(NUM_EPOCHS)]
    assert len(epochs[0]) == len(data.train_dataloader()) >= 3
    for batches in epochs:
        assert sorted(itertools.chain(*batches)) == list(range(40))
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("step", [1, 4, 7])
def test_resumed_run_sees_the_same_batches_and_ends_the_same(folder, uninterrupted, step, tmp_path):
    resumed, _ = fit(tmp_path, folder / f"step={step}.ckpt")
    assert resumed.seen == uninterrupted[0].seen[step:]
    assert torch.equal(resumed.weights.weight, uninterrupted[0].weights.weight)


def test_overfitting_takes_the_same_batches_in_training_and_validation(tmp_path):
    module, _ = fit(tmp_path, overfit_batches=2)
    assert [ids for _, ids in module.seen] == module.validated
    assert len(module.seen) == 2 * NUM_EPOCHS
