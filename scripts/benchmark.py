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

from benchmarks.common import keep_freed_memory, print_rows
from benchmarks.compile import add_options as add_compile_options
from benchmarks.inference import add_options as add_inference_options

from un.command.cli import CommandParser, end_on_mistake, read_count
from un.command.errors import UserError
from un.command.overrides import quote_override


def parse_options() -> argparse.Namespace:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    common = CommandParser(add_help=False)
    common.add_argument("--threads", type=read_count, default=2)
    common.add_argument("--output", type=Path, help="JSON file to write")

    def add(what: str, text: str, rounds: int, timed: str, experiment: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(what, parents=[common], help=text)
        command.add_argument("--rounds", type=read_count, default=rounds, help=f"timed {timed}")
        if experiment:
            command.add_argument("--experiment", default=experiment, help="whose model and data to take")
            command.add_argument("overrides", nargs="*", help="config overrides, e.g. data.path=<folder>")
        return command

    add("layers", "every norm against nn.LayerNorm", 200, "calls of each arm")
    add("loader", "images per second of a loader alone", 200, "batches", "cifar10_vit_tiny")
    add("recorder", "training with callbacks=activation_stats", 40, "intervals between two records", "digits_vit")
    add("translation", "train.py against fairseq-train", 3, "runs of each arm", "multi30k_small")
    processes = add("processes", "training steps of processes under DDP", 100, "steps of each arm", "digits_vit")
    processes.add_argument("--processes", type=read_count, default=4, help="on the CPU; they share --threads")

    training = commands.add_parser("compile", parents=[common], help="training steps of norms, eager and compiled")
    add_compile_options(training)

    inference = commands.add_parser("inference", parents=[common], help="folded UN against LayerNorm in whole models")
    add_inference_options(inference)

    scaling = commands.add_parser("scaling", parents=[common], help="what UN costs on many GPUs, counted and predicted")
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
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.output and not options.output.parent.is_dir():
        raise UserError(f"--output {options.output}: no such folder {options.output.parent}")
    benchmark = importlib.import_module(f"benchmarks.{options.what}")
    rows = benchmark.measure(options)
    if hasattr(benchmark, "show"):
        benchmark.show(rows, options)
    else:
        print_rows(rows)
    if options.output:
        machine = {"cpu": platform.processor() or platform.machine(), "threads": options.threads}
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        options.output.write_text(json.dumps({"machine": machine, "versions": versions, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
