"""What a table file (`configs/table/*.yaml`) says: rows, columns, the runs of a cell and the published figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from un.reports.measurements import METRICS, Benchmark, Model
from un.reports.shift import list_shifts
from un.reports.statistics import LEVEL_MARGIN
from un.reports.validation import STRICT, parse


@dataclass(frozen=True, config=STRICT)
class Published:
    """A published figure and where it was seen."""

    value: float
    source: str


@dataclass(frozen=True, config=STRICT)
class Column:
    """A column of results.

    Attributes:
        label: of the header.
        arguments: of train.py, for every cell of the column.
        metric: of its cells; None for the table's; "speed_up": of the folded model against the LayerNorm run's.
        shift: under which its cells are tested, a file of configs/shift; None for the runs' own test data.
        source: of the published figures of rows that name none; None for the table's.
    """

    label: str = ""
    arguments: tuple[str, ...] = ()
    metric: str | None = None
    shift: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        if self.shift is not None and self.shift not in (known := list_shifts()):
            raise ValueError(f"shift {self.shift!r} is unknown; allowed: {', '.join(known)}")


@dataclass(frozen=True, config=STRICT)
class TableRow:
    """A row of a table file.

    Attributes:
        label: of the row; None for one row per setting that the arguments expand to, as with `ablation=<name>`.
        arguments: of train.py, for every cell of the row.
        published: a figure or None for each column; in the file a number, or a list of them.
        model: of `scripts/benchmark.py`, which fills the row instead of runs: one row per measurement.
        source: of the published figures; None for the column's.
    """

    label: str | None = None
    arguments: tuple[str, ...] = ()
    published: tuple[Published | None, ...] = ()
    model: Model | None = None
    source: str | None = None


@dataclass(frozen=True, config=STRICT)
class Table:
    """A table file; without runs and models it only quotes published figures.

    Attributes:
        name: of the file.
        title: one line.
        columns: at least one.
        rows: at least one.
        runs: arguments of train.py for every cell, seeds among them.
        digits: after the decimal point.
        paper_setting: whether these runs are meant to follow the recipe behind the published figures.
        setting: what a reader must know about the setting; one sentence or nothing.
        needs: names of the tables whose runs these start from, each row from the one in the row of its label.
        metric: of columns that name none; None for the task's main one.
        source: of the published figures of rows that name none.
        benchmark: of `scripts/benchmark.py`, where rows have models.
        margin: how far from LayerNorm still counts as level, in points; a file that sets it says why.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...] = Field(min_length=1)
    runs: tuple[str, ...] = ()
    digits: int = Field(default=2, ge=0, le=6)
    paper_setting: bool = False
    setting: str = ""
    needs: tuple[str, ...] = ()
    metric: str | None = None
    source: str | None = None
    benchmark: Benchmark = "inference"
    margin: float = Field(default=LEVEL_MARGIN, gt=0)

    @property
    def is_quoted(self) -> bool:
        """Whether it has neither runs nor measurements."""
        arguments = (self.runs, *(one.arguments for one in self.columns), *(row.arguments for row in self.rows))
        return not (self.models or any(arguments))

    @property
    def models(self) -> list[Model]:
        """Models that the benchmark measures for it."""
        return [row.model for row in self.rows if row.model is not None]


def parse_table(name: str, content: Mapping[str, Any]) -> Table:
    """Checks and converts the content of a table file.

    Raises:
        ValueError: one line with the table, the key and what is allowed, for instance where a published figure has no
            source.
    """
    where = f"table {name}"
    if "name" in content:
        raise ValueError(f"{where}: there is no key name; the name of the file is the table's")
    columns, rows = content.get("columns") or [{}], content.get("rows")
    if isinstance(columns, list) and isinstance(rows, list):
        own = (column.get("source") if isinstance(column, dict) else None for column in columns)
        sources = [source or content.get("source") for source in own]
        rows = [_pair_published(row, sources) for row in rows]
    whole = json.dumps({**content, "name": name, "columns": columns, "rows": rows}, default=str)
    table = parse(Table, whole, where, {"columns": Column, "rows": TableRow})
    for row in table.rows:
        if len(row.published) != len(columns):
            raise ValueError(
                f"{where}: row {row.label}: published has {len(row.published)} values, expected one for each of "
                f"{len(columns)} columns"
            )
    table = replace(table, columns=tuple(replace(one, metric=one.metric or table.metric) for one in table.columns))
    if table.models:
        _check_measured(table, where)
    return table


def _pair_published(row: Any, sources: Sequence[str | None]) -> Any:
    """Returns a row of the file with the source beside each published figure."""
    if not isinstance(row, dict):
        return row
    published = row.get("published")
    figures = published if isinstance(published, list) else [published] * (len(sources) if published is None else 1)
    pairs = [
        None if figure is None else {"value": figure, "source": row.get("source", source)}
        for figure, source in zip_longest(figures, sources[: len(figures)])
    ]
    return row | {"published": pairs}


def _check_measured(table: Table, where: str) -> None:
    for row in table.rows:
        if row.model is None or row.label is None or row.arguments:
            raise ValueError(f"{where}: row {row.label}: expected a model in every row, with a label and no arguments")
    for column in table.columns:
        if column.metric not in METRICS[table.benchmark]:
            allowed = ", ".join(METRICS[table.benchmark])
            raise ValueError(f"{where}: metric is {column.metric!r}, allowed with model: {allowed}")
