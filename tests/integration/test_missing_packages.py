"""Translation where a package of its extra is not installed: one line with the command that installs it."""

import subprocess
import sys
from pathlib import Path

from tests.integration.commands import REPOSITORY

CODE = "import runpy, sys; sys.modules[sys.argv.pop(1)] = None; runpy.run_path('train.py', run_name='__main__')"


def test_missing_package(tmp_path: Path) -> None:
    arguments = (f"paths.runs={tmp_path}", "experiment=phrasebook_tiny", "debug=fast", "trainer.accelerator=cpu")
    command = [sys.executable, "-c", CODE, "fairseq", *arguments]
    outcome = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert outcome.returncode == 2, outcome
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("error: ")
    assert "fairseq" in line
    assert line.endswith(": make translation")
