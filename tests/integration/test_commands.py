"""The commands of a user's day: run, run again, evaluate. Mistakes and sweeps have files of their own."""

import gc
import json
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.integration.commands import FAST, REPOSITORY, Outcome, run_here
from un.reports.result import read_result


def train_again(finished: Path, *arguments: str) -> Outcome:
    """Repeats the command of the finished run."""
    return run_here("train.py", f"paths.runs={finished.parents[2]}", *FAST, "model.depth=1", *arguments)


def test_run_folder(finished: Path) -> None:
    names = {"config.yaml", "result.json", "metrics.csv", "train.log", "checkpoints"}
    assert {path.name for path in finished.iterdir()} >= names
    result = read_result(finished / "result.json")
    assert (result.experiment, result.norm["choice"], result.model["choice"]) == ("digits_vit", "un", "vit_digits")
    assert (result.seed, result.steps, result.best_epoch, result.best_step) == (0, 3, 0, 3)
    assert {"test/acc1", "test/loss", "val/acc1"} <= result.metrics.keys()
    assert {"debug=fast", "model.depth=1"} <= set(result.overrides)
    header, *rows = (finished / "metrics.csv").read_text().splitlines()
    assert {"norm/filtered_fraction", "norm/blocks.0.norm1/window_ratio", "train/loss"} <= set(header.split(","))
    assert len(rows) == 7  # of three steps a row of the loss and one of the norms, then the validation


def test_finished_run_is_left_alone(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.suffix != ".log"}
    for new, name in (("callbacks=activation_stats", "callbacks.activation_stats"), ("logger=wandb", "logger.wandb")):
        again = train_again(finished, new)
        assert f"is finished already, without {name}: force=true starts over and records it" in again.output
    assert "nothing to do" in train_again(finished, "callbacks.progress_bar=null", "logger=csv").output
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.suffix != ".log"}
    forced = train_again(finished, "force=true")
    assert forced.code == 0, forced
    assert (finished / "result.json").stat().st_mtime_ns != before[finished / "result.json"]


def test_the_profiler_reports(tmp_path: Path) -> None:
    outcome = run_here(
        "train.py", *FAST[1:], "debug=profiler", f"paths.runs={tmp_path}", "data.limit=256", "model.depth=1"
    )
    assert outcome.code == 0, outcome
    assert "FIT Profiler Report" in outcome.output
    assert "run_training_batch" in outcome.output


def test_evaluation_uses_only_the_run(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another model in the config the checkpoint does not fit: the model really is rebuilt and loaded."""
    recorded = read_result(finished / "result.json")
    monkeypatch.chdir(finished)  # nothing is read relative to the repository
    outcome = run_here("eval.py", f"run={finished}")
    assert outcome.code == 0, outcome
    assert "the same to the last bit" in outcome.output
    evaluation = json.loads((finished / "eval.json").read_text())
    tests = {name: value for name, value in recorded.metrics.items() if name.startswith("test/")}
    assert evaluation["metrics"] == tests
    config = yaml.safe_load((finished / "config.yaml").read_text())
    config["model"]["depth"] = 3
    (finished / "config.yaml").write_text(yaml.safe_dump(config))
    run_here("eval.py", f"run={finished}").check_error("best.ckpt is of another model", "blocks.")


def test_evaluation_without_a_model(finished: Path, tmp_path: Path) -> None:
    result, best = finished / "result.json", finished / "checkpoints/best.ckpt"
    run_here("eval.py", f"run={tmp_path}").check_error("run folder")
    best.write_bytes(best.read_bytes()[:1000])
    run_here("eval.py", f"run={finished}").check_error("best.ckpt is cut short")
    result.write_text(json.dumps({**json.loads(result.read_text()), "status": "diverged", "diverged_step": 2}))
    run_here("eval.py", f"run={finished}").check_error("diverged at step 2")
    result.unlink()
    run_here("eval.py", f"run={finished}").check_error("is not finished")


def test_mistakes_with_folders(finished: Path) -> None:
    config = yaml.safe_load((finished / "config.yaml").read_text())
    (finished / "config.yaml").write_text(yaml.safe_dump({**config, "init_weights": "other.ckpt"}))
    train_again(finished).check_error("another config", "init_weights was 'other.ckpt', is None", "force=true")
    (finished / "config.yaml").write_text(yaml.safe_dump(config))
    (finished / "result.json").unlink()
    last = finished / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    train_again(finished).check_error("last.ckpt is cut short")


@pytest.mark.parametrize(
    ("argument", "part"), [("--help", "a sweep of nine runs"), ("--cfg=job", "un.norms.UnifiedNorm")]
)
def test_help_and_config_do_without_torch(argument: str, part: str) -> None:
    """Whose import takes seconds."""
    code = f"import runpy, sys; sys.argv[1:] = ['{argument}']; runpy.run_path('train.py', run_name='__main__')"
    check = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules))"
    outcome = subprocess.run([sys.executable, "-c", f"{check}; {code}"], cwd=REPOSITORY, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert part in outcome.stdout
    assert outcome.stdout.endswith("False\n")


class Attack:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_pickle_that_would_run_code_is_refused(save: Callable[..., Any], finished: Path, tmp_path: Path) -> None:
    """As a zip file of torch, where the culprit is named, and bare."""
    attack, trace = tmp_path / "attack.ckpt", tmp_path / "trace"
    save({"state_dict": Attack(trace), "global_step": 1}, attack)
    reason = "loading such things can run any code" if save is torch.save else "that could run code when loaded"
    run_here("train.py", *FAST, f"paths.runs={tmp_path / 'new'}", f"init_weights={attack}").check_error(reason)
    shutil.copy(attack, finished / "checkpoints/best.ckpt")
    run_here("eval.py", f"run={finished}").check_error("best.ckpt", reason)
    (finished / "result.json").unlink()
    shutil.copy(attack, finished / "checkpoints/last.ckpt")
    train_again(finished).check_error("last.ckpt", reason)
    assert not trace.exists()
    torch.load(attack, weights_only=False) if save is torch.save else pickle.loads(attack.read_bytes())
    assert trace.exists()  # so it was one


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """The same command resumes when there is space; a limit on the length of files stands for the disk."""
    command = (f"paths.runs={tmp_path}", *FAST)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit, name in ((1000, "config.yaml"), (200_000, "checkpoints/")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            run_here("train.py", *command).check_error(name, ": File too large")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        gc.collect()  # the error has held the folder's lock, which otherwise ends with the process
    assert run_here("train.py", *command).code == 0
