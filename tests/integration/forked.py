"""`train.py` in processes that start at once."""

import os
import runpy
import sys
from collections.abc import Callable

from tests.forked import Forked
from tests.integration.commands import REPOSITORY


def start(arguments: tuple[str, ...], prepare: Callable[[], None] | None = None) -> Forked:
    return Forked(_train, arguments, prepare)


def finish(arguments: tuple[str, ...]) -> None:
    assert start(arguments).wait() == (0, "")


def _train(arguments: tuple[str, ...], prepare: Callable[[], None] | None) -> None:
    os.chdir(REPOSITORY)
    if prepare is not None:
        prepare()
    sys.argv = ["train.py", *arguments]
    runpy.run_path("train.py", run_name="__main__")
