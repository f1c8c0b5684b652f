"""How a run is executed: on how many processes, in which precision, with how many accumulated batches.

None of it is part of the run's name. A recipe states the batch of an update (`global_batch_size`); what each process
has to accumulate for it follows from their number. Imports no torch.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from un.command.errors import UserError
from un.files import replace_file
from un.training.config_keys import read_experiment
from un.training.run_folder import read_overrides

ACCUMULATION, COUNT, CALLS_PER_STEP = "trainer.accumulate_grad_batches", "norm.count", "norm.calls_per_step"


@dataclass(frozen=True)
class Execution:
    """What a run's name does not say and its result records.

    Attributes:
        processes: that share the data.
        batch_size: of one process and batch, in images or (at most) in tokens; None where the data do not say.
        accumulate_grad_batches: batches of a process that make up an update.
        precision: Lightning's name of it.
        norm: options of the norm that follow from the accumulation, e.g. {"count": "updates"}.
    """

    processes: int
    batch_size: int | None
    accumulate_grad_batches: int
    precision: str
    norm: dict[str, Any] = field(default_factory=dict)

    @property
    def global_batch_size(self) -> int | None:
        return None if self.batch_size is None else self.processes * self.batch_size * self.accumulate_grad_batches

    def describe(self) -> dict[str, Any]:
        """Returns what result.json holds."""
        return {**asdict(self), "global_batch_size": self.global_batch_size}

    def __str__(self) -> str:
        accumulated = self.accumulate_grad_batches
        batches = f" x {accumulated} accumulated batches" if accumulated > 1 else ""
        return f"global batch {self.global_batch_size} = {self.batch_size} x {_count(self.processes)}{batches}"


def plan_execution(config: DictConfig, overrides: Sequence[str], processes: int, precision: str) -> Execution:
    """Derives the accumulation from the recipe's global batch, unless one was asked for.

    Several calls of a norm then belong to an update: norms whose windows and warm-up count calls count updates instead,
    and those that move once in several calls do so once in as many more. What was typed stays as typed.

    Raises:
        UserError: the global batch is not a multiple of what the processes hold at once.
    """
    typed = {key.lstrip("+") for key in read_overrides(overrides)}
    key = "data.max_tokens" if OmegaConf.select(config, "data.max_tokens") else "data.batch_size"
    found = OmegaConf.select(config, key)
    batch = found if isinstance(found, int) and found > 0 else None  # the data refuse anything else
    asked, wanted = config.trainer.accumulate_grad_batches, config.get("global_batch_size")
    if wanted is None or asked != 1 or ACCUMULATION in typed:
        return Execution(processes, batch, asked, precision)
    if batch is None:
        raise UserError(f"global_batch_size={wanted} needs {key} of at least 1, got {found}")
    if wanted % (processes * batch):
        raise UserError(
            f"global_batch_size={wanted} is not a multiple of {key}={batch} x {_count(processes)}: choose "
            f"trainer.devices and {key} so that it is, or give up the recipe's batch with global_batch_size=null"
        )
    accumulated = wanted // (processes * batch)
    norm: dict[str, Any] = {}
    if accumulated > 1 and COUNT not in typed and "count" in config.norm:
        norm["count"] = "updates"
    if accumulated > 1 and CALLS_PER_STEP not in typed and "calls_per_step" in config.norm:
        norm["calls_per_step"] = config.norm.calls_per_step * accumulated
    return Execution(processes, batch, accumulated, precision, norm)


def apply_execution(config: DictConfig, execution: Execution) -> DictConfig:
    """Returns the config with the accumulation and what follows from it."""
    changed = copy.deepcopy(config)
    OmegaConf.update(changed, ACCUMULATION, execution.accumulate_grad_batches)
    for key, value in execution.norm.items():
        OmegaConf.update(changed, f"norm.{key}", value)
    return changed


def describe_start(config: DictConfig, experiment: str, execution: Execution) -> tuple[str, bool]:
    """Returns the line that a run starts with, and whether it trains at its recipe's global batch.

    The line is empty where neither the recipe nor the config names one.
    """
    recipe = read_experiment(experiment).get("global_batch_size")
    if recipe is None and config.get("global_batch_size") is None:
        return "", True
    departs = recipe is not None and execution.global_batch_size != recipe
    accumulated, count = execution.accumulate_grad_batches, config.norm.get("count")
    parts = [str(execution)]
    if departs:
        parts.append(f"not the recipe's {recipe}")
    if execution.norm:
        options = ", ".join(f"norm.{key}={value}" for key, value in execution.norm.items())
        parts.append(f"{options}; running averages of norms still move with every batch")
    elif accumulated > 1 and count == "calls":
        parts.append(
            f"windows and warm-up of the norms count {accumulated} calls an update; norm.count=updates counts updates"
        )
    return "; ".join(parts), not departs


def _count(processes: int) -> str:
    return f"{processes} process{'es' if processes > 1 else ''}"


def keep_execution(file: Path, execution: Execution, resumes: bool, writes: bool) -> None:
    """Writes how a run is executed, in one of its processes, or compares it with how the resumed run was started."""
    if not resumes:
        if writes:
            with replace_file(file) as opened:
                json.dump(execution.describe(), opened)
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    changed = [
        f"{key} was {before[key]}, is {value}" for key, value in execution.describe().items() if before[key] != value
    ]
    if changed:
        raise UserError(
            f"{file.parent} was started differently ({'; '.join(changed)}): resume it as it was started, or use "
            "force=true to start over"
        )
