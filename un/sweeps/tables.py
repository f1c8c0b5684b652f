"""Tables filled: the numbers of planned cells from the runs that exist. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from un.command.errors import CONFIG_FOLDER
from un.reports.comparison import LAYERNORM, Cell, Comparison, Line, leave_out_empty
from un.reports.efficiency import compare_measurements
from un.reports.measurements import Measurement
from un.reports.runs import SPEED_UP, Run
from un.reports.specification import Column, Table
from un.sweeps.recipes import list_departures
from un.sweeps.run_names import PlannedRun, read_choices
from un.sweeps.table_plans import Plan, list_tables, plan_table, read_table

Find = Callable[[PlannedRun], Run | None]


def fill_table(plan: Plan, find: Find) -> Comparison:
    """Computes the cells from those runs that `find` knows, and leaves out rows and columns that have none."""
    table = plan.table
    known = {run.folder: find(run) for run in plan.runs}
    found = [
        [
            [run for planned in cell if (run := known[planned.folder]) and has_value(run, column)]
            for column, cell in zip(table.columns, row.runs, strict=True)
        ]
        for row in plan.rows
    ]
    references = [_find_reference([row[index] for row in found]) for index in range(len(table.columns))]
    lines = []
    for row, groups in zip(plan.rows, found, strict=True):
        cells = [
            Cell(
                groups[index],
                references[index],
                planned=0 if column.metric == SPEED_UP and row.norm == LAYERNORM else len(row.runs[index]),
                metric=column.metric,
                shift=column.shift,
                published=row.published[index],
                paper_setting=table.paper_setting,
                margin=table.margin,
                departures=_list_departures(row.runs[index], known, find) if table.paper_setting else (),
            )
            for index, column in enumerate(table.columns)
        ]
        lines.append(Line(row.label, row.norm, tuple(cells)))
    columns = tuple(column.label for column in table.columns)
    has_published = any(figure for row in plan.rows for figure in row.published)
    whole = Comparison(
        table.name,
        table.title,
        columns,
        tuple(lines),
        table.digits,
        table.setting,
        shows_marks=has_published,
        margin=table.margin,
        command=plan.command,
    )
    return leave_out_empty(whole)


def has_value(run: Run, column: Column) -> bool:
    """Tells whether a run has what a column shows, or never will."""
    measured = column.shift is not None or column.metric == SPEED_UP
    return not measured or run.result.status == "diverged" or run.get(column.metric, column.shift) is not None


def find_on_disk(run: PlannedRun) -> Run | None:
    """Reads a run's result; None where the run has not ended."""
    result = run.find_result()
    return Run(run.folder, result) if result is not None else None


def compare_known(runs: Sequence[Run], measurements: Sequence[Measurement] = ()) -> list[Comparison]:
    """Fills every table that these runs or measurements belong to, wherever their files lie.

    A table whose runs, LayerNorm's apart, all stand in tables that compare more norms is left out.
    """
    known = {(run.result.experiment, run.folder.parent.name, run.folder.name): run for run in runs}
    there = {path.stem for path in (CONFIG_FOLDER / "experiment").glob("*.yaml")}
    experiments = there & {run.result.experiment for run in runs}
    roots = {run.folder.parents[2] for run in runs if len(run.folder.parents) > 2}
    arguments = [f"paths.runs={roots.pop()}"] if len(roots) == 1 else []  # it is part of a path in init_weights
    filled, measured = [], []
    for name in list_tables():
        table = read_table(name)
        if any(one.benchmark == table.benchmark and one.model in table.models for one in measurements):
            measured.append(compare_measurements(table, measurements))
        table = _keep_columns(table, experiments)
        if table.columns:
            plan = plan_table(table, arguments)
            filled.append((plan, fill_table(replace(plan, arguments=()), lambda run: known.get(run.key))))
    names = _choose_telling(filled)
    return [*(comparison for _, comparison in filled if comparison.name in names), *measured]


def quote_published() -> list[Comparison]:
    """Returns the tables that only quote published figures."""
    tables = map(read_table, list_tables())
    return [fill_table(plan_table(table), find_on_disk) for table in tables if table.is_quoted]


def _list_departures(cell: Sequence[PlannedRun], known: Mapping[Path, Run | None], find: Find) -> tuple[str, ...]:
    """Returns, each once, how the runs with a number depart from the recipe."""
    pairs = ((planned, known[planned.folder]) for planned in cell)
    finished = [(planned, run) for planned, run in pairs if run is not None and run.result.status == "finished"]
    return tuple(dict.fromkeys(text for planned, run in finished for text in list_departures(planned, run, find)))


def _find_reference(rows: Sequence[Sequence[Run]]) -> Sequence[Run]:
    """Returns the runs of the first row with LayerNorm."""
    return next((runs for runs in rows if runs and all(run.norm == LAYERNORM for run in runs)), ())


def _choose_telling(filled: Sequence[tuple[Plan, Comparison]]) -> set[str]:
    """Returns the names of the tables that show a run, other than LayerNorm's, which none with more norms shows."""
    chosen: set[str] = set()
    shown: set[Path] = set()
    for _, comparison in sorted(filled, key=lambda pair: -len({row.norm for row in pair[0].rows})):
        others = [cell for row in comparison.rows if row.norm != LAYERNORM for cell in row.cells]
        folders = {run.folder for cell in others for run in cell.runs}
        if not folders <= shown or any(cell.published and cell.runs for cell in comparison.cells):
            chosen.add(comparison.name)
            shown |= folders
    return chosen


def _keep_columns(table: Table, experiments: set[str]) -> Table:
    """Drops columns of other experiments; those with a published figure stay, unless no column has runs."""
    named = [read_choices(column.arguments).get("experiment") for column in table.columns]
    if experiments.isdisjoint(filter(None, named)):
        return replace(table, columns=())
    kept = [
        index
        for index, experiment in enumerate(named)
        if experiment in experiments or any(row.published[index] for row in table.rows)
    ]
    rows = tuple(replace(row, published=tuple(row.published[index] for index in kept)) for row in table.rows)
    return replace(table, columns=tuple(table.columns[index] for index in kept), rows=rows)
