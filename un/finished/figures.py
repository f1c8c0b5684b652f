"""From run folders to the figures that compare settings, for scripts/analyse.py figure=<name>. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from un.analysis.curves import AXIS_NAMES, draw_curves
from un.analysis.layers import draw_threshold
from un.analysis.retrofitted import draw_retrofit
from un.analysis.runs import read_run
from un.analysis.settings import (
    Point,
    draw_discrepancies,
    draw_fluctuations,
    draw_peaks,
    draw_trade_off,
    draw_windows,
)
from un.analysis.storage import StatisticsFiles
from un.analysis.style import OPTIONS, TITLE_SIZE, save_figure
from un.reports.runs import Run, split_setting
from un.reports.statistics import summarise
from un.reports.words import describe_setting
from un.training.run_folder import RETROFIT

WINDOW = re.compile(r"norm\.window=(\d+)$")
DEFAULT_WINDOW = 4  # of configs/norm/un.yaml
TimeRuns = Callable[[Sequence[Path]], Sequence[float]]


def group_folders(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Groups run folders, `<experiment>/<setting>/seed=<n>`, by their setting; LayerNorm comes first.

    Raises:
        ValueError: they are of several experiments.
    """
    experiments = {folder.absolute().parts[-3] for folder in folders}
    if len(experiments) > 1:
        raise ValueError(f"a figure compares runs of one experiment, got {', '.join(sorted(experiments))}")
    groups: dict[str, list[Path]] = {}
    for folder in sorted(folders, key=lambda one: not one.absolute().parts[-2].startswith("norm=layernorm")):
        groups.setdefault(folder.absolute().parts[-2], []).append(folder)
    return groups


def draw_settings(name: str, folders: Sequence[Path], metrics: Sequence[str] = ()) -> Figure:
    """Draws a figure that compares settings: `curves`, or one of runs recorded with callbacks=activation_stats.

    Raises:
        ValueError: a run was not recorded, or no setting has what the figure shows.
    """
    groups = group_folders(folders)
    if name == "curves":
        runs = [read_run(folder) for members in groups.values() for folder in members]
        return draw_curves(runs, metrics, _describe)
    if name == "window":
        return draw_windows(_group_windows(groups))
    if name == "fluctuation":  # of one run each: what is averaged does not fluctuate
        return draw_fluctuations({_describe(key): _read_all(members[:1]) for key, members in groups.items()})
    if name == "threshold":
        return _draw_threshold(folders)
    draw = {"outliers": draw_peaks, "discrepancy": draw_discrepancies}[name]
    return draw({_describe(key): _read_all(members) for key, members in groups.items()})


def draw_cost(runs: Sequence[Run], time_runs: TimeRuns) -> Figure:
    """Draws the test metric against the inference time of one run of each setting.

    Args:
        runs: finished, of one experiment.
        time_runs: returns times over that of the first folder, as `un.finished.run_times.time_runs` measures them.

    Raises:
        ValueError: they are of several experiments, or have no test metric.
    """
    by_folder = {run.folder: run for run in runs}
    points, groups = [], group_folders([run.folder for run in runs if run.get(None) is not None])
    if not groups:
        raise ValueError("no run finished with a test metric")
    times = time_runs([members[0] for members in groups.values()])
    names = list(map(_describe, groups))
    for name, members, ratio in zip(names, groups.values(), times, strict=True):
        values = [value for folder in members if (value := by_folder[folder].get(None)) is not None]
        summary = summarise(values)
        assert summary.mean is not None
        points.append(Point(name, ratio, summary.mean, summary.std, summary.n))
    metric = str(by_folder[next(iter(groups.values()))[0]].main_metric).rpartition("/")[2]
    return draw_trade_off(points, AXIS_NAMES.get(metric, metric), names[0])


def draw_taken_out(folders: Sequence[Path]) -> Figure:
    """Draws what scripts/retrofit.py left in the folder of a run.

    Raises:
        ValueError: there are several runs, or nothing was left.
    """
    folder, *others = folders
    if others:
        raise ValueError(f"figure=retrofit is of one run, got {folder} and {others[0]}")
    record = folder / RETROFIT[0]
    if not record.is_file():
        raise ValueError(f"{folder} has no {record.name}: run python scripts/retrofit.py run={folder}")
    return draw_retrofit(folder.absolute().parts[-3], json.loads(record.read_text())["report"]["norms"])


def save(draw: Callable[[], Figure], path: Path) -> Path:
    """Draws in our style and writes."""
    with matplotlib.rc_context(OPTIONS):
        return save_figure(draw(), path)


def _draw_threshold(folders: Iterable[Path]) -> Figure:
    """Draws the AM-GM gap beside the threshold of the norms of the first run that has windows."""
    for folder in folders:
        figure = draw_threshold(StatisticsFiles(folder).read())
        if figure is not None:
            figure.suptitle(f"{_describe(folder.absolute().parts[-2])}: {figure.get_suptitle()}", fontsize=TITLE_SIZE)
            return figure
    raise ValueError("figure=threshold: no norm of these runs has a window")


def _describe(setting: str) -> str:
    return describe_setting(split_setting(setting))


def _group_windows(groups: Mapping[str, Sequence[Path]]) -> dict[int, pd.DataFrame]:
    found: dict[int, list[Path]] = {}
    for setting, members in groups.items():
        lengths = [int(match[1]) for part in split_setting(setting) if (match := WINDOW.match(part))]
        if lengths or setting == "norm=un":
            found.setdefault(lengths[0] if lengths else DEFAULT_WINDOW, []).extend(members)
    if not found:
        raise ValueError("figure=window: no run of norm=un or norm.window=<one length> among those")
    return {length: _read_all(members) for length, members in found.items()}


def _read_all(folders: Sequence[Path]) -> pd.DataFrame:
    return pd.concat([StatisticsFiles(folder).read() for folder in folders], ignore_index=True)
