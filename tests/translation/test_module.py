import csv
import itertools
import math
import multiprocessing
import os
from functools import partial

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.translation.tiny import make_model, make_unified
from un.norms import RegularizedBatchNorm
from un.norms.core.penalties import sum_penalties
from un.translation.data import TranslationDataModule
from un.translation.losses import sum_cross_entropy
from un.translation.module import Translation
from un.translation.optimization import create_inverse_sqrt_scheduler

QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


SCORES = ("loss", "ppl", "bleu", "sacrebleu", "chrf")


def make_sgd(model):
    """Changes no weight, so that every gradient is that of the initial model."""
    return torch.optim.SGD(model.parameters(), lr=0.0)


def make_adam(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2)


@pytest.fixture
def data(text_folder, text_data):
    data = TranslationDataModule(str(text_folder), "de", "en", max_tokens=60, val_split="valid")
    data.use_preprocessor(text_data.preprocessor)
    return data


def build_model(data, **options):
    return make_model(dictionary=data.preprocessor.source_dictionary, **options)


def build_regularized(data):
    return make_model(RegularizedBatchNorm, dictionary=data.preprocessor.source_dictionary, pad_mask=True)


def make_module(model, optimizer=make_adam, max_len_b=10, **options):
    return Translation(model, optimizer, max_len_b=max_len_b, **options)


def make_trainer(folder=None, callbacks=(), **options):
    return lightning.Trainer(accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks), **QUIET, **options)


class Recorder(Callback):
    """Notes what is logged after every step, and the gradients of every update."""

    def __init__(self):
        self.losses, self.rates, self.gradients = [], [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.rates.append(float(trainer.callback_metrics["train/lr"]))
        if trainer.global_step > len(self.gradients):
            self.gradients.append([parameter.grad.clone() for parameter in module.model.parameters()])


def compute_loss(model, batch, label_smoothing=0.1):
    """Summed over target tokens, of which each has a share in the penalty of the norms."""
    loss = sum_cross_entropy(model, batch, label_smoothing)
    penalty = sum_penalties(model)
    return loss if penalty is None else loss + batch["ntokens"] * penalty


def compute_gradients(model, batches, label_smoothing=0.1):
    """Of the mean over all target tokens of the batches."""
    loss = sum(compute_loss(model, batch, label_smoothing) for batch in batches)
    return torch.autograd.grad(loss / sum(batch["ntokens"] for batch in batches), list(model.parameters()))


def assert_close(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1, 3])
def test_gradients_are_of_the_mean_over_target_tokens(data, size):
    batches, recorder = list(data.train_dataloader())[:4], Recorder()
    limits = {"max_epochs": 1, "limit_train_batches": 4, "limit_val_batches": 0}
    trainer = make_trainer(callbacks=[recorder], accumulate_grad_batches=size, **limits)
    trainer.fit(make_module(build_model(data), make_sgd), datamodule=data)
    assert len({batch["ntokens"] for batch in batches}) > 1
    expected = [compute_gradients(build_model(data), batches[start : start + size]) for start in range(0, 4, size)]
    assert len(recorder.losses) == 4
    for found, wanted in zip(recorder.gradients, expected, strict=True):
        assert_close(found, wanted)


def test_losses_are_per_token_and_clipping_sees_the_mean(data):
    batch, recorder = next(iter(data.train_dataloader())), Recorder()
    trainer = make_trainer(callbacks=[recorder], max_steps=1, limit_val_batches=0, gradient_clip_val=1e-3)
    trainer.fit(make_module(build_model(data), make_sgd, label_smoothing=0.2), datamodule=data)
    expected = sum_cross_entropy(build_model(data), batch, 0.2) / batch["ntokens"]
    assert recorder.losses == [pytest.approx(expected.item(), rel=1e-6)]
    norm = torch.stack([gradient.norm() for gradient in recorder.gradients[-1]]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_penalties_are_trained_on_and_not_reported(data):
    """On the scale of the mean over target tokens, also where batches are accumulated."""
    batches, recorder = list(data.train_dataloader())[:2], Recorder()
    limits = {"max_steps": 1, "limit_train_batches": 2, "limit_val_batches": 0}
    trainer = make_trainer(callbacks=[recorder], accumulate_grad_batches=2, **limits)
    trainer.fit(make_module(build_regularized(data), make_sgd), datamodule=data)
    assert_close(recorder.gradients[0], compute_gradients(build_regularized(data), batches))
    model = build_regularized(data)
    losses = [(sum_cross_entropy(model, batch, 0.1) / batch["ntokens"]).item() for batch in batches]
    assert recorder.losses == pytest.approx(losses, rel=1e-5)
    assert trainer.callback_metrics["train/penalty"].item() == pytest.approx(sum_penalties(model).item(), rel=1e-5)


def test_rates_follow_the_schedule_update_by_update(data):
    scheduler, recorder = partial(create_inverse_sqrt_scheduler, warmup_steps=3, warmup_lr=0.0), Recorder()
    trainer = make_trainer(callbacks=[recorder], max_epochs=-1, max_steps=6, limit_val_batches=0)
    trainer.fit(make_module(build_model(data), scheduler=scheduler), datamodule=data)
    expected = [1e-2 * u / 3 if u < 3 else 1e-2 * math.sqrt(3 / u) for u in range(6)]
    assert recorder.rates == pytest.approx(expected, rel=1e-5)


def test_a_trained_model_translates(tmp_path):
    words = ("eins", "zwei", "drei", "vier")
    for split, language in itertools.product(("train", "valid", "test"), ("de", "en")):
        text = "".join(f"{one} {other}\n" for one, other in itertools.product(words, words))
        (tmp_path / f"{split}.{language}").write_text(text)
    data = TranslationDataModule(str(tmp_path), "de", "en", max_tokens=60, val_split="valid")
    module = make_module(build_model(data, norm=make_unified, pad_mask=True, encoder_layers=1), val_bleu=True)
    trainer = make_trainer(tmp_path, max_epochs=60, check_val_every_n_epoch=60)
    trainer.fit(module, datamodule=data)
    assert trainer.callback_metrics["val/loss"] < 0.6
    assert trainer.callback_metrics["val/chrf"] > 80
    (scores,) = trainer.test(module, datamodule=data, verbose=False)
    assert scores["test/chrf"] == pytest.approx(float(trainer.callback_metrics["test/chrf"]))
    assert set(scores) == {f"test/{name}" for name in SCORES}


def test_scores_texts_and_file_belong_to_their_sentences(data, tmp_path):
    module = make_module(build_model(data, norm=make_unified), beam=2)
    (scores,) = make_trainer(tmp_path).test(module, datamodule=data, verbose=False)
    texts, batches, found = data.texts("test"), list(data.test_dataloader()), {}
    for batch in batches:
        found |= dict(zip(batch["id"].tolist(), module.predict(module.model, batch), strict=True))
    with (tmp_path / "translations" / "test.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, dialect="excel-tab"))
    assert [int(row["id"]) for row in rows] == list(range(11))
    for i, row in enumerate(rows):
        assert (row["source"], row["reference"]) == (texts.source[i], texts.reference[i])
        assert row["hypothesis"] == data.preprocessor.detokenize(data.preprocessor.decode(found[i]))
    with torch.no_grad():
        loss = sum(sum_cross_entropy(module.model.eval(), batch) for batch in batches)
    expected = loss.item() / sum(batch["ntokens"] for batch in batches)
    assert scores["test/loss"] == pytest.approx(expected, rel=1e-5)
    assert scores["test/ppl"] == pytest.approx(math.exp(expected), rel=1e-5)


def test_a_model_that_diverged_is_scored(data, tmp_path):
    """Weights that an update made too large give no numbers, in which fairseq's search finds no word."""
    module = make_module(build_model(data, norm=make_unified))
    torch.nn.init.constant_(module.model.encoder.embed_tokens.weight, 1e30)
    (scores,) = make_trainer(tmp_path).test(module, datamodule=data, verbose=False)
    assert not math.isfinite(scores["test/loss"])
    assert scores["test/bleu"] == 0


def test_metrics_say_what_they_are(data, tmp_path):
    module = make_module(build_model(data), beam=3, length_penalty=0.6, val_bleu={"beam": 1, "max_len_a": 1.2})
    assert (module.metric_details(), module.monitor, module.monitor_mode) == ({}, "val/bleu", "max")
    trainer = make_trainer(tmp_path, limit_test_batches=1, limit_val_batches=1)
    for run in (trainer.validate, trainer.test):
        run(module, datamodule=data, verbose=False)
    details = module.metric_details()
    assert set(details) == {f"{split}/{name}" for split in ("val", "test") for name in SCORES}
    assert "tok:none" in details["test/bleu"]
    assert details["test/bleu"].endswith("beam 3, length penalty 0.6, 1 to 0 n + 10 tokens")
    assert details["val/sacrebleu"].endswith("beam 1, length penalty 0.6, 1 to 1.2 n + 10 tokens")
    without = make_module(build_model(data))
    assert (without.monitor, without.monitor_mode) == ("val/loss", "min")
    trainer.validate(without, datamodule=data, verbose=False)
    assert set(trainer.callback_metrics) == {"val/loss", "val/ppl"}


def test_wrong_values_are_refused():
    with pytest.raises(ValueError, match=r"task.label_smoothing=1.0 must be at least 0 and below 1"):
        make_module(make_model(), label_smoothing=1.0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'bean'"):  # which the program reports in one line
        make_module(make_model(), val_bleu={"bean": 2})


def test_training_continues_after_validation_has_translated(data, tmp_path):
    losses = []
    for options in ({"val_check_interval": 1, "limit_val_batches": 1}, {"limit_val_batches": 0}):
        recorder, module = Recorder(), make_module(build_model(data, norm=make_unified), val_bleu=True, beam=2)
        make_trainer(tmp_path, [recorder], max_steps=3, **options).fit(module, datamodule=data)
        losses.append(recorder.losses)
    assert losses[0] == losses[1]


def run_share(rank, port, data, folder, results):
    """One of two processes: one update and a test, each on its share of the sentences."""
    torch.set_num_threads(1)
    local = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
    os.environ |= {**local, "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    recorder, module = Recorder(), make_module(build_model(data), make_sgd, beam=2)
    limits = {"max_steps": 1, "limit_val_batches": 0, "accumulate_grad_batches": 2}
    options = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False, **limits}
    trainer = make_trainer(folder, [recorder], **options)
    trainer.fit(module, datamodule=data)
    (scores,) = trainer.test(module, datamodule=data, verbose=False)
    if rank == 0:
        results.put(([gradient.numpy() for gradient in recorder.gradients[-1]], scores))


@pytest.mark.slow  # the server of the processes imports torch and fairseq once more
def test_processes_share_gradients_and_translations(data, tmp_path):
    # A fork of this process could not train once a test has exported an ONNX graph; the server imports once for both.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    results = context.SimpleQueue()
    port = 20000 + os.getpid() % 20000
    workers = [context.Process(target=run_share, args=(rank, port, data, tmp_path, results)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0, 0]
    gradients, scores = results.get()
    expected = compute_gradients(build_model(data), list(data.train_dataloader())[:4])
    assert_close(map(torch.from_numpy, gradients), expected)
    alone = make_module(build_model(data), beam=2)
    (expected,) = make_trainer(tmp_path / "alone").test(alone, datamodule=data, verbose=False)
    assert scores == pytest.approx(expected, rel=1e-5)
    texts = [folder / "translations" / "test.tsv" for folder in (tmp_path, tmp_path / "alone")]
    assert texts[0].read_text() == texts[1].read_text()
    assert len(texts[0].read_text().splitlines()) == 12
