"""One finished run of the digits, which the tests of all commands share."""

import shutil
from pathlib import Path

import pytest

from tests.integration.commands import FAST, find_folders, run_here


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
