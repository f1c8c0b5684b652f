"""What all of results/ takes: its runs with their data, each once, and what is still to be made."""

from pathlib import Path

import pytest

from tests.integration.commands import run_here
from tests.reports.runs import make_run
from un.command.errors import UserError
from un.reports.records import keep_records
from un.reports.runs import find_runs
from un.sweeps import results
from un.sweeps.dry_run import describe_runs
from un.sweeps.results import ChosenTable, Contents, plan_results, read_contents
from un.sweeps.run_names import read_choices
from un.training.run_folder import read_overrides

RECORDED = ("experiment=digits_vit", "norm=un,layernorm", "seed=0", "callbacks=activation_stats")
CONTENTS = Contents(
    {
        "multi30k": ChosenTable(norms=("un",)),
        "cifar10_small": ChosenTable(norms=("un",)),
        "norms": ChosenTable(("un",), ("experiment=digits_vit",)),
    },
    {"fluctuation": RECORDED},
)


def test_the_file_asks_for_runs_that_there_are() -> None:
    """Its tables and figures compose, and every run stands in one of them once."""
    plan = plan_results(read_contents(), ["seed=0"], Path("kept"))
    assert len({run.folder for run in plan.runs}) == len(plan.runs) > 100
    assert {run.key[0] for run in plan.runs} >= {"multi30k_small", "cifar10_vit_tiny", "digits_vit", "phrasebook_tiny"}
    assert {run.folder for runs in plan.figures.values() for run in runs} <= {run.folder for run in plan.runs}


def test_each_run_gets_the_place_of_its_own_data(tmp_path: Path) -> None:
    given = ["data.multi30k.path=/far/multi 30k", "data.cifar10.path=/far/cifar10", f"paths.runs={tmp_path}", "seed=0"]
    plan = plan_results(CONTENTS, given, tmp_path / "kept")
    found = {run.key[0]: read_overrides(run.arguments).get("data.path") for run in plan.runs}
    assert found == {"multi30k_small": "/far/multi 30k", "cifar10_vit_tiny": "/far/cifar10", "digits_vit": None}
    recorded = {run.key: read_choices(run.arguments).get("callbacks") for run in plan.runs}
    assert recorded["digits_vit", "norm=un", "seed=0"] == "activation_stats"  # a table asks for it, and a figure


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("data.path=/x", r"data.path= is for none of its data; allowed: data.cifar10.path=, data.multi30k.path="),
        ("data.cifar100.path=/x", r"data.cifar100.path= is for none of its data"),
        ("norm=un", r"norm= is given by results.yaml"),
    ],
)
def test_arguments_that_are_not_for_every_run(argument: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        plan_results(CONTENTS, [argument], Path("kept"))


def test_a_row_that_there_is_not() -> None:
    with pytest.raises(UserError, match="table multi30k has no row with norm=groupnorm"):
        plan_results(Contents({"multi30k": ChosenTable(norms=("un", "groupnorm"))}), [], Path("kept"))


def test_records_stand_for_runs_but_not_for_what_is_drawn_from_them(tmp_path: Path) -> None:
    for seed, seconds in ((0, 600.0), (1, 1200.0)):
        make_run(tmp_path / "old", "norm=un", seed, wall_time_seconds=seconds)
    keep_records(find_runs([tmp_path / "old"])[0], tmp_path / "kept")
    make_run(tmp_path / "runs", "norm=un", 2, wall_time_seconds=1800.0)
    contents = Contents({"norms": ChosenTable(("un",), ("experiment=digits_vit",))}, {"fluctuation": RECORDED})
    plan = plan_results(contents, [f"paths.runs={tmp_path / 'runs'}"], tmp_path / "kept")
    assert [run.key[1:] for run in plan.list_missing()] == [("norm=layernorm", "seed=0")]
    missing = plan.list_missing(["fluctuation"])
    assert [run.key[1:] for run in missing] == [("norm=un", "seed=0"), ("norm=layernorm", "seed=0")]
    assert plan.describe_figure("fluctuation")[1] == f"run={tmp_path / 'runs/digits_vit/norm=un/seed=0'}"
    lines = describe_runs(plan.runs, missing=plan.list_missing()).splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["recorded", "recorded", "finished", "missing"]
    assert lines[3].split()[1:3] == ["30.0", "min"]  # as the experiment's run here took
    assert lines[4] == "4 runs, 3 done"
    assert plan.count_missing(missing) == ["table norms: 1 of 3 runs missing"]


def test_norms_are_taken_out_of_a_model_that_is_there(tmp_path: Path) -> None:
    """The record of the LayerNorm run holds no weights."""
    make_run(tmp_path, "norm=layernorm", experiment="cifar10_vit_tiny")
    keep_records(find_runs([tmp_path])[0], tmp_path / "kept")
    columns = ("experiment=cifar10_vit_tiny", "seed=0")
    plan = plan_results(
        Contents({"retrofit": ChosenTable((), columns)}), [f"paths.runs={tmp_path}/new"], tmp_path / "kept"
    )
    missing = [run.key[1] for run in plan.list_missing()]
    assert missing[0] == "norm=layernorm"
    assert len(missing) == len(plan.runs)


@pytest.mark.slow  # two trainings of seconds, and two programs that are started
def test_from_nothing_to_the_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "results.yaml"
    file.write_text(
        "tables: {norms: {norms: [layernorm, un], arguments: [experiment=digits_vit, debug=fast, seed=0]}}\n"
        'figures: {curves: [experiment=digits_vit, "norm=layernorm,un", debug=fast, seed=0]}\n'
    )
    monkeypatch.setattr(results, "FILE", file)
    command = ("scripts/reproduce.py", "results", f"paths.runs={tmp_path}/runs", "--output", str(tmp_path / "out"))
    listed = run_here(*command, "--dry-run")
    assert "2 runs, 0 done" in listed.output
    assert not (tmp_path / "runs").exists()
    assert run_here(*command).code == 0
    assert (tmp_path / "out/figures/digits_vit_curves.png").is_file()
    assert len(list((tmp_path / "out/runs").rglob("result.json"))) == 2
    assert "Further settings" not in (tmp_path / "out/RESULTS.md").read_text()
    (tmp_path / "runs").rename(tmp_path / "gone")
    again = run_here(*command, "--dry-run")
    assert "2 runs, 2 done" in again.output
    assert [line.split()[0] for line in again.output.splitlines()].count("recorded") == 2
