"""`train.py` in processes that are forked from the tests."""

import os
import runpy
import sys
from collections.abc import Callable

import un.training.train
import un.vision.data
import un.vision.models
import un.vision.module  # noqa: F401  loaded here, so that the forked processes need not
from tests.forked import Forked
from tests.integration.commands import REPOSITORY


def start(arguments: tuple[str, ...], prepare: Callable[[], None] = lambda: None) -> Forked:
    return Forked(_train, arguments, prepare)


def finish(arguments: tuple[str, ...]) -> None:
    assert start(arguments).wait() == (0, "")


def _train(arguments: tuple[str, ...], prepare: Callable[[], None]) -> None:
    os.chdir(REPOSITORY)
    prepare()
    sys.argv = ["train.py", *arguments]
    runpy.run_path("train.py", run_name="__main__")
