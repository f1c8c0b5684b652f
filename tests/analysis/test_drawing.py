"""The figures show the numbers of the table, with names on every axis."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest

from tests.integration.commands import run_here
from tests.reports.runs import make_run as make_result
from un.analysis import layers, settings
from un.analysis.curves import average_seeds, draw_curves
from un.analysis.drawing import FIGURES
from un.analysis.layers import PANELS
from un.analysis.recorder import COUNTERS, MOMENT_PERCENTS, SCALARS, VECTORS
from un.analysis.retrofitted import draw_retrofit
from un.analysis.runs import LoggedRun, find_run_folders, read_run
from un.analysis.storage import StatisticsFiles
from un.analysis.style import MAX_POINTS, OPTIONS, choose_spread, thin_rows
from un.finished import figures

STEPS = range(50, 250, 50)


def make_table(sites: int = 9, offline: bool = True) -> pd.DataFrame:
    """What a recorder may leave: filtration strikes in the last norm after step 100; without `offline` a LayerNorm."""
    random, rows = np.random.default_rng(0), []
    for step in STEPS:
        for layer in range(sites):
            row: dict[str, Any] = {"step": step, "layer": layer, "site": f"blocks.{layer}.norm", "channels": 64}
            for name, percents in VECTORS.items():
                known = offline or name not in ("running_ratio", "running_gradient")
                values = np.sort(random.lognormal(0, 1, len(percents))) if known else np.full(len(percents), np.nan)
                row |= {f"{name}_p{percent}": value for percent, value in zip(percents, values, strict=True)}
            struck = 3 if layer == sites - 1 and step > 100 else 0
            row |= {"peak": random.uniform(4, 60), "gap": random.uniform(0, 1), "threshold": 0.9}
            row |= {"mean_discrepancy": random.uniform(0, 1), "scale_discrepancy": random.uniform(0, 1)}
            row |= dict.fromkeys(COUNTERS, np.nan) | {"calls": step, "filtered_calls": struck}
            if not offline:
                row |= dict.fromkeys([*SCALARS[1:], "calls", "filtered_calls"], np.nan)
            rows.append(row)
    return pd.DataFrame(rows)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_names_its_axes_at_any_depth(name: str) -> None:
    for sites in (1, PANELS + 1):  # with and without norms that have no panel of their own
        figure = FIGURES[name](make_table(sites))
        assert figure is not None
        assert figure._suptitle is not None
        assert any(axes.get_xlabel() for axes in figure.axes)
        assert any(axes.get_ylabel() for axes in figure.axes)


def test_heat_map_shows_the_table_and_where_filtration_struck() -> None:
    table = make_table()
    figure = layers.draw_outliers(table)
    top, bottom = (axes for axes in figure.axes if axes.get_title())
    for axes, column in ((top, "peak"), (bottom, "running_ratio_p100")):
        expected = table.pivot(index="layer", columns="step", values=column).to_numpy()
        np.testing.assert_allclose(axes.collections[0].get_array().reshape(expected.shape), expected)
        assert [label.get_text() for label in axes.get_yticklabels()] == list(table["site"].unique())
        assert axes.yaxis_inverted()
    np.testing.assert_allclose(top.collections[1].get_offsets(), [[150, 8]])


def test_discrepancy_is_drawn_of_what_the_norms_have() -> None:
    table = make_table()
    for columns in (["mean_discrepancy", "scale_discrepancy"], ["scale_discrepancy"]):
        figure = layers.draw_discrepancy(table)
        assert figure is not None
        panels = [axes for axes in figure.axes if axes.get_title()]
        for axes, column in zip(panels, columns, strict=True):
            expected = table.pivot(index="layer", columns="step", values=column).to_numpy()
            np.testing.assert_allclose(axes.collections[0].get_array().reshape(expected.shape), expected)
        table["mean_discrepancy"] = np.nan  # of norms that do not centre
    assert layers.draw_discrepancy(table.drop(columns=columns)) is None  # as earlier versions recorded it


def test_lines_show_the_table() -> None:
    table = make_table()
    median = layers.draw_fluctuation(table).axes[0]
    assert len(median.lines) == 9
    np.testing.assert_allclose(median.lines[4].get_xdata(), STEPS)
    np.testing.assert_allclose(median.lines[4].get_ydata(), table[table["layer"] == 4]["fluctuation_p50"])
    figure = layers.draw_threshold(table)
    assert figure is not None
    ratio = table[table["layer"] == 2]["gap"] / 0.9
    np.testing.assert_allclose(figure.axes[0].lines[2].get_ydata(), ratio)
    assert figure._suptitle is not None
    assert f"{3 / (9 * 200):.2%} of calls filtered" in figure._suptitle.get_text()


def test_histogram_counts_every_channel() -> None:
    row = pd.Series({f"moment_p{p}": 10 ** (p / 100) for p in MOMENT_PERCENTS} | {"channels": 200.0})
    values = layers.spread_channels(row)
    np.testing.assert_allclose(np.log10(values), (np.arange(200) + 0.5) / 200, rtol=1e-6)
    dead = layers.spread_channels(row.where(row.index != "moment_p0", 0.0))
    assert np.isnan(dead).sum() < 200 * 0.06
    axes = layers.draw_moments(make_table()).axes[0]
    assert [patch.get_xy()[1:-1:2, 1].sum() for patch in axes.patches] == [64, 64, 64]  # heights of the bars
    assert [patch.get_label() for patch in axes.patches] == ["step 50", "step 150", "step 200"]


def make_run(runs: Path, setting: str, seed: int, values: tuple[float, ...] = (3.0, 2.0, 1.0), **result: Any) -> Path:
    folder = runs / "digits" / setting / f"seed={seed}"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    rows = [f"0,{10 * place},{value},," for place, value in enumerate(values, 1)]
    accuracy = f"0,30,,{50 + 10 * seed},"
    (folder / "metrics.csv").write_text("\n".join(["epoch,step,train/loss,val/acc1,train/lr", *rows, accuracy]) + "\n")
    if result:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_curves_have_bands_over_seeds_and_a_cross_where_a_run_diverged(tmp_path: Path) -> None:
    for seed, values in enumerate([(3.0, 2.0, 1.0), (5.0, 4.0, 3.0)]):
        make_run(tmp_path, "norm=un", seed, values)
    make_run(tmp_path, "norm=layernorm", 0, (3.0, 9.0, float("inf")), diverged_step=25)
    runs = [read_run(folder) for folder in find_run_folders([str(tmp_path)])]
    un = [run for run in runs if run.setting == "norm=un"]
    band = average_seeds(un, "train/loss")
    assert band.index.tolist() == [10, 20, 30]
    assert band.to_numpy().tolist() == [[4, 3, 5], [3, 2, 4], [2, 1, 3]]
    figure = draw_curves(runs)
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert list(panels) == ["train/loss", "val/acc1"]
    assert panels["val/acc1"].get_ylabel() == "top-1 accuracy (%)"
    crosses = [line for line in panels["train/loss"].lines if line.get_marker() == "x"]
    assert [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in crosses] == [([20], [9.0])]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["norm=layernorm (n = 1)", "norm=un (n = 2)"]
    with pytest.raises(ValueError, match=r"metrics=val/bleu: no run has it; they have train/loss, val/acc1, train/lr"):
        draw_curves(runs, ["val/bleu"])


def test_many_settings_stay_apart() -> None:
    metrics = pd.DataFrame({"step": [1, 2], "train/loss": [1.0, 2.0]})
    runs = [LoggedRun(Path(f"e/norm={place}/seed=0"), metrics, None) for place in range(20)]
    with matplotlib.rc_context(OPTIONS):
        lines = draw_curves(runs).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 20


def test_long_runs_are_thinned_but_extremes_stay() -> None:
    frame = pd.DataFrame({"a": np.arange(5000.0)}, index=pd.Index(np.arange(5000) * 10, name="step"))
    thinned = thin_rows(frame, "max")
    assert len(thinned) == MAX_POINTS
    assert (thinned.index[-1], thinned["a"].iloc[-1]) == (49990, 4999)
    assert choose_spread(33, 6)[0] == 0
    assert choose_spread(33, 6)[-1] == 32
    assert choose_spread(2, 6) == [0, 1]


def test_script_draws_runs_and_what_they_have_in_common(tmp_path: Path) -> None:
    """Figures of statistics that a LayerNorm lacks are left out."""
    folders = [make_run(tmp_path, "norm=layernorm", seed) for seed in range(2)]
    StatisticsFiles(folders[0]).append(make_table(1, offline=False).to_dict("records"))
    outcome = run_here("scripts/analyse.py", f"run={tmp_path}/digits/*/seed=*", "format=svg")
    written = {Path(line) for line in outcome.output.splitlines()}
    assert written == set(tmp_path.rglob("*.svg"))
    assert tmp_path / "digits/norm=layernorm/figures/curves.svg" in written
    names = {path.stem for path in written if path.parent.parent == folders[0]}
    assert names == {"fluctuation", "outliers", "moments", "gradients", "curves"}
    assert "blocks.0.norm" in (folders[0] / "figures/outliers.svg").read_text()  # as comments beside the shapes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run=/nowhere"], "run=/nowhere: no run folder there"),
        (["format=png"], "run is missing"),
        (["run=x", "format=gif"], "format=gif is unknown; allowed: png, pdf, svg"),
        (["run=x", "output=a", "output=b"], "output is given twice: a and b"),
    ],
)
def test_script_tells_mistakes_in_one_line(arguments: list[str], message: str) -> None:
    run_here("scripts/analyse.py", *arguments).check_error(message)


@pytest.mark.parametrize(("name", "content"), [("metrics.csv", ""), ("result.json", "[]")])
def test_damaged_runs_are_named(tmp_path: Path, name: str, content: str) -> None:
    folder = make_run(tmp_path, "norm=un", 0)
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=str(folder)):
        read_run(folder)


def test_settings_side_by_side_share_their_axes() -> None:
    figure = settings.draw_fluctuations({"LayerNorm": make_table(3, offline=False), "UN": make_table(3)})
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["trained with LayerNorm", "trained with UN"]
    assert panels[0].get_ylim() == panels[1].get_ylim()
    np.testing.assert_allclose(panels[1].lines[2].get_ydata(), make_table(3).query("layer == 2")["fluctuation_p50"])


def test_outliers_over_layers_are_medians_over_steps() -> None:
    table = make_table(3)
    (axes,) = settings.draw_peaks({"UN": table}).axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), table.groupby("layer")["peak"].median())
    assert [label.get_text() for label in axes.get_xticklabels()] == [f"blocks.{layer}.norm" for layer in range(3)]


def test_discrepancies_are_means_over_norms_and_medians_over_steps() -> None:
    table = make_table(3)
    left, right = settings.draw_discrepancies({"LayerNorm": make_table(3, offline=False), "UN": table}).axes
    assert len(left.lines) == len(right.lines) == 1
    np.testing.assert_allclose(left.lines[0].get_ydata(), table.groupby("step")["scale_discrepancy"].mean())
    np.testing.assert_allclose(right.lines[0].get_ydata(), table.groupby("layer")["scale_discrepancy"].median())


def test_windows_count_what_passes_the_threshold() -> None:
    frames = {8: make_table().assign(gap=1.8), 2: make_table(), 4: make_table(offline=False), 1: make_table()}
    left, right = settings.draw_windows(frames).axes  # a norm without a window has no gap, nor has a window of 1
    ratio = make_table()["gap"] / 0.9
    labels = [label.get_text() for label in right.get_xticklabels()]
    assert labels == [f"2\n{(ratio > 1).mean():.1%} above", "8\n100.0% above"]
    np.testing.assert_allclose(right.lines[1].get_ydata(), [ratio.max(), 2])
    np.testing.assert_allclose(left.lines[0].get_ydata(), [make_table()["gap"].median(), 1.8])


def test_script_compares_settings_of_one_experiment(tmp_path: Path) -> None:
    for setting in ("norm=un", "norm=layernorm"):
        folder = make_run(tmp_path, setting, 0)
        StatisticsFiles(folder).append(make_table(2, offline=setting == "norm=un").to_dict("records"))
    for name in ("fluctuation", "outliers", "discrepancy", "threshold", "window", "curves"):
        outcome = run_here(
            "scripts/analyse.py", f"run={tmp_path}", f"figure={name}", f"output={tmp_path}", "format=svg"
        )
        assert outcome.output.split() == [str(tmp_path / f"digits_{name}.svg")]
    assert (tmp_path / "digits_outliers.svg").read_text().index("LayerNorm") > 0
    assert (tmp_path / "digits_curves.svg").read_text().index("LayerNorm (n = 1)") > 0
    make_run(tmp_path, "norm=dyt", 0)
    outcome = run_here("scripts/analyse.py", f"run={tmp_path}", "figure=outliers", f"output={tmp_path}")
    assert "1 runs without activation_stats are left out" in outcome.errors
    command = ("scripts/analyse.py", f"run={tmp_path}/digits/norm=layernorm", f"output={tmp_path}")
    run_here(*command, "figure=threshold").check_error("figure=threshold: no norm of these runs has a window")
    run_here(*command, "figure=discrepancy").check_error("no norm of these runs has running statistics")
    (tmp_path / "digits").rename(tmp_path / "phrases")
    make_run(tmp_path, "norm=un", 0)
    command = ("scripts/analyse.py", f"run={tmp_path}", "figure=outliers")
    run_here(*command).check_error("a figure compares runs of one experiment, got digits, phrases")


def test_runs_inside_a_run_folder_are_not_compared_with_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "norm=layernorm", 0)
    inner = folder / "retrofit/least_squares"
    inner.mkdir(parents=True)
    (inner / "config.yaml").write_text((folder / "config.yaml").read_text())
    assert find_run_folders([str(tmp_path)]) == [folder]
    assert find_run_folders([str(inner)]) == [inner]


def test_script_draws_outliers_and_fit_of_a_run_whose_norms_were_taken_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "norm=layernorm", 0)
    command = ("scripts/analyse.py", f"run={folder}", "figure=retrofit", f"output={tmp_path}", "format=svg")
    run_here(*command).check_error(f"{folder} has no retrofit.json: run python scripts/retrofit.py run={folder}")
    numbers = {"outlier": 40.0, "outlier_old": 8.0, "outlier_new": 30.0, "r2_worst": 0.2, "r2_median": 0.7}
    norms = [{"site": f"blocks.{place}.norm", **numbers} for place in range(3)]
    (folder / "retrofit.json").write_text(json.dumps({"report": {"norms": norms}}))
    assert run_here(*command).output.split() == [str(tmp_path / "digits_retrofit.svg")]
    top, bottom = draw_retrofit("digits", norms).axes
    assert [float(line.get_ydata()[0]) for line in top.lines] == [40, 8, 30]
    assert [float(line.get_ydata()[-1]) for line in bottom.lines] == [0.7, 0.2]
    assert [label.get_text() for label in bottom.get_xticklabels()] == [row["site"] for row in norms]


def test_cost_has_a_point_per_setting_with_layernorm_as_the_measure(tmp_path: Path) -> None:
    values = {("norm=un", 0): 97.0, ("norm=un", 1): 98.0, ("norm=layernorm", 0): 95.0}
    runs = [make_result(tmp_path, setting, seed, value) for (setting, seed), value in values.items()]
    asked: list[Path] = []

    def time_runs(folders: Sequence[Path]) -> list[float]:
        asked.extend(folders)
        return [1.0, 0.8]

    (axes,) = figures.draw_cost(runs, time_runs).axes
    assert [folder.parent.name for folder in asked] == ["norm=layernorm", "norm=un"]
    points = [container.lines[0].get_xydata()[0].tolist() for container in axes.containers]
    assert points == [[1.0, 95.0], [0.8, 97.5]]
    assert axes.get_ylabel() == "test top-1 accuracy (%), mean ± std over seeds"
