"""Signals to real commands: a run of one and of two processes, sweeps, and jobs of submitit."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.integration.commands import run, start
from tests.outcomes import check_same, count_steps, read_outcome
from un.reports.result import read_result

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # every process imports torch and trains for seconds
LONG = ("trainer.accelerator=cpu", "data.limit=160", "data.batch_size=16", "trainer.log_every_n_steps=1")
LONG += ("trainer.max_epochs=4", "callbacks.checkpoints.every_n_steps=1000", "callbacks.watch_norms=null")
PATIENCE = 300


def wait_for_steps(runs: Path, steps: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while count_steps(runs) < steps and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def check_stop(process: subprocess.Popen[str], signum: signal.Signals, runs: Path) -> None:
    """It ended with its code and one line, after it had saved the step it names."""
    _, errors = process.communicate(timeout=PATIENCE)
    (last,) = runs.rglob("last.ckpt")
    step = torch.load(last, weights_only=True)["global_step"]
    assert process.returncode == 128 + signum, errors
    assert errors == f"stopped by {signum.name} at step {step}: run the same command to resume\n"
    assert not list(runs.rglob("result.json"))


@pytest.mark.parametrize(
    ("signum", "settings"),
    [
        (signal.SIGINT, ("trainer.strategy=ddp", "trainer.devices=2", "data.batch_size=8")),
        (signal.SIGTERM, ("data.num_workers=2",)),
    ],
    ids=["two processes", "a data loader of two processes"],
)
def test_a_stopped_run_goes_on(signum: signal.Signals, settings: tuple[str, ...], tmp_path: Path) -> None:
    whole = run("train.py", f"paths.runs={tmp_path / 'whole'}", *LONG, *settings)
    assert whole.code == 0, whole
    command = (f"paths.runs={tmp_path / 'stopped'}", *LONG, *settings)
    process = start("train.py", *command)
    wait_for_steps(tmp_path / "stopped", 3, process)
    process.send_signal(signum)
    check_stop(process, signum, tmp_path / "stopped")
    again = run("train.py", *command)
    assert again.code == 0, again
    assert "resuming" in again.output
    check_same(read_outcome(tmp_path / "stopped"), read_outcome(tmp_path / "whole"))


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_sweep_stops_and_goes_on(launcher: str, tmp_path: Path) -> None:
    """Of three runs those that were begun stop with a checkpoint, the last is not begun."""
    parallel = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2") if launcher == "joblib" else ()
    command = ("-m", f"paths.runs={tmp_path}", *LONG, *parallel, "norm=un,layernorm,mabn")
    process = start("train.py", *command)
    wait_for_steps(tmp_path, 3, process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGINT, errors
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("stopped by SIGINT")
    assert output.splitlines()[-1].startswith("3 runs: ")
    assert list(tmp_path.rglob("result.json")) == []
    begun = [path.parent for path in tmp_path.rglob("metrics.csv")]
    assert 1 <= len(begun) <= (2 if parallel else 1)
    assert any((folder / "checkpoints/last.ckpt").exists() for folder in begun)
    again = run("train.py", *command)
    assert again.code == 0, again
    assert "resuming" in "".join(path.read_text() for path in tmp_path.rglob("train.log"))
    assert [read_result(path).status for path in tmp_path.rglob("result.json")] == ["finished"] * 3


def test_submitit_starts_a_preempted_job_again(tmp_path: Path) -> None:
    """Its local executor does with exit codes what Slurm does with a queue."""
    pytest.importorskip("submitit")
    process = start("train.py", "-m", f"paths.runs={tmp_path}", *LONG, "hydra/launcher=submitit_local", "norm=un")
    wait_for_steps(tmp_path, 3, process)
    found = subprocess.run(["pgrep", "-f", f"submitit.core._submit {tmp_path}"], capture_output=True, text=True)
    (job,) = found.stdout.split()
    os.kill(int(job), signal.SIGUSR2)
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, (output, errors)
    (log,) = tmp_path.rglob("train.log")
    assert "stopped by SIGUSR2 at step" in log.read_text()
    assert "resuming" in log.read_text()
    assert [read_result(path).status for path in tmp_path.rglob("result.json")] == ["finished"]
