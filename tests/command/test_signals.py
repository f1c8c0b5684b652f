"""Signals reach real processes."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.forked import FORK, Forked
from un.command import signals
from un.command.cli import answer_signals
from un.training.run_folder import RunFolder

Tell = Callable[[Any], None]


def start(body: Callable[..., None], *arguments: Any) -> Forked:
    """Starts a program and waits until it says that it is ready."""
    program = Forked(body, *arguments, talks=True)
    assert program.hear() == "ready"
    return program


def wait_for_signal() -> None:
    while not signals.is_stopping():
        time.sleep(0.01)


def answer_at_once(tell: Tell) -> None:
    with answer_signals():
        tell("ready")
        time.sleep(60)


def answer_later(tell: Tell, seconds: float = 0.0, error: Exception | None = None) -> None:
    with answer_signals(), signals.deferring():
        tell("ready")
        wait_for_signal()
        tell("asked")
        time.sleep(seconds)
        raise error or signals.make_stop(" at step 7")


def never_answer(tell: Tell) -> None:
    with answer_signals():
        with signals.deferring():
            tell("ready")
            wait_for_signal()
        raise AssertionError("went on")


def load_data(tell: Tell) -> None:
    """Starts a process as a data loader does."""
    with answer_signals(), signals.deferring():
        child = FORK.Process(target=time.sleep, args=(60,))
        child.start()
        tell("ready")
        wait_for_signal()
        time.sleep(0.2)
        tell(child.is_alive())
        child.terminate()
        child.join()
        tell(child.exitcode)


def sweep(tell: Tell) -> None:
    """Starts a process as a launcher does."""
    with answer_signals(), signals.deferring(forwards=True):
        child = FORK.Process(target=never_answer, args=(tell,))
        child.start()
        tell("ready")  # as the child does: from now on the process knows that it has one
        child.join()
        tell(child.exitcode)


def be_submitted(tell: Tell) -> None:
    """Is started as by submitit, which starts such jobs again."""
    signal.signal(signal.SIGUSR2, lambda *arguments: sys.exit(122))
    answer_later(tell)


@pytest.mark.parametrize(
    ("body", "where", "signum"),
    [
        (answer_at_once, "", signal.SIGINT),
        (answer_later, " at step 7", signal.SIGTERM),
        (answer_later, " at step 7", signal.SIGUSR1),
        (never_answer, "", signal.SIGTERM),
    ],
)
def test_one_signal(body: Callable[..., None], where: str, signum: signal.Signals) -> None:
    program = start(body)
    program.send(signum)
    assert program.wait() == (128 + signum, f"stopped by {signum.name}{where}: run the same command to resume\n")


def test_two_signals_end_at_once() -> None:
    program = start(answer_later, 60)
    program.send(signal.SIGINT)
    assert program.hear() == "asked"
    time.sleep(signals.ECHO_SECONDS + 0.1)
    program.send(signal.SIGTERM)
    assert program.wait() == (-signal.SIGTERM, "")


@pytest.mark.parametrize(("signum", "pause"), [(signal.SIGINT, 0.0), (signal.SIGUSR1, signals.ECHO_SECONDS + 0.1)])
def test_an_echo_and_a_repeated_notice_are_not_a_second_signal(signum: signal.Signals, pause: float) -> None:
    program = start(answer_later, 1.0)
    program.send(signum)
    assert program.hear() == "asked"
    time.sleep(pause)
    program.send(signum)
    assert program.wait()[0] == 128 + signum


def test_a_forked_process_ignores_the_terminal_and_obeys_its_parent() -> None:
    """Ctrl-C reaches a data loader, too, before the run has come to a place where it can stop."""
    program = start(load_data)
    os.killpg(program.pid, signal.SIGINT)
    assert program.hear() is True
    assert program.hear() == -signal.SIGTERM
    assert program.wait()[0] == 128 + signal.SIGINT


def test_a_sweep_passes_signals_on() -> None:
    program = start(sweep)
    assert program.hear() == "ready"
    program.send(signal.SIGINT)
    assert program.hear() == 128 + signal.SIGTERM
    code, errors = program.wait()
    assert code == 128 + signal.SIGINT
    assert [line.split(":")[0] for line in errors.splitlines()] == ["stopped by SIGTERM", "stopped by SIGINT"]


def test_who_started_the_process_is_told_last() -> None:
    program = start(be_submitted)
    program.send(signal.SIGUSR2)
    assert program.wait() == (122, "stopped by SIGUSR2 at step 7: run the same command to resume\n")


def test_slurm_is_asked_to_start_a_job_again_after_a_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "31")
    for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR1):
        process = start(answer_later)
        process.send(signum)
        assert process.wait()[0] == 128 + signum
        if signum == signal.SIGUSR1:
            monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "30")
            monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    assert (tmp_path / "calls").read_text() == "requeue 31\nrequeue 30_4\n"


def test_a_lost_data_loader_is_part_of_the_signal() -> None:
    program = start(answer_later, 0, RuntimeError("DataLoader worker (pid 3) is killed by signal: Terminated."))
    program.send(signal.SIGTERM)
    code, errors = program.wait()
    assert (code, len(errors.splitlines())) == (128 + signal.SIGTERM, 1)


def lock(tell: Tell, folder: Path) -> None:
    run = RunFolder(folder)
    run.lock()
    loader = FORK.Process(target=time.sleep, args=(60,))
    loader.start()
    tell("ready")
    time.sleep(60)


def test_a_killed_run_lets_go_of_its_folder(tmp_path: Path) -> None:
    """Though a data loader that it has forked has not noticed yet, the same command can take the folder."""
    program = start(lock, tmp_path)
    with pytest.raises(ValueError, match="is in use"):
        RunFolder(tmp_path).lock()
    program.send(signal.SIGKILL)
    program.wait()
    try:
        RunFolder(tmp_path).lock()
    finally:
        os.killpg(program.process.pid, signal.SIGKILL)
