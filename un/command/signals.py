"""Signals that ask a process to stop: one is a request, answered where the work can go on later; a second one ends it.

SIGINT (Ctrl-C) and SIGTERM are what people and batch systems send. SIGUSR1 and SIGUSR2 give notice that the time of a
job is nearly over: Slurm with `--signal`, and submitit, which starts the job again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

URGENT = (signal.SIGINT, signal.SIGTERM)
NOTICES = (signal.SIGUSR1, signal.SIGUSR2)
# One Ctrl-C reaches a process from the terminal and from its parent; two signals so close together are one.
ECHO_SECONDS = 0.5
LOST_LOADER = "DataLoader worker"  # begin of torch's error
EXIT_BASE = 128  # a shell's exit code of a command ended by signal n is 128 + n


class StoppedError(SystemExit):
    """A signal was answered; ends the process with the code that shells give.

    Args:
        signum: of the signal.
        where: follows "stopped by <signal>".
    """

    def __init__(self, signum: int, where: str = "") -> None:
        super().__init__(EXIT_BASE + signum)
        self.signum, self.where = signum, where

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}{self.where}: the same command goes on"


_previous: dict[int, Any] = {}  # handlers that were there before; empty while nobody listens
_received: dict[int, float] = {}  # signal -> when, the first first
_owner = 0  # process that listens; those forked from it inherit its handlers
_deferred = 0
_forwarding = False


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Catches the signals; inside another `listening` this does nothing."""
    global _owner
    if is_listening():
        yield
        return
    _owner = os.getpid()
    _previous.update({signum: signal.signal(signum, _handle) for signum in (*URGENT, *NOTICES)})
    try:
        yield
    finally:
        for signum, handler in _previous.items():
            signal.signal(signum, handler)
        _previous.clear()


def is_listening() -> bool:
    """Whether this very process catches the signals."""
    return bool(_previous) and _owner == os.getpid()


def is_stopping() -> bool:
    """Whether a signal asked this process to stop."""
    return bool(_received)


def forget() -> None:
    """Takes up a new command in a process that answered a signal already."""
    _received.clear()


def make_stop(where: str = "") -> StoppedError:
    """Returns what to raise as the answer, also in a process of a run that did not get the signal itself."""
    return StoppedError(next(iter(_received), signal.SIGTERM), where)


@contextlib.contextmanager
def deferring() -> Iterator[None]:
    """Lets signals wait for whoever asks `is_stopping`; outside, `StoppedError` is raised wherever the process is.

    Raises:
        StoppedError: at the end, where nobody answered.
    """
    global _deferred
    _deferred += 1
    try:
        yield
    except RuntimeError as error:
        if _received and LOST_LOADER in str(error):  # the signal went to a whole group of processes
            raise make_stop(" along with its data loader") from error
        raise
    finally:
        _deferred -= 1
    check_stop()


def check_stop() -> None:
    """Raises `StoppedError` if a signal waits."""
    if _received:
        raise make_stop()


@contextlib.contextmanager
def forwarding() -> Iterator[None]:
    """Passes signals on to the processes that this one has started, as SIGTERM, and waits for these to end.

    Raises:
        StoppedError: at the end, where there was a signal.
    """
    global _forwarding
    with deferring():
        _forwarding = True
        try:
            yield
        finally:
            _forwarding = False


def hand_on() -> None:
    """Tells those who started this process, after it has saved its state, and who may start it again.

    That is submitit, by the handlers which it had installed and which may end the process, or else Slurm, for a job
    that was given notice by SIGUSR1, as in Lightning.
    """
    for signum in list(_received):
        handler = _previous.get(signum)
        if callable(handler) and handler is not signal.default_int_handler:
            handler(signum, None)
        elif signum == signal.SIGUSR1 and "SLURM_JOB_ID" in os.environ and os.environ.get("SLURM_PROCID", "0") == "0":
            array = os.environ.get("SLURM_ARRAY_JOB_ID")
            job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
            subprocess.run(["scontrol", "requeue", job], check=False)


def _handle(signum: int, frame: FrameType | None) -> None:
    if os.getpid() != _owner:  # a data loader's process: the run decides, except for the end of it
        if signum == signal.SIGTERM:
            _end(signum)
        return
    now = time.monotonic()
    earlier = [moment for number, moment in _received.items() if number in URGENT]
    if signum in URGENT and earlier and now - earlier[0] > ECHO_SECONDS:
        _forward()
        _end(signum)
    if signum in _received:
        return
    is_first = not _received
    _received[signum] = now
    _forward()
    if is_first and not _deferred:
        raise make_stop()


def _forward() -> None:
    if _forwarding:
        for child in multiprocessing.active_children():
            child.terminate()


def _end(signum: int) -> None:
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
