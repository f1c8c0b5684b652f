"""Loss and metric curves of several runs, with bands over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from un.analysis.runs import LoggedRun
from un.analysis.style import COLORS, LINES, is_wide, make_figure, set_log_scale, thin_rows

PREFIXES = ("train/", "val/")
UNWANTED = ("train/lr",)
COLUMNS, MOST_COLUMNS = 2, 3  # three panels fill one row, more fill rows of two
LEGEND_COLUMN_LETTERS = 110  # of all entries of a legend's row


def draw_curves(runs: Sequence[LoggedRun], metrics: Sequence[str] = ()) -> Figure:
    """A panel per metric; runs that differ only in their seed are one line, their mean, and a band from least to most.

    A cross marks the last value before a run diverged.

    Args:
        runs: of one or several experiments.
        metrics: names of columns of metrics.csv; empty for every training and validation metric.

    Raises:
        ValueError: a metric that no run has.
    """
    names = _choose_metrics(runs, metrics)
    groups = group_runs(runs)
    columns = len(names) if len(names) <= MOST_COLUMNS else COLUMNS
    rows = -(-len(names) // columns)
    figure = make_figure(4.7 * columns, 1.3 + 2.9 * rows + 0.18 * len(groups), _name_figure(groups))
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, name in zip(panels, names, strict=False):
        for place, members in enumerate(groups.values()):
            color, line = COLORS[place % len(COLORS)], LINES[place // len(COLORS) % len(LINES)]
            _draw_line(axes, members, name, color, line)
        axes.set(title=name, xlabel="optimizer step", ylabel=_name_axis(name))
        values = [y for line in axes.lines for y in line.get_ydata()]
        if name.endswith("loss") and is_wide(values):
            set_log_scale(axes, values)
    for axes in panels[len(names) :]:
        axes.remove()
    handles = [
        panels[0].plot([], [], color=COLORS[place % len(COLORS)], linestyle=LINES[place // len(COLORS) % len(LINES)])[0]
        for place in range(len(groups))
    ]
    labels = [f"{label} (n = {len(members)})" for label, members in groups.items()]
    fitting = max(1, LEGEND_COLUMN_LETTERS // max(map(len, labels)))
    figure.legend(handles, labels, loc="outside lower center", ncols=min(fitting, len(labels)))
    return figure


def group_runs(runs: Sequence[LoggedRun]) -> dict[str, list[LoggedRun]]:
    """Runs by what differs beside the seed; the experiment is named only where there are several."""
    several = len({run.experiment for run in runs}) > 1
    groups: dict[str, list[LoggedRun]] = {}
    for run in runs:
        label = f"{run.experiment}/{run.setting}" if several else run.setting
        groups.setdefault(label, []).append(run)
    return groups


def average_seeds(runs: Sequence[LoggedRun], metric: str) -> pd.DataFrame:
    """Mean, least and most of a metric at every step where any of the runs has a finite value; index step."""
    columns = {}
    for place, run in enumerate(runs):
        if metric in run.metrics:
            values = run.metrics.set_index("step")[metric].dropna()
            columns[place] = values[~values.index.duplicated(keep="last")]
    table = thin_rows(pd.DataFrame(columns).sort_index().rename_axis("step"))
    return pd.DataFrame({"mean": table.mean(axis=1), "least": table.min(axis=1), "most": table.max(axis=1)})


def _draw_line(axes: Axes, runs: Sequence[LoggedRun], metric: str, color: str, line: str) -> None:
    table = average_seeds(runs, metric)
    if table.empty:
        return
    axes.plot(table.index, table["mean"], color=color, linestyle=line, marker="." if len(table) == 1 else None)
    axes.fill_between(table.index, table["least"], table["most"], color=color, alpha=0.2, linewidth=0)
    for run in runs:
        if run.diverged_step is not None and metric in run.metrics:
            values = run.metrics.set_index("step")[metric].dropna()
            values = values[abs(values) < float("inf")]
            if len(values):
                axes.plot(values.index[-1], values.iloc[-1], "x", color=color, markersize=8, markeredgewidth=2)


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


def _name_figure(groups: dict[str, list[LoggedRun]]) -> str:
    experiments = dict.fromkeys(run.experiment for members in groups.values() for run in members)
    several = any(len(members) > 1 for members in groups.values())
    return ", ".join(experiments) + (": mean over seeds, band from least to most" if several else "")


def _name_axis(metric: str) -> str:
    name = metric.rsplit("/", 1)[-1]
    return {"loss": "loss (nats)", "acc1": "top-1 accuracy (%)", "acc5": "top-5 accuracy (%)", "bleu": "BLEU"}.get(
        name, name
    )
