"""What taking the norms out of a model costs: time, and memory above that of the model and a plain forward."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from time import perf_counter, process_time

import timm
import torch
from torch import Tensor

from benchmarks.common import Row
from un.command.cli import read_count
from un.retrofit import retrofit
from un.training.environment import measure_peak_memory

IMAGE_SIZE, BATCH_SIZE = 224, 32
GIGABYTE = 1e9


class DrawnImages:
    """Batches of noise, the same at every iteration and made when they are asked for."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        for first in range(0, self.count, BATCH_SIZE):
            size = min(BATCH_SIZE, self.count - first)
            yield torch.randn(size, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this benchmark."""
    parser.add_argument("--images", nargs="+", type=read_count, default=[128, 512])
    parser.add_argument("--model", default="vit_small_patch16_224", help="of timm, for images of 224 x 224")


def measure(options: argparse.Namespace) -> list[Row]:
    """Measures each number of images in a process of its own, whose peak and allocator are then those of a user."""
    rows: list[Row] = []
    for images in options.images:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            rows.append(pool.submit(calibrate, options.model, images, options.threads).result())
    return rows


def calibrate(model_name: str, images: int, threads: int) -> Row:
    """Retrofits one model; memory is the peak above that of a plain forward of a batch."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = timm.create_model(model_name).eval()
    with torch.no_grad():
        model(next(iter(DrawnImages(BATCH_SIZE))))
    before, start, start_cpu = measure_peak_memory(), perf_counter(), process_time()
    retrofit(model, DrawnImages(images))
    return {
        "model": model_name,
        "images": images,
        "seconds": perf_counter() - start,
        "cpu_seconds": process_time() - start_cpu,
        "gigabytes": (measure_peak_memory() - before) / GIGABYTE,
    }
