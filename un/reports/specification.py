"""What a table file (`configs/table/*.yaml`) says: rows, columns, the runs of a cell and the published figures."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from un.reports.measurements import METRICS, MODELS

TABLE_KEYS = ("title", "metric", "digits", "paper_setting", "setting", "source", "needs", "runs", "columns", "rows")
COLUMN_KEYS = ("label", "arguments", "metric")
ROW_KEYS = ("label", "arguments", "model", "published", "source")


@dataclass(frozen=True)
class Published:
    """A published figure and where it was seen."""

    value: float
    source: str


@dataclass(frozen=True)
class Column:
    """A column of results.

    Attributes:
        label: of the header.
        arguments: of train.py, for every cell of the column.
        metric: of its cells; None for the task's main one.
    """

    label: str
    arguments: tuple[str, ...] = ()
    metric: str | None = None


@dataclass(frozen=True)
class TableRow:
    """A row of a table file.

    Attributes:
        label: of the row; None for one row per setting that the arguments expand to, as with `ablation=<name>`.
        arguments: of train.py, for every cell of the row.
        published: a figure or None for each column.
        model: of `scripts/benchmark.py inference`, which fills the row in the place of runs: a row per measurement.
    """

    label: str | None
    arguments: tuple[str, ...]
    published: tuple[Published | None, ...]
    model: str | None = None


@dataclass(frozen=True)
class Table:
    """A table file.

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
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    runs: tuple[str, ...] = ()
    digits: int = 2
    paper_setting: bool = False
    setting: str = ""
    needs: tuple[str, ...] = ()

    @property
    def models(self) -> list[str]:
        """Models that the benchmark of inference measures for it."""
        return [row.model for row in self.rows if row.model is not None]


def parse_table(name: str, content: Mapping[str, Any]) -> Table:
    """Checks and converts the content of a table file.

    Raises:
        ValueError: one line with the table, the key and what is allowed; a published figure without a source, too.
    """
    where = f"table {name}"
    _check_keys(content, TABLE_KEYS, where)
    columns = tuple(_parse_column(entry, where) for entry in content.get("columns") or [{"label": ""}])
    columns = tuple(
        Column(column.label, column.arguments, column.metric or content.get("metric")) for column in columns
    )
    rows = tuple(_parse_row(entry, len(columns), content.get("source"), where) for entry in content.get("rows") or [])
    if not rows:
        raise ValueError(f"{where}: rows is missing or empty")
    if any(row.model for row in rows):
        _check_measured(rows, columns, where)
    if not isinstance(content.get("title"), str):
        raise ValueError(f"{where}: title is {content.get('title')!r}, expected a text")
    digits, paper_setting = content.get("digits", 2), content.get("paper_setting", False)
    if isinstance(digits, bool) or not isinstance(digits, int) or not 0 <= digits <= 6:
        raise ValueError(f"{where}: digits is {digits!r}, allowed: 0 to 6")
    if not isinstance(paper_setting, bool):
        raise ValueError(f"{where}: paper_setting is {paper_setting!r}, allowed: true, false")
    return Table(
        name,
        content["title"],
        columns,
        rows,
        _parse_texts(content, "runs", where),
        digits,
        paper_setting,
        str(content.get("setting", "")),
        _parse_texts(content, "needs", where),
    )


def _parse_column(entry: Any, where: str) -> Column:
    _check_keys(entry, COLUMN_KEYS, f"{where}: a column")
    return Column(str(entry.get("label", "")), _parse_texts(entry, "arguments", where), entry.get("metric"))


def _parse_row(entry: Any, columns: int, source: str | None, where: str) -> TableRow:
    _check_keys(entry, ROW_KEYS, f"{where}: a row")
    label = entry.get("label")
    where = f"{where}: row {label}"
    values = entry.get("published")
    values = values if isinstance(values, list) else [values] * columns if values is None else [values]
    if len(values) != columns:
        raise ValueError(f"{where}: published has {len(values)} values, expected one for each of {columns} columns")
    source = entry.get("source", source)
    published = []
    for value in values:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{where}: published is {value!r}, expected a number or null")
        if value is not None and not source:
            raise ValueError(f"{where}: published {value} has no source")
        published.append(None if value is None else Published(float(value), str(source)))
    arguments = _parse_texts(entry, "arguments", where)
    return TableRow(None if label is None else str(label), arguments, tuple(published), entry.get("model"))


def _check_measured(rows: Iterable[TableRow], columns: Iterable[Column], where: str) -> None:
    for row in rows:
        if row.model not in MODELS or row.label is None or row.arguments:
            raise ValueError(
                f"{where}: row {row.label}: model is {row.model!r}, expected one of {', '.join(MODELS)} in every row, "
                "with a label and without arguments"
            )
    for column in columns:
        if column.metric not in METRICS:
            raise ValueError(f"{where}: metric is {column.metric!r}, allowed beside model: {', '.join(METRICS)}")


def _parse_texts(entry: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    values = entry.get(key) or []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{where}: {key} is {values!r}, expected a list of texts")
    return tuple(values)


def _check_keys(entry: Any, allowed: Iterable[str], where: str) -> None:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} is {entry!r}, expected keys: {', '.join(allowed)}")
    for key in entry:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), list(allowed), 1)
            hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(allowed)}"
            raise ValueError(f"{where} has no key {key}; {hint}")
