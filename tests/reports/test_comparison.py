"""Cells: ours beside the published figure and beside LayerNorm; diverged and missing runs stay visible."""

from pathlib import Path

import pytest

from tests.reports.runs import make_run
from un.reports.comparison import Cell, Comparison, Line, compare_settings, leave_out_empty
from un.reports.specification import Published
from un.reports.statistics import Difference, judge


def test_cell_of_five_planned_runs(tmp_path: Path) -> None:
    layernorm = [make_run(tmp_path, "norm=layernorm", seed, 50.0 + seed) for seed in (0, 1)]
    ours = [make_run(tmp_path, "norm=un", seed, value) for seed, value in ((0, 52.0), (1, 52.0), (2, 56.0), (3, None))]
    cell = Cell(ours, layernorm, planned=5, published=Published(54.0, "a paper"))
    assert (cell.ours.n, cell.diverged, cell.missing) == (3, 1, 1)
    assert cell.ours.mean is not None
    assert cell.to_published == cell.ours.mean - 54.0
    assert cell.to_layernorm is not None
    assert (cell.to_layernorm.mean, cell.to_layernorm.n) == (1.5, 2)
    assert cell.minutes == 2.0
    assert cell.is_marked
    assert not Cell(ours, layernorm, paper_setting=True).is_marked
    assert Cell(layernorm, layernorm).to_layernorm is None


def test_nothing_gives_nothing() -> None:
    cell = Cell([], planned=3, published=Published(1.0, "a paper"))
    assert (cell.ours.mean, cell.to_published, cell.to_layernorm, cell.minutes) == (None, None, None, None)
    assert (cell.missing, cell.is_marked) == (3, False)


def test_every_setting_is_compared_with_its_own_layernorm(tmp_path: Path) -> None:
    values = {"norm=layernorm": 50.0, "norm=un,norm.window=2": 51.0}
    values |= {"norm=layernorm,optimizer.lr=0.1": 30.0, "norm=un,optimizer.lr=0.1": 33.0, "norm=un,seed_x=1": 1.0}
    (comparison,) = compare_settings([make_run(tmp_path, name, 0, value) for name, value in values.items()])
    differences = {row.label: row.cells[0].to_layernorm for row in comparison.rows}
    assert {name: found.mean for name, found in differences.items() if found} == {
        "UN; window: 2": 1.0,
        "UN; learning rate: 0.1": 3.0,
    }
    assert comparison.metrics == ("test/acc1",)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (-0.5, 0.5, "level"),
        (0.1, 0.4, "level"),  # surely better, and by nothing that matters
        (0.1, 0.6, "ahead"),
        (-2.0, -0.6, "behind"),
        (-0.6, 0.1, "not decided"),
        (None, None, "not decided"),
    ],
)
def test_words_for_intervals(low: float | None, high: float | None, word: str) -> None:
    assert judge(Difference(0.0, low, high, 3), margin=0.5) == word


def test_verdicts_come_from_paired_seeds(tmp_path: Path) -> None:
    layernorm = [make_run(tmp_path, "norm=layernorm", seed, 50.0 + seed) for seed in (0, 1)]
    ahead = [make_run(tmp_path, "norm=un", seed, 52.0 + seed) for seed in (0, 1)]
    half = [make_run(tmp_path, "norm=dyt", seed, value) for seed, value in ((0, 52.0), (1, None))]
    assert Cell(ahead, layernorm).verdict == "ahead"  # by 2 for every seed, however far seeds lie apart
    assert Cell(ahead, layernorm, margin=2.5).verdict == "level"
    assert Cell(ahead[:1], layernorm).verdict == "not decided"
    assert Cell(half, layernorm).verdict == "diverges"
    assert Cell(layernorm, layernorm).verdict == ""
    assert Cell(ahead, layernorm, metric="test/loss").verdict == ""  # not in points, and less would be better


def test_rows_and_columns_without_anything_are_left_out(tmp_path: Path) -> None:
    run, published = make_run(tmp_path), Published(1.0, "a paper")
    rows = {"run": (Cell([run]), Cell()), "paper": (Cell(published=published), Cell()), "none": (Cell(), Cell())}
    lines = tuple(Line(label, "", cells) for label, cells in rows.items())
    kept = leave_out_empty(Comparison("t", "T", ("a", "b"), lines))
    assert ([row.label for row in kept.rows], kept.columns, kept.left_out) == (["run", "paper"], ("a",), 1)
    assert all(len(row.cells) == 1 for row in kept.rows)


def test_settings_that_stand_in_a_table_stand_once(tmp_path: Path) -> None:
    settings = ("norm=layernorm", "norm=un", "norm=un,optimizer.lr=0.1")
    runs = [make_run(tmp_path, setting, 0, value) for setting, value in zip(settings, (50.0, 51.0, 40.0), strict=True)]
    table = Comparison("t", "T", ("",), tuple(Line(run.norm, run.norm, (Cell([run]),)) for run in runs[:2]))
    (further,) = compare_settings(runs, [table])
    assert (further.title, [row.label for row in further.rows]) == (
        "Further settings of digits_vit",
        ["UN; learning rate: 0.1"],
    )
    assert compare_settings(runs[:2], [table]) == []
