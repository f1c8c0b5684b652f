"""`train.py` in processes that are forked from the tests, where torch is loaded already."""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Callable

import un.training.train
import un.vision.data
import un.vision.models
import un.vision.module  # noqa: F401  loaded here, so that the forked processes need not
from tests.integration.commands import REPOSITORY

PATIENCE = 600


class Command:
    """A process that leads a process group."""

    def __init__(self, arguments: tuple[str, ...], prepare: Callable[[], None] = lambda: None) -> None:
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115  open as long as the process runs
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = multiprocessing.get_context("fork").Process(target=self._run, args=(arguments, prepare))
        self.process.start()

    def _run(self, arguments: tuple[str, ...], prepare: Callable[[], None]) -> None:
        os.setsid()
        os.chdir(REPOSITORY)
        sys.stdout, sys.stderr = self._output, self._errors
        prepare()
        sys.argv = ["train.py", *arguments]
        runpy.run_path("train.py", run_name="__main__")

    def wait(self) -> tuple[int | None, str]:
        """Returns the exit code, or minus the signal that ended it, and the errors."""
        self.process.join(PATIENCE)
        self._errors.seek(0)
        return self.process.exitcode, self._errors.read()

    def kill(self) -> None:
        assert self.process.pid is not None
        if self.process.exitcode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()


def finish(arguments: tuple[str, ...]) -> None:
    assert Command(arguments).wait() == (0, "")
