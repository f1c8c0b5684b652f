"""Signals reach real processes: small ones without torch, so that this takes no time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from un.command import signals
from un.training.run_folder import RunFolder

BEGIN = """
import multiprocessing, os, signal, sys, time
from un.command import signals
from un.command.cli import answer_signals
def tell(text):
    print(text, flush=True)
"""
AT_ONCE = """
with answer_signals():
    tell("ready")
    time.sleep(60)
"""
DEFERRED = """
with answer_signals(), signals.deferring():
    tell("ready")
    while not signals.is_stopping():
        time.sleep(0.01)
    tell("asked")
    time.sleep(float(sys.argv[1]))
    raise signals.make_stop(" at step 7")
"""
UNANSWERED = """
with answer_signals():
    with signals.deferring():
        tell("ready")
        while not signals.is_stopping():
            time.sleep(0.01)
    tell("never")
"""
FORKED = """
def work():
    tell("ready")
    time.sleep(60)
with answer_signals(), signals.deferring():
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    while not signals.is_stopping():
        time.sleep(0.01)
    time.sleep(0.2)
    tell(f"child alive {child.is_alive()}")
    child.terminate()
    child.join()
    tell(f"child ended by {-child.exitcode}")
"""
FORWARDING = """
def work():
    with answer_signals(), signals.deferring():
        tell("ready")
        while not signals.is_stopping():
            time.sleep(0.01)
if __name__ == "__main__":
    with answer_signals(), signals.forwarding():
        child = multiprocessing.get_context("spawn").Process(target=work)
        child.start()
        child.join()
        tell(f"child ended with {child.exitcode}")
"""
STARTER = """
signal.signal(signal.SIGUSR2, lambda *arguments: sys.exit(122))  # as submitit, which starts such jobs again
"""


def start(body: str, *arguments: str, group: bool = False, file: Path | None = None) -> subprocess.Popen[str]:
    """Starts a program and waits until it says that it is ready."""
    command = [sys.executable, "-c", BEGIN + body, *arguments]
    if file is not None:  # whose functions another process can import
        file.write_text(BEGIN + body)
        command = [sys.executable, str(file), *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=group)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_one_signal(signum: signal.Signals) -> None:
    processes = {"": start(AT_ONCE), " at step 7": start(DEFERRED, "0"), "unanswered": start(UNANSWERED)}
    for where, process in processes.items():
        process.send_signal(signum)
        output, errors = process.communicate(timeout=20)
        assert process.returncode == 128 + signum
        assert errors == f"stopped by {signum.name}{where.removeprefix('unanswered')}: the same command goes on\n"
        assert "never" not in output


@pytest.mark.parametrize(("first", "second"), [("SIGTERM", "SIGTERM"), ("SIGINT", "SIGTERM")])
def test_two_signals_end_at_once(first: str, second: str) -> None:
    process = start(DEFERRED, "60")
    process.send_signal(getattr(signal, first))
    assert process.stdout is not None
    assert process.stdout.readline() == "asked\n"
    time.sleep(signals.ECHO_SECONDS + 0.1)
    process.send_signal(getattr(signal, second))
    process.communicate(timeout=20)
    assert process.returncode == -getattr(signal, second)


def test_an_echo_and_a_repeated_notice_are_not_a_second_signal() -> None:
    for signum, pause in ((signal.SIGINT, 0.0), (signal.SIGUSR1, signals.ECHO_SECONDS + 0.1)):
        process = start(DEFERRED, "1.5")
        process.send_signal(signum)
        assert process.stdout is not None
        assert process.stdout.readline() == "asked\n"
        time.sleep(pause)
        process.send_signal(signum)
        process.communicate(timeout=20)
        assert process.returncode == 128 + signum


def test_a_forked_process_ignores_the_terminal_and_obeys_its_parent() -> None:
    """A data loader's: Ctrl-C reaches it, too, before the run has come to a place where it can stop."""
    process = start(FORKED, group=True)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert output == f"child alive True\nchild ended by {signal.SIGTERM}\n"
    assert process.returncode == 128 + signal.SIGINT


def test_a_sweep_passes_signals_on(tmp_path: Path) -> None:
    process = start(FORWARDING, file=tmp_path / "sweep.py")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    assert output == f"child ended with {128 + signal.SIGTERM}\n"
    assert process.returncode == 128 + signal.SIGINT
    assert [line.split(":")[0] for line in errors.splitlines()] == ["stopped by SIGTERM", "stopped by SIGINT"]


def test_who_started_the_process_is_told_last() -> None:
    process = start(STARTER + DEFERRED, "0")
    process.send_signal(signal.SIGUSR2)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (122, "stopped by SIGUSR2 at step 7: the same command goes on\n")


@pytest.mark.parametrize(
    ("array", "job"), [({}, "31"), ({"SLURM_ARRAY_JOB_ID": "30", "SLURM_ARRAY_TASK_ID": "4"}, "30_4")]
)
def test_slurm_is_asked_to_start_a_job_again_after_a_notice(
    array: dict[str, str], job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    program.chmod(0o755)
    for name, value in {"SLURM_JOB_ID": "31", "PATH": f"{tmp_path}:{os.environ['PATH']}", **array}.items():
        monkeypatch.setenv(name, value)
    for signum in (signal.SIGTERM, signal.SIGUSR1):
        process = start(DEFERRED, "0")
        process.send_signal(signum)
        process.communicate(timeout=20)
        assert process.returncode == 128 + signum
    assert (tmp_path / "calls").read_text() == f"requeue {job}\n"


def test_a_lost_data_loader_is_part_of_the_signal() -> None:
    lost = "RuntimeError('DataLoader worker (pid 3) is killed by signal: Terminated.')"
    process = start(DEFERRED.replace('raise signals.make_stop(" at step 7")', f"raise {lost}"), "0")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, len(errors.splitlines())) == (128 + signal.SIGTERM, 1)


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(signum) for signum in (*signals.URGENT, *signals.NOTICES)]
    with signals.listening(), signals.listening():
        assert signals.is_listening()
    assert not signals.is_listening()
    assert [signal.getsignal(signum) for signum in (*signals.URGENT, *signals.NOTICES)] == before


def test_a_forked_process_does_not_hold_the_lock(tmp_path: Path) -> None:
    """Else the same command would find the run in use until the data loader has noticed that it is dead."""
    body = f"""
from pathlib import Path
from un.training.run_folder import RunFolder
folder = RunFolder(Path({str(tmp_path)!r}))
folder.lock()
if os.fork() == 0:
    time.sleep(20)
tell("ready")
time.sleep(60)
"""
    process = start(body, group=True)
    process.kill()
    process.wait()
    try:
        RunFolder(tmp_path).lock()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
