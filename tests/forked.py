"""Functions in processes that are forked from the tests, where torch is loaded already, so that they start at once."""

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

FORK = multiprocessing.get_context("fork")


class Forked:
    """A process that leads a process group; its function may first take one that sends something to `hear`."""

    def __init__(self, body: Callable[..., None], *arguments: Any, talks: bool = False) -> None:
        self._heard, told = FORK.Pipe(duplex=False)
        self._output, self._errors = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115  as long as it runs
        arguments = (told.send, *arguments) if talks else arguments
        self.process = FORK.Process(target=self._run, args=(body, arguments))
        self.process.start()
        told.close()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def _run(self, body: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        os.setsid()
        sys.stdout, sys.stderr = self._output, self._errors
        body(*arguments)

    def hear(self, patience: float = 60) -> Any:
        assert self._heard.poll(patience)
        return self._heard.recv()

    def send(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def wait(self, patience: float = 600) -> tuple[int | None, str]:
        """Returns the exit code, or minus the signal that ended it, and what was printed as errors."""
        deadline = time.monotonic() + patience
        while self.process.exitcode is None and time.monotonic() < deadline:  # join would wait for what it forked, too
            time.sleep(0.01)
        self._errors.seek(0)
        return self.process.exitcode, self._errors.read()

    def kill_group(self) -> None:
        if self.process.exitcode is None:
            os.killpg(self.pid, signal.SIGKILL)
        self.process.join()
