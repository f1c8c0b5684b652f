import copy
from functools import partial
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim.lr_scheduler import ConstantLR

from un.norms import RegularizedBatchNorm, UnifiedNorm
from un.norms.core.penalties import sum_penalties
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
    options |= {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    options |= {"enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(accelerator="cpu", callbacks=list(callbacks), **options)


class Recorder(Callback):
    """Notes loss and rate of every step."""

    def __init__(self):
        self.losses, self.rates = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.rates.append(float(trainer.callback_metrics["train/lr"]))


def fit(module, data, **options):
    recorder = Recorder()
    trainer = make_trainer([recorder], **options)
    trainer.fit(module, datamodule=data)
    return trainer, recorder


def test_loss_falls_on_generated_images(make_data):
    torch.manual_seed(0)
    np.random.seed(0)
    module = make_module(label_smoothing=0.1, mixup={"mixup_alpha": 0.8, "cutmix_alpha": 1.0})
    trainer, recorder = fit(module, make_data(limit=64, crop_padding=0, flip=0), max_epochs=6)
    assert np.mean(recorder.losses[-8:]) < 0.9 * np.mean(recorder.losses[:3])
    assert trainer.callback_metrics["val/acc1"] > 80
    assert "val/acc5" not in trainer.callback_metrics  # of three classes


def test_scores_are_those_of_the_predictions(make_data):
    data = make_data(limit=50, num_classes=7, flip=0)
    module = make_module(SmallModel(nn.LayerNorm, num_classes=7))
    trainer = make_trainer()
    for _ in range(2):  # a second test starts anew
        (scores,) = trainer.test(module, datamodule=data, verbose=False)
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


def test_average_follows_weights_and_buffers_and_is_what_is_evaluated(make_data):
    module, accumulation = make_module(ema_decay=0.75), 2
    assert not any(parameter.requires_grad for parameter in module.ema.parameters())
    average = copy.deepcopy(module.model).state_dict()

    class Follow(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if (batch_idx + 1) % accumulation:
                return
            for name, value in module.model.state_dict().items():
                if value.is_floating_point():
                    average[name].mul_(0.75).add_(value, alpha=0.25)
                else:
                    average[name].copy_(value)  # counters are not averaged

    options = {"max_epochs": 1, "limit_val_batches": 0, "accumulate_grad_batches": accumulation}
    make_trainer([Follow()], **options).fit(module, datamodule=make_data(limit=32))
    for name, value in module.ema.module.state_dict().items():
        torch.testing.assert_close(value, average[name], msg=name)
    assert not torch.equal(module.ema.module[1].weight, module.model[1].weight)
    images = torch.randn(4, 3, 12, 12)
    module.eval()
    assert module.inference_model is module.ema.module
    assert torch.equal(module(images), module.ema.module(images))
    module.evaluate_ema = False
    assert torch.equal(module(images), module.model(images))


def test_mixup_smooths_once_and_needs_pairs():
    module = make_module(mixup={"mixup_alpha": 1.0, "prob": 0.0}, label_smoothing=0.3)
    module.log = lambda *arguments, **options: None
    module._trainer = SimpleNamespace(optimizers=[module.make_optimizer(module.model)])
    images, labels = torch.randn(4, 3, 12, 12), torch.tensor([0, 1, 2, 1])
    module.model.eval()
    loss = module.training_step((images, labels), 0)
    torch.testing.assert_close(loss, F.cross_entropy(module.model(images), labels, label_smoothing=0.3))
    with pytest.raises(ValueError, match=r"data.batch_size=3 must be even for task.mixup"):
        module.training_step((images[:3], labels[:3]), 0)


def test_penalties_are_trained_on_and_not_reported(make_data):
    """On the scale of the mean over images; the losses that are logged are those of the predictions alone."""
    data, seen = make_data(limit=16), []

    class Follow(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            twin = copy.deepcopy(module.model)
            loss = F.cross_entropy(twin(batch[0]), batch[1])
            penalty = sum_penalties(twin)
            self.expected = loss, penalty
            self.gradients = torch.autograd.grad(loss + penalty, list(twin.parameters()))

        def on_before_optimizer_step(self, trainer, module, optimizer):
            for parameter, expected in zip(module.model.parameters(), self.gradients, strict=True):
                torch.testing.assert_close(parameter.grad, expected)

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            logged = [float(trainer.callback_metrics[f"train/{name}"]) for name in ("loss", "penalty")]
            assert logged == pytest.approx([float(value) for value in self.expected])
            seen.append(logged[1])

    trainer = make_trainer([Follow()], max_epochs=1)
    trainer.fit(make_module(SmallModel(RegularizedBatchNorm)), datamodule=data)
    assert len(seen) > 1
    assert min(seen) > 0
    assert not any("penalty" in name for name in trainer.callback_metrics if not name.startswith("train/"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 2}, "task.label_smoothing=2 must be between 0 and 1"),
        ({"mixup": {"alpha": 1}}, "task.mixup: .*'alpha'"),
        ({"mixup": {"mixup_alpha": 0}}, "task.mixup needs mixup_alpha=0 and cutmix_alpha=0.0 of at least 0, not both"),
        ({"mixup": {"mode": "paar"}}, "task.mixup.mode=paar must be one of batch, pair, elem"),
        ({"mixup": {"prob": 2}}, "task.mixup.prob=2 must be between 0 and 1"),
        ({"random_erasing": {"probability": 1.5}}, "task.random_erasing.probability=1.5 must be between 0 and 1"),
        ({"random_erasing": {"mode": "noise"}}, "task.random_erasing.mode=noise must be one of const, rand, pixel"),
        ({"random_erasing": {"prob": 0.5}}, "task.random_erasing: .*'prob'"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_module(**options)


@pytest.mark.parametrize(
    ("sizes", "accumulation", "options"),
    [
        ([8, 8, 8, 4], 2, {}),
        ([8, 8, 8, 4], 2, {"gradient_clip_val": 1e-3}),
        ([8, 8, 8, 8, 2], 4, {}),
        ([8, 2], 1, {}),
        ([8, 4], 8, {}),
    ],
)
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


@pytest.mark.parametrize(
    ("scheduler", "trainer", "expected"),
    [
        (  # 3 updates an epoch
            {"sched": "constant", "warmup_steps": 4, "warmup_lr": 0.0},
            {"max_epochs": 2, "accumulate_grad_batches": 2},
            [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1, 1, 1, 1],
        ),
        (
            {"interval": "epoch", "warmup_epochs": 2, "warmup_lr": 0.0},
            {"max_epochs": 4, "limit_train_batches": 2},
            np.repeat([0.0, 0.5, 0.5, 0.5 * (1 + np.cos(np.pi * 3 / 4))], 2),
        ),
        (
            {"sched": "constant", "warmup_steps": 4, "warmup_lr": 0.0, "lag": 1},
            {"max_epochs": 1},
            [0, 0, 0.25, 0.5, 0.75, 1],
        ),
        ({}, {"max_epochs": 50, "max_steps": 4}, 0.5 * (1 + np.cos(np.pi * np.arange(4) / 4))),
        (
            {"interval": "epoch"},
            {"max_epochs": -1, "max_steps": 7, "accumulate_grad_batches": 2},
            np.repeat(0.5 * (1 + np.cos(np.pi * np.arange(3) / 3)), 6)[:14],
        ),
    ],
    ids=["accumulated", "epochwise", "lag", "cut-short", "endless"],
)
def test_rate_of_each_batch(make_data, scheduler, trainer, expected):
    """Six batches an epoch."""
    module = make_module(lr=1.0, scheduler=partial(create_scheduler, **scheduler))
    _, recorder = fit(module, make_data(limit=48), limit_val_batches=0, **trainer)
    assert recorder.rates == pytest.approx(list(expected))


def test_a_schedule_of_torch_steps_after_every_update(make_data):
    module = make_module(lr=1.0, scheduler=lambda optimizer, *_: ConstantLR(optimizer, factor=0.5, total_iters=2))
    _, recorder = fit(module, make_data(limit=48), limit_val_batches=0, max_epochs=1)
    assert recorder.rates[:3] == pytest.approx([0.5, 0.5, 1.0])


@pytest.mark.parametrize(
    ("scheduler", "max_epochs", "message"),
    [
        (create_scheduler, -1, "a schedule needs an end: set trainer.max_epochs or trainer.max_steps"),
        (lambda *_: object(), 1, "scheduler makes a object; images need one of timm or torch"),
    ],
)
def test_schedules_that_do_not_fit_are_refused(make_data, scheduler, max_epochs, message):
    with pytest.raises(ValueError, match=message):
        fit(make_module(scheduler=scheduler), make_data(limit=16), max_epochs=max_epochs)
