"""Trains Multi30k translators side by side on one GPU and compares their BLEU with that of the CPU's runs.

    python scripts/benchmarks/translation_runs.py --data <folder> --output translation.json [--budget 300]

Every run is `train.py experiment=multi30k_small trainer=gpu` in a process of its own with one thread; such a model is
too small to fill a GPU. What has not finished when the budget is over is stopped and named. The CPU's figures are those
of results/results.csv. `--device cpu` rehearses with three steps.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

from un.command.cli import EXIT_CODE, CommandParser, end_on_mistake, read_count
from un.reports.rendering import format_signed, format_table
from un.reports.result import read_result, write_json
from un.training.environment import describe_hardware, list_packages

REPOSITORY = Path(__file__).parents[2]
EXPERIMENT, TABLE = "multi30k_small", "multi30k"
METRIC = "test/bleu"
MIXED, FULL = "16-mixed", "32-true"  # what trainer=gpu chooses, and what the CPU's runs have
HEADER = ("norm", "precision", "seed", "BLEU", "BLEU on the CPU, by seed", "Δ CPU's mean", "minutes", "samples/s")
END_SECONDS = 10  # for a stopped run to write its checkpoint


class Job(NamedTuple):
    """A run to be."""

    norm: str
    precision: str
    seed: int

    def name_folder(self, options: argparse.Namespace) -> Path:
        return options.runs / f"{self.norm}-{self.precision}-{self.seed}"

    def list_arguments(self, options: argparse.Namespace) -> list[str]:
        arguments = [f"experiment={EXPERIMENT}", f"norm={self.norm}", f"seed={self.seed}", f"data.path={options.data}"]
        arguments += [f"paths.runs={self.name_folder(options)}"]
        if options.device == "cuda":
            return [*arguments, "trainer=gpu", f"trainer.precision={self.precision}"]
        limits = [f"trainer.limit_{split}_batches=1" for split in ("val", "test")]
        return [*arguments, "trainer=cpu", "trainer.max_steps=3", "data.limit=256", "data.bpe_merges=200", *limits]


def main() -> None:
    """Trains what is missing, and writes and prints what there is."""
    options = parse_options()
    with end_on_mistake():
        options.output.parent.mkdir(parents=True, exist_ok=True)
        jobs, start = plan_jobs(options), time.monotonic()
        done: dict[Job, Path] = {}
        for done in train(jobs, options):
            minutes = (time.monotonic() - start) / 60
            rows = [describe_run(job, path) for job, path in done.items()]
            missing = [" ".join(map(str, job)) for job in jobs if job not in done]
            speed = {"side_by_side": options.jobs, "minutes": minutes, "runs_per_minute": len(done) / minutes}
            machine = {"hardware": describe_hardware(), "packages": list_packages()}
            write_json({**machine, "speed": speed, "rows": rows, "not_finished": missing}, options.output)
        print(render(rows))
        print(f"{len(done)} runs in {minutes:.1f} minutes, {options.jobs} at once: {len(done) / minutes:.2f} a minute")
    if missing:
        print(f"not finished: {', '.join(missing)}; logs in {options.runs}", file=sys.stderr)
        sys.exit(EXIT_CODE)


def parse_options() -> argparse.Namespace:
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with Multi30k's three Parquet files")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--norms", nargs="+", default=["layernorm", "un", "batchnorm"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--full", nargs="*", default=["layernorm", "un"], help="norms that also train in float32")
    parser.add_argument("--jobs", type=read_count, default=max((os.cpu_count() or 2) // 2, 1), help="side by side")
    parser.add_argument("--budget", type=float, default=600, help="seconds")
    parser.add_argument("--runs", type=Path, default=Path("runs/gpu"), help="folder of the runs")
    parser.add_argument("--output", type=Path, default=Path("translation.json"), help="JSON file to write")
    return parser.parse_args()


def plan_jobs(options: argparse.Namespace) -> list[Job]:
    """Returns the runs, the first seed of every norm and precision first; a rehearsal is one run."""
    jobs = [Job(norm, MIXED, seed) for seed in options.seeds for norm in options.norms]
    jobs[len(options.norms) : len(options.norms)] = [Job(norm, FULL, options.seeds[0]) for norm in options.full]
    return jobs if options.device == "cuda" else jobs[:1]


def train(jobs: Sequence[Job], options: argparse.Namespace) -> Iterator[dict[Job, Path]]:
    """Runs jobs side by side until all have ended or the budget is spent.

    Yields:
        The results that there are, whenever runs have ended, and at last.
    """
    waiting, running = list(jobs), list[subprocess.Popen[bytes]]()
    end = time.monotonic() + options.budget - END_SECONDS
    while (waiting or running) and time.monotonic() < end:
        ended = [process for process in running if process.poll() is not None]
        running = [process for process in running if process not in ended]
        while waiting and len(running) < options.jobs:
            command = [sys.executable, str(REPOSITORY / "train.py"), *waiting.pop(0).list_arguments(options)]
            running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=REPOSITORY))
        if ended:
            yield find_results(jobs, options)
        time.sleep(0.2)
    for process in running:
        process.send_signal(signal.SIGTERM)
    for process in running:
        try:
            process.wait(max(end + END_SECONDS - time.monotonic(), 1))
        except subprocess.TimeoutExpired:
            process.kill()
    yield find_results(jobs, options)


def find_results(jobs: Sequence[Job], options: argparse.Namespace) -> dict[Job, Path]:
    found = {job: next(job.name_folder(options).rglob("result.json"), None) for job in jobs}
    return {job: path for job, path in found.items() if path is not None}


def describe_run(job: Job, path: Path) -> dict[str, Any]:
    """Returns a row: the run's figures, and those of the CPU's runs with this norm."""
    result = read_result(path)
    return {
        **job._asdict(),
        "status": result.status,
        "bleu": result.metrics.get(METRIC),
        "cpu_bleu": read_cpu_runs(job.norm),
        "minutes": result.wall_time_seconds / 60,
        "samples_per_second": result.train_samples_per_second,
    }


def read_cpu_runs(norm: str) -> dict[str, float]:
    """Returns BLEU by seed of the CPU's runs with a norm."""
    with (REPOSITORY / "results/results.csv").open(newline="") as file:
        rows = [
            row for row in csv.DictReader(file) if (row["table"], row["norm"], row["metric"]) == (TABLE, norm, METRIC)
        ]
    values = [pair.partition(":") for row in rows for pair in row["values"].split() if ":" in pair]
    return {seed: float(value) for seed, _, value in values}


def render(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        cpu = row["cpu_bleu"]
        known = ", ".join(f"{seed}: {value:.2f}" for seed, value in cpu.items())
        bleu = row["bleu"]
        difference = "" if bleu is None or not cpu else format_signed(bleu - sum(cpu.values()) / len(cpu), 2)
        shown = row["status"] if bleu is None else f"{bleu:.2f}"
        speed = row["samples_per_second"]
        figures = (f"{row['minutes']:.2f}", "" if speed is None else f"{speed:.0f}")
        lines.append([row["norm"], row["precision"], str(row["seed"]), shown, known, difference, *figures])
    return format_table(HEADER, lines)


if __name__ == "__main__":
    main()
