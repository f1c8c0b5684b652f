"""A LayerNorm run loses its norms: without training by a script, and as the start of another run."""

import json
import shutil
from pathlib import Path

import pytest

from tests.integration.commands import FAST, find_folders, run_here
from un.reports.result import read_result


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished LayerNorm run, which tests must not change."""
    runs = tmp_path_factory.mktemp("layernorm")
    outcome = run_here("train.py", f"paths.runs={runs}", *FAST, "model.depth=1", "norm=layernorm")
    assert outcome.code == 0, outcome
    (folder,) = find_folders(runs).values()
    return folder


def test_taken_out_without_training(original: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "run"))
    before = (folder / "result.json").read_bytes()
    outcome = run_here("scripts/retrofit.py", f"run={folder}", "calibration_batches=8", "shift=dark")
    assert outcome.code == 0, outcome
    content = json.loads((folder / "retrofit.json").read_text())
    recorded = {k: v for k, v in read_result(folder / "result.json").metrics.items() if k.startswith("test/")}
    assert content["original"] == pytest.approx(recorded, rel=1e-5)
    assert content["norm_free"].keys() == recorded.keys()
    assert content["fold"] == {"norms": 3, "folded": 3}
    assert content["speed"]["speed_up"] > 0
    assert [row["new"] for row in content["report"]["norms"]] == ["ChannelMap"] * 3
    assert "3 norms taken out by least_squares" in outcome.output
    assert "under shift: dark" in outcome.output
    for kind, place in (("original", folder), ("norm_free", folder / "retrofit/least_squares")):
        tested = json.loads((place / "shift.json").read_text())["dark"]
        assert tested == content["shift"]["dark"][kind]
        assert tested["folded"] is (kind == "norm_free")
    assert (folder / "result.json").read_bytes() == before
    outcome = run_here("eval.py", f"run={folder / 'retrofit/least_squares'}", "fold=true", f"against={folder}")
    assert outcome.code == 0, outcome
    assert "3 of 3 norms folded" in outcome.output
    assert f"s by {folder}" in outcome.output
    now = json.loads((folder / "retrofit/least_squares/eval.json").read_text())
    assert now["metrics"] == pytest.approx(content["norm_free"], rel=1e-5)
    assert now["against"] == {"run": str(folder), "norm": "layernorm"}


def test_the_start_of_another_run(original: Path) -> None:
    runs = original.parents[2]
    command = ("train.py", f"paths.runs={runs}", *FAST, "model.depth=1", f"retrofit={original}", "norm=un")
    outcome = run_here(*command)
    assert outcome.code == 0, outcome
    (folder,) = [found for found in find_folders(runs).values() if "retrofit=" in str(found)]
    assert read_result(folder / "result.json").norm["choice"] == "un"
    outcome = run_here("eval.py", f"run={folder}", "fold=true")
    assert outcome.code == 0, outcome
    assert "3 of 3 norms folded" in outcome.output


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("scripts/retrofit.py", "run={original}", "method=magic"), "method=magic must be one of least_squares"),
        (("scripts/retrofit.py", "run={original}", "calibration_batches=0"), "calibration_batches=0"),
        (("scripts/retrofit.py", "run={original}", "output={original}"), "holds something else"),
        (("scripts/retrofit.py", "run={original}", "exclude=[nothing]"), "exclude 'nothing' matches no norm"),
        (("train.py", "retrofit={original}", "norm=layernorm"), "norm=layernorm keeps them"),
        (
            ("train.py", "retrofit_options.every=3", "norm=un"),
            "retrofit_options.every=3 does nothing",
        ),
    ],
)
def test_mistakes(original: Path, command: tuple[str, ...], message: str) -> None:
    script, *arguments = (text.format(original=original) for text in command)
    run_here(script, *arguments, *([f"paths.runs={original.parents[2]}"] if script == "train.py" else [])).check_error(
        message
    )
