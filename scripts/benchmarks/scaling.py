"""What UN costs against LayerNorm on one machine and on many: constants measured here, predictions for a GPU cluster.

Results pile up in a folder as JSON; the tables are made from it and from the models, so that `--table` needs no
measuring. `--update docs/scaling.md` writes them into that file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Row
from benchmarks.scaling_machine import (
    NORMS,
    count_traffic,
    measure_bandwidth,
    measure_processes,
    measure_work,
    time_norms,
)
from benchmarks.scaling_model import Cluster, build_workloads
from benchmarks.scaling_tables import render_tables
from un.reports.rendering import replace_block
from un.reports.result import write_json
from un.training.environment import describe_git, describe_hardware, list_packages

MACHINE, PROCESSES = "machine.json", "processes.json"  # the second is written by scripts/benchmark.py processes
COUNTS = (2, 4)  # of processes
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COMPARED = ("LayerNorm", "UN")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    parser.add_argument("--rounds", type=int, default=50, help="timed calls of each arm")
    parser.add_argument("--folder", type=Path, default=Path("results/scaling"), help="of the JSON files")
    parser.add_argument("--table", action="store_true", help="measure nothing, show what the folder holds")
    parser.add_argument("--update", type=Path, help="Markdown file whose results block is replaced by the tables")


def measure(options: argparse.Namespace) -> list[Row]:
    """Measures this machine, unless asked not to; returns the content of the folder's files."""
    if not options.table:
        options.folder.mkdir(parents=True, exist_ok=True)
        write_json(measure_machine(options.rounds), options.folder / MACHINE)
    return [read(options.folder / MACHINE)]


def measure_machine(rounds: int) -> dict[str, Any]:
    """Every constant of this machine, with one thread in each process."""
    torch.set_num_threads(1)
    return {
        "bandwidth": measure_bandwidth(rounds),
        "traffic": {
            dtype: {name: count_traffic(NORMS[name], kind) for name in COMPARED} for dtype, kind in TYPES.items()
        },
        "norms": time_norms(rounds, COMPARED, measure_work, statistics.median),
        "processes": [measure_processes(count, rounds) for count in COUNTS],
        **{"rounds": rounds, "cores": os.cpu_count(), "load": os.getloadavg()[0], "hardware": describe_hardware()},
        **{"packages": list_packages(), "git": describe_git()},
    }


def read(path: Path) -> dict[str, Any]:
    """Reads a file of the folder.

    Raises:
        ValueError: there is none.
    """
    if not path.is_file():
        raise ValueError(f"there is no {path}: measure without --table first")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def show(rows: list[Row], options: argparse.Namespace) -> None:
    """Prints the tables, or writes them into a file."""
    path = options.folder / PROCESSES
    text = render_tables(rows[0], build_workloads(), Cluster(), read(path) if path.is_file() else None)
    if options.update:
        replace_block(options.update, text)
    else:
        print(text)
