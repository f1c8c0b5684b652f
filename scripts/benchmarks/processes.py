"""Training steps of several processes under DDP: UN with and without synced statistics against LayerNorm."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from benchmarks.common import Row
from un.command.errors import CONFIG_FOLDER
from un.finished.timing import compare, time_interleaved
from un.training.assembly import build_model, build_norm_factory, build_part

ARMS = {
    "layernorm": ("norm=layernorm",),
    "un": ("norm=un",),
    "un, sync": ("norm=un", "norm.sync=true"),
    "batchnorm, sync": ("norm=batchnorm", "norm.sync=true"),
}
WARMUP = 5  # steps
ROWS = "rows.json"


def measure(options: argparse.Namespace) -> list[Row]:
    """Steps per second of every arm, and what its norms communicate in a step; DDP's gradients come on top.

    The processes of an arm start each step together; the arms take turns.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (options, Path(folder)), nprocs=options.processes)
        rows: list[Row] = json.loads((Path(folder) / ROWS).read_text())
    return rows


def work(rank: int, options: argparse.Namespace, folder: Path) -> None:
    """What each process does; the first writes the rows."""
    torch.set_num_threads(max(1, options.threads // options.processes))
    store = f"file://{folder / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=options.processes)
    arms = {name: make_arm(options, overrides) for name, overrides in ARMS.items()}
    traffic = {name: count_traffic(run) for name, run in arms.items()}
    seconds = time_interleaved(arms, options.rounds, WARMUP, measure_together)
    if rank == 0:
        rows = [
            {
                "processes": options.processes,
                "norm": name,
                "ms": 1e3 * statistics.median(values),
                "ms_quartiles": [1e3 * value for value in statistics.quantiles(values, n=4)],
                "steps_per_second": 1 / statistics.median(values),
                "ratio": compare(values, seconds["layernorm"]),
                **traffic[name],
            }
            for name, values in seconds.items()
        ]
        (folder / ROWS).write_text(json.dumps(rows))
    distributed.destroy_process_group()


def make_arm(options: argparse.Namespace, overrides: tuple[str, ...]) -> Callable[[], None]:
    """A training step of the experiment's model on one of its batches."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        config = compose("train", overrides=[f"experiment={options.experiment}", *overrides, *options.overrides])
    torch.manual_seed(0)
    data = build_part(config, "data")
    model = build_model(config, data.model_arguments(), build_norm_factory(config.norm))
    images, labels = next(iter(data.train_dataloader()))
    wrapped = DistributedDataParallel(model.train())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(wrapped(images), labels).backward()
        optimizer.step()

    return run


def count_traffic(run: Callable[[], None]) -> dict[str, int]:
    """The all-reduces that the norms of one step call, and the bytes which each process puts into them."""
    sizes: list[int] = []
    reduce = distributed.all_reduce

    def note(tensor: Tensor, *arguments: Any, **keywords: Any) -> Any:
        sizes.append(tensor.nbytes)
        return reduce(tensor, *arguments, **keywords)

    distributed.all_reduce = note
    try:
        run()
    finally:
        distributed.all_reduce = reduce
    return {"norm_collectives": len(sizes), "norm_bytes": sum(sizes)}


def measure_together(run: Callable[[], object]) -> float:
    """Seconds until all processes have made a call that they start together."""
    distributed.barrier()
    start = perf_counter()
    run()
    distributed.barrier()
    return perf_counter() - start
