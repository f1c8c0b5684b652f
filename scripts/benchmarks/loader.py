"""Training images per second of an experiment's loader alone."""

from __future__ import annotations

import argparse
import statistics

from hydra import compose, initialize_config_dir

from benchmarks.common import Row
from un.command.errors import CONFIG_FOLDER
from un.training.assembly import build_part
from un.vision.data import measure_loader

REPEATS = 5


def measure(options: argparse.Namespace) -> list[Row]:
    """The median over some repeats of `options.rounds` batches."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        overrides = [f"experiment={options.experiment}", *options.overrides]
        data = build_part(compose("train", overrides=overrides), "data")
    data.setup("fit")
    rates = [measure_loader(data, options.rounds) for _ in range(REPEATS)]
    return [{"experiment": options.experiment, "images_per_second": statistics.median(rates), "runs": rates}]
