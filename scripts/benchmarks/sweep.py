"""Measures settings one after the other, within a budget: each result is a file as soon as it is known."""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, TypeVar

import torch

from un.command.cli import read_count
from un.reports.result import write_json
from un.training.environment import describe_git, describe_hardware, list_packages

# Without other options: how long a setting is timed, and how long a sweep may take. Ours; a sweep of all that is
# planned fits a slot of some minutes on a current GPU.
GPU_SECONDS, GPU_BUDGET = 1.0, 170
FIRST_GUESS = {"compile": 60.0}  # seconds that an engine takes for a model, until it has been measured
REASON_LENGTH = 300  # characters of an error that are kept


class Setting(Protocol):
    """What is measured in one file."""

    @property
    def model(self) -> str: ...

    @property
    def engine(self) -> str: ...

    @property
    def file(self) -> str: ...


AnySetting = TypeVar("AnySetting", bound=Setting)


def add_sweep_options(parser: argparse.ArgumentParser, output: Path) -> None:
    """Adds the options of a sweep."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device)
    parser.add_argument("--output", type=Path, default=output, help="folder of the results, a file for each setting")
    parser.add_argument("--again", action="store_true", help="measure what is there, too")
    parser.add_argument(
        "--budget", type=float, help=f"seconds after which nothing new is begun; default: {GPU_BUDGET} on a GPU"
    )
    parser.add_argument(
        "--seconds", type=float, help=f"that a setting is timed at most; default: {GPU_SECONDS} on a GPU"
    )
    parser.add_argument("--rounds", type=read_count, default=200, help="timed calls of each arm")
    parser.add_argument("--warmup", type=int, default=50, help="calls of each arm before")


def settle_options(options: argparse.Namespace) -> None:
    """Fills in what depends on the device, and lets float32 be float32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    on_gpu = options.device == "cuda"
    options.budget = options.budget or (GPU_BUDGET if on_gpu else math.inf)
    options.seconds = options.seconds or (GPU_SECONDS if on_gpu else math.inf)


def measure_all(
    settings: Iterable[AnySetting], measure: Callable[[AnySetting], dict[str, Any]], options: argparse.Namespace
) -> list[AnySetting]:
    """Measures what the folder lacks.

    A setting that fails (not enough memory, an operator that cannot be captured) leaves its reason in its file, and
    the next one is measured.

    Args:
        settings: the most telling first.
        measure: returns what the file holds beside the setting and the machine.
        options: those of `add_sweep_options`, settled.

    Returns:
        What the budget did not reach.
    """
    options.output.mkdir(parents=True, exist_ok=True)
    machine = {"hardware": describe_hardware(), "packages": list_packages(), "git": describe_git()}
    start, times, left = perf_counter(), dict[tuple[str, str], float](), []
    for setting in settings:
        path = options.output / setting.file
        if not options.again and is_measured(path):
            continue
        begun, kind = perf_counter(), (setting.model, setting.engine)
        if begun - start + times.get(kind, FIRST_GUESS.get(setting.engine, 0)) > options.budget:
            left.append(setting)
            continue
        try:
            found = measure(setting)
        except torch.AcceleratorError as error:  # after which this process cannot use the device
            write_json({**vars(setting), "failure": describe_error(error), **machine}, path)
            raise
        except Exception as error:  # engines raise whatever they meet
            found = {"failure": describe_error(error)}
        write_json({**vars(setting), **found, **machine}, path)
        release_memory(options.device)
        times[kind] = perf_counter() - begun
        print(f"{setting.file}: {found.get('failure', 'measured')}, {times[kind]:.1f} s", file=sys.stderr, flush=True)
    for setting in left:
        print(f"{setting.file}: not reached within --budget {options.budget:g}", file=sys.stderr, flush=True)
    return left


def is_measured(path: Path) -> bool:
    """Tells whether a file holds a result, and not the reason why there is none."""
    return path.is_file() and "failure" not in json.loads(path.read_text())


def describe_error(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:REASON_LENGTH]


def release_memory(device: str) -> None:
    """Gives back what the last setting held, compiled code too."""
    gc.collect()
    torch.compiler.reset()
    if device == "cuda":
        torch.cuda.empty_cache()
