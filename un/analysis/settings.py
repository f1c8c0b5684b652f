"""Figures that lay several settings beside each other: what their norms see, and what they cost and reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from un.analysis.layers import STEP_LABEL, pivot
from un.analysis.style import (
    COLORS,
    RELATIVE_LOG_RATIO,
    add_depth_bar,
    color_depths,
    is_wide,
    label_norms,
    make_figure,
    thin_rows,
)

BAND = (0.05, 0.95)  # quantiles over steps, and over norms where they are pooled
MARKERS = "osD^vPX*<>"
LEGEND_COLUMNS = 3
MAX_BANDS = 4  # over each other; more hide what they show
PANEL_WIDTH, MAX_PANELS = 3.6, 4


def draw_fluctuations(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Draws how far second moments move from step to step, a panel per setting and a line per norm, on equal axes.

    Args:
        frames: the recorder's table by the setting's name; the first few are drawn.
    """
    chosen = list(frames.items())[:MAX_PANELS]
    tables = {name: pivot(frame, "fluctuation_p50") for name, frame in chosen}
    figure = make_figure(PANEL_WIDTH * len(tables) + 2, 3.8, "Fluctuation of second moments between consecutive steps")
    panels = figure.subplots(1, len(tables), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (name, table) in zip(panels, tables.items(), strict=True):
        axes.set_prop_cycle(color=color_depths(len(table.columns)))
        axes.plot(table.index, table, linewidth=1)
        axes.set(title=f"trained with {name}", xlabel=STEP_LABEL)
    panels[0].set_ylabel("$|\\,\\ln\\, q_t / q_{t-1}|$, median over channels")
    if is_wide(np.concatenate([table.to_numpy().ravel() for table in tables.values()])):
        panels[0].set_yscale("log")
    add_depth_bar(figure, panels, list(next(iter(tables.values())).columns))
    return figure


def draw_peaks(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Draws the largest activation over the layers, a line per setting, as `_draw_over_layers` does."""
    figure = make_figure(9, 4.6, f"Outliers over layers: {_name_line(frames)}")
    axes = figure.subplots()
    _draw_over_layers(axes, frames, "peak")
    axes.set_ylabel("max $|x|$ / root mean square of $x$")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=LEGEND_COLUMNS)
    return figure


def draw_discrepancies(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Draws the training-inference discrepancy of the scale, over steps and over layers, a line per setting.

    Args:
        frames: the recorder's table by the setting's name; norms without running statistics, as LayerNorm, have none.

    Raises:
        ValueError: no setting has any.
    """
    column = "scale_discrepancy"
    known = {name: frame for name, frame in frames.items() if column in frame and frame[column].notna().any()}
    if not known:
        raise ValueError("figure=discrepancy: no norm of these runs has running statistics that were recorded")
    figure = make_figure(11, 4.8, "Training-inference discrepancy (TID): running statistic against the batch's own")
    left, right = figure.subplots(1, 2, sharey=True)
    for (name, frame), color in zip(known.items(), COLORS * len(known), strict=False):
        values = thin_rows(frame.groupby("step")[[column]].mean())
        left.plot(values.index, values[column], label=name, color=color)
    left.set(xlabel=STEP_LABEL, title="over the training: mean over norms")
    left.set_ylabel("$|\\,\\sqrt{v}\\,/\\,\\sqrt{q} - 1\\,|$, mean over channels")
    _draw_over_layers(right, known, column)
    if is_wide(np.concatenate([line.get_ydata() for line in (*left.lines, *right.lines)]), RELATIVE_LOG_RATIO):
        left.set_yscale("log")
    right.set_title(f"over layers: {_name_line(known)}")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=LEGEND_COLUMNS)
    return figure


def _name_line(frames: Mapping[str, pd.DataFrame]) -> str:
    return "median over steps" + (", band 5 % to 95 %" if len(frames) <= MAX_BANDS else "")


def _draw_over_layers(axes: Axes, frames: Mapping[str, pd.DataFrame], column: str) -> None:
    """Draws a column of the recorder's table over the layers: median over steps and seeds, band 5 % to 95 % of few."""
    for (name, frame), color, marker in zip(frames.items(), COLORS * len(frames), MARKERS * len(frames), strict=False):
        groups = frame.replace([np.inf, -np.inf], np.nan).groupby("layer")[column]
        middle = groups.median()
        axes.plot(middle.index, middle, label=name, color=color, linestyle="-", marker=marker, markersize=4)
        if len(frames) <= MAX_BANDS:
            low, high = (groups.quantile(share) for share in BAND)
            axes.fill_between(middle.index, low, high, color=color, alpha=0.15, linewidth=0)
    sites = next(iter(frames.values())).drop_duplicates("layer").sort_values("layer")
    label_norms(axes, list(sites["layer"]), list(sites["site"]))
    axes.set_xlabel("norm, from input to output")
    if is_wide(np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])):
        axes.set_yscale("log")


def draw_windows(frames: Mapping[int, pd.DataFrame]) -> Figure:
    """Draws the AM-GM gap beside the threshold of filtration, and their ratio, by the window's length.

    Args:
        frames: the recorder's table by the length M; of several runs, one below the other. A window of 1 has no gap.
    """
    known = {window: frame[frame["threshold"] > 0] for window, frame in sorted(frames.items()) if window > 1}
    known = {window: frame for window, frame in known.items() if len(frame)}
    places = np.arange(len(known))
    figure = make_figure(9, 4.6, "AM-GM gap by length of the window: median over steps and norms, band 5 % to 95 %")
    left, right = figure.subplots(1, 2)
    for column, color, marker in zip(("gap", "threshold"), COLORS, MARKERS, strict=False):
        positive = [frame[column].where(frame[column] > 0) for frame in known.values()]
        _plot_band(left, places, positive, column, color, marker)
    left.set(yscale="log", ylabel="units of $x^2$", title="gap and threshold", xlabel="window M (calls)")
    left.set_xticks(places, [str(window) for window in known])
    ratios = [frame["gap"] / frame["threshold"] for frame in known.values()]
    _plot_band(right, places, [ratio.where(ratio > 0) for ratio in ratios], "median", COLORS[2], MARKERS[2])
    right.plot(places, [ratio.max() for ratio in ratios], "v", color=COLORS[1], label="largest")
    right.axhline(1, color="black", linestyle="--", linewidth=1, label="threshold")
    shares = [f"{window}\n{(ratio > 1).mean():.1%} above" for window, ratio in zip(known, ratios, strict=True)]
    right.set_xticks(places, shares)
    right.set(yscale="log", ylabel="gap / threshold", title="above 1: an outlier", xlabel="window M (calls)")
    for axes in (left, right):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=LEGEND_COLUMNS)
    return figure


def _plot_band(
    axes: Axes, places: np.ndarray, values: Sequence[pd.Series], label: str, color: str, marker: str
) -> None:
    low, middle, high = ([one.quantile(share) for one in values] for share in (BAND[0], 0.5, BAND[1]))
    axes.plot(places, middle, label=label, color=color, marker=marker)
    axes.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)


@dataclass(frozen=True)
class Point:
    """A setting in the picture of cost and benefit: time over LayerNorm's, mean metric, and its spread over seeds."""

    label: str
    time: float
    mean: float
    std: float | None
    seeds: int


def draw_trade_off(points: Sequence[Point], metric: str, reference: str) -> Figure:
    """Draws a metric against inference time with all norms folded that can be; upper left is better.

    Args:
        points: at least one.
        metric: label of the vertical axis.
        reference: whose time is 1.
    """
    title = "Accuracy against inference time, with the norms folded away that can be; upper left is better"
    figure = make_figure(8.5, 5.2, title)
    axes = figure.subplots()
    axes.axvline(1, color="grey", linestyle="--", linewidth=1)
    for point, color, marker in zip(points, COLORS * len(points), MARKERS * len(points), strict=False):
        axes.errorbar(
            point.time,
            point.mean,
            yerr=point.std,
            label=f"{point.label} (n = {point.seeds})",
            color=color,
            marker=marker,
            markersize=7,
            capsize=3,
            linestyle="none",
        )
    axes.set(xlabel=f"inference time over that of {reference}", ylabel=f"test {metric}, mean ± std over seeds")
    figure.legend(loc="outside lower center", ncols=LEGEND_COLUMNS)
    return figure
