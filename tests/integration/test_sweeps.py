"""Sweeps as users type them: what is missing is run, failures are told at the end, launchers run side by side."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from joblib import cpu_count
from joblib.externals.loky import get_reusable_executor

from tests.integration.commands import FAST, run, run_here
from un.reports.result import read_result


def list_statuses(runs: Path) -> list[str]:
    return [read_result(path).status for path in runs.rglob("result.json")]


def test_a_sweep_runs_only_what_is_missing(tmp_path: Path) -> None:
    """Of two learning rates one makes the loss explode, which is a result."""
    sweep = ("-m", f"paths.runs={tmp_path}", *FAST, "model.depth=1", "optimizer.lr=1e-3,1e38")
    first = run_here("train.py", *sweep, "norm=un")
    assert first.code == 0, first
    assert first.output.splitlines()[-1] == "2 runs: 1 finished, 1 diverged"
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = run_here("train.py", *sweep, "norm=un,dyt")
    assert again.code == 0, again
    assert "Launching 2 jobs" in again.output
    assert again.output.splitlines()[-1] == "4 runs: 2 finished, 2 diverged"
    assert before == {path: path.stat().st_mtime_ns for path in before}
    nothing = run_here("train.py", *sweep, "norm=un,dyt")
    assert nothing.code == 0, nothing
    assert "Launching" not in nothing.output
    assert nothing.output.splitlines()[-1] == "4 runs: 2 finished, 2 diverged"


def test_a_mistake_in_one_run_does_not_stop_the_others(tmp_path: Path) -> None:
    jobs = "init_weights=/nowhere/best.ckpt,null"
    outcome = run_here("train.py", "-m", f"paths.runs={tmp_path}", *FAST, jobs)
    outcome.check_error("/nowhere/best.ckpt: no such checkpoint")
    assert outcome.output.splitlines()[-1].startswith("2 runs: 1 failed, 1 finished; train.log")
    log = next(tmp_path.rglob("*nowhere*/seed=0/train.log")).read_text()
    assert "/nowhere/best.ckpt: no such checkpoint" in log


def test_a_fault_of_the_program_stops_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import un.training.train

    train = un.training.train.train
    calls: list[int] = []

    def break_first(*arguments: Any) -> None:
        calls.append(len(calls))
        if calls == [0]:
            raise RuntimeError("a fault of the program")
        train(*arguments)

    monkeypatch.setattr(un.training.train, "train", break_first)
    outcome = run_here("train.py", "-m", f"paths.runs={tmp_path}", *FAST, "seed=0,1")
    assert outcome.code == 2, outcome
    assert "Traceback" in outcome.errors
    assert "RuntimeError: a fault of the program" in outcome.errors
    assert list_statuses(tmp_path) == ["finished"]


def test_an_ablation_that_makes_no_sense(tmp_path: Path) -> None:
    outcome = run_here("train.py", "-m", f"paths.runs={tmp_path}", *FAST, "ablation=un_padding")
    outcome.check_error("makes no sense", "images have no padding")
    assert list(tmp_path.iterdir()) == []


def test_a_search_by_optuna(tmp_path: Path) -> None:
    """Of two rates one diverges, which is a failed trial; the same search again runs nothing."""
    pytest.importorskip("optuna")
    rates = ("optimizer.lr=choice(1e-3,1e38)", "optimizer.weight_decay=0.0", "hydra.sweeper.n_trials=3")
    search = ("-m", "hparams_search=learning_rate", f"paths.runs={tmp_path}", *FAST, *rates)
    first = run_here("train.py", *search)
    assert first.code == 0, first
    assert sorted(list_statuses(tmp_path)) == ["diverged", "finished"]
    best = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    (finished,) = tmp_path.glob("*/*lr=0.001*/seed=0/result.json")
    assert best["best_params"]["optimizer.lr"] == 0.001
    assert best["best_value"] == read_result(finished).metrics["val/acc1"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    again = run_here("train.py", *search)
    assert again.output.count("nothing to do") == 3, again
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.slow  # starts a process for each run
def test_submitit(tmp_path: Path) -> None:
    """The local executor starts a job as Slurm would, from a pickle."""
    pytest.importorskip("submitit")
    jobs = ("-m", "norm=un,layernorm", "optimizer.lr=1e-3,1e38", "init_weights=null,/nowhere/best.ckpt")
    outcome = run("train.py", f"paths.runs={tmp_path}", *FAST, "hydra/launcher=submitit_local", *jobs)
    assert outcome.code == 2, outcome
    assert sorted(list_statuses(tmp_path)) == ["diverged", "diverged", "finished", "finished"]
    assert "8 runs: 4 failed, 2 finished, 2 diverged" in outcome.output


@pytest.mark.slow  # starts two processes for each run
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_runs_of_two_processes(launcher: str, tmp_path: Path) -> None:
    processes = ("trainer.strategy=ddp", "trainer.devices=2", "data.batch_size=4")
    settings = () if launcher == "basic" else ("hydra/launcher=joblib", "hydra.launcher.n_jobs=1")
    outcome = run("train.py", "-m", f"paths.runs={tmp_path}", *FAST, *processes, *settings, "norm=un,layernorm")
    assert outcome.code == 0, outcome
    assert list_statuses(tmp_path) == ["finished", "finished"]


@pytest.mark.slow  # two workers, each of which imports torch
def test_runs_side_by_side_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    parallel = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    outcome = run_here("train.py", "-m", f"paths.runs={tmp_path}", *FAST, "seed=0,1", *parallel)
    get_reusable_executor().shutdown()
    assert outcome.code == 0, outcome
    threads = [read_result(path).hardware["threads"] for path in tmp_path.rglob("result.json")]
    assert threads == [max(cpu_count() // 2, 1)] * 2
