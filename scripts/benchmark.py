"""Measures speed: `python scripts/benchmark.py <what> [options]`; --help lists what.

Each has a --help of its own. Runs are interleaved (one of each arm in turn), so that a change of the machine's speed
meets all arms alike. Medians are printed; --output writes JSON with their spread, the machine and the versions.
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
from benchmarks.scaling import add_options as add_scaling_options

from un.command.cli import CommandParser, end_on_mistake, read_count
from un.command.errors import UserError
from un.command.overrides import quote_override


def parse_options() -> argparse.Namespace:
    """Reads the command line."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    common = CommandParser(add_help=False)
    common.add_argument("--threads", type=read_count, default=2)
    common.add_argument("--output", type=Path, help="JSON file to write")

    layers = commands.add_parser("layers", parents=[common], help="every norm against nn.LayerNorm")
    layers.add_argument("--rounds", type=read_count, default=200, help="timed calls of each arm")

    loader = commands.add_parser("loader", parents=[common], help="images per second of a loader alone")
    loader.add_argument("--rounds", type=read_count, default=200, help="timed batches")
    loader.add_argument("--experiment", default="cifar10_vit_tiny", help="whose loader to measure")
    loader.add_argument("overrides", nargs="*", help="config overrides, e.g. data.path=<folder>")

    recorder = commands.add_parser("recorder", parents=[common], help="training with callbacks=activation_stats")
    recorder.add_argument("--rounds", type=read_count, default=40, help="timed intervals between two records")
    recorder.add_argument("--experiment", default="digits_vit", help="of images, whose model and batches to take")
    recorder.add_argument("overrides", nargs="*", help="config overrides, e.g. norm=layernorm")

    translation = commands.add_parser("translation", parents=[common], help="train.py against fairseq-train")
    translation.add_argument("--rounds", type=read_count, default=3, help="runs of each arm")
    translation.add_argument("--experiment", default="multi30k_small", help="whose model, data and batches to take")
    translation.add_argument("overrides", nargs="*", help="config overrides, e.g. data.path=<folder> data.limit=6000")

    processes = commands.add_parser("processes", parents=[common], help="training steps of several processes under DDP")
    processes.add_argument("--rounds", type=int, default=100, help="timed steps of each arm")
    processes.add_argument("--processes", type=int, default=4, help="on the CPU; they share --threads")
    processes.add_argument("--experiment", default="digits_vit", help="of images, whose model and batches to take")
    processes.add_argument("overrides", nargs="*", help="config overrides, e.g. data.batch_size=16")

    training = commands.add_parser("compile", parents=[common], help="training steps of norms, eager and compiled")
    add_compile_options(training)

    inference = commands.add_parser("inference", parents=[common], help="folded UN against LayerNorm in whole models")
    add_inference_options(inference)

    scaling = commands.add_parser(
        "scaling", parents=[common], help="constants of this machine, predictions for many GPUs"
    )
    add_scaling_options(scaling)
    options = parser.parse_args()
    if hasattr(options, "overrides"):
        options.overrides = [quote_override(override) for override in options.overrides]
    return options


def main() -> None:
    """Parses the command line, measures, prints and writes."""
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
