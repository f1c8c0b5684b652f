"""How figures look, without touching matplotlib's global state or needing a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# Okabe and Ito's colours, which remain apart in every common colour blindness; yellow is left out as too pale on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES = ("-", "--", ":", "-.")
DEPTH_MAP, DEPTH_END = "viridis", 0.9  # sequential and colour-blind-safe; its palest end is cut off
HEAT_MAP = "cividis"
MAX_POINTS = 400  # of one line; more are averaged
MAX_LABELS = 14  # of one axis with names
LOG_RATIO = 20.0  # an axis whose values span more is logarithmic
DPI = 150
OPTIONS = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
}


def make_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure (inches) with a title."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes a figure in the format of the suffix and returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    return path


def color_depths(count: int) -> list[tuple[float, ...]]:
    """One colour per layer, dark for the first."""
    places = np.linspace(0, DEPTH_END, max(count, 2))[:count]
    return [tuple(color) for color in matplotlib.colormaps[DEPTH_MAP](places)]


def add_depth_bar(figure: Figure, axes: Sequence[Axes], names: Sequence[str]) -> None:
    """A bar beside the axes that tells which colour is which layer; the first is at the top, as in a table."""
    bounds = BoundaryNorm(np.arange(len(names) + 1) - 0.5, len(names))
    mappable = ScalarMappable(bounds, ListedColormap(color_depths(len(names))))
    shown = choose_spread(len(names), MAX_LABELS)
    bar = figure.colorbar(mappable, ax=list(axes), ticks=shown, aspect=40, pad=0.02)
    bar.ax.set_yticklabels([names[place] for place in shown], fontsize=8)
    bar.ax.invert_yaxis()
    bar.ax.minorticks_off()
    bar.set_label("norm, from input to output")


def choose_spread(count: int, most: int) -> list[int]:
    """At most `most` places out of `count`, evenly spread, first and last among them."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))


def scale_axis(axes: Axes, values: object, which: str = "y") -> None:
    """Makes an axis logarithmic where positive values span a wide range, with readable ticks."""
    numbers = np.asarray(values, dtype=float)
    numbers = numbers[np.isfinite(numbers) & (numbers > 0)]
    if numbers.size == 0 or numbers.max() / numbers.min() < LOG_RATIO:
        return
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    if numbers.max() / numbers.min() < 1e3:  # ticks at powers of ten alone would be too few
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def thin_rows(frame: pd.DataFrame, how: str = "mean") -> pd.DataFrame:
    """At most MAX_POINTS rows, each the mean (or another reduction) of as many neighbours; indexed by step."""
    if len(frame) <= MAX_POINTS:
        return frame
    groups = np.arange(len(frame)) * MAX_POINTS // len(frame)
    thinned = frame.groupby(groups).agg(how)
    return thinned.set_index(pd.Index(frame.index.to_series().groupby(groups).last(), name=frame.index.name))
