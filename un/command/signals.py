"""Signals that ask a process to stop: the first is a request, answered where the work can be resumed; a second ends it.

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
LOST_LOADER = "DataLoader worker"  # how torch's error begins

_previous: dict[int, Any] = {}  # the handlers to put back; empty while nobody listens
_received: dict[int, float] = {}  # signal -> time, in the order of arrival
_is_deferred = _forwards = False


class StoppedError(SystemExit):
    """A signal was answered; ends the process with the exit code that shells use for it.

    `where` follows "stopped by <signal>" in the message.
    """

    def __init__(self, signum: int, where: str = "") -> None:
        super().__init__(128 + signum)
        self.signum, self.where = signum, where

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}{self.where}: run the same command to resume"


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Catches the signals from now on; has no effect inside another `listening`."""
    if _previous:
        yield
        return
    _received.clear()
    _previous.update({signum: signal.signal(signum, _handle) for signum in (*URGENT, *NOTICES)})
    try:
        yield
    finally:
        for signum, handler in _previous.items():
            signal.signal(signum, handler)
        _previous.clear()


def is_listening() -> bool:
    """Tells whether this very process catches the signals."""
    return bool(_previous)


def is_stopping() -> bool:
    """Tells whether a signal asked this process to stop."""
    return bool(_received)


def make_stop(where: str = "") -> StoppedError:
    """Returns what to raise as the answer, also in a process of a run that did not get the signal itself."""
    return StoppedError(next(iter(_received), signal.SIGTERM), where)


@contextlib.contextmanager
def deferring(*, forwards: bool = False) -> Iterator[None]:
    """Lets signals wait for whoever asks `is_stopping`; outside, `StoppedError` is raised wherever the process is.

    Args:
        forwards: also send SIGTERM to the processes that this one has started.

    Raises:
        StoppedError: at the end, where nobody answered.
    """
    global _is_deferred, _forwards
    _is_deferred, _forwards = True, forwards
    try:
        yield
    except RuntimeError as error:
        if _received and LOST_LOADER in str(error):  # the signal went to a whole group of processes
            raise make_stop(" along with its data loader") from error
        raise
    finally:
        _is_deferred = _forwards = False
    if _received:
        raise make_stop()


def hand_on() -> None:
    """Tells whoever started this process, and may start it again, that its state is saved.

    That is submitit, through the handlers it had installed, which may end the process; or else Slurm, for a job that
    was given notice by SIGUSR1, as in Lightning.
    """
    for signum in list(_received):
        handler = _previous.get(signum)
        if callable(handler) and handler is not signal.default_int_handler:
            handler(signum, None)
        elif signum == signal.SIGUSR1 and "SLURM_JOB_ID" in os.environ:
            array = os.environ.get("SLURM_ARRAY_JOB_ID")
            job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
            subprocess.run(["scontrol", "requeue", job], check=False)


def _handle(signum: int, frame: FrameType | None) -> None:
    urgent = [moment for number, moment in _received.items() if number in URGENT]
    is_second = signum in URGENT and bool(urgent) and time.monotonic() - urgent[0] > ECHO_SECONDS
    if signum in _received and not is_second:
        return
    if _forwards:
        for child in multiprocessing.active_children():
            child.terminate()
    if is_second:
        signal.signal(signum, signal.SIG_DFL)
        signal.raise_signal(signum)
    _received[signum] = time.monotonic()
    if len(_received) == 1 and not _is_deferred:
        raise make_stop()


def _leave_to_parent() -> None:
    """Lets a forked process, such as a data loader's, be ended by its parent, which alone answers the signals."""
    for signum in _previous:
        signal.signal(signum, signal.SIG_DFL if signum == signal.SIGTERM else signal.SIG_IGN)
    _previous.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
