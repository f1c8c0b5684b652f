"""Finds run folders and reads what figures need of them."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from un.files import find_run_files


@dataclass(frozen=True)
class LoggedRun:
    """One run folder, `<experiment>/<setting>/seed=<n>`.

    Attributes:
        folder: of the run.
        metrics: metrics.csv, NaN for empty cells and infinities; columns epoch, step and one per metric.
        diverged_step: step of the first non-finite loss; None for any other run.
    """

    folder: Path
    metrics: pd.DataFrame
    diverged_step: int | None

    @property
    def experiment(self) -> str:
        return self.folder.absolute().parent.parent.name

    @property
    def setting(self) -> str:
        """What tells the run from others of its experiment but for the seed, e.g. `norm=un,norm.window=8`."""
        return self.folder.absolute().parent.name

    def read(self, metric: str) -> pd.Series:
        """Returns the values of a metric by step, the last one where a step has several; empty where it has none."""
        if metric not in self.metrics:
            return pd.Series(dtype=float)
        return self.metrics.dropna(subset=metric).groupby("step")[metric].last()


def find_run_folders(patterns: Iterable[str]) -> list[Path]:
    """Returns the run folders that the patterns name or that are below what they name, each once.

    Args:
        patterns: folders or globs.

    Raises:
        ValueError: a pattern leads to no run folder.
    """
    folders: dict[Path, None] = {}
    for pattern in patterns:
        matches = [Path(pattern)] if Path(pattern).is_dir() else [Path(name) for name in sorted(glob.glob(pattern))]
        found = [config.parent for match in matches for config in sorted(find_run_files(match, "config.yaml"))]
        if not found:
            raise ValueError(f"run={pattern}: no run folder there (one holds a config.yaml)")
        folders |= dict.fromkeys(found)
    return list(folders)


def read_run(folder: Path) -> LoggedRun:
    """Reads a run, finished or not.

    Raises:
        FileNotFoundError: metrics.csv is missing.
        ValueError: a file is damaged.
    """
    try:
        metrics = pd.read_csv(folder / "metrics.csv", dtype=float).replace([np.inf, -np.inf], np.nan)
        result = folder / "result.json"
        diverged_step = json.loads(result.read_text())["diverged_step"] if result.exists() else None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is damaged: {error}") from None
    return LoggedRun(folder, metrics, diverged_step)
