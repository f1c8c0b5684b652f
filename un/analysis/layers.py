"""Figures of one run's norms, from the recorder's table."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, FigureBase

from un.analysis.recorder import MOMENT_PERCENTS
from un.analysis.style import (
    COLORS,
    HEAT_MAP,
    LINES,
    LOG_RATIO,
    RELATIVE_LOG_RATIO,
    add_depth_bar,
    choose_spread,
    color_depths,
    is_wide,
    make_figure,
    thin_rows,
)

STEP_LABEL = "optimizer step"
PANELS, PANEL_COLUMNS = 6, 3  # norms that have a panel of their own, spread over the depth
BINS, BIN_MARGIN = 30, 1.1
WIDTH = 9.0
MAX_ROW_LABELS = 40  # of a heat map, which grows with its rows


def draw_fluctuation(frame: pd.DataFrame) -> Figure:
    """Draws how far the channels' second moments move from one step to the next, a line per norm."""
    figure = make_figure(WIDTH, 6, "Fluctuation of the channels' second moments q between consecutive steps")
    panels = figure.subplots(2, 1, sharex=True)
    titles = {"fluctuation_p50": "median over channels", "fluctuation_p100": "channel that moved most"}
    for axes, (column, title) in zip(panels, titles.items(), strict=True):
        table = pivot(frame, column)
        _draw_by_depth(axes, table)
        axes.set(title=title, ylabel=r"$|\,\ln\, q_t / q_{t-1}|$")
        if is_wide(table):
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
    panels[-1].set_xlabel(STEP_LABEL)
    add_depth_bar(figure, panels, list(table.columns))
    return figure


def draw_discrepancy(frame: pd.DataFrame) -> Figure | None:
    """Draws how far the running statistics are from the batch's, as heat maps norm x step; None for norms without."""
    maps = {
        "mean_discrepancy": ("of the mean", r"$|\,running\ mean - mean\,|\,/\,\sqrt{q}$"),
        "scale_discrepancy": ("of the scale", r"$|\,\sqrt{v}\,/\,\sqrt{q} - 1\,|$"),
    }
    known = {column: texts for column, texts in maps.items() if column in frame and frame[column].notna().any()}
    if not known:  # in tables of earlier versions, too
        return None
    title = "Training-inference discrepancy: running v against q of the batch, mean over channels"
    figure, panels = _draw_heat_maps(frame, title, known, "mean", RELATIVE_LOG_RATIO)
    panels[-1].set_xlabel(STEP_LABEL)
    return figure


def draw_outliers(frame: pd.DataFrame) -> Figure:
    """Draws the largest activation, and the channel farthest above its running statistic, as heat maps norm x step."""
    maps = {"peak": ("largest activation", r"max $|x|$ / root mean square of $x$")}
    if frame["running_ratio_p100"].notna().any():
        maps["running_ratio_p100"] = ("channel farthest above its running second moment v", r"largest $q\,/\,v$")
    figure, panels = _draw_heat_maps(frame, "Outliers across layers", maps, "max")
    struck = pivot(frame, "filtered_calls", "max").diff().fillna(0) > 0  # step x norm, since the record before
    if struck.any(axis=None):
        steps, layers = np.nonzero(struck.to_numpy())
        for axes in panels:
            axes.scatter(struck.index[steps], layers, s=9, color="white", edgecolor="black", linewidth=0.6)
    panels[-1].set_xlabel(
        STEP_LABEL + (" (dots: filtration struck since the last record)" if struck.any(axis=None) else "")
    )
    return figure


def draw_moments(frame: pd.DataFrame) -> Figure:
    """Draws histograms of the channels' second moments at the first, the middle and the last record."""
    steps = frame["step"].unique()
    chosen = [int(steps[place]) for place in choose_spread(len(steps), 3)]
    frame = frame[frame["step"].isin(chosen)]
    edges = _choose_edges(frame)

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        for (_, row), color, line in zip(rows.iterrows(), COLORS, LINES, strict=False):
            label = f"step {row['step']}"
            axes.hist(spread_channels(row), edges, histtype="step", color=color, linestyle=line, lw=1.5, label=label)
        axes.set_xscale("log")

    return _draw_panels(frame, "Channels by their second moment", draw, ("second moment of the input", "channels"))


def draw_threshold(frame: pd.DataFrame) -> Figure | None:
    """Draws the AM-GM gap against the threshold of outlier filtration; None for norms without a window."""
    frame = frame[frame["threshold"].notna()]
    if frame.empty:
        return None
    last = frame.groupby("layer").last()
    calls, filtered = last["calls"].sum(), last["filtered_calls"].sum()
    title = f"AM-GM gap of the window against the threshold of filtration; {filtered / calls:.2%} of calls filtered"
    figure = make_figure(WIDTH, 8.5, title)
    top, bottom = np.asarray(figure.subfigures(2, 1, height_ratios=(1, 1.5)))
    axes = top.subplots()
    table = pivot(frame.assign(ratio=frame["gap"].clip(lower=0) / frame["threshold"]), "ratio", "max")
    _draw_by_depth(axes, table.where(table > 0))
    axes.axhline(1, color="black", linestyle="--", linewidth=1)
    axes.annotate("above: an outlier", (1, 1), (-4, 4), ha="right", xycoords=("axes fraction", "data"),
                  textcoords="offset points", fontsize=8)  # fmt: skip
    axes.set(ylabel="gap / threshold", xlabel=STEP_LABEL, yscale="log")
    add_depth_bar(top, [axes], list(table.columns))

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        for column, color, line in (("gap", COLORS[0], "-"), ("threshold", COLORS[1], "--")):
            values = _take(rows, column)
            axes.plot(values.index, values, color=color, linestyle=line, label=column)
        axes.set_yscale("log")

    _fill_panels(bottom, frame, draw, (STEP_LABEL, "units of $x^2$"), share_y=False)
    return figure


def draw_running(frame: pd.DataFrame) -> Figure | None:
    """Draws the batch's second moment over the running one that inference uses; None for norms without."""
    if frame["running_ratio_p50"].isna().all():
        return None

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        _fill_between(axes, rows, "running_ratio", (0, 100), COLORS[4], label="all channels")
        _fill_between(axes, rows, "running_ratio", (5, 95), COLORS[0], label="5 % to 95 % of channels")
        median = _take(rows, "running_ratio_p50")
        axes.plot(median.index, median, color=COLORS[0], label="median")
        axes.axhline(1, color="black", linestyle="--", linewidth=1)
        axes.set_yscale("log")

    title = "Batch against running statistic: second moment q of the batch over the running v"
    return _draw_panels(frame, title, draw, (STEP_LABEL, r"$q\,/\,v$"))


def draw_gradients(frame: pd.DataFrame) -> Figure | None:
    """Draws the gradient statistic of the batch and its running average; None for norms without weight."""
    frame = frame[frame["gradient_p50"].notna()]
    if frame.empty:
        return None

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        lines = {"gradient": "batch, $|p|$", "running_gradient": r"running, $|\psi|$"}
        for (name, label), color, line in zip(lines.items(), COLORS, LINES, strict=False):
            median = _take(rows, f"{name}_p50")
            if median.notna().any():
                _fill_between(axes, rows, name, (5, 95), color)
                axes.plot(median.index, median, color=color, linestyle=line, label=label)
        axes.set_yscale("log")

    title = "Gradient statistic mean(g z): median over channels, band 5 % to 95 %"
    return _draw_panels(frame, title, draw, (STEP_LABEL, "units of the loss"))


def pivot(frame: pd.DataFrame, column: str, how: str = "mean") -> pd.DataFrame:
    """Returns one column as a table step x norm, norms in model order, infinities as NaN."""
    names = frame.drop_duplicates("layer").sort_values("layer")["site"]
    table = frame.pivot(index="step", columns="site", values=column)[list(names)]
    return thin_rows(table.replace([np.inf, -np.inf], np.nan), how)


def spread_channels(row: pd.Series) -> np.ndarray:
    """Returns second moments (C,) with the recorded quantiles of one norm and step, in logarithms between them."""
    quantiles = row[[f"moment_p{percent}" for percent in MOMENT_PERCENTS]].to_numpy(dtype=float)
    places = (np.arange(int(row["channels"])) + 0.5) / row["channels"]
    with np.errstate(divide="ignore"):
        values = np.exp(np.interp(100 * places, MOMENT_PERCENTS, np.log(quantiles)))
    return np.where(values > 0, values, np.nan)


def _take(rows: pd.DataFrame, column: str) -> pd.Series:
    """Returns one norm's values by step, NaN for those that are not positive."""
    values = thin_rows(rows.set_index("step")[[column]])[column]
    return values.where(values > 0)


def _fill_between(
    axes: Axes, rows: pd.DataFrame, name: str, percents: tuple[int, int], color: str, label: str | None = None
) -> None:
    low, high = (_take(rows, f"{name}_p{percent}") for percent in percents)
    axes.fill_between(low.index, low, high, color=color, alpha=0.25, linewidth=0, label=label)


def _draw_by_depth(axes: Axes, table: pd.DataFrame) -> None:
    """Draws a line per norm of a table step x norm."""
    axes.set_prop_cycle(color=color_depths(len(table.columns)))
    axes.plot(table.index, table)


def _choose_edges(frame: pd.DataFrame) -> list[float]:
    """Returns bins of equal width in logarithms that hold every positive moment."""
    moments = frame[["moment_p0", "moment_p100"]].to_numpy(dtype=float)
    moments = moments[np.isfinite(moments) & (moments > 0)]
    low, high = (moments.min(), moments.max()) if moments.size else (1.0, 1.0)
    return np.geomspace(low / BIN_MARGIN, high * BIN_MARGIN, BINS + 1).tolist()


def _draw_heat_maps(
    frame: pd.DataFrame, title: str, maps: Mapping[str, tuple[str, str]], how: str, log_ratio: float = LOG_RATIO
) -> tuple[Figure, list[Axes]]:
    """Draws columns of the table below each other, each with its title and the label of its colours."""
    height = 1.4 + len(maps) * max(2.0, 0.17 * frame["layer"].nunique() + 0.9)
    figure = make_figure(WIDTH, height, title)
    panels = list(figure.subplots(len(maps), 1, sharex=True, squeeze=False)[:, 0])
    for axes, (column, (name, label)) in zip(panels, maps.items(), strict=True):
        _draw_heat_map(figure, axes, pivot(frame, column, how), label, log_ratio)
        axes.set_title(name)
    return figure, panels


def _draw_heat_map(figure: Figure, axes: Axes, table: pd.DataFrame, label: str, log_ratio: float) -> None:
    values = table.to_numpy(dtype=float).T
    image = axes.pcolormesh(
        table.index.to_numpy(dtype=float),
        np.arange(len(values)),
        values,
        cmap=HEAT_MAP,
        norm=LogNorm() if is_wide(values, log_ratio) else None,
        shading="nearest",
    )
    figure.colorbar(image, ax=axes, label=label, pad=0.02)
    shown = choose_spread(len(values), MAX_ROW_LABELS)
    axes.set_yticks(shown, [table.columns[place] for place in shown], fontsize=8)
    axes.invert_yaxis()
    axes.grid(False)


def _draw_panels(
    frame: pd.DataFrame, title: str, draw: Callable[[Axes, pd.DataFrame], None], labels: tuple[str, str]
) -> Figure:
    rows = -(-min(frame["layer"].nunique(), PANELS) // PANEL_COLUMNS)
    figure = make_figure(WIDTH, 1.2 + 2.3 * rows, title)
    _fill_panels(figure, frame, draw, labels)
    return figure


def _fill_panels(
    figure: FigureBase,
    frame: pd.DataFrame,
    draw: Callable[[Axes, pd.DataFrame], None],
    labels: tuple[str, str],
    share_y: bool = True,
) -> None:
    """A panel for each of some norms; x and y labels at the edges, and one legend below."""
    layers = sorted(frame["layer"].unique())
    chosen = [layers[place] for place in choose_spread(len(layers), PANELS)]
    columns = min(len(chosen), PANEL_COLUMNS)
    grid = figure.subplots(-(-len(chosen) // columns), columns, squeeze=False, sharex=True, sharey=share_y)
    for place, (axes, layer) in enumerate(zip(grid.flat, chosen, strict=False)):
        part = frame[frame["layer"] == layer]
        draw(axes, part)
        axes.set_title(part["site"].iloc[0], fontsize=9)
        axes.set_ylabel(labels[1] if place % columns == 0 else "")
        if place + columns >= len(chosen):
            axes.set_xlabel(labels[0])
            axes.tick_params(labelbottom=True)
    for axes in list(grid.flat)[len(chosen) :]:
        axes.remove()
    handles, names = grid.flat[0].get_legend_handles_labels()
    if names:
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))
