"""Comparisons of our runs with published figures, and with LayerNorm on the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from un.reports.runs import Run, group_by_setting, name_reference
from un.reports.specification import Published
from un.reports.statistics import Difference, Summary, compare_paired, summarise

LAYERNORM = "layernorm"


@dataclass(frozen=True)
class Cell:
    """One setting of one experiment, or one measurement.

    Attributes:
        runs: those that ended.
        reference: those with LayerNorm.
        planned: how many runs the table asks for.
        metric: shown; None for the main one.
        published: the figure to compare with.
        paper_setting: whether the runs are meant to follow the recipe behind the published figures.
        departures: where they do not follow it.
        measured: the value, where it is not that of runs.
    """

    runs: Sequence[Run] = ()
    reference: Sequence[Run] = ()
    planned: int = 0
    metric: str | None = None
    published: Published | None = None
    paper_setting: bool = False
    departures: Sequence[str] = ()
    measured: float | None = None

    @cached_property
    def ours(self) -> Summary:
        """Over the runs that finished with a number."""
        values = list(_by_seed(self.runs, self.metric).values())
        return summarise(values if self.measured is None else [self.measured])

    @cached_property
    def to_layernorm(self) -> Difference | None:
        """Difference to LayerNorm, paired by seed; None for LayerNorm itself and where a side is missing."""
        if all(run.norm == LAYERNORM for run in self.runs):
            return None
        return compare_paired(_by_seed(self.runs, self.metric), _by_seed(self.reference, self.metric))

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


@dataclass(frozen=True)
class Comparison:
    """A table with its numbers.

    Attributes:
        name: of the table file or experiment.
        title: one line.
        columns: labels.
        rows: at least one.
        digits: after the decimal point.
        setting: what a reader must know about the setting.
        shows_marks: whether numbers of a setting other than the paper's are marked, as where a paper is compared with.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Line, ...]
    digits: int = 2
    setting: str = ""
    shows_marks: bool = True

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


def compare_settings(runs: Sequence[Run]) -> list[Comparison]:
    """Returns a comparison per experiment with a row for every setting, whether or not a table asks for it."""
    comparisons = []
    for experiment, settings in group_by_setting(runs).items():
        rows = [
            Line(setting, group[0].norm, (Cell(group, settings.get(name_reference(setting), ())),))
            for setting, group in settings.items()
        ]
        comparisons.append(Comparison(experiment, experiment, ("",), tuple(rows), shows_marks=False))
    return comparisons


def _by_seed(runs: Sequence[Run], metric: str | None) -> dict[int, float]:
    values = ((run.result.seed, run.get(metric)) for run in runs)
    return {seed: value for seed, value in values if value is not None}
