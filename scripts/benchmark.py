"""Measures speed: `python scripts/benchmark.py <what> [options]`; --help lists what.

Each has a --help of its own. Runs are interleaved (one of each arm in turn), so that a change of the machine's speed
affects all arms alike. Medians are printed; --output writes JSON with their spread, the machine and the versions.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which measures memory, says less

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.calibration import add_options as add_calibration_options
from benchmarks.common import keep_freed_memory, print_rows
from benchmarks.inference import add_options as add_inference_options
from benchmarks.training import add_options as add_training_options

from un.command.cli import CommandParser, end_on_mistake, read_count
from un.command.errors import UserError
from un.command.overrides import quote_override

CPU_THREADS = 2


def parse_options() -> argparse.Namespace:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    common = CommandParser(add_help=False)
    common.add_argument("--threads", type=read_count, help="default: 2, beside a GPU as many as there are cores")
    written = CommandParser(add_help=False)
    written.add_argument("--output", type=Path, help="JSON file to write")

    def add(what: str, text: str, *more: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(what, parents=[common, *more], help=text)

    layers = add("layers", "every norm against nn.LayerNorm", written)
    layers.add_argument("--rounds", type=read_count, default=200, help="timed calls of each arm")
    processes = add("processes", "training steps of processes under DDP", written)
    processes.add_argument("--rounds", type=read_count, default=100, help="timed steps of each arm")
    processes.add_argument("--processes", type=read_count, default=4, help="on the CPU; they share --threads")
    processes.add_argument("--experiment", default="digits_vit", help="whose model and data to take")
    processes.add_argument("overrides", nargs="*", help="config overrides, e.g. data.path=<folder>")
    add_calibration_options(add("calibration", "time and memory of taking the norms out of a model", written))
    add_inference_options(add("inference", "folded UN against LayerNorm in whole models"))
    add_training_options(add("training", "training steps of whole models"))
    scaling = add("scaling", "what UN costs on many GPUs, counted and predicted", written)
    scaling.add_argument("--update", type=Path, help="Markdown file whose results block is replaced by the tables")
    options = parser.parse_args()
    if hasattr(options, "overrides"):
        options.overrides = [quote_override(override) for override in options.overrides]
    return options


def main() -> None:
    with end_on_mistake():
        run_benchmark(parse_options())


def run_benchmark(options: argparse.Namespace) -> None:
    """Measures, prints and writes."""
    keep_freed_memory()
    on_gpu = getattr(options, "device", "cpu") == "cuda"  # models are built on the CPU
    options.threads = options.threads or (os.cpu_count() or CPU_THREADS if on_gpu else CPU_THREADS)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    file = None if hasattr(options, "budget") else options.output  # a sweep writes a file for each setting
    if file and not file.parent.is_dir():
        raise UserError(f"--output {file}: no such folder {file.parent}")
    benchmark = importlib.import_module(f"benchmarks.{options.what}")
    rows = benchmark.measure(options)
    if hasattr(benchmark, "show"):
        benchmark.show(rows, options)
    else:
        print_rows(rows)
    if file:
        machine = {"cpu": platform.processor() or platform.machine(), "threads": options.threads}
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        file.write_text(json.dumps({"machine": machine, "versions": versions, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
