import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.reports.runs import RESULT as EXAMPLE
from un.reports.result import SCHEMA_VERSION, read_result, write_json, write_result

RESULT = replace(
    EXAMPLE,
    metrics={"test/acc1": 96.25, "val/acc1": 97},
    metric_details={"test/acc1": "top-1"},
    train_samples_per_second=None,
    git={"commit": None},
)


def test_round_trip(tmp_path: Path) -> None:
    write_result(RESULT, tmp_path / "result.json")
    assert read_result(tmp_path / "result.json") == RESULT
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert json.loads((tmp_path / "result.json").read_text())["schema_version"] == SCHEMA_VERSION


def test_files_of_early_runs_lack_some_fields(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(RESULT, path)
    content = json.loads(path.read_text())
    for name in ("metric_details", "execution", "diverged_layer"):
        del content[name]
    path.write_text(json.dumps(content))
    assert read_result(path) == replace(RESULT, metric_details={})


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    metrics = {"test/loss": math.nan, "val/loss": math.inf, "test/acc1": 1.5}
    write_result(replace(RESULT, metrics=metrics), tmp_path / "result.json")
    assert read_result(tmp_path / "result.json").metrics == {"test/loss": None, "val/loss": None, "test/acc1": 1.5}


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
        ({"diverged_step": 3}, "status is 'finished' with diverged_step 3"),
        ({"seed": "3"}, "seed is '3', expected a valid integer"),
        ({"seed": True}, "seed is True, expected a valid integer"),
        ({"metrics": {"test/acc1": "96"}}, "metrics.test/acc1 is '96', expected a valid number"),
        ({"metric_details": {"test/bleu": 3}}, "metric_details.test/bleu is 3, expected a valid string"),
        ({"colour": 1}, "there is no key colour; allowed: status, task"),
        ({"steps": ...}, "steps is missing"),
    ],
)
def test_wrong_content(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(RESULT, path)
    content = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
    with pytest.raises(ValueError, match=message) as error:
        read_result(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_file_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(RESULT, path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match="Invalid JSON"):
        read_result(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="expected an object"):
        read_result(path)


def test_reading_results_does_without_torch() -> None:
    code = "import sys, un.reports.result; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
