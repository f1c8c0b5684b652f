"""Several processes: data-parallel training and parallel sweeps, on the CPU."""

from pathlib import Path

import pytest

from tests.integration.commands import run
from un.reports.result import read_result

FAST = ("debug=fast", "trainer.accelerator=cpu")


@pytest.mark.slow  # starts two processes, each of which imports torch
def test_two_processes_are_one_run(tmp_path: Path) -> None:
    processes = ("trainer.strategy=ddp", "trainer.devices=2", "data.batch_size=4")
    epochs = ("data.limit=24", "trainer.max_steps=9", "average_checkpoints=2")  # three steps each
    command = (f"paths.runs={tmp_path}", *FAST, *processes, *epochs)
    outcome = run("train.py", *command)
    assert outcome.code == 0, outcome
    (path,) = tmp_path.rglob("result.json")
    result = read_result(path)
    assert result.status == "finished"
    assert result.metric_details == {"test/*": "weights averaged over epoch=1.ckpt, epoch=2.ckpt"}
    assert len((path.parent / "metrics.csv").read_text().splitlines()) == 1 + 9 + 9 + 3  # losses, norms, validations
    assert "is finished already" in run("train.py", *command).output


@pytest.mark.slow  # starts three processes, each of which imports torch
def test_parallel_sweep(tmp_path: Path) -> None:
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    jobs = ("-m", "norm=un,layernorm", "init_weights=null,/nowhere/best.ckpt")
    outcome = run("train.py", f"paths.runs={tmp_path}", *FAST, *launcher, *jobs)
    assert outcome.code == 2, outcome
    assert "error: /nowhere/best.ckpt: no such checkpoint" in outcome.errors
    assert [read_result(path).status for path in tmp_path.rglob("result.json")] == ["finished", "finished"]
