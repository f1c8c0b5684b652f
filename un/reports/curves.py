"""Curves of the validation metric as SVG: one line per setting, with a band over its seeds."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from un.reports.runs import Run

MAX_LINES = 12
MAX_LABEL = 36  # characters in the legend
# Okabe and Ito's colours, which the colour-blind can tell apart, without black and the yellow that white swallows.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
STYLES = ("-", "--", ":")
INK = "#123456"  # stands for the page's text colour, which is dark or light
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
SIZE = (7.6, 3.4)  # inches


def read_curve(folder: Path, metric: str) -> pd.Series | None:
    """Returns a metric of metrics.csv by step; None where there is none."""
    path = folder / "metrics.csv"
    try:
        with path.open() as file:
            names = file.readline().strip().split(",")
        if metric not in names:
            return None
        frame = pd.read_csv(path, usecols=["step", metric], dtype=float).dropna()
    except (OSError, ValueError):  # none, or not of numbers
        return None
    curve = frame.groupby("step")[metric].last()
    return None if curve.empty else curve


def choose_curve_metric(run: Run) -> str:
    """Returns the validation counterpart of the main metric, or the loss where validation has none."""
    name = (run.main_metric or "").replace("test/", "val/")
    return name if name in run.result.metrics else "val/loss"


def draw_curves(groups: Mapping[str, Sequence[Run]], identifier: str) -> str | None:
    """Draws the first settings that have curves.

    Args:
        groups: runs by label.
        identifier: unique among the pictures of a page.

    Returns:
        An SVG element whose ink is the text colour of the page around it; None where no run has a curve.
    """
    finished = next((run for runs in groups.values() for run in runs if run.main_metric), None)
    metric = choose_curve_metric(finished) if finished else "val/loss"
    curves: dict[str, pd.DataFrame] = {}
    for label, runs in groups.items():
        found = [curve for curve in (read_curve(run.folder, metric) for run in runs) if curve is not None]
        if found and len(curves) < MAX_LINES:
            curves[label] = pd.concat(found, axis="columns").sort_index()
    return _draw(curves, metric, list(groups), identifier) if curves else None


def _draw(curves: Mapping[str, pd.DataFrame], metric: str, settings: Sequence[str], identifier: str) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: dict[Any, Any] = dict.fromkeys(INKED, INK)
    style |= {"svg.fonttype": "none", "svg.hashsalt": identifier, "font.family": "sans-serif"}
    with rc_context(style):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        for label, frame in curves.items():
            index = settings.index(label)  # so that a setting has one look in all columns of a table
            color, dash = COLORS[index % len(COLORS)], STYLES[index // len(COLORS) % len(STYLES)]
            name = label.removeprefix("norm=")
            name = name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 1]}…"
            axes.plot(frame.index, frame.mean(axis="columns"), dash, color=color, label=name)
            if frame.shape[1] > 1:
                low, high = frame.min(axis="columns"), frame.max(axis="columns")
                axes.fill_between(frame.index, low, high, color=color, alpha=0.2, linewidth=0)
        axes.set_xlabel("optimizer steps")
        axes.set_ylabel(metric)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        title = f"{len(curves)} of {len(settings)} settings" if len(curves) < len(settings) else None
        figure.legend(loc="outside right upper", fontsize="small", frameon=False, title=title)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r'\bid="', f'id="{identifier}-', svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{identifier}-", svg)
