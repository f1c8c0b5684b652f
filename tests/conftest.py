"""Settings of every test, made before torch is imported, and what the tests of several folders share."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT_PACKAGES = ("benchmarks",)  # in scripts/, beside the programs that import them

# The tests' tensors are small: one thread is as fast as several, and leaves the other cores alone. Child processes too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def find_scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets a test import the packages of scripts/ as the programs there do."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in SCRIPT_PACKAGES]:
        del sys.modules[name]
