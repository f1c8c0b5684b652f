"""Runs `train.py` and `eval.py` as typed, in this process (fast) or in one of its own (as a user does)."""

import contextlib
import io
import logging
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

REPOSITORY = Path(__file__).parents[2]
FAST = ("debug=fast", "trainer.accelerator=cpu")


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    output: str
    errors: str

    def check_error(self, *parts: str) -> None:
        """It ended as a mistake of the user: code 2 and one line with these parts."""
        assert self.code == 2, self
        lines = self.errors.splitlines()
        assert len(lines) == 1, self
        assert lines[0].startswith("error: "), self
        for part in parts:
            assert part in lines[0], self


def run_here(script: str, *arguments: str) -> Outcome:
    """Runs a script in this process."""
    output, errors, code = io.StringIO(), io.StringIO(), 0
    path = [str((REPOSITORY / script).parent), *sys.path]  # as Python sets it for a script
    changes = (mock.patch.object(sys, "argv", [script, *arguments]), mock.patch.object(sys, "path", path))
    arranged = (_keep_logging(), mock.patch.dict(os.environ), *changes)
    with contextlib.ExitStack() as stack:
        for context in (*arranged, contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors)):
            stack.enter_context(context)
        try:
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Outcome(code, output.getvalue(), errors.getvalue())


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    """Starts a script in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, script, *arguments]
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(script: str, *arguments: str) -> Outcome:
    """Runs a script in a process of its own."""
    process = start(script, *arguments)
    output, errors = process.communicate(timeout=300)
    return Outcome(process.returncode, output, errors)


@contextlib.contextmanager
def _keep_logging() -> Iterator[None]:
    """Undoes what Hydra does to the root logger."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def find_folders(runs: Path) -> dict[str, Path]:
    """The run folders by the part of their name that changed."""
    return {path.parent.parent.name: path.parent for path in sorted(runs.rglob("config.yaml"))}


def find_run(runs: Path) -> Path:
    (config,) = runs.rglob("config.yaml")
    return config.parent
