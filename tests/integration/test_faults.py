"""The program that injects faults, with few trials; its own table has fifty of each kind."""

import os
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,  # dozens of runs of some seconds
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("find_scripts"),
]


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
    assert table.count == 22


def test_disks(tmp_path: Path) -> None:
    from faults.writing import DISK_SIZES, LENGTHS, fill_disks

    table = fill_disks(tmp_path)
    assert table.problems == []
    assert table.count == len(LENGTHS) + (len(DISK_SIZES) + 1 if os.getuid() == 0 else 0)
