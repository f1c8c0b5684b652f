"""The recorder inside a training: it changes nothing, and a killed run ends with the table of one never stopped."""

from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback
from omegaconf import OmegaConf

from tests.training.toy import make_config, make_identity
from un.analysis.storage import StatisticsFiles
from un.reports.result import read_result
from un.training import train as training
from un.training.assembly import build_trainer
from un.training.callbacks.activation_stats import ActivationStats
from un.training.run_folder import RunFolder, name_run
from un.training.start import open_folder

FILE = Path(__file__).parents[2] / "configs/callbacks/activation_stats.yaml"
RECORDER = OmegaConf.load(FILE).activation_stats


class Killed(BaseException):
    """What no code of the runtime catches as an error of its own."""


def run(folder: Path, *overrides: str, recorder: dict[str, Any] | None = None, kill_at: int | None = None) -> None:
    config = make_config(folder, *overrides)
    if recorder is not None:
        config.callbacks.activation_stats = OmegaConf.merge(RECORDER, {"draw_figures": False}, recorder)

    def build(*arguments: Any) -> Any:
        trainer = build_trainer(*arguments)
        trainer.callbacks.append(Bomb(kill_at))
        return trainer

    open_folder(RunFolder(folder), config)
    with mock.patch.object(training, "build_trainer", build if kill_at else build_trainer):
        training.train(config, make_identity(folder))


class Bomb(Callback):
    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed


@pytest.mark.parametrize("kill_at", [3, 4, 8, 9])
@pytest.mark.parametrize("polite", [False, True], ids=["killed", "interrupted"])
def test_resumed_run_records_the_same(tmp_path: Path, kill_at: int, polite: bool) -> None:
    checkpoints = "callbacks.checkpoints.every_n_steps=3"
    run(tmp_path / "whole", checkpoints, recorder={"every_n_steps": 4})
    whole = StatisticsFiles(tmp_path / "whole").read()
    assert whole["step"].tolist() == [4, 8, 12]
    assert whole["fluctuation_p50"].notna().all()
    folder = tmp_path / "cut"
    farewell = ActivationStats.on_exception if polite else lambda *_: None
    with mock.patch.object(ActivationStats, "on_exception", farewell), pytest.raises(Killed):
        run(folder, checkpoints, recorder={"every_n_steps": 4}, kill_at=kill_at)
    run(folder, checkpoints, recorder={"every_n_steps": 4})
    pd.testing.assert_frame_equal(StatisticsFiles(folder).read(), whole)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_recording_changes_nothing(tmp_path: Path, accumulate: int) -> None:
    setting = f"trainer.accumulate_grad_batches={accumulate}"
    run(tmp_path / "without", setting)
    run(tmp_path / "with", setting, recorder={"every_n_steps": 1})
    outcomes = [read_result(tmp_path / name / "result.json").metrics for name in ("without", "with")]
    assert outcomes[0] == outcomes[1]
    states = [torch.load(tmp_path / name / "checkpoints/last.ckpt")["state_dict"] for name in ("without", "with")]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    table = StatisticsFiles(tmp_path / "with").read()
    steps = read_result(tmp_path / "with/result.json").steps
    assert table["step"].tolist() == list(range(1, steps + 1))
    assert table["calls"].iloc[-1] == 15
    assert table.loc[1:, "fluctuation_p0"].notna().all()


def test_diverged_run_keeps_its_table_and_a_forced_one_starts_over(tmp_path: Path) -> None:
    run(tmp_path, "task.explode_at=7", "callbacks.divergence.every_n_steps=1", recorder={"every_n_steps": 2})
    assert read_result(tmp_path / "result.json").status == "diverged"
    assert StatisticsFiles(tmp_path).read()["step"].tolist() == [2, 4, 6]
    (tmp_path / "figures").mkdir()
    RunFolder(tmp_path).clear()
    assert not StatisticsFiles(tmp_path).exists()
    assert not (tmp_path / "figures").exists()


def test_figures_are_drawn_at_the_end_and_cost_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path / "drawn", recorder={"every_n_steps": 2, "draw_figures": True})
    names = {path.name for path in (tmp_path / "drawn/figures").iterdir()}
    assert names >= {"fluctuation.png", "outliers.png", "moments.png", "threshold.png", "curves.png"}
    with mock.patch("un.analysis.drawing.draw_run", side_effect=RuntimeError("no\nink")):
        run(tmp_path / "plain", recorder={"every_n_steps": 2, "draw_figures": True})
    assert "no figures were drawn; continuing without them: no ink" in caplog.text
    assert read_result(tmp_path / "plain/result.json").status == "finished"


def test_mistakes_end_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"include \['x'\] and exclude \[\] leave no norm; the model's are: norm"):
        run(tmp_path, recorder={"include": ["x"]})


def test_recording_is_no_other_run() -> None:
    """So that `callbacks=activation_stats` can be added to the command of a run that was killed."""
    watched = name_run("e", "un", ["callbacks=activation_stats", "callbacks.activation_stats.every_n_steps=5"], 0)
    assert watched == "e/norm=un/seed=0"
    assert name_run("e", "un", ["callbacks.seeding.seed=5"], 0) != watched
