"""GPUs of this machine without torch, and one of them for each process of a parallel sweep."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

VISIBLE = "CUDA_VISIBLE_DEVICES"
DRIVER = Path("/proc/driver/nvidia/gpus")  # has an entry per GPU
_taken: list[tuple[IO[str], str]] = []  # of this process, until it ends


def list_gpus() -> list[str]:
    """Returns the names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number, _ in enumerate(sorted(DRIVER.iterdir()) if DRIVER.is_dir() else ())]


def take_gpu(names: Sequence[str], folder: Path | None = None) -> str | None:
    """Takes one of several GPUs for this process; what CUDA sees cannot change once it has begun.

    Args:
        names: Of the GPUs.
        folder: Of the locks, the same for all sweeps of this machine; null is that of temporary files.

    Returns:
        The GPU, the same at every call; None where there are fewer than two, or all are taken.
    """
    if _taken:
        return _taken[0][1]
    for name in names if len(names) > 1 else ():
        lock = Path(folder or tempfile.gettempdir(), f"un-gpu-{os.getuid()}-{name}.lock")
        file = lock.open("a")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            continue
        _taken.append((file, name))
        return name
    return None
