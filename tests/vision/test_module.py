import copy

import lightning
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from timm.optim import create_optimizer_v2
from torch import nn

from un.norms import UnifiedNorm
from un.vision.module import ImageClassification
from un.vision.optimization import create_scheduler


class SmallModel(nn.Sequential):
    """A linear layer, a norm and a head on 12 x 12 images."""

    def __init__(self, norm=UnifiedNorm, num_classes=3):
        super().__init__(nn.Flatten(), nn.Linear(3 * 12 * 12, 16), norm(16), nn.Linear(16, num_classes))
        self.num_classes = num_classes


def make_module(model=None, lr=1e-2, scheduler=None, **options):
    torch.manual_seed(0)
    model = SmallModel() if model is None else model
    return ImageClassification(model, lambda model: create_optimizer_v2(model, "adamw", lr=lr), scheduler, **options)


def make_trainer(callbacks=(), **options):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return lightning.Trainer(accelerator="cpu", callbacks=list(callbacks), num_sanity_val_steps=0, **quiet, **options)


class Recorder(Callback):
    """Notes loss and rate of every step."""

    def __init__(self):
        self.losses, self.rates, self.validation = [], [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.rates.append(float(trainer.callback_metrics["train/lr"]))

    def on_validation_end(self, trainer, module):
        self.validation.append(
            {name: float(value) for name, value in trainer.callback_metrics.items() if "val/" in name}
        )


def fit(module, data, **options):
    recorder = Recorder()
    trainer = make_trainer([recorder], **options)
    trainer.fit(module, datamodule=data)
    return trainer, recorder


@pytest.mark.parametrize(
    "options",
    [{}, {"label_smoothing": 0.1}, {"mixup": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}, "label_smoothing": 0.1}],
    ids=["plain", "smoothed", "mixed"],
)
def test_loss_falls_on_generated_images(make_data, options):
    np.random.seed(0)
    _, recorder = fit(make_module(**options), make_data(limit=64, crop_padding=0, flip=0), max_epochs=6)
    assert np.mean(recorder.losses[-8:]) < 0.9 * np.mean(recorder.losses[:3])
    assert recorder.validation[-1]["val/acc1"] > 80


def test_scores_are_those_of_the_predictions(make_data):
    data = make_data(limit=50, num_classes=7, flip=0)
    module = make_module(SmallModel(nn.LayerNorm, num_classes=7))
    (scores,) = make_trainer().test(module, datamodule=data, verbose=False)
    batches = list(data.test_dataloader())
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    logits = module.eval()(images).detach()
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    expected = {
        "test/acc1": 100 * (ranks < 1).float().mean(),
        "test/acc5": 100 * (ranks < 5).float().mean(),
        "test/loss": F.cross_entropy(logits, labels),
    }
    assert scores == {name: pytest.approx(float(value), rel=1e-5) for name, value in expected.items()}


def test_few_classes_have_no_top_five(make_data):
    (scores,) = make_trainer().test(make_module(), datamodule=make_data(limit=16), verbose=False)
    assert set(scores) == {"test/acc1", "test/loss"}


def test_average_follows_weights_and_buffers_and_is_what_is_evaluated(make_data):
    module = make_module(ema_decay=0.75)
    average = copy.deepcopy(module.model).state_dict()

    class Follow(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            for name, value in module.model.state_dict().items():
                if value.is_floating_point():
                    average[name].mul_(0.75).add_(value, alpha=0.25)
                else:
                    average[name].copy_(value)  # counters are not averaged

    make_trainer([Follow()], max_epochs=2, limit_val_batches=0).fit(module, datamodule=make_data(limit=32))
    for name, value in module.ema.module.state_dict().items():
        torch.testing.assert_close(value, average[name], msg=name)
    assert not torch.equal(module.ema.module[1].weight, module.model[1].weight)
    images = torch.randn(4, 3, 12, 12)
    module.eval()
    assert torch.equal(module(images), module.ema.module(images))
    assert module.inference_model is module.ema.module
    module.evaluate_ema = False
    assert torch.equal(module(images), module.model(images))


def test_average_waits_for_the_update_when_gradients_accumulate(make_data):
    module = make_module(ema_decay=0.5)
    calls = []
    module.ema.update = lambda model: calls.append(module.trainer.global_step)
    fit(module, make_data(limit=32), max_epochs=1, accumulate_grad_batches=2)
    assert len(calls) == 2


def test_average_is_not_trained_and_in_the_checkpoint():
    module = make_module(ema_decay=0.5)
    assert not any(parameter.requires_grad for parameter in module.ema.parameters())
    names = set(module.state_dict())
    assert {f"ema.module.{name}" for name in module.model.state_dict()} <= names
    optimizer = module.make_optimizer(module.model)
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    assert count == len(list(module.model.parameters()))


def test_mixup_smooths_once_and_needs_pairs(make_data):
    module = make_module(mixup={"mixup_alpha": 1.0, "prob": 0.0}, label_smoothing=0.3)
    module.log, module._trainer = lambda *arguments, **options: None, None
    images, labels = torch.randn(4, 3, 12, 12), torch.tensor([0, 1, 2, 1])
    module.trainer = type("Trainer", (), {"optimizers": [module.make_optimizer(module.model)]})()
    module.model.eval()
    loss = module.training_step((images, labels), 0)
    torch.testing.assert_close(loss, F.cross_entropy(module.model(images), labels, label_smoothing=0.3))
    with pytest.raises(ValueError, match=r"data.batch_size=3 must be even for task.mixup"):
        module.training_step((images[:3], labels[:3]), 0)


@pytest.mark.parametrize(
    ("sizes", "accumulation"),
    [([8, 8, 8], 2), ([8, 8, 8, 4], 2), ([8, 8, 8, 8, 2], 4), ([8, 2], 1), ([8, 8, 4], 8)],
)
@pytest.mark.parametrize("options", [{}, {"gradient_clip_val": 1e-3}])
def test_gradients_are_of_the_mean_over_the_images_of_an_update(sizes, accumulation, options):
    torch.manual_seed(1)
    batches = [(torch.randn(size, 3, 12, 12), torch.arange(size) % 3) for size in sizes]
    model, gradients = SmallModel(nn.LayerNorm), []

    class Follow(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step > len(gradients):
                gradients.append([parameter.grad.clone() for parameter in model.parameters()])

    module = ImageClassification(model, lambda model: torch.optim.SGD(model.parameters(), lr=0.0))
    trainer = make_trainer([Follow()], max_epochs=1, accumulate_grad_batches=accumulation, **options)
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    updates = [batches[start : start + accumulation] for start in range(0, len(batches), accumulation)]
    for found, update in zip(gradients, updates, strict=True):
        images, labels = (torch.cat(parts) for parts in zip(*update, strict=True))
        expected = torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()))
        length = torch.stack([gradient.norm() for gradient in expected]).norm()
        factor = min(1.0, options.get("gradient_clip_val", float("inf")) / length.item())
        for ours, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, wanted * factor, rtol=1e-3, atol=1e-6)


def make_scheduler(**options):
    return lambda *arguments: create_scheduler(*arguments, **options)


def test_rate_of_each_update_with_accumulation(make_data):
    scheduler = make_scheduler(sched="constant", warmup_steps=4, warmup_lr=0.0)
    data = make_data(limit=48)  # 6 batches, 3 updates an epoch
    _, recorder = fit(make_module(lr=1.0, scheduler=scheduler), data, max_epochs=2, accumulate_grad_batches=2)
    expected = [update / 4 for update in (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 4)]
    assert recorder.rates == pytest.approx(expected)


def test_rate_is_constant_within_an_epoch(make_data):
    scheduler = make_scheduler(interval="epoch", warmup_epochs=2, warmup_lr=0.0)
    _, recorder = fit(make_module(lr=1.0, scheduler=scheduler), make_data(limit=24), max_epochs=4)
    expected = [rate for rate in (0.0, 0.5, 0.5, 0.5 * (1 + np.cos(np.pi * 3 / 4))) for _ in range(3)]
    assert recorder.rates == pytest.approx(expected)


def test_cut_short_by_max_steps_the_schedule_still_ends(make_data):
    _, recorder = fit(make_module(lr=1.0, scheduler=make_scheduler()), make_data(limit=64), max_epochs=50, max_steps=4)
    assert recorder.rates == pytest.approx([0.5 * (1 + np.cos(np.pi * update / 4)) for update in range(4)])


@pytest.mark.parametrize("max_epochs", [-1, None])
def test_without_a_number_of_epochs_the_schedule_ends_with_the_steps(make_data, max_epochs):
    options = {"max_epochs": max_epochs, "max_steps": 7, "accumulate_grad_batches": 2}
    data = make_data(limit=48)  # 3 updates an epoch
    _, by_update = fit(make_module(lr=1.0, scheduler=make_scheduler()), data, **options)
    expected = [0.5 * (1 + np.cos(np.pi * update / 7)) for update in range(7) for _ in range(2)]
    assert by_update.rates == pytest.approx(expected)
    _, by_epoch = fit(make_module(lr=1.0, scheduler=make_scheduler(interval="epoch")), data, **options)
    expected = [0.5 * (1 + np.cos(np.pi * epoch / 3)) for epoch in (0, 1, 2) for _ in range(6)][:14]
    assert by_epoch.rates == pytest.approx(expected)


def test_rate_lags_epochs_and_updates(make_data):
    scheduler = make_scheduler(interval="epoch", warmup_epochs=2, warmup_lr=0.1, lag=1)
    _, recorder = fit(make_module(lr=1.0, scheduler=scheduler), make_data(limit=24), max_epochs=4)
    assert recorder.rates == pytest.approx([rate for rate in (0.1, 0.1, 0.55, 0.5) for _ in range(3)])
    scheduler = make_scheduler(sched="constant", warmup_steps=4, warmup_lr=0.0, lag=1)
    _, recorder = fit(make_module(lr=1.0, scheduler=scheduler), make_data(limit=48), max_epochs=1)
    assert recorder.rates == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1])


def test_endless_training_needs_no_schedule(make_data):
    with pytest.raises(ValueError, match=r"a schedule needs an end: set trainer.max_epochs or trainer.max_steps"):
        fit(make_module(scheduler=make_scheduler()), make_data(limit=16), max_epochs=-1)


def test_compares_by_accuracy():
    assert (ImageClassification.monitor, ImageClassification.monitor_mode) == ("val/acc1", "max")
