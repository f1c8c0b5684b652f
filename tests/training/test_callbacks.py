import math
import random
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from un.training.callbacks.checkpoints import Checkpoints
from un.training.callbacks.divergence import DivergedError, DivergenceStop
from un.training.callbacks.metrics_file import MetricsFile
from un.training.callbacks.seeding import seed_step
from un.training.callbacks.stopwatch import Stopwatch
from un.training.callbacks.watch_norms import watch_norms


def draw() -> tuple[float, float, float]:
    return torch.rand(1).item(), float(np.random.rand()), random.random()


def test_seed_of_a_step_depends_on_everything_and_nothing_else() -> None:
    seed_step(1, 0, 2, 3)
    first = draw()
    draw()
    seed_step(1, 0, 2, 3)
    assert draw() == first
    drawn = {first}
    for entropy in [(2, 0, 2, 3), (1, 1, 2, 3), (1, 0, 3, 3), (1, 0, 2, 4), (1, 0, 3, 2)]:
        seed_step(*entropy)
        drawn.add(draw())
    assert len(drawn) == 6
    assert len({value for triple in drawn for value in triple}) == 18


class Site(nn.Module):
    def __init__(self, filtered: float, nonfinite: int) -> None:
        super().__init__()
        self.values = {"filtered_fraction": torch.tensor(filtered), "nonfinite_count": torch.tensor(nonfinite)}

    def watch(self) -> dict[str, Tensor]:
        return self.values


def test_watch_names_sites_and_sums_up() -> None:
    model = nn.ModuleDict({"a": Site(0.5, 3), "b": nn.Sequential(Site(0.0, 1), nn.LayerNorm(2))})
    assert watch_norms(model) == {
        "norm/filtered_fraction": 0.25,
        "norm/nonfinite_count": 4.0,
        "norm/a/filtered_fraction": 0.5,
        "norm/a/nonfinite_count": 3.0,
        "norm/b.0/filtered_fraction": 0.0,
        "norm/b.0/nonfinite_count": 1.0,
    }
    assert watch_norms(nn.LayerNorm(2)) == {}


def test_watch_transfers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What leaves the device leaves it in one piece; any other reading of a value raises."""
    model = nn.ModuleDict({name: Site(0.5, 3) for name in "abc"})
    calls, tolist = [], Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda self: calls.append(self) or tolist(self))
    for name in ("item", "__float__", "__int__", "__bool__", "cpu"):
        monkeypatch.setattr(Tensor, name, None)
    watch_norms(model)
    assert len(calls) == 1


def make_trainer(folder: Path, **attributes: Any) -> Any:
    defaults = {"global_step": 1, "current_epoch": 0, "is_global_zero": True, "log_every_n_steps": 2, "loggers": []}
    return mock.Mock(spec=Trainer, default_root_dir=str(folder), **{**defaults, **attributes})


def test_metrics_file_keeps_the_rows_of_the_checkpoint(tmp_path: Path) -> None:
    def start(state: dict[str, Any] | None) -> MetricsFile:
        file = MetricsFile()
        file.setup(trainer, mock.Mock(), "fit")
        if state:
            file.load_state_dict(state)
        file.on_fit_start(trainer, mock.Mock())
        return file

    trainer = make_trainer(tmp_path)
    file = start(None)
    file.write(trainer, {"train/loss": 0.5})
    state = file.state_dict()
    early = (tmp_path / "metrics.csv").read_text()
    file.write(trainer, {"train/loss": 0.25})
    file.write(trainer, {"val/acc1": torch.tensor(50.0)})
    late = (tmp_path / "metrics.csv").read_text()
    assert late == "epoch,step,train/loss,val/acc1\n0,1,0.5,\n0,1,0.25,\n0,1,,50.0\n"
    with (tmp_path / "metrics.csv").open("a") as torn:
        torn.write("0,1,")
    file = start(state)
    assert (tmp_path / "metrics.csv").read_text() == early
    file.write(trainer, {"train/loss": 0.25})
    file.write(trainer, {"val/acc1": 50})
    assert (tmp_path / "metrics.csv").read_text() == late
    start(None)  # killed before there was a checkpoint
    assert (tmp_path / "metrics.csv").read_text() == ""


def make_step(step: int) -> Any:
    """A trainer of one process, after a step."""
    strategy = mock.Mock(reduce_boolean_decision=lambda decision, all: decision)
    precision = mock.Mock(scaler=None)
    return mock.Mock(global_step=step, strategy=strategy, precision_plugin=precision, num_training_batches=1000)


def feed(stop: DivergenceStop, losses: dict[int, float]) -> None:
    for step, loss in losses.items():
        stop.on_train_batch_end(make_step(step), nn.Linear(1, 1), {"loss": torch.tensor(loss)}, None, step)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 2001.0])
def test_divergence_tells_the_first_step(bad: float) -> None:
    stop = DivergenceStop(every_n_steps=5)
    feed(stop, {step: bad if step in (7, 9) else 2.0 for step in range(1, 10)})
    with pytest.raises(DivergedError, match=r"the loss became .* at step 7") as error:
        feed(stop, {10: 2.0})
    assert error.value.step == 7
    assert error.value.is_finite == math.isfinite(bad)
    with pytest.raises(DivergedError, match="step 7"):
        stop.on_validation_start(make_step(11), nn.Linear(1, 1))
    with pytest.raises(DivergedError, match="step 7"):
        stop.on_save_checkpoint(make_step(11), nn.Linear(1, 1), {})


def test_explosion_is_measured_from_the_first_loss_of_the_run() -> None:
    first = DivergenceStop(every_n_steps=5, max_loss_ratio=10)
    feed(first, {1: 4.0, 2: 0.001, 3: 39.0})
    resumed = DivergenceStop(every_n_steps=1, max_loss_ratio=10)
    resumed.load_state_dict(first.state_dict())
    feed(resumed, {4: 0.001, 5: 39.0})
    with pytest.raises(DivergedError, match=r"the loss became 41, over 10 times the first \(4\), at step 6"):
        feed(resumed, {6: 41.0})
    off = DivergenceStop(every_n_steps=1, max_loss_ratio=None)
    feed(off, {1: 1e-30, 2: 1e30})
    off.on_train_batch_end(make_step(3), nn.Linear(1, 1), {"loss": None}, None, 0)
    with pytest.raises(ValueError, match="max_loss_ratio must be above 1 or null, got 1"):
        DivergenceStop(every_n_steps=1, max_loss_ratio=1)


def test_nothing_is_saved_of_weights_that_are_not_finite() -> None:
    stop, model = DivergenceStop(every_n_steps=100), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module: Any = nn.ModuleDict({"model": model})
    stop.on_save_checkpoint(make_step(3), module, {})
    with torch.no_grad():
        model[1].bias[1] = math.inf
    for look in (stop.on_validation_start, lambda *place: stop.on_save_checkpoint(*place, {})):
        with pytest.raises(DivergedError, match=r"the weights became non-finite at step 3, first in 1.bias"):
            look(make_step(3), module)


def test_divergence_in_another_process_stops_this_one() -> None:
    trainer = mock.Mock(global_step=10, strategy=mock.Mock(reduce_boolean_decision=lambda decision, all: True))
    with pytest.raises(DivergedError, match="step 10"):
        DivergenceStop(every_n_steps=5).on_validation_start(trainer, nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("mode", "values", "best"),
    [
        ("max", [1.0, 3.0, 3.0, 2.0], 2),
        ("max", [float("nan"), 1.0, float("nan")], 2),
        ("min", [2.0, float("nan"), 1.0], 3),
    ],
)
def test_best_checkpoint(mode: str, values: list[float], best: int) -> None:
    checkpoints = Checkpoints(every_n_steps=1)
    module = mock.Mock(monitor="val/x", monitor_mode=mode, modules=list)
    for step, value in enumerate(values, 1):
        metrics = {"val/x": torch.tensor(value), "train/loss": torch.tensor(0.0)}
        trainer = mock.Mock(global_step=step, callback_metrics=metrics, default_root_dir="x", sanity_checking=False)
        checkpoints.on_validation_end(trainer, module)
    assert checkpoints.best_step == best
    assert checkpoints.best_metrics == {"val/x": values[best - 1]}


def test_stopwatch_goes_on() -> None:
    watch = Stopwatch()
    assert watch.samples_per_second is None
    watch.load_state_dict({"samples": 100, "train_seconds": 50.0, "seconds": 60.0})
    watch.on_train_start(mock.Mock(), mock.Mock())
    watch.on_train_batch_end(mock.Mock(world_size=2), mock.Mock(), None, (torch.zeros(4, 3), torch.zeros(4)), 0)
    assert watch.samples == 108
    assert 50 < watch.train_seconds < watch.seconds
    assert watch.seconds > 60
