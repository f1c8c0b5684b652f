"""Processes that are joined by gloo and stay for many tests."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import torch
from torch import distributed

from tests.forked import SERVER

TIMEOUT = timedelta(seconds=60)  # of a collective, so that a test whose ranks disagree ends


class Processes:
    """A process group; a context manager.

    Args:
        count: number of processes.
        folder: where they meet; nothing else may be there.
    """

    def __init__(self, count: int, folder: Path) -> None:
        self.count = count
        self._executors = [
            ProcessPoolExecutor(1, SERVER, initializer=_join, initargs=(rank, count, str(folder / "store")))
            for rank in range(count)
        ]

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Calls a function of an importable module as `function(rank, *arguments)` in all; results by rank.

        Returned tensors must be arrays: torch would share their memory.
        """
        futures = [executor.submit(function, rank, *arguments) for rank, executor in enumerate(self._executors)]
        return [future.result(timeout=2 * TIMEOUT.total_seconds()) for future in futures]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for executor in self._executors:
            executor.shutdown(cancel_futures=True)


def _join(rank: int, count: int, store: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=TIMEOUT)
