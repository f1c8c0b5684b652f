"""Folding the model of a run, and writing the checkpoint of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from omegaconf import DictConfig
from torch import nn

from un.command.errors import UserError
from un.finished.open_run import FinishedRun, open_run
from un.folding import FoldReport, fold_norms, load_folded, save_folded
from un.folding.checkpoint import FOLDED_FILE
from un.folding.inputs import Inputs
from un.folding.verify import list_tensors, measure_difference
from un.tasks import InferenceTask

TOLERANCE = 1e-4  # relative, of float32 outputs on a batch that the fold did not see


def require_inference(module: LightningModule) -> InferenceTask:
    """Returns the module as what folding and exporting need.

    Raises:
        UserError: Its task does not offer it.
    """
    missing = [name for name in ("inference_model", "make_fold_inputs", "cut_graph") if not hasattr(module, name)]
    if missing:
        raise UserError(f"task {type(module).__name__} cannot be folded or exported: it has no {', '.join(missing)}")
    task: Any = module
    return task


def fold_run(run: FinishedRun) -> tuple[nn.Module, FoldReport]:
    """Folds the model of a run on generated examples; the run's own model stays as it is.

    Raises:
        UserError: It has no norms, or its fold is not exact enough.
    """
    task = require_inference(run.module)
    batch = run.inference_data.make_example_batch(seed=0)
    try:
        return fold_norms(task.inference_model, task.make_fold_inputs(batch))
    except (ArithmeticError, ValueError) as error:
        raise UserError(f"{run.folder.path} cannot be folded: {error}") from error


def write_folded(config: DictConfig) -> Path:
    """Folds a finished run's model and writes the checkpoint and, beside it, the report as text.

    Args:
        config: composed from configs/fold.yaml.

    Raises:
        UserError: See `open_run` and `fold_run`; or what was written does not compute what the run's model does.
    """
    run = open_run(config)
    folded, report = fold_run(run)
    task = require_inference(run.module)
    path = Path(str(config.output or run.folder.path / FOLDED_FILE))
    path.parent.mkdir(parents=True, exist_ok=True)
    model = task.inference_model.eval()
    save_folded(path, model, folded, report=str(report), tested=run.tested)
    loaded = load_folded(path, copy.deepcopy(model))
    inputs = Inputs.of(task.make_fold_inputs(run.inference_data.make_example_batch(seed=1)))
    with torch.inference_mode():
        outputs = [list_tensors(inputs.run(candidate)) for candidate in (model, loaded)]
    difference = measure_difference(*outputs)
    if not difference <= TOLERANCE:
        raise UserError(f"{path} differs from the run's model by {difference:.1e} of the largest output")
    text = f"{report}\nread back: outputs on other examples differ by {difference:.1e} of the largest"
    path.with_suffix(".txt").write_text(f"{text}\n", encoding="utf-8")
    print(f"{text}\n{path}")
    return path
