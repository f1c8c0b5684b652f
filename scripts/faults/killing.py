"""Signals at random moments of the whole life of a run or a sweep, from its first import to its result."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from faults.runs import SETTINGS, LostError, Run, Table, check_files, compare, finish, read_outcomes

SWEEP = ("-m", "norm=un,layernorm")
WORKERS = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
LOKY = b"popen_loky"  # of the command line of joblib's workers

# Hits a run or a sweep that was started; returns the name of the fault.
Fault = Callable[[Run, random.Random], str]


def kill_run(run: Run, draw: random.Random) -> str:
    """Kills the process of a run."""
    run.kill_group()
    return "kill -9 of a run"


def kill_sweep(run: Run, draw: random.Random) -> str:
    """Kills the process of a sweep that does its runs itself."""
    run.kill_group()
    return "kill -9 of a sweep"


def kill_workers(run: Run, draw: random.Random) -> str:
    """Kills all processes of a parallel sweep, or one of its workers, or only the one that waits for them."""
    workers = find_workers(run.pid)
    choice = draw.choice(["all", "worker", "parent"])
    if choice == "all" or (choice == "worker" and not workers):
        run.kill_group()
        return "kill -9 of a parallel sweep"
    if choice == "worker":
        os.kill(draw.choice(workers), signal.SIGKILL)
        run.wait()  # the sweep goes on with what was not begun
        return "kill -9 of a worker of a parallel sweep"
    run.send(signal.SIGKILL)
    run.wait()  # workers go on: the same sweep must not write into their runs
    return "kill -9 of the parent of a parallel sweep"


def ask_to_stop(run: Run, draw: random.Random) -> str:
    """Sends one signal to a run; it ends with its code and one line."""
    signum = draw.choice([signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
    run.send(signum)
    code, _, errors = run.wait()
    early = code == -signum or (signum == signal.SIGINT and errors.rstrip().endswith("KeyboardInterrupt"))
    answered = code == 128 + signum and len(errors.splitlines()) == 1 and "stopped by" in errors
    if not (early or answered or code == 0):  # early: before train.py had begun to listen
        raise LostError(f"{signum.name} ended a run with code {code}: {errors}")
    return f"{signum.name} to a run"


KINDS: dict[str, tuple[Fault, tuple[str, ...]]] = {
    "kill": (kill_run, ()),
    "kill-sweep": (kill_sweep, SWEEP),
    "kill-parallel": (kill_workers, (*SWEEP, *WORKERS)),
    "signal": (ask_to_stop, ()),
}


def inject(kind: str, trials: int, seed: int, folder: Path) -> Table:
    """Hits a run again and again until it is through, then the next, until there were enough trials.

    Moments are uniform over the processor time that an uninterrupted run takes. What a run leaves in the end is
    compared with what the uninterrupted one left, and after every hit files are checked to be whole.
    """
    fault, arguments = KINDS[kind]
    draw, table = random.Random(seed), Table()
    whole = folder / "whole"
    seconds = finish([*arguments, f"paths.runs={whole}", *SETTINGS])
    expected = read_outcomes(whole)
    while (done := table.count) < trials:
        runs = folder / f"hit-after-{done}"
        command = [*arguments, f"paths.runs={runs}", *SETTINGS]
        hits: list[str] = []
        with table.count_faults(hits):
            hit_until_through(command, runs, lambda run: fault(run, draw), seconds, draw, hits, trials - done)
            finish(command)
            compare(runs, expected)
        print(f"{table.count} of {trials} trials, {table.lost.total()} lost", flush=True)
    return table


def hit_until_through(
    command: list[str],
    runs: Path,
    fault: Callable[[Run], str],
    seconds: float,
    draw: random.Random,
    hits: list[str],
    most: int,
) -> None:
    """Starts the command and hits it at a random moment, until it ends by itself or there were enough hits."""
    while len(hits) < most:
        run = Run(command)
        moment = draw.uniform(0, seconds)
        while run.poll() is None and run.measure_seconds() < moment:
            time.sleep(0.02)
        if run.poll() is not None:
            code, _, errors = run.wait()
            if code == 0:
                return
            if "is in use" not in errors:
                raise LostError(f"code {code}: {errors[-500:]}")
            continue
        hits.append(fault(run))
        check_files(runs)


def find_workers(parent: int) -> list[int]:
    """Returns the ids of a process's joblib workers."""
    workers = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            ids = (path / "stat").read_text().rpartition(")")[2].split()
            is_worker = LOKY in (path / "cmdline").read_bytes()
        except OSError:  # ended in between
            continue
        if int(ids[1]) == parent and is_worker:
            workers.append(int(path.name))
    return workers
