"""The recorder inside a training: it changes nothing, and a killed run ends with the table of one never stopped."""

from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback
from omegaconf import OmegaConf

from tests.training.toy import make_config, run_toy
from un.analysis.storage import StatisticsFiles
from un.command.errors import CONFIG_FOLDER
from un.reports.result import Result
from un.training import train as training
from un.training.assembly import build_trainer
from un.training.callbacks.activation_stats import ActivationStats
from un.training.run_folder import RunFolder

RECORDER = OmegaConf.load(CONFIG_FOLDER / "callbacks/activation_stats.yaml").activation_stats


class Killed(BaseException):
    """What no code of the runtime catches as an error of its own."""


class Bomb(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed


def run(folder: Path, *overrides: str, kill_at: int = -1, **recorder: Any) -> Result:
    often = ("callbacks.checkpoints.every_n_steps=3", "callbacks.divergence.every_n_steps=1")
    callbacks = make_config(folder, *often).callbacks
    callbacks.activation_stats = OmegaConf.merge(RECORDER, {"draw_figures": False}, recorder)

    def build(*arguments: Any) -> Any:
        trainer = build_trainer(*arguments)
        trainer.callbacks.append(Bomb(kill_at))
        return trainer

    with mock.patch.object(training, "build_trainer", build):
        return run_toy(folder, *overrides, callbacks=callbacks)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("whole")
    run(folder, every_n_steps=4)
    return StatisticsFiles(folder).read()


@pytest.mark.parametrize(("kill_at", "polite"), [(4, True), (8, False)])
def test_resumed_run_records_the_same(kill_at: int, polite: bool, whole: Any, tmp_path: Path) -> None:
    assert whole["step"].tolist() == [4, 8, 12]
    assert whole["fluctuation_p50"].notna().all()
    farewell = ActivationStats.on_exception if polite else lambda *_: None
    with mock.patch.object(ActivationStats, "on_exception", farewell), pytest.raises(Killed):
        run(tmp_path, every_n_steps=4, kill_at=kill_at)
    run(tmp_path, every_n_steps=4)
    pd.testing.assert_frame_equal(StatisticsFiles(tmp_path).read(), whole)


def test_recording_changes_nothing(tmp_path: Path) -> None:
    setting = "trainer.accumulate_grad_batches=2"
    results = [run_toy(tmp_path / "without", setting), run(tmp_path / "with", setting, every_n_steps=1)]
    assert results[0].metrics == results[1].metrics
    states = [torch.load(tmp_path / name / "checkpoints/last.ckpt")["state_dict"] for name in ("without", "with")]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    table = StatisticsFiles(tmp_path / "with").read()
    assert table["step"].tolist() == list(range(1, results[1].steps + 1))
    assert table["calls"].iloc[-1] == 15
    assert table.loc[1:, "fluctuation_p0"].notna().all()


def test_diverged_run_keeps_its_table_and_a_forced_one_starts_over(tmp_path: Path) -> None:
    result = run(tmp_path, "task.explode_at=7", every_n_steps=2)
    assert result.status == "diverged"
    assert StatisticsFiles(tmp_path).read()["step"].tolist() == [2, 4, 6]
    (tmp_path / "figures").mkdir()
    RunFolder(tmp_path).clear()
    assert not StatisticsFiles(tmp_path).exists()
    assert not (tmp_path / "figures").exists()


def test_figures_are_drawn_at_the_end_and_cost_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with mock.patch("un.analysis.drawing.draw_run", side_effect=RuntimeError("no\nink")) as draw:
        result = run(tmp_path, "trainer.max_epochs=1", every_n_steps=2, draw_figures=True)
    draw.assert_called_once_with(tmp_path)
    assert "no figures were drawn; continuing without them: no ink" in caplog.text
    assert result.status == "finished"


def test_globs_that_leave_no_norm(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"include \['x'\] and exclude \[\] leave no norm; the model's are: norm"):
        run(tmp_path, include=["x"])
