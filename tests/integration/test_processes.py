"""Several processes: data-parallel training and parallel sweeps, on the CPU."""

from pathlib import Path

import pytest

from tests.integration.commands import run
from un.reports.result import read_result

FAST = ("debug=fast", "trainer.accelerator=cpu")


@pytest.mark.slow  # starts two processes, each of which imports torch
def test_two_processes_are_one_run(tmp_path: Path) -> None:
    command = (f"paths.runs={tmp_path}", *FAST, "trainer.strategy=ddp", "trainer.devices=2", "data.batch_size=4")
    outcome = run("train.py", *command)
    assert outcome.code == 0, outcome
    (path,) = tmp_path.rglob("result.json")
    assert read_result(path).status == "finished"
    assert len((path.parent / "metrics.csv").read_text().splitlines()) == 8
    assert "is finished already" in run("train.py", *command).output


@pytest.mark.slow  # starts three processes, each of which imports torch
def test_parallel_sweep(tmp_path: Path) -> None:
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    jobs = ("-m", "norm=un,layernorm", "init_weights=null,/nowhere/best.ckpt")
    outcome = run("train.py", f"paths.runs={tmp_path}", *FAST, *launcher, *jobs)
    assert outcome.code == 2, outcome
    assert "error: /nowhere/best.ckpt: no such checkpoint" in outcome.errors
    assert [read_result(path).status for path in tmp_path.rglob("result.json")] == ["finished", "finished"]
