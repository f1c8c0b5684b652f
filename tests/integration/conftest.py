"""Finished runs of the digits and of some text, which the tests of all commands share."""

import shutil
from pathlib import Path

import pytest

from tests.integration.commands import FAST, find_folders, find_run, run_here
from tests.integration.texts import TEXT, write_text


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of `train.py *FAST model.depth=1`, which tests must not change."""
    runs = tmp_path_factory.mktemp("trained")
    outcome = run_here("train.py", f"paths.runs={runs}", *FAST, "model.depth=1")
    assert outcome.code == 0, outcome
    (folder,) = find_folders(runs).values()
    return folder


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, in `tmp_path/runs`."""
    return Path(shutil.copytree(trained, tmp_path / "runs" / trained.relative_to(trained.parents[2])))


@pytest.fixture(scope="session")
def translator(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The run folder of a small translator, and its text, which tests must not change."""
    place = tmp_path_factory.mktemp("translator")
    text = write_text(place / "text", "Hund")
    outcome = run_here("train.py", *TEXT, f"data.path={text}", f"paths.runs={place / 'runs'}")
    assert outcome.code == 0, outcome
    return find_run(place / "runs"), text
