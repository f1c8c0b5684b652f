"""scripts/gpu.sh with a program in the place of Python: parts are run, stopped and reported one by one."""

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
CARD = "Some-GPU-80GB"
# Looks like a machine with everything installed; its inference benchmark fails, and its training measures too long.
PROGRAM = """#!/bin/bash
case "$*" in
    -c*) printf 'Some-GPU-80GB\\nPython 3.12 torch 2.11\\n%s\\n' "$MISSING" ;;
    "-m pytest"*) echo "3 passed in 1.0s" ;;
    "scripts/benchmark.py inference"*) echo "| model | ms |"; exit 3 ;;
    "scripts/benchmark.py training"*) echo "| step | ms |"; exec sleep 60 ;;
    *) echo "2 runs in 1.0 minutes" ;;
esac
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "python"
    path.write_text(PROGRAM)
    path.chmod(0o755)
    return path


def run(program: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    folder = program.parent
    environment = {**os.environ, "PYTHON": str(program), "OUTPUT": str(folder), "WHEELS": str(folder / "none")}
    command = [str(REPOSITORY / "scripts/gpu.sh")]
    return subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True, timeout=60)


def test_a_failing_part_stops_no_other(program: Path) -> None:
    found = run(program, PARTS="tests inference translation")
    assert found.returncode == 1
    report = (program.parent / CARD / "README.md").read_text()
    assert "tests: done" in report
    assert "inference: ended with code 3" in report
    assert "translation: done" in report
    for line in ("3 passed", "| model | ms |", "2 runs in 1.0 minutes"):
        assert line in report


def test_all_well(program: Path) -> None:
    assert run(program, PARTS="tests translation").returncode == 0


def test_what_takes_too_long_is_stopped(program: Path) -> None:
    found = run(program, PARTS="training tests", BUDGET="0.1", LEAST="1")
    assert found.returncode == 1
    assert "training: stopped" in found.stdout
    assert "tests: done" in found.stdout
    assert "| step | ms |" in (program.parent / CARD / "README.md").read_text()


def test_no_time_at_all(program: Path) -> None:
    found = run(program, BUDGET="0")
    assert found.returncode == 1
    assert found.stdout.count("not reached") == 4


def test_missing_packages_name_the_cure(program: Path) -> None:
    found = run(program, PARTS="tests", MISSING="hydra omegaconf")
    assert found.returncode == 1
    assert "missing: hydra omegaconf" in found.stdout
    assert "run 'scripts/gpu.sh prepare' where there is a network" in found.stdout


def test_an_unknown_part(program: Path) -> None:
    found = run(program, PARTS="tests benchmark")
    assert found.returncode == 2
    assert found.stderr.startswith("error: PARTS has benchmark; there are ")
