"""Tables from their files to the runs that each cell needs. Imports no torch."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import OmegaConf

from un.command.errors import CONFIG_FOLDER, UserError, suggest
from un.command.overrides import quote_override
from un.reports.specification import Column, Published, Table, TableRow, parse_table
from un.reports.words import UNCHANGED, describe_setting
from un.sweeps.recipes import BEST
from un.sweeps.run_names import PlannedRun, list_runs, parse, read_choices

UNLABELLED = ("experiment", "ablation", "seed")  # keys that say nothing in the label of a row


@dataclass(frozen=True)
class PlannedRow:
    """A row with the runs of each of its cells."""

    label: str
    published: tuple[Published | None, ...]
    runs: tuple[tuple[PlannedRun, ...], ...]

    @property
    def norm(self) -> str:
        """The norm of the runs; empty where there are none."""
        names = (read_choices(run.arguments).get("norm") for cell in self.runs for run in cell)
        return next(filter(None, names), "")


@dataclass(frozen=True)
class Plan:
    """A table and its rows; `arguments` are those that the table does not give."""

    table: Table
    rows: tuple[PlannedRow, ...]
    arguments: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """What makes the runs."""
        kind = "table" if self.table.name in list_tables() else "ablation"
        return shlex.join(["python", "scripts/reproduce.py", f"{kind}={self.table.name}", *self.arguments])

    @property
    def runs(self) -> list[PlannedRun]:
        runs = {run.folder: run for row in self.rows for cell in row.runs for run in cell}
        return list(runs.values())

    @property
    def starts(self) -> list[PlannedRun]:
        """The runs whose weights these start from, each once."""
        starts = {run.start.folder: run.start for run in self.runs if run.start is not None}
        return list(starts.values())


def read_table(name: str) -> Table:
    """Reads configs/table/<name>.yaml.

    Raises:
        UserError: There is none of that name.
        ValueError: The file is not a valid table.
    """
    names = list_tables()
    if name not in names:
        raise UserError(f"table={name} is unknown{suggest(name, names) or '.'} Allowed: {', '.join(names)}")
    content = OmegaConf.to_container(OmegaConf.load(CONFIG_FOLDER / "table" / f"{name}.yaml"))
    assert isinstance(content, dict)
    return parse_table(name, {str(key): value for key, value in content.items()})


def list_tables() -> list[str]:
    """Returns the names of all table files."""
    return sorted(path.stem for path in (CONFIG_FOLDER / "table").glob("*.yaml"))


def describe_ablation(name: str) -> Table:
    """Returns the table of an ablation that has no table file: a row for each of its settings."""
    return Table(name, f"ablation={name}", (Column(""),), (TableRow(None, (f"ablation={name}",), (None,)),))


def plan_table(table: Table, arguments: Sequence[str] = ()) -> Plan:
    """Lists the runs of every cell.

    Args:
        table: to plan.
        arguments: of train.py for every run; they win over the table's. An experiment takes the place of all columns
            and of what was published.

    Raises:
        UserError: arguments for a table that only quotes published figures.
    """
    if table.is_quoted:
        if arguments:
            raise UserError(
                f"table={table.name} quotes published figures and starts no run: got {', '.join(arguments)}"
            )
        empty: tuple[tuple[PlannedRun, ...], ...] = ((),) * len(table.columns)
        return Plan(table, tuple(PlannedRow(str(row.label), row.published, empty) for row in table.rows))
    arguments = [quote_override(argument, is_sweep=True) for argument in arguments]
    for override in parse(arguments):
        if override.key_or_group == "experiment":
            table = _change_experiment(table, override.get_value_element_as_str())
        elif override.key_or_group == "init_weights":
            table = replace(table, needs=())
    starts = _plan_starts(table, arguments)
    rows = [planned for row in table.rows for planned in _plan_row(table, row, arguments, starts.get(row.label))]
    return Plan(table, tuple(rows), tuple(arguments))


def _plan_starts(table: Table, arguments: Sequence[str]) -> dict[str | None, PlannedRun]:
    """Returns for each row the run of another table, in its row of the same label, that the row's runs start from.

    The arguments are for these runs, too, except seeds and the place of the data, which are not the same there.

    Raises:
        UserError: There is not exactly one such run for a row.
    """
    others = [text for text in arguments if parse([text])[0].key_or_group not in ("seed", "data.path")]
    plans = [plan_table(read_table(name), others) for name in table.needs]
    starts: dict[str | None, PlannedRun] = {}
    for label in [row.label for row in table.rows if plans]:
        runs = [run for plan in plans for row in plan.rows if row.label == label for cell in row.runs for run in cell]
        if len(runs) != 1:
            names = ", ".join(table.needs)
            raise UserError(f"table {table.name}, row {label}: starts from one run of {names}, got {len(runs)}")
        starts[label] = runs[0]
    return starts


def _start_from(run: PlannedRun) -> str:
    path = str(run.folder.joinpath(*BEST)).replace("'", "\\'")
    return f"init_weights='{path}'"  # it holds equals signs and commas


def _restore(own: Sequence[str], arguments: Sequence[str], job: Sequence[str]) -> tuple[str, ...]:
    """Returns a job of the table's own and further arguments as the table alone asks for it; seeds do not matter."""
    changed = {override.key_or_group for override in parse(arguments)}
    kept = [override for override in parse(job) if override.key_or_group not in changed]
    kept += [o for o in parse(own) if o.key_or_group in changed and not o.is_sweep_override()]
    texts = [override.input_line or "" for override in kept]
    return tuple(text for text in texts if not text.startswith(("hydra", "seed=")))


def _plan_row(table: Table, row: TableRow, arguments: Sequence[str], start: PlannedRun | None) -> list[PlannedRow]:
    """Returns the row, or one for each setting where it has no label; the same setting of all columns is one row."""
    groups: dict[tuple[str, ...], list[list[PlannedRun]]] = {}
    for index, column in enumerate(table.columns):
        own = [quote_override(argument, is_sweep=True) for argument in (*table.runs, *column.arguments, *row.arguments)]
        own += [_start_from(start)] if start is not None else []
        given = parse([*table.runs, *column.arguments, *arguments])
        common = {override.key_or_group for override in given if not override.is_sweep_override()}
        for run in list_runs([*own, *arguments]):
            setting = _describe(run.arguments, common) if row.label is None else ()
            planned = replace(run, recipe=_restore(own, arguments, run.arguments), start=start)
            groups.setdefault(setting, [[] for _ in table.columns])[index].append(planned)
    for cell in (cell for cells in groups.values() for cell in cells):
        settings = sorted({run.key[1] for run in cell})
        if len(settings) > 1:
            raise UserError(f"table {table.name}, row {row.label}: a cell can sweep seeds only, got {settings}")
    if row.label is not None and not groups:
        groups[()] = [[] for _ in table.columns]
    labels = _label(list(groups)) if row.label is None else [row.label]
    pairs = zip(labels, groups.values(), strict=True)
    return [PlannedRow(label, row.published, tuple(map(tuple, cells))) for label, cells in pairs]


def _describe(arguments: Sequence[str], common: Iterable[str]) -> tuple[str, ...]:
    """Returns the settings of a run, `key=value` each, that tell it from the runs of other rows."""
    hidden = {*UNLABELLED, *common}
    settings = []
    for override in parse(arguments):
        key, value = override.key_or_group, override.value()
        if key in hidden or key.startswith(("hydra", "paths.")):
            continue
        if isinstance(value, dict):  # +norm={window: 2}
            settings += [f"{key}.{name}={_write(part)}" for name, part in value.items()]
        else:
            settings.append(f"{key}={override.get_value_element_as_str()}")
    return tuple(settings)


def _label(settings: Sequence[tuple[str, ...]]) -> list[str]:
    """Returns a label for each setting, in words: what not all have in common."""
    shared = set.intersection(*map(set, settings)) if len(settings) > 1 else set()
    labels = [describe_setting(part for part in setting if part not in shared) for setting in settings]
    norms = {part for part in shared if part.startswith("norm=")}
    return [f"{describe_setting(norms)} {label}" if label == UNCHANGED and norms else label for label in labels]


def _change_experiment(table: Table, experiment: str) -> Table:
    own = [column for column in table.columns if read_choices(column.arguments).get("experiment") == experiment]
    columns = tuple(own) or (Column(experiment, (f"experiment={experiment}",)),)
    rows = tuple(TableRow(row.label, row.arguments, (None,) * len(columns)) for row in table.rows)
    return replace(table, columns=columns, rows=rows, paper_setting=False, setting="", needs=())


def _write(value: Any) -> str:
    """Returns a value of an override as it is typed."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
