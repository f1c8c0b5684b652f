"""What eval.py measures of the finished runs of a table: tests under shift, and the speed of folded models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from un.reports.comparison import LAYERNORM
from un.reports.runs import SPEED_UP, Run
from un.reports.specification import Column
from un.sweeps.run_names import PlannedRun
from un.sweeps.table_plans import Plan
from un.sweeps.tables import Find, has_value

Evaluation = tuple[PlannedRun, tuple[str, ...]]  # a run, and the arguments of eval.py beside it


def list_evaluations(plan: Plan, find: Find) -> list[Evaluation]:
    """Returns what finished runs lack before a table is full; all shifts of a run are one evaluation."""
    shifts: dict[PlannedRun, list[str]] = {}
    timed: list[Evaluation] = []
    for index, column in enumerate(plan.table.columns):
        lacking = list(_list_lacking(plan, find, index, column))
        if column.shift is not None:
            for planned in lacking:
                shifts.setdefault(planned, []).append(column.shift)
        elif column.metric == SPEED_UP:
            references = _find_references(plan, find, index)
            pairs = ((planned, references.get(planned.key[-1], planned.folder)) for planned in lacking)
            timed += [(one, ("fold=true", f"against={folder}")) for one, folder in pairs if folder != one.folder]
    tested: list[Evaluation] = [(planned, (f"shift=[{','.join(names)}]",)) for planned, names in shifts.items()]
    return [*tested, *timed]


def _list_lacking(plan: Plan, find: Find, index: int, column: Column) -> Iterator[PlannedRun]:
    for planned in (planned for row in plan.rows for planned in row.runs[index]):
        run = find(planned)
        if run is not None and run.result.status == "finished" and not has_value(run, column):
            yield planned


def _find_references(plan: Plan, find: Find, index: int) -> dict[str, Path]:
    """Returns the finished LayerNorm runs of a column by the names of their seeds."""
    planned = (run for row in plan.rows if row.norm == LAYERNORM for run in row.runs[index])
    found: list[tuple[PlannedRun, Run | None]] = [(run, find(run)) for run in planned]
    return {one.key[-1]: one.folder for one, run in found if run is not None and run.result.status == "finished"}
