"""How long the models of finished runs take at inference, with their norms folded away."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from un.command.errors import CONFIG_FOLDER, UserError
from un.finished.fold_run import fold_run, require_inference
from un.finished.open_run import open_run
from un.finished.timing import compare, time_interleaved

ROUNDS, WARMUP = 100, 10  # calls of each model, timed and before
UNFOLDABLE = "layernorm"  # the untouched model, which has no norm of ours to fold


@dataclass(frozen=True)
class RunTime:
    """Inference time of a run's model: median seconds of a call, and median ratio to the first run's adjacent calls."""

    seconds: float
    ratio: float


def time_runs(folders: Sequence[Path], rounds: int = ROUNDS, warmup: int = WARMUP) -> list[RunTime]:
    """Times the folded models of runs, call by call in turn, on one small batch that all of them get.

    Args:
        folders: of finished runs of one experiment; ratios are to the first.
        rounds: timed calls of each.
        warmup: calls of each before.

    Raises:
        UserError: one is not finished or cannot be folded, or their experiments differ.
    """
    finished: Any = OmegaConf.load(CONFIG_FOLDER / "finished.yaml")
    calls = {}
    experiments, batch = [], None
    for folder in folders:
        config: Any = OmegaConf.merge(finished, {"run": str(folder)})
        run = open_run(config)
        experiments.append(run.recorded.experiment)
        task = require_inference(run.module)
        batch = run.inference_data.make_example_batch(seed=0) if batch is None else batch
        choice = run.recorded.norm.get("choice")
        model = task.inference_model.eval() if choice == UNFOLDABLE else fold_run(run)[0]
        calls[str(folder)] = partial(task.predict, model, batch)
    if len(set(experiments)) > 1:
        raise UserError(f"times of different experiments do not compare: {', '.join(sorted(set(experiments)))}")
    with torch.inference_mode():
        seconds = time_interleaved(calls, rounds, warmup)
    base = seconds[str(folders[0])]
    return [RunTime(statistics.median(values), compare(values, base)) for values in seconds.values()]
