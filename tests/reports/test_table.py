"""The table of results: seeds averaged, diverged runs shown, missing runs told."""

from dataclasses import replace

import pytest

from un.reports.result import Result, write_result
from un.reports.table import read_results, render_markdown, tabulate_results

RESULT = Result(
    status="finished",
    task="un.vision.module.ImageClassification",
    experiment="cifar10_vit_tiny",
    norm={"choice": "un"},
    model={},
    data={},
    seed=0,
    overrides=["experiment=cifar10_vit_tiny", "norm=un", "norm.window=8", "data.path=/x", "seed=0"],
    metrics={"val/acc1": 1.0, "test/acc1": 50.0},
    best_epoch=0,
    best_step=1,
    diverged_step=None,
    steps=1,
    wall_time_seconds=120.0,
    parameters=1,
    peak_memory_bytes=1,
    train_samples_per_second=1.0,
)


def write(folder, name, **changes):
    (folder / name).mkdir(parents=True)
    write_result(replace(RESULT, **changes), folder / name / "result.json")


def test_seeds_are_averaged_and_norms_told_apart(tmp_path):
    write(tmp_path, "a")
    write(tmp_path, "b", seed=1, metrics={"test/acc1": 54.0})
    write(tmp_path, "c", norm={"choice": "layernorm"}, overrides=[], metrics={"test/acc1": 60.0})
    table = tabulate_results(read_results([tmp_path]))
    rows = {row["norm"]: row for row in table.to_dict("records")}
    assert rows["un norm.window=8"]["runs"] == 2
    assert rows["un norm.window=8"]["test/acc1"] == 52.0
    assert rows["un norm.window=8"]["test/acc1 ±"] == pytest.approx(8**0.5)
    assert rows["layernorm"]["test/acc1"] == 60.0
    assert rows["layernorm"]["minutes"] == 2.0


def test_a_diverged_run_counts_but_not_in_the_mean(tmp_path):
    write(tmp_path, "a")
    write(tmp_path, "b", status="diverged", diverged_step=3, metrics={})
    (row,) = tabulate_results(read_results([tmp_path])).to_dict("records")
    assert (row["runs"], row["diverged"], row["test/acc1"]) == (2, 1, 50.0)


def test_markdown_has_a_line_per_row_and_empty_cells(tmp_path):
    write(tmp_path, "a")
    write(tmp_path, "b", norm={"choice": "layernorm"}, metrics={})
    lines = render_markdown(tabulate_results(read_results([tmp_path]))).splitlines()
    assert len(lines) == 4
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    assert "nan" not in "".join(lines)


def test_no_run_is_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match=r"no result\.json below"):
        read_results([tmp_path])
