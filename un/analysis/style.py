"""How figures look, without touching matplotlib's global state or needing a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart, without black and the yellow that white swallows.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
LINES = ("-", "--", ":", "-.")
DEPTH_MAP, DEPTH_END = "viridis", 0.9  # sequential and colour-blind-safe; its palest end is cut off
HEAT_MAP = "cividis"
MAX_POINTS = 400  # of one line; more are averaged
MAX_LABELS = 14  # of one axis with names
LOG_RATIO = 20.0  # an axis whose values span more is logarithmic
RELATIVE_LOG_RATIO = 3.0  # the same for values that are relative errors
DPI = 150
TITLE_SIZE = 11  # of a whole figure; the text of the rest is below
OPTIONS: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(linestyle=LINES) * cycler(color=COLORS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
}


def make_figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=TITLE_SIZE)
    return figure


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes a figure in the format of the suffix and returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    return path


def color_depths(count: int) -> list[tuple[float, ...]]:
    """Returns one colour per layer, dark for the first."""
    places = np.linspace(0, DEPTH_END, max(count, 2))[:count]
    return [tuple(color) for color in matplotlib.colormaps[DEPTH_MAP](places)]


def add_depth_bar(figure: Figure, axes: Sequence[Axes], names: Sequence[str]) -> None:
    """Adds a bar beside the axes that shows which colour is which layer; the first is at the top, as in a table."""
    bounds = BoundaryNorm(np.arange(len(names) + 1) - 0.5, len(names))
    mappable = ScalarMappable(bounds, ListedColormap(color_depths(len(names))))
    shown = choose_spread(len(names), MAX_LABELS)
    bar = figure.colorbar(mappable, ax=list(axes), ticks=shown, aspect=40, pad=0.02)
    bar.ax.set_yticklabels([names[place] for place in shown], fontsize=8)
    bar.ax.invert_yaxis()
    bar.ax.minorticks_off()
    bar.set_label("norm, from input to output")


def label_norms(axes: Axes, places: Sequence[int], names: Sequence[str]) -> None:
    """Names norms below an axis, no more of them than there is room for."""
    shown = choose_spread(len(names), MAX_LABELS)
    labels = [names[index] for index in shown]
    axes.set_xticks([places[index] for index in shown], labels, rotation=45, ha="right", fontsize=8)


def choose_spread(count: int, most: int) -> list[int]:
    """Returns at most `most` places out of `count`, evenly spread, first and last among them."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))


def is_wide(values: Any, ratio: float = LOG_RATIO) -> bool:
    """Returns whether all values are positive and span so much that a logarithmic axis shows them better."""
    numbers = np.asarray(values, dtype=float)
    numbers = numbers[np.isfinite(numbers)]
    return numbers.size > 0 and bool(numbers.min() > 0 and numbers.max() / numbers.min() > ratio)


def thin_rows(frame: pd.DataFrame, how: str = "mean") -> pd.DataFrame:
    """Returns at most MAX_POINTS rows, each the mean (or another reduction) of as many neighbours."""
    if len(frame) <= MAX_POINTS:
        return frame
    groups = np.arange(len(frame)) * MAX_POINTS // len(frame)
    thinned = frame.groupby(groups).agg(how)
    return thinned.set_index(pd.Index(frame.index.to_series().groupby(groups).last(), name=frame.index.name))
