"""Cells: ours beside the published figure and beside LayerNorm; diverged and missing runs stay visible."""

from pathlib import Path

from tests.reports.runs import make_run
from un.reports.comparison import Cell, compare_settings
from un.reports.specification import Published


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
        "norm=un,norm.window=2": 1.0,
        "norm=un,optimizer.lr=0.1": 3.0,
    }
    assert comparison.metrics == ("test/acc1",)
