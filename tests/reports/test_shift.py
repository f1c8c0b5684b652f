"""Tests under shift as files, and in tables."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.reports.runs import make_run
from un.command.errors import CONFIG_FOLDER
from un.reports.rendering import list_rows, render_markdown
from un.reports.result import write_json
from un.reports.runs import Run
from un.reports.shift import FILE, Losses, ShiftResult, add_shifts, list_shifts, read_shifts
from un.reports.specification import parse_table
from un.sweeps.evaluations import list_evaluations
from un.sweeps.tables import fill_table, find_on_disk, plan_table

TABLE = {
    "title": "T",
    "metric": "test/acc1",
    "runs": ["seed=range(2)"],
    "columns": [
        {"label": "plain"},
        {"label": "dark", "shift": "dark"},
        {"label": "fast", "metric": "speed_up", "arguments": ["seed=0"]},
    ],
    "rows": [{"label": norm, "arguments": [f"norm={norm}"]} for norm in ("layernorm", "un")],
}


def make_result(name: str, value: float, exploded: int = 0, **changes: Any) -> ShiftResult:
    data: Any = OmegaConf.to_container(OmegaConf.load(CONFIG_FOLDER / f"shift/{name}.yaml"))
    losses = Losses(1.0, 1.0, 1.0, 10, exploded, 0)
    content = {"metrics": {"test/acc1": value}, "losses": losses, "data": data[name]["data"], "changes": {}}
    return ShiftResult(**{**content, "folded": False, **changes})


def test_shifts_are_added_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / FILE
    assert read_shifts(path) == {}
    add_shifts({"noise": make_result("noise", 1.0), "dark": make_result("dark", 2.0)}, path)
    add_shifts({"dark": make_result("dark", float("nan"))}, path)
    found = read_shifts(path)
    assert {name: result.metrics["test/acc1"] for name, result in found.items()} == {"noise": 1.0, "dark": None}
    path.write_text('{"dark": {}}')
    with pytest.raises(ValueError, match=r"shift.json: dark: metrics is missing"):
        read_shifts(path)
    path.write_text("[")
    with pytest.raises(ValueError, match="is damaged"):
        read_shifts(path)


def test_tables_take_a_shift_as_its_config_has_it() -> None:
    assert make_result("dark", 1.0).is_standard("dark")
    assert not make_result("dark", 1.0).is_standard("noise")
    assert not make_result("dark", 1.0).is_standard("nowhere")
    assert not make_result("dark", 1.0, changes={"average_checkpoints": 3}).is_standard("dark")
    other = make_result("dark", 1.0)
    other.data["corruption"]["brightness_factor"] = 0.1
    assert not other.is_standard("dark")
    text = make_result("tatoeba", 1.0)
    text.data["path"] = "/somewhere"
    assert text.is_standard("tatoeba")
    assert {"noise", "dark", "low_contrast", "joined", "typos", "tatoeba"} == {*list_shifts()}


def test_a_table_with_a_shift_and_the_speed(tmp_path: Path) -> None:
    runs = {(norm, seed): make_run(tmp_path, f"norm={norm}", seed) for norm in ("layernorm", "un") for seed in (0, 1)}
    plan = plan_table(parse_table("t", TABLE), [f"paths.runs={tmp_path}"])
    layernorm, un = runs["layernorm", 0].folder, runs["un", 0].folder
    lacking = [(run.folder, arguments) for run, arguments in list_evaluations(plan, find_on_disk)]
    assert lacking[:-1] == [(run.folder, ("shift=[dark]",)) for run in runs.values()]
    assert lacking[-1] == (un, ("fold=true", f"against={layernorm}"))
    assert "plain" in render_markdown(fill_table(plan, find_on_disk))
    for (norm, seed), value in {("layernorm", 0): 40.0, ("layernorm", 1): 42.0, ("un", 0): 30.0}.items():
        add_shifts({"dark": make_result("dark", value, exploded=int(norm == "un"))}, runs[norm, seed].folder / FILE)
    write_json({"against": {"run": "", "norm": "layernorm"}, "speed": {"speed_up": 1.25}}, un / "eval.json")
    asked = [(run.folder, arguments) for run, arguments in list_evaluations(plan, find_on_disk)]
    assert asked == [(runs["un", 1].folder, ("shift=[dark]",))]
    comparison = fill_table(plan, find_on_disk)
    text = render_markdown(comparison)
    assert "| 41.00 ± 1.41 | 2 |" in text
    assert "| 30.00 (explodes in 1 of 1) | 1 of 2 | 1.25 |" in text
    assert "dark test/acc1: verdict" not in text
    rows = list_rows(comparison).set_index(["row", "shift", "metric"], drop=False)
    assert rows.loc[("un", "dark", "test/acc1"), "to_layernorm"] == -10.0
    assert list(rows["planned"]) == [2, 2, 0, 2, 2, 1]


def test_what_is_measured_beside_another_norm_is_no_speed_up(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert Run(run.folder, run.result).get("speed_up") is None
    write_json({"speed": {"speed_up": 2.0}}, run.folder / "eval.json")
    assert Run(run.folder, run.result).get("speed_up") is None


def test_an_unknown_shift() -> None:
    content = {"title": "T", "columns": [{"shift": "darkness"}], "rows": [{"label": "x", "arguments": ["norm=un"]}]}
    with pytest.raises(ValueError, match=r"shift 'darkness' is unknown; allowed: dark, joined"):
        parse_table("t", content)
