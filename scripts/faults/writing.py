"""Kills at chosen moments of writing each file, and disks that are full or cannot be written to."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from faults.arming import arm
from faults.runs import SETTINGS, LostError, Run, Table, check_files, compare, finish, read_outcomes

FILES = ("config.yaml", "preprocessor", "metrics.csv", "last.ckpt", "best.ckpt", "epoch=", "result.json")
MOMENTS = ("inside", "before", "after")
# Megabytes at which the disk is full, or after which a file is too long: for the config, the log, metrics.csv, and the
# checkpoints one after the other.
DISK_SIZES = (0.004, 0.012, 0.1, 0.5, 1.2, 1.9, 2.2, 2.5, 2.9)
LENGTHS = (0.001, 0.005, 0.1, 0.5)
LARGE = 512
USER_ERROR = 2


def kill_while_writing(folder: Path) -> Table:
    """Kills one run at every moment of writing every file, then lets it end."""
    whole, runs, table = folder / "whole", folder / "killed", Table()
    finish([f"paths.runs={whole}", *SETTINGS])
    expected, settings = read_outcomes(whole), [f"paths.runs={runs}", *SETTINGS]
    faults: list[str] = []
    with table.count_faults(faults):
        for name in FILES:
            for moment in (*MOMENTS, "append") if name == "metrics.csv" else MOMENTS:
                code, _, errors = Run(settings, prepare=partial(arm, name, moment)).wait()
                if code != -signal.SIGKILL:
                    raise LostError(f"{name} {moment}: code {code} {errors[-500:]}")
                faults.append(f"kill -9 writing {name}")
                check_files(runs)
        finish(settings)
        compare(runs, expected)
    return table


def fill_disks(folder: Path) -> Table:
    """Runs on file systems of some megabytes, with a limit on the length of files, and on one that turns read-only.

    Each run ends with one line and the code of a user's error, and the same command goes on when there is space. Mounts
    need root: without it, only the limit is tried.
    """
    whole, table = folder / "whole", Table()
    finish([f"paths.runs={whole}", *SETTINGS])
    expected = read_outcomes(whole)
    for megabytes in LENGTHS:
        runs, length = folder / f"length-{megabytes}", int(megabytes * 2**20)
        with table.count_faults(["file too long"]):
            limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (length, length))
            expect_error([f"paths.runs={runs}", *SETTINGS], "File too large", limit)
            finish([f"paths.runs={runs}", *SETTINGS])
            compare(runs, expected)
    if os.getuid() != 0:
        return table
    with mount(folder / "disk", DISK_SIZES[0]) as disk:
        runs = disk / "runs"
        command = [f"paths.runs={runs}", *SETTINGS]
        faults: list[str] = []
        with table.count_faults(faults):
            for megabytes in DISK_SIZES:
                remount(disk, f"size={int(megabytes * 1024)}k")
                expect_error(command, "No space left on device")
                faults.append("disk full")
                check_files(runs)
            remount(disk, "ro")
            expect_error(command, "Read-only file system")
            faults.append("read-only run folder")
            remount(disk, f"rw,size={LARGE}m")
            finish(command)
            compare(runs, expected)
    return table


def expect_error(command: Sequence[str], reason: str, prepare: Callable[[], object] | None = None) -> None:
    """Runs a command that must end with one line with the reason and a path.

    Raises:
        LostError: it ends otherwise.
    """
    code, _, errors = Run(command, prepare).wait()
    lines = errors.splitlines()
    if code != USER_ERROR or len(lines) != 1 or not lines[0].endswith(f": {reason}"):
        raise LostError(f"code {code} and not one line with {reason!r}: {errors[-1000:]}")


@contextmanager
def mount(place: Path, megabytes: float) -> Iterator[Path]:
    """Mounts a file system of its own in memory."""
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 1024)}k", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def remount(place: Path, options: str) -> None:
    """Changes options of a mounted file system."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)
