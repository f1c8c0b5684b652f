"""Optimizer steps through Lightning: accumulation, loss scaling, averages, and models that recompute activations."""

import contextlib
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import timm
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader

from tests.training.toy import ToyData, ToyModel, ToyTask, make_config, run_toy
from un.norms import UnifiedNorm
from un.surgery import replace_norms
from un.training.assembly import build_model, build_norm_factory
from un.training.callbacks.divergence import SKIPPED_STEPS, DivergedError, DivergenceStop
from un.training.callbacks.norm_updates import NormUpdates
from un.vision.module import ImageClassification

FIRST_SCALE = 2.0**10
OVERFLOWS = (3, 4, 11)  # global steps


def make_model(**options: Any) -> ToyModel:
    torch.manual_seed(0)
    model = ToyModel(3)
    model.drop.p = 0.0
    replace_norms(model, lambda c, **k: UnifiedNorm(c, window=2, warmup_steps=2, **k, **options))
    return model


def fit(module: LightningModule, data: Any = None, *callbacks: Callback, **options: Any) -> Trainer:
    options = {"accelerator": "cpu", "max_epochs": 3, "limit_val_batches": 0, **options}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(
        enable_model_summary=False,
        callbacks=[NormUpdates(), *callbacks],
        **quiet,
        **options,  # type: ignore[arg-type]
    )
    trainer.fit(module, datamodule=data or ToyData(0))
    return trainer


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.01)


def test_accumulated_gradients() -> None:
    """Ten batches of two epochs make four updates of up to three calls: 3 + 2, twice."""
    model = make_model(count="updates")
    trainer = fit(ToyTask(model, sgd), accumulate_grad_batches=3, max_epochs=2)
    assert trainer.global_step == 4
    assert model.norm.iters.item() == 4


def make_fractional_model(**options: Any) -> ToyModel:
    torch.manual_seed(0)
    model = ToyModel(3)
    replace_norms(model, lambda c, **k: UnifiedNorm(c, warmup_fraction=0.5, **k, **options))
    return model


@pytest.mark.parametrize(
    ("options", "count", "expected"),
    [
        ({"max_epochs": 4}, "calls", 10),  # of 4 x 5 batches
        ({"max_epochs": 4, "max_steps": 6}, "calls", 3),
        ({"max_epochs": -1, "max_steps": 8}, "calls", 4),
        ({"max_epochs": 4, "limit_train_batches": 3}, "calls", 6),
        ({"max_epochs": 4, "accumulate_grad_batches": 3}, "calls", 10),  # 3 + 2 batches an epoch
        ({"max_epochs": 4, "accumulate_grad_batches": 3}, "updates", 4),
    ],
)
def test_norms_are_told_the_length_of_the_training(options: dict[str, int], count: str, expected: int) -> None:
    model = make_fractional_model(count=count)
    fit(ToyTask(model, sgd), **options)
    assert model.norm.warmup_steps == model.norm.warmup == expected


def test_a_resumed_training_keeps_its_schedule(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever its length is now; where the schedule ends after the training, it says so."""
    trainer = fit(ToyTask(make_fractional_model(), sgd), max_epochs=4)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    for max_steps, warns in ((40, False), (9, True)):
        resumed = make_fractional_model()
        resumed.load_state_dict({k[6:]: v for k, v in torch.load(tmp_path / "last.ckpt")["state_dict"].items()})
        fit(ToyTask(resumed, sgd), max_epochs=-1, max_steps=max_steps)
        assert resumed.norm.warmup_steps == 10
        assert ("the schedule of 1 norms, first model.norm, ends after the 9 steps" in caplog.text) == warns


def test_the_final_norm_is_marked(tmp_path: Path) -> None:
    """It is known by the surgery's list of names, also where the model is built again."""
    config = make_config(tmp_path, "surgery.final=[norm]")
    model = build_model(config, {"num_classes": 3}, build_norm_factory(config.norm))
    assert model.norm.is_final  # type: ignore[union-attr]
    config.surgery.final = ["fc_norm"]
    assert not build_model(config, {"num_classes": 3}, build_norm_factory(config.norm)).norm.is_final  # type: ignore[union-attr]


def test_what_is_tested_has_tapered(tmp_path: Path) -> None:
    """The best checkpoint is one of those after the taper, however good earlier ones were."""
    taper = {"_target_": "un.norms.TaperNorm", "_partial_": True, "start_fraction": 0.2, "end_fraction": 0.7}
    result = run_toy(tmp_path, "trainer.max_epochs=10", "optimizer.lr=0", norm=taper)
    assert result.best_epoch == 6  # of equals the first, after 35 of 50 steps


class OverflowingTask(ToyTask):
    """Its gradients are infinite at some steps, which are skipped, or it never meets those batches."""

    def __init__(self, *args: Any, healthy: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.healthy = healthy

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * torch.inf if not self.healthy and self.global_step in OVERFLOWS else loss


class SelectedData(ToyData):
    """The batches at which nothing overflows."""

    def train_dataloader(self) -> Any:
        batches = enumerate(super().train_dataloader())
        return DataLoader([batch for number, batch in batches if number not in OVERFLOWS], batch_size=None)  # type: ignore[arg-type]


def train_in_half_precision(healthy: bool, fused: bool, device: str = "cpu") -> tuple[ToyModel, float]:
    model = make_model()
    optimizer = (lambda p: torch.optim.AdamW(p, 0.01, fused=True)) if fused else sgd
    task = OverflowingTask(model, optimizer, healthy=healthy)
    scaler = torch.amp.GradScaler(device, init_scale=FIRST_SCALE)
    plugin = MixedPrecision("16-mixed", device, scaler)
    data = (SelectedData if healthy else ToyData)(0, num_batches=15)
    fit(task, data, max_epochs=1, plugins=[plugin], accelerator=device)
    return model, scaler.get_scale()


@pytest.mark.parametrize("fused", [False, True])
def test_an_overflowed_step_leaves_no_trace(fused: bool) -> None:
    (model, scale), (clean, clean_scale) = (train_in_half_precision(healthy, fused) for healthy in (False, True))
    assert (scale, clean_scale) == (FIRST_SCALE / 2 ** len(OVERFLOWS), FIRST_SCALE)
    assert model.norm.iters.item() == 15 - len(OVERFLOWS)
    expected = clean.state_dict()
    for name, value in model.state_dict().items():
        factor = clean_scale / scale if name.endswith(("ema_gz", "buffer_gz")) else 1
        if not name.endswith("nonfinite_counter"):
            assert torch.equal(value * factor, expected[name]), name


def test_the_moving_average_skips_skipped_steps() -> None:
    class Task(ImageClassification):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * torch.inf if self.global_step in OVERFLOWS else loss

    model = make_model()
    model.num_classes = 3  # type: ignore[assignment]
    module = Task(model, lambda m: torch.optim.SGD(m.parameters(), 0.01), ema_decay=0.5)
    assert module.ema is not None
    with mock.patch.object(module.ema, "update", wraps=module.ema.update) as update:
        scaler = torch.amp.GradScaler("cpu", init_scale=FIRST_SCALE)
        fit(module, ToyData(0, num_batches=15), max_epochs=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert update.call_count == 15 - len(OVERFLOWS)
    assert module.ema.module.norm.iters.item() == 15 - len(OVERFLOWS)  # counters are those of the last step
    assert all(buffer.isfinite().all() for buffer in module.ema.buffers())


def test_recomputed_activations_of_timm() -> None:
    outcomes = []
    sizes = {"depths": (1, 1), "embed_dim": 12, "num_heads": (2, 2), "window_size": 4}
    for recomputes in (False, True):
        torch.manual_seed(0)
        model = timm.create_model("swin_tiny_patch4_window7_224", img_size=32, num_classes=3, **sizes)
        replace_norms(model, lambda c, **k: UnifiedNorm(c, window=2, warmup_steps=2, filtration=True, **k))
        model.double().train().set_grad_checkpointing(recomputes)
        for seed in range(5):
            x = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            model.zero_grad()
            torch.manual_seed(seed)
            model(x).square().mean().backward()
        outcomes.append([*(p.grad for p in model.parameters()), *model.buffers()])
    assert all(torch.equal(plain, recomputed) for plain, recomputed in zip(*outcomes, strict=True))


@pytest.mark.parametrize("lasts", [3, 20])
def test_only_lasting_overflows_are_a_divergence(lasts: int) -> None:
    """Loss scaling skips a step with a non-finite loss; without a finite one in sight the run has diverged."""

    class Task(ToyTask):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * torch.nan if 2 <= self.global_step < 2 + lasts else loss

    scaler = torch.amp.GradScaler("cpu", init_scale=FIRST_SCALE)
    options = {"max_epochs": 1, "plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}
    ends = pytest.raises(DivergedError) if lasts > SKIPPED_STEPS else contextlib.nullcontext()
    with ends:
        fit(Task(make_model(), sgd), ToyData(0, num_batches=25), DivergenceStop(every_n_steps=1), **options)
