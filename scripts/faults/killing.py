"""Signals at random moments of the whole life of a run or a sweep, from its first import to its result."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from faults.runs import SETTINGS, LostError, Table, check_files, compare, finish, kill_group, read_outcomes, start

SWEEP = ("-m", "norm=un,layernorm", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
LOKY = b"popen_loky"  # of the command line of joblib's workers
EXIT_SECONDS = 300  # for an answer to SIGTERM on a busy machine

# Takes the process that was started; returns the name of the fault.
Fault = Callable[[subprocess.Popen[str], random.Random], str]


def kill_run(process: subprocess.Popen[str], draw: random.Random) -> str:
    """Kills the process of a run."""
    kill_group(process)
    return "kill -9 of a run"


def kill_sweep(process: subprocess.Popen[str], draw: random.Random) -> str:
    """Kills all processes of a sweep, or one of its workers, or only the one that waits for them."""
    workers = find_workers(process.pid)
    choice = draw.choice(["all", "worker", "parent"])
    if choice == "all" or (choice == "worker" and not workers):
        kill_group(process)
        return "kill -9 of a whole sweep"
    if choice == "worker":
        os.kill(draw.choice(workers), signal.SIGKILL)
        process.communicate(timeout=EXIT_SECONDS)  # the sweep goes on with what was not begun
        return "kill -9 of a sweep's worker"
    process.kill()
    process.wait()  # workers go on: the same sweep must not write into their runs
    return "kill -9 of a sweep's parent"


def ask_to_stop(process: subprocess.Popen[str], draw: random.Random) -> str:
    """Sends one signal to a run; it ends with its code and one line."""
    signum = draw.choice([signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
    process.send_signal(signum)
    _, errors = process.communicate(timeout=EXIT_SECONDS)
    early = process.returncode == -signum and not errors  # before Python was there to listen
    interrupted = signum == signal.SIGINT and errors.rstrip().endswith("KeyboardInterrupt")
    answered = process.returncode == 128 + signum and len(errors.splitlines()) == 1 and "stopped by" in errors
    if not (early or interrupted or answered or process.returncode == 0):
        raise LostError(f"{signum.name} ended a run with code {process.returncode}: {errors}")
    return f"{signum.name} to a run"


KINDS: dict[str, tuple[Fault, tuple[str, ...]]] = {
    "kill": (kill_run, ()),
    "kill-sweep": (kill_sweep, SWEEP),
    "signal": (ask_to_stop, ()),
}


def inject(kind: str, trials: int, seed: int, folder: Path) -> Table:
    """Hits a run again and again until it is through, then the next, until there were enough trials.

    Moments are uniform over the time that an uninterrupted run takes. What a run leaves in the end is compared with
    what the uninterrupted one left, and after every hit files are checked to be whole.
    """
    fault, arguments = KINDS[kind]
    draw, table = random.Random(seed), Table()
    whole = folder / "whole"
    seconds = finish(["train.py", *arguments, f"paths.runs={whole}", *SETTINGS])
    expected = read_outcomes(whole)
    while (done := table.count) < trials:
        runs = folder / f"hit-after-{done}"
        command = ["train.py", *arguments, f"paths.runs={runs}", *SETTINGS]
        hits: list[str] = []
        with table.count_faults(hits):
            hit_until_through(command, runs, fault, seconds, draw, hits, trials - done)
            finish(command)
            compare(runs, expected)
        print(f"{table.count} of {trials} trials, {sum(table.lost.values())} lost", flush=True)
    return table


def hit_until_through(
    command: list[str], runs: Path, fault: Fault, seconds: float, draw: random.Random, hits: list[str], most: int
) -> None:
    """Starts the command and hits it at a random moment, until it ends by itself or there were enough hits."""
    while len(hits) < most:
        process = start(command)
        moment = time.monotonic() + draw.uniform(0, seconds)
        while time.monotonic() < moment and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is not None:
            _, errors = process.communicate()
            if process.returncode == 0:
                return
            if "is in use" not in errors:
                raise LostError(f"code {process.returncode}: {errors[-500:]}")
            continue
        hits.append(fault(process, draw))
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
