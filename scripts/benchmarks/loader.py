"""Training images per second of an experiment's loader alone."""

from __future__ import annotations

import argparse
import statistics

from benchmarks.common import Row, compose_experiment
from un.training.assembly import build_part
from un.vision.data import measure_loader

REPEATS = 5


def measure(options: argparse.Namespace) -> list[Row]:
    """The median over some repeats of `options.rounds` batches."""
    data = build_part(compose_experiment(options.experiment, *options.overrides), "data")
    data.setup("fit")
    rates = [measure_loader(data, options.rounds) for _ in range(REPEATS)]
    return [{"experiment": options.experiment, "images_per_second": statistics.median(rates), "runs": rates}]
