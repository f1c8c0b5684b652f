"""Runs of `train.py` in processes of their own, and what they leave behind."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import resource
import runpy
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

import un.training.train
import un.vision.data
import un.vision.models
import un.vision.module  # noqa: F401
from un.reports.result import read_result
from un.training.callbacks.checkpoints import list_epoch_checkpoints
from un.training.run_folder import RunFolder

REPOSITORY = Path(__file__).parents[2]
# Some seconds of training that often write checkpoints, with all that draws numbers or keeps a state.
SETTINGS = (
    *("data.limit=320", "data.batch_size=16", "trainer.max_epochs=3", "trainer.accelerator=cpu"),
    *("trainer.log_every_n_steps=1", "callbacks.checkpoints.every_n_steps=3", "callbacks.watch_norms.every_n_steps=5"),
    *(
        "model.depth=1",
        "average_checkpoints=2",
        "task.ema_decay=0.9",
        "task.mixup={mixup_alpha: 0.4}",
        "model.drop_path_rate=0.1",
    ),
)
MAX_STARTS = 20  # of a command that never succeeds
WAIT_SECONDS = 600


class LostError(Exception):
    """A run did not survive a fault."""


@dataclass
class Table:
    """Counts trials by fault."""

    trials: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Trials so far."""
        return self.trials.total()

    @contextlib.contextmanager
    def count_faults(self, faults: list[str]) -> Iterator[None]:
        """Counts the faults which a run or sweep met in here; all are lost where it ends with a `LostError`."""
        try:
            yield
        except LostError as error:
            faults = faults or ["none"]
            self.lost.update(faults)
            self.problems.append(f"{', '.join(faults)}: {error}")
            print(f"LOST {self.problems[-1]}", file=sys.stderr, flush=True)
        self.trials.update(faults)

    def list_rows(self) -> list[dict[str, Any]]:
        """Returns one row per fault: trials, survived, lost."""
        return [
            {"fault": fault, "trials": count, "survived": count - self.lost[fault], "lost": self.lost[fault]}
            for fault, count in self.trials.items()
        ]


class Run:
    """`train.py` in a process that is forked from this one, where torch is loaded already, and leads a process group.

    Loading it takes longer than the training here, and writes no file that could be lost.

    Args:
        arguments: of `train.py`.
        prepare: called in the process before the program begins.
    """

    def __init__(self, arguments: Sequence[str], prepare: Callable[[], object] | None = None) -> None:
        self._errors, self._output = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115  as long as the run
        self._process = multiprocessing.get_context("fork").Process(target=self._run, args=(arguments, prepare))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self._lead_group(self.pid)  # here and there, since either process may be the first to go on

    def poll(self) -> int | None:
        """Returns the exit code, or minus the signal that ended the process; None while it runs."""
        return self._process.exitcode

    def wait(self) -> tuple[int, str, str]:
        """Waits for its end; returns exit code, output and errors.

        Raises:
            LostError: it hangs.
        """
        self._process.join(WAIT_SECONDS)
        if self._process.exitcode is None:
            self.kill_group()
            raise LostError(f"still there after {WAIT_SECONDS} s: {self._read(self._errors)}")
        return self._process.exitcode, self._read(self._output), self._read(self._errors)

    def send(self, signum: int) -> None:
        """Sends a signal to this process alone."""
        os.kill(self.pid, signum)

    def measure_seconds(self) -> float:
        """Returns the processors' seconds of the group so far: a clock that a busy machine slows down."""
        ticks = 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # ended in between
                fields = path.read_text().rpartition(")")[2].split()
                ticks += (int(fields[11]) + int(fields[12])) * (int(fields[2]) == self.pid)
        return ticks / os.sysconf("SC_CLK_TCK")

    def kill_group(self) -> None:
        """Kills it and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.join()

    def _run(self, arguments: Sequence[str], prepare: Callable[[], object] | None) -> None:
        self._lead_group(0)
        os.dup2(self._output.fileno(), sys.stdout.fileno())
        os.dup2(self._errors.fileno(), sys.stderr.fileno())
        os.chdir(REPOSITORY)
        if prepare is not None:
            prepare()
        sys.argv = ["train.py", *arguments]
        try:
            runpy.run_path("train.py", run_name="__main__")
        finally:
            for worker in multiprocessing.active_children():  # joblib's, which a forked process would wait for
                worker.terminate()

    @staticmethod
    def _lead_group(pid: int) -> None:
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)

    @staticmethod
    def _read(file: IO[str]) -> str:
        file.seek(0)
        return file.read()


def finish(arguments: Sequence[str]) -> float:
    """Repeats a command until it succeeds; returns the processors' seconds of the last time.

    Raises:
        LostError: it does not.
    """
    for _ in range(MAX_STARTS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        code, output, errors = Run(arguments).wait()
        if code == 0:
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        if "is in use" not in errors and "interrupted" not in output:
            break
        time.sleep(1)
    raise LostError(f"train.py {' '.join(arguments)} ends with code {code}: {errors[-500:]}")


def read_outcomes(runs: Path) -> dict[str, dict[str, str]]:
    """Returns a digest of each part of what each run left, times excepted, by the name of its folder.

    Raises:
        LostError: a run is not finished, or a file is damaged.
    """
    folders = sorted(path.parent for path in runs.rglob("config.yaml"))
    try:
        return {str(folder.relative_to(runs)): _read_outcome(RunFolder(folder)) for folder in folders}
    except Exception as error:  # whatever a damaged file raises
        raise LostError(f"{type(error).__name__}: {error}") from None


def check_files(runs: Path) -> None:
    """Checks after a kill that files are whole.

    Raises:
        LostError: one is not.
    """
    for path in [*runs.rglob("result.json"), *runs.rglob("*.ckpt")]:
        try:
            if path.suffix == ".ckpt":
                torch.load(path, weights_only=True)
            else:
                read_result(path)
        except FileNotFoundError:  # the run of a worker that goes on has removed an old epoch's
            continue
        except Exception as error:  # whatever a damaged file raises
            raise LostError(f"{path}: {type(error).__name__}: {error}") from None


def compare(runs: Path, expected: dict[str, dict[str, str]]) -> None:
    """Compares what runs left with those that were never interrupted.

    Raises:
        LostError: something differs.
    """
    outcomes = read_outcomes(runs)
    if outcomes.keys() != expected.keys():
        raise LostError(f"{runs}: runs {sorted(outcomes)} instead of {sorted(expected)}")
    for name, parts in expected.items():
        different = [part for part, digest in parts.items() if outcomes[name].get(part) != digest]
        if different:
            raise LostError(f"{runs / name}: {', '.join(different)} differ")


def _read_outcome(folder: RunFolder) -> dict[str, str]:
    result = read_result(folder.result)
    parts: dict[str, Any] = {
        "metrics.csv": folder.metrics.read_text(),
        "preprocessor": {path.name: path.read_bytes() for path in sorted(folder.preprocessor.iterdir())},
        "result.json": (result.status, result.metrics, result.best_epoch, result.best_step, result.steps),
    }
    for path in [folder.last, folder.best, *list_epoch_checkpoints(folder.checkpoints)]:
        checkpoint = torch.load(path, weights_only=True)
        for key in ("state_dict", "optimizer_states", "lr_schedulers"):  # norms keep theirs in the first
            parts[f"{path.name} {key}"] = _flatten(checkpoint.get(key))
    return {name: hashlib.sha256(repr(part).encode()).hexdigest() for name, part in parts.items()}


def _flatten(node: Any) -> Any:
    if isinstance(node, torch.Tensor):
        return node.dtype, node.shape, hashlib.sha256(node.contiguous().numpy().tobytes()).hexdigest()
    if isinstance(node, dict):
        return {key: _flatten(value) for key, value in node.items()}
    return [_flatten(value) for value in node] if isinstance(node, list | tuple) else node
