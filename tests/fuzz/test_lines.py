"""Any command line gives a run or one clear line: no traceback, no hang, and no folder is spoilt."""

import contextlib
import copy
import gc
import shutil
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor, nn

from tests.fuzz.lines import TASKS, valid_lines, wrong_lines, wrong_overrides
from tests.integration.commands import Outcome, run_here
from un.command.checks import check_config
from un.command.errors import CONFIG_FOLDER
from un.finished.fold_run import TOLERANCE
from un.folding import fold_norms, load_folded, save_folded
from un.folding.inputs import Inputs
from un.folding.verify import list_tensors, measure_difference
from un.training.assembly import build, build_trainer
from un.weights import check_state, read_checkpoint

KEYS_OF_FINISHED = {
    "eval.py": ["fold", "data.path", "data.num_workers", "trainer.accelerator", "average_checkpoints", "task.beam"],
    "scripts/fold.py": ["output", "data.path", "average_checkpoints", "trainer.enable_progress_bar"],
    "scripts/export.py": ["format", "fold", "quantize", "calibration", "output", "average_checkpoints"],
}


def run_checked(script: str, *arguments: str) -> Outcome:
    """Runs a script here; it works or ends with a line. An exception that leaves it is a fault of the program."""
    outcome = run_here(script, *arguments)
    gc.collect()  # locks of the folder, which otherwise end with the process
    if outcome.code:
        outcome.check_error()
    assert "Traceback" not in outcome.errors
    return outcome


def check_wrong_line(task: str, wrong: list[str]) -> None:
    """Runs a wrong line and, where it left something in the folder of the runs, the right one in the same folder."""
    with TemporaryDirectory() as runs:
        place = f"paths.runs={runs}"
        if run_checked("train.py", place, *TASKS[task], *wrong).code and any(Path(runs).iterdir()):
            assert run_checked("train.py", place, *TASKS[task]).code == 0


@settings(max_examples=3, derandomize=True, deadline=None)
@given(wrong_lines())
def test_wrong_lines(line: tuple[str, list[str]]) -> None:
    check_wrong_line(*line)


@pytest.mark.slow  # 200 commands
@pytest.mark.timeout(7200)
@settings(max_examples=200, deadline=None)
@given(wrong_lines())
def test_many_wrong_lines(line: tuple[str, list[str]]) -> None:
    check_wrong_line(*line)


@pytest.mark.slow  # 40 commands on a finished run
@pytest.mark.timeout(3600)
def test_wrong_lines_leave_a_finished_run_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    runs = tmp_path_factory.mktemp("runs")
    assert run_here("train.py", f"paths.runs={runs}", *TASKS["vision"]).code == 0
    (result,) = runs.rglob("result.json")

    @settings(max_examples=40, deadline=None)
    @given(st.sampled_from(sorted(KEYS_OF_FINISHED)), st.data())
    def check(script: str, data: st.DataObject) -> None:
        wrong = data.draw(wrong_overrides(KEYS_OF_FINISHED[script]))
        with TemporaryDirectory() as place, contextlib.chdir(place):
            folder = shutil.copytree(result.parent, Path(place, "runs/digits_vit/norm=un/seed=0"))
            run_checked(script, f"run={folder}", *wrong)
            assert "the same to the last bit" in run_checked("eval.py", f"run={folder}").output

    check()


def check_valid_line(overrides: list[str], folder: Path) -> None:
    """Composes, builds, trains two updates, saves, loads and folds; outputs are compared in evaluation mode."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = compose("train", overrides)
    check_config(config)
    OmegaConf.resolve(config)
    trainer = build_trainer(config, folder, [])
    data, module = build(config)
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 2
    checkpoint = read_checkpoint(folder / "checkpoints/last.ckpt")
    _, fresh = build(config)
    check_state(fresh, checkpoint["state_dict"], folder)
    fresh.to(next(module.parameters()).dtype)  # of trainer.precision
    fresh.load_state_dict(checkpoint["state_dict"])
    examples, others = (module.make_fold_inputs(batch) for batch in islice(data.test_dataloader(), 2))
    trained, loaded = (infer(task.inference_model, others) for task in (module, fresh))
    assert all(tensor.isfinite().all() for tensor in trained)
    assert measure_difference(trained, loaded) == 0
    check_fold(fresh.float().inference_model, examples, others, folder / "folded.ckpt")  # as eval.py builds it


def check_fold(model: nn.Module, examples: Any, others: Any, path: Path) -> None:
    """Folds on examples, saves and loads; compares on others, since the fold compared on the examples itself."""
    folded, _ = fold_norms(model, examples)
    expected, outputs = infer(model, others), infer(folded, others)
    assert measure_difference(expected, outputs) <= TOLERANCE
    save_folded(path, model, folded)
    loaded = load_folded(path, copy.deepcopy(model))
    assert measure_difference(outputs, infer(loaded, others)) == 0


def infer(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Returns what a model computes in evaluation mode, in the type of its parameters."""
    with torch.inference_mode():
        return list_tensors(Inputs.of(inputs).cast(next(model.parameters()).dtype).run(model.eval()))


@settings(max_examples=2, derandomize=True, deadline=None)
@given(valid_lines())
def test_valid_lines(overrides: list[str]) -> None:
    with TemporaryDirectory() as folder:
        check_valid_line(overrides, Path(folder))


@pytest.mark.slow  # 200 trainings
@pytest.mark.timeout(3600)
@settings(max_examples=200, deadline=None)
@given(valid_lines())
def test_many_valid_lines(overrides: list[str]) -> None:
    with TemporaryDirectory() as folder:
        check_valid_line(overrides, Path(folder))
