"""Finding runs and telling their settings."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.reports.runs import make_run
from un.reports.records import keep_records
from un.reports.result import write_result
from un.reports.runs import find_runs, group_by_setting, name_reference


def test_finds_runs_and_names_damaged_files(tmp_path: Path) -> None:
    first, second = make_run(tmp_path, seed=0), make_run(tmp_path, seed=1)
    inner = first.folder / "wandb/run"
    inner.mkdir(parents=True)
    (inner / "result.json").write_text("{}")  # a logger's, not ours
    broken = make_run(tmp_path, "norm=dyt").folder / "result.json"
    broken.write_text(broken.read_text()[:50])
    runs, problems = find_runs([tmp_path, tmp_path])
    assert [run.folder for run in runs] == [first.folder, second.folder]
    assert group_by_setting(runs) == {"digits_vit": {"norm=un": [first, second]}}
    assert len(problems) == 1
    assert str(broken) in problems[0]


def test_a_copied_folder_is_a_setting_of_its_own(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.folder.rename(tmp_path / "copy")
    ((moved,), _) = find_runs([tmp_path / "copy"])
    assert moved.setting == "copy"


@pytest.mark.parametrize(
    ("setting", "reference"),
    [
        ("norm=un", "norm=layernorm"),
        ("norm=un,norm.window=4,16,optimizer.lr=0.1", "norm=layernorm,optimizer.lr=0.1"),
        ("norm=dyt,data.limit=9,trainer.max_steps=3", "norm=layernorm,data.limit=9,trainer.max_steps=3"),
    ],
)
def test_reference_is_the_same_without_the_norm(setting: str, reference: str) -> None:
    assert name_reference(setting) == reference


def test_main_metric_is_the_score_and_a_diverged_run_has_no_value(tmp_path: Path) -> None:
    assert make_run(tmp_path, value=51.0).get(None) == 51.0
    bleu = {"test/loss": 1.0, "test/bleu": 30.0}
    assert make_run(tmp_path, "norm=mabn", metrics=bleu).get(None) == 30.0
    assert make_run(tmp_path, "norm=mabn", 1, metrics=bleu).get("test/loss") == 1.0
    diverged = make_run(tmp_path, "norm=dyt", value=None, metrics={"test/acc1": 9.0})
    assert diverged.get("test/acc1") is None


def test_a_record_says_all_but_where_things_lay(tmp_path: Path) -> None:
    weights = "init_weights='/far/x=1/checkpoints/best.ckpt'"
    typed = ["norm=un", "data.path=/far/multi30k", weights, "paths.runs=../runs", "data.path=~/cifar10/"]
    data = {"choice": "multi30k", "path": "/far/multi30k", "bpe_merges": 6000}
    run = make_run(tmp_path / "runs", overrides=typed, data=data)
    (run.folder / "eval.json").write_text('{"against": {"run": "/far/runs/x"}, "speed": 2}')
    (path,) = keep_records([run], tmp_path / "kept")
    assert json.loads(path.with_name("eval.json").read_bytes()) == {"against": {"run": "x"}, "speed": 2}
    ((kept,), problems) = find_runs([tmp_path / "kept"])
    assert (path.parent, problems) == (tmp_path / "kept/digits_vit/norm=un/seed=0", [])
    assert kept.result.overrides[1:4] == ["data.path=multi30k", "init_weights='best.ckpt'", "paths.runs=../runs"]
    assert "/" not in kept.result.overrides[4].rstrip("/")
    assert kept.result.data == {**data, "path": "multi30k"}
    assert replace(kept.result, overrides=typed, data=data) == run.result


def test_a_run_and_its_record_are_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", wall_time_seconds=60.0)
    (run.folder / "config.yaml").touch()
    keep_records([run], tmp_path / "kept")
    assert find_runs([tmp_path])[0] == [run]
    later = replace(run.result, wall_time_seconds=61.0)
    write_result(later, run.folder / "result.json")
    assert [one.result.wall_time_seconds for one in find_runs([tmp_path])[0]] == [60.0, 61.0]
