"""Training curves: the mean over seeds with a band from lowest to highest, and a cross where a run diverged."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from un.analysis.runs import LoggedRun, read_run
from un.analysis.style import OPTIONS, is_wide, make_figure, thin_rows

PREFIXES = ("train/", "val/")
UNWANTED = ("train/lr",)
COLUMNS = 2  # of panels
AXIS_NAMES = {"loss": "loss (nats)", "acc1": "top-1 accuracy (%)", "acc5": "top-5 accuracy (%)", "bleu": "BLEU"}
PAGE_SIZE, PAGE_LINES, PAGE_LABEL = (7.6, 3.4), 12, 36  # inches, settings, and characters of one in the legend
INK = "#123456"  # stands for the page's text colour, which is dark or light
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")


def draw_curves(runs: Sequence[LoggedRun], metrics: Sequence[str] = (), describe: Callable[[str], str] = str) -> Figure:
    """Draws a panel per metric with a line per setting.

    Args:
        runs: of one or several experiments.
        metrics: columns of metrics.csv; empty for every training and validation metric.
        describe: returns how the legend calls a setting, by default as its folder.

    Raises:
        ValueError: no run has a metric.
    """
    names = _choose_metrics(runs, metrics)
    groups = group_runs(runs)
    columns = min(len(names), COLUMNS)
    rows = -(-len(names) // columns)
    title = ", ".join(dict.fromkeys(run.experiment for run in runs))
    title += ": mean over seeds, band from lowest to highest" if len(groups) < len(runs) else ""
    figure = make_figure(4.7 * columns, 1.3 + 2.9 * rows + 0.18 * len(groups), title)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, name in zip(panels, names, strict=False):
        draw_lines(axes, groups, name)
        axes.set_title(name)
        if name.endswith("loss") and is_wide([y for line in axes.lines for y in line.get_ydata()]):
            axes.set_yscale("log")
    for axes in panels[len(names) :]:
        axes.remove()
    handles, _ = panels[0].get_legend_handles_labels()
    labels = [f"{describe(label)} (n = {len(members)})" for label, members in groups.items()]
    figure.legend(handles, labels, loc="outside lower center")
    return figure


def draw_svg(groups: Mapping[str, Sequence[Path]], metric: str, identifier: str) -> str | None:
    """Draws one metric of the first settings that have it, as a part of a page.

    Args:
        groups: run folders by label; those without a readable metrics.csv are left out.
        metric: a column of metrics.csv.
        identifier: unique among the pictures of a page.

    Returns:
        An SVG element whose ink is the text colour of the page around it; None where no run has the metric.
    """
    found: dict[str, list[LoggedRun]] = {}  # empty where nothing is shown, so that a setting keeps its look on a page
    for label, folders in groups.items():
        is_full = sum(map(bool, found.values())) == PAGE_LINES
        found[label] = [] if is_full else list(_read_with(folders, metric))
    shown = [label for label, runs in found.items() if runs]
    if not shown:
        return None
    style = {**OPTIONS, **dict.fromkeys(INKED, INK), "svg.fonttype": "none", "svg.hashsalt": identifier}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=PAGE_SIZE, layout="constrained")
        axes = figure.add_subplot()
        draw_lines(axes, found, metric)
        handles = [line for line in axes.lines if line.get_label() in shown]
        title = f"{len(shown)} of {len(groups)} settings" if len(shown) < len(groups) else None
        figure.legend(handles, map(_shorten, shown), loc="outside right upper", fontsize="small", title=title)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r'\bid="', f'id="{identifier}-', svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{identifier}-", svg)


def draw_lines(axes: Axes, groups: Mapping[str, Sequence[LoggedRun]], metric: str) -> None:
    """Draws a line per group, an empty one where no run has the metric."""
    for label, runs in groups.items():
        table = average_seeds(runs, metric)
        (line,) = axes.plot(table.index, table["mean"], label=label, marker="." if len(table) == 1 else None)
        axes.fill_between(table.index, table["least"], table["most"], color=line.get_color(), alpha=0.2, linewidth=0)
        for run in runs:
            values = run.read(metric)
            if run.diverged_step is not None and len(values):
                (cross,) = axes.plot(values.index[-1], values.iloc[-1], "x", color=line.get_color())
                cross.set(markersize=8, markeredgewidth=2)
    axes.set(xlabel="optimizer step", ylabel=AXIS_NAMES.get(metric.rsplit("/", 1)[-1], metric.rsplit("/", 1)[-1]))


def group_runs(runs: Sequence[LoggedRun]) -> dict[str, list[LoggedRun]]:
    """Groups runs that differ in nothing but the seed; the experiment is named only where there are several."""
    several = len({run.experiment for run in runs}) > 1
    groups: dict[str, list[LoggedRun]] = {}
    for run in runs:
        label = f"{run.experiment}/{run.setting}" if several else run.setting
        groups.setdefault(label, []).append(run)
    return groups


def average_seeds(runs: Sequence[LoggedRun], metric: str) -> pd.DataFrame:
    """Returns mean, least and most of a metric at every step where any of the runs has a value; the index is step."""
    columns = {place: run.read(metric) for place, run in enumerate(runs)}
    table = thin_rows(pd.DataFrame(columns).sort_index().rename_axis("step"))
    return pd.DataFrame({"mean": table.mean(axis=1), "least": table.min(axis=1), "most": table.max(axis=1)})


def _read_with(folders: Iterable[Path], metric: str) -> Iterable[LoggedRun]:
    for folder in folders:
        try:
            run = read_run(folder)
        except (ValueError, OSError):
            continue
        if len(run.read(metric)):
            yield run


def _shorten(label: str) -> str:
    name = label.removeprefix("norm=")
    return name if len(name) <= PAGE_LABEL else f"{name[: PAGE_LABEL - 1]}…"


def _choose_metrics(runs: Sequence[LoggedRun], wanted: Sequence[str]) -> list[str]:
    known = dict.fromkeys(name for run in runs for name in run.metrics.columns if name not in ("epoch", "step"))
    for name in wanted:
        if name not in known:
            raise ValueError(f"metrics={name}: no run has it; they have {', '.join(known)}")
    usual = [name for name in known if name.startswith(PREFIXES) and name not in UNWANTED]
    chosen = list(wanted) or sorted(usual, key=lambda name: not name.endswith("loss"))  # losses side by side
    if not chosen:
        raise ValueError(f"no run has a training or validation metric; name one of {', '.join(known)} by metrics=")
    return chosen
