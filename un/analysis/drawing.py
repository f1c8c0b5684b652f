"""Draws figures into folders, for scripts and at the end of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from un.analysis import layers
from un.analysis.curves import draw_curves
from un.analysis.runs import read_run
from un.analysis.storage import StatisticsFiles
from un.analysis.style import OPTIONS, save_figure

FIGURES: dict[str, Callable[[pd.DataFrame], Figure | None]] = {
    "fluctuation": layers.draw_fluctuation,
    "discrepancy": layers.draw_discrepancy,
    "outliers": layers.draw_outliers,
    "moments": layers.draw_moments,
    "threshold": layers.draw_threshold,
    "running": layers.draw_running,
    "gradients": layers.draw_gradients,
}
FORMATS = ("png", "pdf", "svg")


def draw_run(folder: Path, output: Path | None = None, form: str = "png") -> list[Path]:
    """Draws what the recorder left in a run folder, and the run's curves.

    Args:
        folder: of the run.
        output: where to; None for `figures` in the run folder.
        form: one of FORMATS.

    Returns:
        The files written; figures of statistics that the run's norms lack are left out.

    Raises:
        ValueError: the folder holds no statistics.
    """
    frame = StatisticsFiles(folder).read()
    output = output or folder / "figures"
    with matplotlib.rc_context(OPTIONS):
        figures = {name: draw(frame) for name, draw in FIGURES.items()}
        written = [save_figure(figure, output / f"{name}.{form}") for name, figure in figures.items() if figure]
    return [*written, draw_comparison([folder], output, form)]


def draw_comparison(folders: Sequence[Path], output: Path, form: str = "png", metrics: Sequence[str] = ()) -> Path:
    """Draws the curves of runs into `<output>/curves.<form>` and returns that path.

    Raises:
        ValueError: a run folder without metrics, or a metric that no run has.
    """
    runs = [read_run(folder) for folder in folders]
    with matplotlib.rc_context(OPTIONS):
        return save_figure(draw_curves(runs, metrics), output / f"curves.{form}")
