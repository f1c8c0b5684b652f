"""The whole of results/: which runs configs/results.yaml asks for, and which of them are still to be made.

A run is there when its folder holds a result, or a record of it is kept (`un.reports.records`). Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pydantic.dataclasses
from omegaconf import OmegaConf

from un.command.errors import CONFIG_FOLDER, UserError
from un.command.overrides import quote_override
from un.reports.comparison import LAYERNORM
from un.reports.validation import STRICT, parse
from un.sweeps.run_names import PlannedRun, list_runs, read_choices
from un.sweeps.table_plans import Plan, plan_table, read_table
from un.training.config_keys import read_experiment
from un.training.data_identity import LOCATED

FILE = CONFIG_FOLDER / "results.yaml"
RECORDING = "activation_stats"  # the choice of callbacks that records what the norms see
GIVEN = ("experiment", "ablation", "norm", "data")  # keys that the file gives


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class ChosenTable:
    """What is run of a table.

    Attributes:
        norms: the rows of these; empty for all.
        arguments: of train.py for every run, which win over the table's.
    """

    norms: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class Contents:
    """configs/results.yaml: tables by name, and for each figure of scripts/analyse.py the arguments of its runs."""

    tables: dict[str, ChosenTable]
    figures: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class ResultsPlan:
    """What the tables and figures need.

    Attributes:
        runs: all runs, each once, with the places of their data.
        tables: the plans of the tables, with the rows that are run.
        figures: the runs by figure.
        records: folder of records.
    """

    runs: tuple[PlannedRun, ...]
    tables: tuple[Plan, ...]
    figures: Mapping[str, tuple[PlannedRun, ...]]
    records: Path

    def is_recorded(self, run: PlannedRun) -> bool:
        """Tells whether the run's result is kept."""
        return self.records.joinpath(*run.key, "result.json").is_file()

    def list_missing(self, figures: Sequence[str] = ()) -> list[PlannedRun]:
        """Returns the runs without a result that are not recorded, or whose folders something needs.

        Args:
            figures: those that are still to be drawn.
        """
        wanted = {run.folder for run in self.runs if not self.is_recorded(run)}
        wanted |= {run.folder for name in figures for run in self.figures[name]}
        absent = [run for run in self.runs if run.find_result() is None]
        wanted |= {origin for run in absent if run.folder in wanted and (origin := _find_original(run))}
        return [run for run in absent if run.folder in wanted]

    def count_missing(self, missing: Sequence[PlannedRun]) -> list[str]:
        """Returns a line for each table that lacks some of these runs."""
        folders = {run.folder for run in missing}
        counts = {plan.table.name: [run.folder in folders for run in plan.runs] for plan in self.tables}
        lines = {name: f"table {name}: {sum(lacks)} of {len(lacks)} runs missing" for name, lacks in counts.items()}
        return [line for name, line in lines.items() if any(counts[name])]

    def find_figure(self, name: str, folder: Path) -> Path:
        """Returns where scripts/analyse.py draws a figure."""
        return folder / f"{self.figures[name][0].key[0]}_{name}.png"

    def describe_figure(self, name: str) -> list[str]:
        """Returns the arguments of scripts/analyse.py that draw a figure of its runs alone."""
        return [f"figure={name}", *(f"run={run.folder}" for run in self.figures[name])]


def read_contents() -> Contents:
    """Reads what results/ consists of.

    Raises:
        ValueError: the file has an unknown key or value.
    """
    return parse(Contents, json.dumps(OmegaConf.to_container(OmegaConf.load(FILE))), FILE.name)


def plan_results(contents: Contents, arguments: Sequence[str], records: Path) -> ResultsPlan:
    """Lists the runs of all tables and figures.

    Args:
        contents: of the file.
        arguments: of train.py for every run, and `data.<choice>.path=<folder>` for those with these data.
        records: folder of records.

    Raises:
        UserError: an argument would not be for every run, or there is no such choice of data.
    """
    quoted = [quote_override(argument, is_sweep=True) for argument in arguments]
    places = {key: value for key, value in read_choices(quoted).items() if key.startswith("data.")}
    common = [argument for argument in quoted if not argument.startswith("data.")]
    for key in read_choices(common):
        if key in GIVEN:
            raise UserError(f"results: {key}= is given by {FILE.name}, not on the command line")
    runs: dict[Path, PlannedRun] = {}
    tables = []
    for name, chosen in contents.tables.items():
        plan = plan_table(read_table(name), [*chosen.arguments, *common])
        rows = [row for row in plan.rows if not chosen.norms or row.norm in chosen.norms]
        if unknown := set(chosen.norms) - {row.norm for row in rows}:
            raise UserError(f"{FILE.name}: table {name} has no row with norm={', '.join(sorted(unknown))}")
        tables.append(replace(plan, rows=tuple(rows)))
        runs |= {run.folder: run for run in (*tables[-1].starts, *tables[-1].runs)}
    figures = {}
    for name, own in contents.figures.items():
        drawn = list_runs([*(quote_override(argument, is_sweep=True) for argument in own), *common])
        figures[name] = tuple(drawn)
        for run in drawn:
            runs.setdefault(run.folder, run)
            if read_choices(run.arguments).get("callbacks") == RECORDING:
                runs[run.folder] = run
    located = _locate(list(runs.values()), places)
    return ResultsPlan(tuple(located), tuple(tables), figures, records)


def _locate(runs: Sequence[PlannedRun], places: Mapping[str, str]) -> list[PlannedRun]:
    """Returns the runs with the place of their data among their arguments, where one is given."""
    used = {run.key[0]: str(read_experiment(run.key[0]).get("override /data")) for run in runs}
    allowed = sorted({f"data.{choice}.path" for choice in used.values() if choice in LOCATED})
    for key in places:
        if key not in allowed:
            raise UserError(f"results: {key}= is for none of its data; allowed: {', '.join(f'{k}=' for k in allowed)}")

    def add_path(run: PlannedRun) -> PlannedRun:
        place: Any = places.get(f"data.{used[run.key[0]]}.path")
        return replace(run, arguments=(*run.arguments, quote_override(f"data.path={place}"))) if place else run

    return [add_path(run) for run in runs]


def _find_original(run: PlannedRun) -> Path | None:
    """Returns the folder whose checkpoint a run starts from, where it is one of the planned."""
    if run.start is not None:
        return run.start.folder
    if read_choices(run.arguments).get("retrofit") != LAYERNORM:
        return None
    return run.folder.parents[1] / f"norm={LAYERNORM}" / run.folder.name
