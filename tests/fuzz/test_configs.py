"""Random valid command lines: each composes, trains two updates, folds, saves and loads."""

import copy
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from tests.fuzz.compositions import compositions
from un.command.checks import check_config
from un.command.errors import CONFIG_FOLDER
from un.finished.fold_run import TOLERANCE, list_changes, load_folded
from un.folding import fold_norms
from un.folding.inputs import Inputs
from un.folding.verify import list_tensors, measure_difference
from un.training.assembly import build, build_trainer
from un.training.weights import check_state, read_checkpoint


def compose_line(overrides: list[str]) -> DictConfig:
    """Composes as `python train.py <overrides>` does."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = compose("train", overrides)
    check_config(config)
    OmegaConf.resolve(config)
    return config


def check_composition(overrides: list[str], folder: Path) -> None:
    """Composes, builds, trains two updates, saves, loads and folds; outputs are compared in evaluation mode."""
    config = compose_line(overrides)
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
    torch.save({"state_dict": folded.state_dict(), "changes": list_changes(model, folded)}, path)
    loaded = load_folded(path, copy.deepcopy(model))
    assert measure_difference(outputs, infer(loaded, others)) == 0


def infer(model: nn.Module, inputs: Any) -> list[Tensor]:
    """What a model computes in evaluation mode, in the type of its parameters."""
    with torch.inference_mode():
        return list_tensors(Inputs.of(inputs).cast(next(model.parameters()).dtype).run(model.eval()))


@settings(max_examples=6, derandomize=True, deadline=None)
@given(compositions())
def test_compositions(overrides: list[str]) -> None:
    with TemporaryDirectory() as folder:
        check_composition(overrides, Path(folder))


@pytest.mark.slow  # 200 trainings
@pytest.mark.timeout(3600)
@settings(max_examples=200, deadline=None)
@given(compositions())
def test_many_compositions(overrides: list[str]) -> None:
    with TemporaryDirectory() as folder:
        check_composition(overrides, Path(folder))
