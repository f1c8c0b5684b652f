import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.reports.runs import RESULT
from tests.training.toy import run_toy
from un.reports.result import read_result, write_json, write_result


def test_written_once_and_read_again(tmp_path: Path) -> None:
    metrics = {"test/loss": math.nan, "val/loss": math.inf, "test/acc1": 96.25, "val/acc1": 97}
    write_result(replace(RESULT, metrics=metrics), tmp_path / "result.json")
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    expected = replace(RESULT, metrics={**metrics, "test/loss": None, "val/loss": None})
    assert read_result(tmp_path / "result.json") == expected


def test_a_training_leaves_what_fits(tmp_path: Path) -> None:
    """Numbers of torch and Lightning and containers of OmegaConf arrive as plain ones."""
    result = run_toy(tmp_path, "norm.window=[2,3]", "trainer.max_epochs=1")
    assert result.norm["window"] == [2, 3]
    assert {type(value) for value in result.metrics.values()} == {float}
    assert result == read_result(tmp_path / "result.json")


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_json({"a": 1}, tmp_path / "file.json")
    with pytest.raises(TypeError):
        write_json({"a": object()}, tmp_path / "file.json")
    assert json.loads((tmp_path / "file.json").read_text()) == {"a": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema_version is 99, expected 1"),
        ({"status": "running"}, "status is 'running', expected 'finished' or 'diverged'"),
        ({"status": "diverged"}, "status is 'diverged' with diverged_step None"),
        ({"seed": "3"}, "seed is '3', expected a valid integer"),
        ({"metrics": {"test/acc1": "96"}}, "metrics.test/acc1 is '96', expected a valid number"),
        ({"colour": 1}, "there is no key colour; allowed: status, task"),
        *(({name: ...}, f"{name} is missing") for name in ("steps", "git", "packages", "hardware", "schema_version")),
    ],
)
def test_what_a_file_must_hold(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(RESULT, path)
    content = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
    with pytest.raises(ValueError, match=f"{path}: {message}") as error:
        read_result(path)
    assert "\n" not in str(error.value)


def test_files_of_early_runs_lack_some_fields(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(RESULT, path)
    content = json.loads(path.read_text())
    for name in ("metric_details", "execution", "diverged_layer"):
        del content[name]
    path.write_text(json.dumps(content))
    assert read_result(path) == RESULT


@pytest.mark.parametrize(("content", "message"), [('{"status": "fini', "Invalid JSON"), ("[]", "expected an object")])
def test_what_is_no_result(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_result(path)
