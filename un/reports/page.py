"""The report as one HTML page that opens offline: tables, curves, figures, and the runs behind every number."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from un.reports.comparison import Comparison, compare_settings
from un.reports.rendering import describe_cell, list_fields, list_notes
from un.reports.runs import Run, group_by_setting

DrawCurves = Callable[[Mapping[str, Sequence[Path]], str, str], str | None]
TEMPLATES = Path(__file__).parent / "templates"
FILES = ("result.json", "metrics.csv", "train.log", "config.yaml")
MAX_PICTURES = 40  # embedded; a page of hundreds of megabytes helps nobody


class ColumnView(NamedTuple):
    """A column on the page: its fields that are not empty, and its curves if there are any."""

    label: str
    metric: str
    task: str
    fields: Sequence[str]
    svg: str | None


class Entry(NamedTuple):
    """A comparison on the page; `anchor` is where links to it lead."""

    anchor: str
    comparison: Comparison
    columns: Sequence[ColumnView]

    @property
    def notes(self) -> list[str]:
        return list_notes(self.comparison)

    @property
    def tasks(self) -> str:
        """Separated by blanks, for the page's filter."""
        return " ".join(sorted({column.task for column in self.columns} - {""}))


def render_page(
    tables: Sequence[Comparison],
    runs: Sequence[Run],
    folder: Path,
    draw_curves: DrawCurves,
    problems: Sequence[str] = (),
    title: str = "Report",
) -> str:
    """Renders the page.

    Args:
        tables: shown first, one after the other.
        runs: all of them; settings that stand in no table are compared with LayerNorm below the tables.
        folder: of the page, from which links to the files of runs start.
        draw_curves: see `un.analysis.curves.draw_svg`.
        problems: a line each, e.g. about files that could not be read.
        title: of the page.
    """
    experiments = group_by_setting(runs)
    groups = [group for settings in experiments.values() for group in settings.values()]
    anchors = {run.folder: f"setting-{number}" for number, group in enumerate(groups) for run in group}
    pictures = [(run, path) for run in runs for path in sorted((run.folder / "figures").glob("*.png"))]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html").render(
        title=title,
        tables=[_view(one, f"table-{one.name}", draw_curves) for one in tables],
        overview=[_view(one, f"all-{one.name}", draw_curves) for one in compare_settings(runs, tables)],
        runs=runs,
        experiments=experiments,
        settings=len(groups),
        diverged=sum(run.result.status == "diverged" for run in runs),
        tasks=sorted({run.task for run in runs}),
        norms=sorted({run.norm for run in runs}),
        problems=problems,
        pictures=[_embed(run, path) for run, path in pictures[:MAX_PICTURES]],
        hidden_pictures=max(len(pictures) - MAX_PICTURES, 0),
        describe=describe_cell,
        anchor=lambda run: anchors[run.folder],
        list_files=partial(_list_files, folder),
    )


def _view(comparison: Comparison, anchor: str, draw_curves: DrawCurves) -> Entry:
    columns = []
    for index, (label, metric) in enumerate(zip(comparison.columns, comparison.metrics, strict=True)):
        folders = {row.label: [run.folder for run in row.cells[index].runs] for row in comparison.rows}
        runs = [run for row in comparison.rows for run in row.cells[index].runs]
        task = runs[0].task if runs else ""
        shown = next((run.curve_metric for run in runs if run.main_metric), "val/loss")
        svg = draw_curves(folders, shown, f"{anchor}-{index}")
        columns.append(ColumnView(label, metric, task, list_fields(comparison, index), svg))
    return Entry(anchor, comparison, columns)


def _list_files(page: Path, run: Run) -> list[tuple[str, str]]:
    """Returns names and addresses, relative to the folder of the page, of a run's files."""
    base = quote(os.path.relpath(run.folder, page))
    return [("folder", f"{base}/"), *((name, f"{base}/{name}") for name in FILES if (run.folder / name).is_file())]


def _embed(run: Run, path: Path) -> dict[str, object]:
    content = base64.b64encode(path.read_bytes()).decode()
    return {"run": run, "name": path.stem.replace("_", " "), "data": f"data:image/png;base64,{content}"}
