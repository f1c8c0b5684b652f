"""The commands of a user's day: run, run again, sweep, evaluate, and the mistakes, each of which ends in one line."""

import gc
import json
import os
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

from tests.integration.commands import FAST, REPOSITORY, Outcome, find_folders, run, run_here
from un.reports.result import read_result


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A sweep over two norms and two learning rates, of which one makes the loss explode."""
    runs = tmp_path_factory.mktemp("sweep")
    return runs, run_here("train.py", f"paths.runs={runs}", *FAST, "-m", "norm=un,layernorm", "optimizer.lr=1e-3,1e38")


@pytest.fixture
def finished(sweep: tuple[Path, Outcome], tmp_path: Path) -> Path:
    """A finished run in a folder of its own."""
    source = find_folders(sweep[0])["norm=un,debug=fast,optimizer.lr=0.001"]
    folder = tmp_path / "digits_vit/norm=un,debug=fast,optimizer.lr=0.001/seed=0"
    return Path(shutil.copytree(source, folder))


def test_sweep_leaves_results(sweep: tuple[Path, Outcome]) -> None:
    runs, outcome = sweep
    assert outcome.code == 0, outcome
    statuses = {name: read_result(folder / "result.json").status for name, folder in find_folders(runs).items()}
    assert statuses == {
        "norm=layernorm,debug=fast,optimizer.lr=0.001": "finished",
        "norm=layernorm,debug=fast,optimizer.lr=1e+38": "diverged",
        "norm=un,debug=fast,optimizer.lr=0.001": "finished",
        "norm=un,debug=fast,optimizer.lr=1e+38": "diverged",
    }


def test_run_folder(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} >= {
        *("config.yaml", "result.json", "metrics.csv", "train.log", "checkpoints")
    }
    result = read_result(finished / "result.json")
    assert (result.experiment, result.norm["choice"], result.model["choice"]) == ("digits_vit", "un", "vit_digits")
    assert (result.seed, result.steps, result.best_epoch, result.best_step) == (0, 3, 0, 3)
    assert {"test/acc1", "test/loss", "val/acc1"} <= result.metrics.keys()
    assert {"debug=fast", "norm=un", "optimizer.lr=0.001"} <= set(result.overrides)
    header, *rows = (finished / "metrics.csv").read_text().splitlines()
    assert {"norm/filtered_fraction", "norm/blocks.0.norm1/window_ratio", "train/loss"} <= set(header.split(","))
    assert len(rows) == 7  # of three steps a row of the loss and one of the norms, then the validation


def test_finished_run_is_left_alone(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.suffix != ".log"}
    command = (f"paths.runs={finished.parents[2]}", *FAST, "norm=un", "optimizer.lr=1e-3")
    again = run("train.py", *command)
    assert again.code == 0, again
    assert "is finished already" in again.output
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.suffix != ".log"}
    forced = run_here("train.py", *command, "force=true")
    assert forced.code == 0, forced
    assert (finished / "result.json").stat().st_mtime_ns != before[finished / "result.json"]


def test_a_finished_run_tells_what_it_could_have_recorded(finished: Path) -> None:
    command = (f"paths.runs={finished.parents[2]}", *FAST, "norm=un", "optimizer.lr=1e-3")
    for new, name in (("callbacks=activation_stats", "callbacks.activation_stats"), ("logger=wandb", "logger.wandb")):
        again = run_here("train.py", *command, new)
        assert again.code == 0, again
        assert f"is finished already, without {name}: force=true starts over and records it" in again.output
    assert "nothing to do" in run_here("train.py", *command, "callbacks.progress_bar=null", "logger=csv").output


def test_evaluation_uses_only_the_run(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = read_result(finished / "result.json")
    monkeypatch.chdir(finished)  # nothing is read relative to the repository
    outcome = run_here("eval.py", f"run={finished}")
    assert outcome.code == 0, outcome
    assert "the same to the last bit" in outcome.output
    evaluation = json.loads((finished / "eval.json").read_text())
    tests = {name: value for name, value in recorded.metrics.items() if name.startswith("test/")}
    assert evaluation["metrics"] == tests


def test_evaluation_is_not_a_copy(finished: Path) -> None:
    """With another model in the config the checkpoint does not fit: the model really is rebuilt and loaded."""
    config = yaml.safe_load((finished / "config.yaml").read_text())
    config["model"]["depth"] = 3
    (finished / "config.yaml").write_text(yaml.safe_dump(config))
    run_here("eval.py", f"run={finished}").check_error("best.ckpt is of another model", "blocks.3.")


def test_evaluation_without_a_model(sweep: tuple[Path, Outcome], finished: Path, tmp_path: Path) -> None:
    diverged = find_folders(sweep[0])["norm=un,debug=fast,optimizer.lr=1e+38"]
    run_here("eval.py", f"run={diverged}").check_error("diverged at step")
    run_here("eval.py", f"run={tmp_path / 'nowhere'}").check_error("no such folder")
    run_here("eval.py", f"run={tmp_path}").check_error("is not a run folder")
    run_here("eval.py").check_error("run is missing")
    best = finished / "checkpoints/best.ckpt"
    best.write_bytes(best.read_bytes()[:1000])
    run_here("eval.py", f"run={finished}").check_error("best.ckpt is cut short")
    (finished / "result.json").unlink()
    run_here("eval.py", f"run={finished}").check_error("is not finished")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["norm=unn"], ["norm=unn is unknown", "did you mean 'un'?", "layernorm"]),
        (["-m", "norm=un,layernrm"], ["norm=layernrm is unknown", "did you mean 'layernorm'?"]),
        (["seed=1", "-m", "norm=un,layernrm"], ["did you mean 'layernorm'?"]),
        (["model=vit_digit"], ["did you mean 'vit_digits'?"]),
        (["experiment=cifar_vit_tiny"], ["did you mean 'cifar10_vit_tiny'?"]),
        (["logger=[csv,wand]"], ["logger=wand is unknown", "did you mean 'wandb'?"]),
        (["nrom=un"], ["'nrom'", "did you mean 'norm'?"]),
        (["trainer.max_epoch=3"], ["'trainer.max_epoch'", "did you mean 'trainer.max_epochs'?"]),
        (["+trainer.max_epoch=3"], ["trainer has no option 'max_epoch'", "did you mean 'max_epochs'?"]),
        (["+norm.widow=3"], ["norm:", "widow"]),
        (["+sed=3"], ["no config key 'sed'", "did you mean 'seed'?"]),
        (["+surgery.exlude=[norm]"], ["'surgery.exlude'", "did you mean 'exclude'?"]),
        (["surgery.reset_steps=yes"], ["surgery.reset_steps=yes must be true or false"]),
        (["--nothing"], ["unrecognized arguments: --nothing"]),
        (["norm.window=abc"], ["norm.window=abc must be an integer or a list"]),
        (["norm.compensation_start=abc"], ["norm: compensation_start must be at least 0, got abc"]),
        (["+data.transform.crop_padding=abc"], ["data.transform.crop_padding=abc must be an integer"]),
        (["data.transform.std=[0]"], ["std=[0]", "above 0"]),
        (["data.transform.mean=[0.1,0.2]", "data.transform.std=[1,1]"], ["data.num_channels=1"]),
        (["optimizer.lr=nan"], ["optimizer.lr=nan must be a number"]),
        (["optimizer.betas=[0.9]"], ["optimizer:"]),
        (["scheduler=inverse_sqrt"], ["scheduler makes a LambdaLR", "scheduler=cosine"]),
        (["scheduler.min_lr=abc"], ["scheduler.min_lr=abc must be a number"]),
        (["callbacks.divergence.every_n_steps=abc"], ["callbacks.divergence.every_n_steps=abc must be an integer"]),
        (["task.label_smoothing=2"], ["task.label_smoothing=2 must be between 0 and 1"]),
        (["task.ema_decay=2"], ["task.ema_decay=2 must be between 0 and 1"]),
        (["task.mixup={mixup_alpha: -1}"], ["mixup_alpha=-1"]),
        (["task.mixup={cutmix_minmax: [1]}"], ["task.mixup"]),
        (["task.mixup={mode: pairs}"], ["task.mixup.mode=pairs", "batch, pair, elem"]),
        (["trainer.max_epochs=abc"], ["trainer.max_epochs=abc must be an integer"]),
        (["trainer.precision=8"], ["recision"]),
        (["seed=-1"], ["seed=-1 must be an integer of at least 0"]),
        (["norm.window=0"], ["norm", "window must be at least 1", "0"]),
        (["norm.warmup_steps=-1"], ["warmup_steps must be at least 0", "-1"]),
        (["data.batch_size=0"], ["data.batch_size=0"]),
        (["data.path=/nowhere"], ["/nowhere"]),
        (["data.path=5"], ["data.path='5': no such folder"]),
        (["data.path=[a,b]"], ["data.path='[a,b]': no such folder"]),
        ([f"data.path=/{'x' * 300}"], ["x" * 300]),
        (["global_batch_size=0"], ["global_batch_size=0 must be an integer of at least 1 or null"]),
        (["global_batch_size=9"], ["global_batch_size=9 is not a multiple of data.batch_size=8 x 1 process:"]),
        (["model.name=vit_tiny_patch1_224"], ["vit_tiny_patch16_224"]),
        (["optimizer.lr=-1"], ["-1"]),
        (["task.mixup=3"], ["task.mixup=3 must be a mapping or null"]),
        (["init_weights=/nowhere/best.ckpt"], ["/nowhere/best.ckpt: no such checkpoint"]),
        (["norm=un seed=1"], ["norm=un seed=1"]),
    ],
    ids=" ".join,
)
def test_mistakes(arguments: list[str], parts: list[str], tmp_path: Path) -> None:
    run_here("train.py", f"paths.runs={tmp_path}", *FAST, *arguments).check_error(*parts)


def test_traceback_for_those_who_want_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    outcome = run("train.py", f"paths.runs={tmp_path}", "norm=unn")
    assert outcome.code == 1
    assert "Traceback" in outcome.errors


def test_mistakes_with_folders(finished: Path, tmp_path: Path) -> None:
    command = (f"paths.runs={finished.parents[2]}", *FAST, "norm=un", "optimizer.lr=1e-3")
    config = yaml.safe_load((finished / "config.yaml").read_text())
    (finished / "config.yaml").write_text(yaml.safe_dump({**config, "init_weights": "other.ckpt"}))
    run_here("train.py", *command).check_error("another config", "init_weights was 'other.ckpt', is None", "force=true")
    (finished / "config.yaml").write_text(yaml.safe_dump(config))
    (finished / "result.json").unlink()
    last = finished / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    run_here("train.py", *command).check_error("last.ckpt is cut short")
    (tmp_path / "file").touch()
    run_here("train.py", f"paths.runs={tmp_path / 'file'}").check_error("Not a directory")
    run_here("train.py", f"paths.runs=/proc/runs{os.getpid()}").check_error("/proc")


def test_model_without_norm(tmp_path: Path) -> None:
    config = yaml.safe_load((REPOSITORY / "configs/model/vit_digits.yaml").read_text())
    arguments = [f"~model.{key}" for key in config if key not in ("_target_", "name")]
    run_here("train.py", f"paths.runs={tmp_path}", *FAST, *arguments, "model.name=resnet10t").check_error(
        "no LayerNorm"
    )


def test_sweep_goes_on_after_a_mistake(tmp_path: Path) -> None:
    jobs = "init_weights=/nowhere/best.ckpt,null"
    outcome = run_here("train.py", "-m", f"paths.runs={tmp_path}", *FAST, jobs)
    outcome.check_error("/nowhere/best.ckpt: no such checkpoint")
    assert [read_result(path).status for path in tmp_path.rglob("result.json")] == ["finished"]


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


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


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
    command = (f"paths.runs={finished.parents[2]}", *FAST, "norm=un", "optimizer.lr=1e-3")
    reason = "loading such things can run any code" if save is torch.save else "that could run code when loaded"
    run_here("train.py", *FAST, f"paths.runs={tmp_path / 'new'}", f"init_weights={attack}").check_error(reason)
    shutil.copy(attack, finished / "checkpoints/best.ckpt")
    run_here("eval.py", f"run={finished}").check_error("best.ckpt", reason)
    run_here("scripts/fold.py", f"run={finished}").check_error("best.ckpt", reason)
    (finished / "result.json").unlink()
    shutil.copy(attack, finished / "checkpoints/last.ckpt")
    run_here("train.py", *command).check_error("last.ckpt", reason)
    assert not trace.exists()
    torch.load(attack, weights_only=False) if save is torch.save else pickle.loads(attack.read_bytes())
    assert trace.exists()  # so it was one


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """The same command goes on when there is space; a limit on the length of files stands for the disk."""
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
