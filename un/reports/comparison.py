"""Comparisons of our runs with published figures, and with LayerNorm on the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from un.reports.runs import SPEED_UP, Run, group_by_setting, name_reference, split_setting
from un.reports.specification import Published
from un.reports.statistics import DIVERGES, LEVEL_MARGIN, POINTS, Difference, Summary, compare_paired, judge, summarise
from un.reports.words import describe_setting

LAYERNORM = "layernorm"


@dataclass(frozen=True)
class Cell:
    """One setting of one experiment, or one measurement.

    Attributes:
        runs: those that ended.
        reference: those with LayerNorm.
        planned: how many runs the table asks for.
        metric: shown; None for the main one.
        shift: under which it was measured; None for the run's own test data.
        published: the figure to compare with.
        paper_setting: whether the runs are meant to follow the recipe behind the published figures.
        departures: where they do not follow it.
        measured: the value, where it is not that of runs.
        margin: how far from LayerNorm still counts as level.
    """

    runs: Sequence[Run] = ()
    reference: Sequence[Run] = ()
    planned: int = 0
    metric: str | None = None
    shift: str | None = None
    published: Published | None = None
    paper_setting: bool = False
    departures: Sequence[str] = ()
    measured: float | None = None
    margin: float = LEVEL_MARGIN

    @cached_property
    def ours(self) -> Summary:
        """Over the runs that finished with a number."""
        values = list(self._by_seed(self.runs).values())
        return summarise(values if self.measured is None else [self.measured])

    @cached_property
    def to_layernorm(self) -> Difference | None:
        """Difference to LayerNorm, paired by seed; None for LayerNorm itself and where a side is missing."""
        if all(run.norm == LAYERNORM for run in self.runs):
            return None
        return compare_paired(self._by_seed(self.runs), self._by_seed(self.reference))

    @property
    def verdict(self) -> str:
        """What the difference to LayerNorm allows to say, see `judge`; empty where there is none or not in points.

        Where a seed diverged, it says so: the mean over the others would hide it.
        """
        if self.diverged:
            return DIVERGES
        metric = self.metric or (self.runs[0].main_metric if self.runs else None) or ""
        if self.to_layernorm is None or metric.rpartition("/")[2] not in POINTS:
            return ""
        return judge(self.to_layernorm, self.margin)

    @property
    def is_aside(self) -> bool:
        """Whether it says something else of runs whose test metrics stand in another column."""
        return self.shift is not None or self.metric == SPEED_UP

    @property
    def exploded(self) -> int:
        """Number of runs with exploding losses under the shift."""
        found = [run.shifts.get(self.shift) for run in self.runs if self.shift]
        return sum(result is not None and result.losses.exploded > 0 for result in found)

    def _by_seed(self, runs: Sequence[Run]) -> dict[int, float]:
        values = ((run.result.seed, run.get(self.metric, self.shift)) for run in runs)
        return {seed: value for seed, value in values if value is not None}

    @property
    def says_something(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.runs) or self.published is not None or self.measured is not None

    @property
    def diverged(self) -> int:
        return sum(run.result.status == "diverged" for run in self.runs)

    @property
    def missing(self) -> int:
        """Number of planned runs that have not ended."""
        return max(self.planned - len(self.runs), 0)

    @property
    def to_published(self) -> float | None:
        if self.ours.mean is None or self.published is None:
            return None
        return self.ours.mean - self.published.value

    @property
    def minutes(self) -> float | None:
        return summarise([run.result.wall_time_seconds / 60 for run in self.runs]).mean

    @property
    def follows_paper(self) -> bool:
        return self.paper_setting and not self.departures

    @property
    def is_marked(self) -> bool:
        """Whether there is a number of ours whose setting is not the paper's."""
        return self.ours.n > 0 and not self.follows_paper


@dataclass(frozen=True)
class Line:
    """A row of a comparison, with a cell per column; `norm` is empty where no run names it."""

    label: str
    norm: str
    cells: tuple[Cell, ...]

    @property
    def setting(self) -> str:
        """Name of the folder that holds its runs; empty without runs."""
        return next((run.setting for cell in self.cells for run in cell.runs), "")


@dataclass(frozen=True)
class Comparison:
    """A table with its numbers.

    Attributes:
        name: of the table file or experiment.
        title: one line.
        columns: labels.
        rows: those that have something to show, see `leave_out_empty`.
        digits: after the decimal point.
        setting: what a reader must know about the setting.
        shows_marks: whether numbers of a setting other than the paper's are marked, as where a paper is compared with.
        margin: how far from LayerNorm still counts as level, in the units of the metric.
        left_out: number of rows that have nothing to show.
        command: makes their runs.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Line, ...]
    digits: int = 2
    setting: str = ""
    shows_marks: bool = True
    margin: float = LEVEL_MARGIN
    left_out: int = 0
    command: str = ""

    @property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(cell for row in self.rows for cell in row.cells)

    @property
    def sources(self) -> tuple[str, ...]:
        """Sources of the published figures, each once, in the order of their footnotes."""
        return tuple(dict.fromkeys(cell.published.source for cell in self.cells if cell.published))

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metric of each column, as its runs name it; empty where nothing is known."""
        names = []
        for index in range(len(self.columns)):
            column = [row.cells[index] for row in self.rows]
            known = [cell.metric or run.main_metric for cell in column for run in cell.runs]
            names.append(next(filter(None, known), column[0].metric or ""))
        return tuple(names)


def leave_out_empty(comparison: Comparison) -> Comparison:
    """Returns the comparison without the rows and columns that have nothing to show; it counts the rows."""
    rows = [row for row in comparison.rows if any(cell.says_something for cell in row.cells)]
    kept = [index for index in range(len(comparison.columns)) if any(row.cells[index].says_something for row in rows)]
    return replace(
        comparison,
        columns=tuple(comparison.columns[index] for index in kept),
        rows=tuple(replace(row, cells=tuple(row.cells[index] for index in kept)) for row in rows),
        left_out=len(comparison.rows) - len(rows),
    )


def compare_settings(runs: Sequence[Run], shown: Sequence[Comparison] = ()) -> list[Comparison]:
    """Returns a comparison per experiment with a row for every setting.

    Args:
        runs: of any experiments.
        shown: tables beside it; settings that stand in one of them are left out.
    """
    known = {run.folder for comparison in shown for cell in comparison.cells for run in cell.runs}
    comparisons = []
    for experiment, settings in group_by_setting(runs).items():
        rows = [
            Line(
                describe_setting(split_setting(setting)),
                group[0].norm,
                (Cell(group, settings.get(name_reference(setting), ())),),
            )
            for setting, group in settings.items()
            if not any(run.folder in known for run in group)
        ]
        if rows:
            title = f"Further settings of {experiment}" if len(rows) < len(settings) else experiment
            comparisons.append(Comparison(experiment, title, ("",), tuple(rows), shows_marks=False))
    return comparisons
