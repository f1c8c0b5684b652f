"""Functions in processes that start at once.

They are forked from a server, which has loaded what a training needs and has no threads: a process that is forked from
the tests themselves may wait for ever for a lock that a thread of theirs held.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FORK = multiprocessing.get_context("fork")  # for what a process of these starts itself
SERVER = multiprocessing.get_context("forkserver")
LOADED = ["torch", "tests.processes", "un.training.train", "un.vision.data", "un.vision.models", "un.vision.module"]
SERVER.set_forkserver_preload(LOADED)


class Forked:
    """A process that leads a process group; its function may first take one that sends something to `hear`.

    Function and arguments must be found by their names, as those of modules are.
    """

    def __init__(self, body: Callable[..., None], *arguments: Any, talks: bool = False) -> None:
        self._heard, told = SERVER.Pipe(duplex=False)
        self._errors = tempfile.NamedTemporaryFile("w+")  # noqa: SIM115  as long as it runs
        arguments = (told.send, *arguments) if talks else arguments
        self.process = SERVER.Process(target=_run, args=(body, arguments, self._errors.name, dict(os.environ)))
        self.process.start()
        told.close()
        assert self.process.pid is not None
        self.pid = self.process.pid

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


def _run(body: Callable[..., None], arguments: tuple[Any, ...], errors: str, environment: Mapping[str, str]) -> None:
    os.setsid()
    os.environ.update(environment)
    with Path(os.devnull).open("w") as sys.stdout, Path(errors).open("w") as sys.stderr:
        body(*arguments)
