"""Runs of `train.py` in processes of their own, and what they leave behind."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from un.reports.result import read_result
from un.runtime.run_folder import RunFolder

REPOSITORY = Path(__file__).parents[2]
# Some seconds of training that often write checkpoints, with all that draws numbers or keeps a state.
SETTINGS = (
    *("data.limit=320", "data.batch_size=16", "trainer.max_epochs=6", "trainer.accelerator=cpu"),
    *("trainer.log_every_n_steps=1", "callbacks.checkpoints.every_n_steps=3", "callbacks.watch_norms.every_n_steps=5"),
    *("average_checkpoints=2", "task.ema_decay=0.9", "task.mixup={mixup_alpha: 0.4}", "model.drop_path_rate=0.1"),
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


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """Starts Python with arguments as the leader of a process group of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [sys.executable, *command], cwd=REPOSITORY, env=environment, start_new_session=True, **pipes, **options
    )


def finish(command: Sequence[str]) -> float:
    """Repeats a command until it succeeds; returns the seconds of the last time.

    Raises:
        LostError: it does not.
    """
    for _ in range(MAX_STARTS):
        begin = time.monotonic()
        process = start(command)
        output, errors = process.communicate(timeout=WAIT_SECONDS)
        if process.returncode == 0:
            return time.monotonic() - begin
        if "is in use" not in errors and "interrupted" not in output:
            break
        time.sleep(1)
    raise LostError(f"{' '.join(command)} ends with code {process.returncode}: {errors[-500:]}")


def kill_group(process: subprocess.Popen[str]) -> None:
    """Ends all that a process has started, whether it is still there itself or not."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


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
        "result.json": (result.status, result.metrics, result.best_epoch, result.best_step, result.steps),
    }
    for path in [folder.last, folder.best, *folder.list_epochs()]:
        checkpoint = torch.load(path, weights_only=True)
        for key in ("state_dict", "optimizer_states", "lr_schedulers"):  # norms keep theirs in the first
            parts[f"{path.name} {key}"] = _flatten(checkpoint.get(key))
    return {name: hashlib.sha256(repr(part).encode()).hexdigest() for name, part in parts.items()}


def _flatten(node: Any) -> Any:
    if isinstance(node, torch.Tensor):
        return node.tolist()
    if isinstance(node, dict):
        return {key: _flatten(value) for key, value in node.items()}
    return [_flatten(value) for value in node] if isinstance(node, list | tuple) else node
