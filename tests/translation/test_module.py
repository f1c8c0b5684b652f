import csv
import math
import multiprocessing
import os
from functools import partial

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.translation.tiny import TinyData, make_model, make_unified
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


def make_sgd(model):
    """Changes no weight, so that every gradient is that of the initial model."""
    return torch.optim.SGD(model.parameters(), lr=0.0)


def make_adam(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def make_module(model=None, optimizer=make_adam, max_len_b=10, **options):
    return Translation(make_model() if model is None else model, optimizer, max_len_b=max_len_b, **options)


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


def compute_gradients(model, batches, label_smoothing=0.1):
    """Of the mean over all target tokens of the batches."""
    loss = sum(sum_cross_entropy(model, batch, label_smoothing) for batch in batches)
    return torch.autograd.grad(loss / sum(batch["ntokens"] for batch in batches), list(model.parameters()))


def assert_close(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_gradients_are_of_the_mean_over_target_tokens(size):
    data, recorder = TinyData(20), Recorder()
    trainer = make_trainer(callbacks=[recorder], max_epochs=1, limit_val_batches=0, accumulate_grad_batches=size)
    trainer.fit(make_module(optimizer=make_sgd), datamodule=data)
    batches = data.list_batches()
    assert len({batch["ntokens"] for batch in batches}) > 1
    expected = [compute_gradients(make_model(), batches[start : start + size]) for start in range(0, 4, size)]
    assert len(recorder.losses) == len(batches) == 4
    for found, wanted in zip(recorder.gradients, expected, strict=True):
        assert_close(found, wanted)


def test_losses_are_per_token_and_clipping_sees_the_mean():
    data, recorder = TinyData(6), Recorder()
    module = make_module(optimizer=make_sgd, label_smoothing=0.2)
    trainer = make_trainer(callbacks=[recorder], max_epochs=1, limit_val_batches=0, gradient_clip_val=1e-3)
    trainer.fit(module, datamodule=data)
    (batch,) = data.list_batches()
    expected = sum_cross_entropy(make_model(), batch, 0.2) / batch["ntokens"]
    assert recorder.losses == [pytest.approx(expected.item(), rel=1e-6)]
    norm = torch.stack([gradient.norm() for gradient in recorder.gradients[-1]]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_rates_follow_the_schedule_update_by_update():
    scheduler, recorder = partial(create_inverse_sqrt_scheduler, warmup_steps=3, warmup_lr=0.0), Recorder()
    trainer = make_trainer(callbacks=[recorder], max_epochs=-1, max_steps=6, limit_val_batches=0)
    trainer.fit(make_module(scheduler=scheduler), datamodule=TinyData())
    expected = [1e-2 * u / 3 if u < 3 else 1e-2 * math.sqrt(3 / u) for u in range(6)]
    assert recorder.rates == pytest.approx(expected, rel=1e-5)


def test_a_trained_model_translates(tmp_path):
    sentences = [[word, other] for word in range(4) for other in range(4)]
    module = make_module(make_model(make_unified, True, encoder_layers=1), val_bleu=True)
    trainer = make_trainer(tmp_path, max_epochs=60, check_val_every_n_epoch=60)
    data = TinyData(sentences=sentences, batch_size=16)
    trainer.fit(module, datamodule=data)
    assert trainer.callback_metrics["val/loss"] < 0.6
    assert trainer.callback_metrics["val/chrf"] > 80
    (scores,) = trainer.test(module, datamodule=data, verbose=False)
    assert scores["test/chrf"] == pytest.approx(float(trainer.callback_metrics["test/chrf"]))
    assert set(scores) == {f"test/{name}" for name in ("loss", "ppl", "bleu", "sacrebleu", "chrf")}


def test_scores_texts_and_file_belong_to_their_sentences(tmp_path, trained_model):
    data, module = TinyData(11, batch_size=4), make_module(trained_model, beam=2)
    (scores,) = make_trainer(tmp_path).test(module, datamodule=data, verbose=False)
    texts, found = data.texts("test"), {}
    for batch in data.list_batches():
        found |= dict(zip(batch["id"].tolist(), module.predict(module.model, batch), strict=True))
    with (tmp_path / "translations" / "test.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, dialect="excel-tab"))
    assert [int(row["id"]) for row in rows] == list(range(11))
    for i, row in enumerate(rows):
        assert (row["source"], row["reference"]) == (texts.source[i], texts.reference[i])
        assert row["hypothesis"] == data.dictionary.string(found[i]).upper()
    loss = sum(sum_cross_entropy(module.model.eval(), batch) for batch in data.list_batches())
    expected = loss.item() / sum(batch["ntokens"] for batch in data.list_batches())
    assert scores["test/loss"] == pytest.approx(expected, rel=1e-5)
    assert scores["test/ppl"] == pytest.approx(math.exp(expected), rel=1e-5)


def test_a_model_that_diverged_is_scored(tmp_path):
    """Weights that an update made too large give no numbers, in which fairseq's search finds no word."""
    module = make_module(make_model(make_unified))
    torch.nn.init.constant_(module.model.encoder.embed_tokens.weight, 1e30)
    (scores,) = make_trainer(tmp_path).test(module, datamodule=TinyData(6), verbose=False)
    assert not math.isfinite(scores["test/loss"])
    assert scores["test/bleu"] == 0


def test_metrics_say_what_they_are(tmp_path):
    module = make_module(beam=3, length_penalty=0.6, val_bleu={"beam": 1, "max_len_a": 1.2})
    assert module.metric_details() == {}
    trainer = make_trainer(tmp_path, limit_test_batches=1, limit_val_batches=1)
    for run in (trainer.validate, trainer.test):
        run(module, datamodule=TinyData(), verbose=False)
    details = module.metric_details()
    names = ("loss", "ppl", "bleu", "sacrebleu", "chrf")
    assert set(details) == {f"{split}/{name}" for split in ("val", "test") for name in names}
    assert "tok:none" in details["test/bleu"]
    assert details["test/bleu"].endswith("beam 3, length penalty 0.6, 1 to 0 n + 10 tokens")
    assert details["val/sacrebleu"].endswith("beam 1, length penalty 0.6, 1 to 1.2 n + 10 tokens")


def test_what_is_monitored_depends_on_whether_validation_translates():
    assert (make_module().monitor, make_module().monitor_mode) == ("val/loss", "min")
    assert (make_module(val_bleu=True).monitor, make_module(val_bleu={}).monitor_mode) == ("val/bleu", "max")
    trainer = make_trainer(limit_val_batches=1)
    trainer.validate(make_module(), datamodule=TinyData(), verbose=False)
    assert set(trainer.callback_metrics) == {"val/loss", "val/ppl"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, "task.label_smoothing=1.0 must be at least 0 and below 1"),
        ({"val_bleu": {"bean": 2}}, "task.val_bleu has no option 'bean'; it takes beam, length_penalty"),
    ],
)
def test_wrong_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_module(**options)


def test_training_goes_on_after_validation_has_translated(tmp_path):
    losses = []
    for options in ({"val_check_interval": 1}, {"limit_val_batches": 0}):
        recorder = Recorder()
        module = make_module(make_model(make_unified), val_bleu=True, beam=2)
        make_trainer(tmp_path, [recorder], max_epochs=2, **options).fit(module, datamodule=TinyData(12))
        losses.append(recorder.losses)
    assert losses[0] == losses[1]


def run_share(rank, port, folder, results):
    """One of two processes: one update and a test, each on its share of the sentences."""
    torch.set_num_threads(1)
    local = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
    os.environ |= {**local, "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    data, recorder = TinyData(12, batch_size=3, rank=rank, world_size=2), Recorder()
    module = make_module(optimizer=make_sgd, beam=2)
    options = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False, "limit_val_batches": 0}
    trainer = make_trainer(folder, [recorder], max_epochs=1, accumulate_grad_batches=2, **options)
    trainer.fit(module, datamodule=data)
    (scores,) = trainer.test(module, datamodule=data, verbose=False)
    if rank == 0:
        results.put(([gradient.numpy() for gradient in recorder.gradients[-1]], scores))


@pytest.mark.slow  # the server of the processes imports torch and fairseq once more
def test_processes_share_gradients_and_translations(tmp_path):
    # A fork of this process could not train once a test has exported an ONNX graph; the server imports once for both.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    results = context.SimpleQueue()
    port = 20000 + os.getpid() % 20000
    workers = [context.Process(target=run_share, args=(rank, port, tmp_path, results)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0, 0]
    gradients, scores = results.get()
    alone = TinyData(12, batch_size=12)
    assert_close(map(torch.from_numpy, gradients), compute_gradients(make_model(), alone.list_batches()))
    (expected,) = make_trainer(tmp_path / "alone").test(make_module(beam=2), datamodule=alone, verbose=False)
    assert scores == pytest.approx(expected, rel=1e-5)
    texts = [folder / "translations" / "test.tsv" for folder in (tmp_path, tmp_path / "alone")]
    assert texts[0].read_text() == texts[1].read_text()
    assert len(texts[0].read_text().splitlines()) == 13
