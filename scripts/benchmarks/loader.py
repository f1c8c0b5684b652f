"""Training images per second of an experiment's loader alone."""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Iterator
from time import perf_counter

from benchmarks.common import Row, compose_experiment
from un.datasets import BatchLoader
from un.training.assembly import build_part
from un.vision.batches import Batch

REPEATS = 5


def measure(options: argparse.Namespace) -> list[Row]:
    """The median over some repeats of `options.rounds` batches."""
    data = build_part(compose_experiment(options.experiment, *options.overrides), "data")
    data.setup("fit")
    rates = [time_batches(data.train_dataloader(), options.rounds) for _ in range(REPEATS)]
    return [{"experiment": options.experiment, "images_per_second": statistics.median(rates), "runs": rates}]


def time_batches(loader: BatchLoader, num_batches: int) -> float:
    """Returns images per second, after one batch that is not timed."""
    batches = repeat_epochs(loader)
    next(batches)
    start = perf_counter()
    num_images = sum(len(images) for images, _ in itertools.islice(batches, num_batches))
    return num_images / (perf_counter() - start)


def repeat_epochs(loader: BatchLoader) -> Iterator[Batch]:
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)
        yield from loader
