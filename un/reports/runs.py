"""Run folders as reports see them: result, setting and seed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from un.files import find_run_files
from un.reports.result import Result, read_result
from un.reports.shift import FILE, ShiftResult, read_shifts

Content = TypeVar("Content")
MAIN_METRICS = ("test/bleu", "test/acc1")  # the first that a run has is its task's
EVALUATION = "eval.json"  # of eval.py, in a run folder
SPEED_UP = "speed_up"  # in place of a metric: how many times as fast as LayerNorm the folded model is
OVERRIDE_START = re.compile(r",(?=~?[\w./@]+=)")  # between two overrides of a folder's name; values may hold commas


@dataclass(frozen=True)
class Run:
    """A run that ended.

    Attributes:
        folder: `<runs>/<experiment>/<setting>/seed=<n>`.
        result: its result.json.
    """

    folder: Path
    result: Result

    @cached_property
    def setting(self) -> str:
        """What seeds are averaged over: the folder's name, which holds every override that changes the science."""
        in_layout = self.folder.name == f"seed={self.result.seed}"
        return self.folder.parent.name if in_layout else self.folder.name

    @property
    def norm(self) -> str:
        """The norm's choice."""
        return str(self.result.norm.get("choice", ""))

    @property
    def task(self) -> str:
        """The part of `un` that holds the task: vision or translation."""
        parts = self.result.task.split(".")
        return parts[1] if len(parts) > 1 else self.result.task

    @property
    def main_metric(self) -> str | None:
        """The test metric that tables show unless told otherwise; None when there is none."""
        tests = [name for name in self.result.metrics if name.startswith("test/")]
        return next((name for name in MAIN_METRICS if name in tests), tests[0] if tests else None)

    @property
    def curve_metric(self) -> str:
        """The validation counterpart of the main metric, or the loss where validation has none."""
        name = (self.main_metric or "").replace("test/", "val/")
        return name if name in self.result.metrics else "val/loss"

    @cached_property
    def shifts(self) -> Mapping[str, ShiftResult]:
        """Tests under the shifts of configs/shift, as these are now."""
        found = read_shifts(self.folder / FILE)
        return {name: result for name, result in found.items() if result.is_standard(name)}

    def get(self, metric: str | None, shift: str | None = None) -> float | None:
        """Returns a metric of a run that finished, the main one by default; None where there is none."""
        name = metric or self.main_metric
        if not name or self.result.status != "finished":
            return None
        if name == SPEED_UP:
            return read_speed_up(self.folder)
        tested = self.shifts.get(shift) if shift else self.result
        return tested.metrics.get(name) if tested else None


def read_speed_up(folder: Path) -> float | None:
    """Returns how many times as fast as a LayerNorm run's model the folded one is; None where it was not measured."""
    path = folder / EVALUATION
    content = json.loads(path.read_bytes()) if path.is_file() else {}
    is_to_layernorm = (content.get("against") or {}).get("norm") == "layernorm"
    return float(content["speed"]["speed_up"]) if is_to_layernorm else None


def find_runs(folders: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Reads every result.json below the folders.

    Returns:
        The runs in the order of their paths, each once where its record (`un.reports.records`) is there, too, and one
        line for each file that could not be read.
    """
    found, problems = read_below(
        folders, lambda root: find_run_files(root, "result.json"), lambda path: Run(path.parent, read_result(path))
    )
    by_run: dict[tuple[object, ...], Run] = {}
    for run in sorted(found, key=lambda one: (one.folder / "config.yaml").is_file()):  # a run folder has more to show
        by_run[run.result.experiment, run.setting, run.result.seed, run.result.wall_time_seconds] = run
    return sorted(by_run.values(), key=lambda run: run.folder), problems


def read_below(
    folders: Iterable[Path], walk: Callable[[Path], Iterable[Path]], read: Callable[[Path], Content]
) -> tuple[list[Content], list[str]]:
    """Reads every file that `walk` finds below the folders, once and in the order of their paths.

    Returns:
        What was read, and one line for each file that could not be.
    """
    found, problems = [], []
    for path in sorted({path for folder in folders for path in walk(folder)}):
        try:
            found.append(read(path))
        except (ValueError, OSError) as error:
            problems.append(str(error))
    return found, problems


def split_setting(setting: str) -> list[str]:
    """Returns the overrides in the name of a folder, the norm's choice first."""
    return OVERRIDE_START.split(setting)


def name_reference(setting: str) -> str:
    """Returns the setting with LayerNorm that another one is compared with: the same without the norm's options."""
    parts = [part for part in split_setting(setting) if not re.match(r"~?norm[.=]", part)]
    return ",".join(["norm=layernorm", *parts])


def group_by_setting(runs: Sequence[Run]) -> Mapping[str, Mapping[str, list[Run]]]:
    """Returns experiment -> setting -> runs, in the order given."""
    groups: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        groups.setdefault(run.result.experiment, {}).setdefault(run.setting, []).append(run)
    return groups
