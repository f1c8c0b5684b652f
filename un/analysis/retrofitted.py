"""The figure of a model whose norms were taken out: what reaches each norm, and what is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from un.analysis.style import COLORS, is_wide, label_norms, make_figure

OUTLIERS = {
    "outlier": ("reaches the norm", "o-"),
    "outlier_old": ("the original norm makes of it", "s--"),
    "outlier_new": ("the map makes of it", "D:"),
}
FITS = {"r2_median": ("median channel", "o-"), "r2_worst": ("worst channel", "s--")}


def draw_retrofit(name: str, norms: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws the largest outlier and the fit of the maps, by norm.

    Args:
        name: of the model.
        norms: rows of a `RetrofitReport`, in the order of the forward.
    """
    table = pd.DataFrame(norms)
    figure = make_figure(7.5, 6.2, f"Norms of {name} taken out: outliers and fit on the calibration data")
    top, bottom = figure.subplots(2, 1, sharex=True)
    for axes, lines in ((top, OUTLIERS), (bottom, FITS)):
        for (column, (label, look)), color in zip(lines.items(), COLORS, strict=False):
            axes.plot(table.index, table[column], look, label=label, color=color, markersize=4)
        axes.legend()
    top.set(title="largest outlier", ylabel="standard deviations from the mean\nof the channel")
    if is_wide(table[list(OUTLIERS)]):
        top.set_yscale("log")
    bottom.set(title="what the map explains of the original norm's output", ylabel="$R^2$")
    label_norms(bottom, range(len(table)), [site.partition(", ")[0] for site in table["site"]])
    bottom.set_xlabel("norm, in the order of the forward")
    return figure
