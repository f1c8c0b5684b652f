"""The program that injects faults, with few trials; its own table has fifty of each kind."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.commands import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # dozens of runs of some seconds


@pytest.fixture(autouse=True)
def _find_scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "faults"]:
        del sys.modules[name]


@pytest.mark.parametrize("kind", ["kill", "kill-sweep", "kill-parallel", "signal"])
def test_random_moments(kind: str, tmp_path: Path) -> None:
    from faults.killing import inject

    table = inject(kind, 5, 1, tmp_path)
    assert table.problems == []
    assert table.count == 5


def test_chosen_moments_of_writing(tmp_path: Path) -> None:
    from faults.writing import kill_while_writing

    table = kill_while_writing(tmp_path)
    assert table.problems == []
    assert table.count == 19


def test_disks(tmp_path: Path) -> None:
    from faults.writing import DISK_SIZES, LENGTHS, fill_disks

    table = fill_disks(tmp_path)
    assert table.problems == []
    assert table.count == len(LENGTHS) + (len(DISK_SIZES) + 1 if os.getuid() == 0 else 0)
