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
from omegaconf import DictConfig
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from benchmarks.common import Row, compose_experiment
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
    """Returns steps per second of every arm, and what its norms communicate in a step; DDP's gradients come on top.

    The processes of an arm start each step together; the arms take turns.
    """
    configs = {name: compose_experiment(options.experiment, *own, *options.overrides) for name, own in ARMS.items()}
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (options, configs, Path(folder)), nprocs=options.processes)
        rows: list[Row] = json.loads((Path(folder) / ROWS).read_text())
    return rows


def work(rank: int, options: argparse.Namespace, configs: dict[str, DictConfig], folder: Path) -> None:
    """Measures in each process; the first writes the rows."""
    torch.set_num_threads(max(1, options.threads // options.processes))
    store = f"file://{folder / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=options.processes)
    arms = {name: make_arm(config) for name, config in configs.items()}
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


def make_arm(config: DictConfig) -> Callable[[], None]:
    """Returns a training step of the experiment's model on one of its batches."""
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
    """Returns the all-reduces that the norms call in a step, and the bytes that each process puts into them."""
    sizes: list[int] = []
    reduce = distributed.all_reduce

    def note(tensor: Tensor, *arguments: Any, **keywords: Any) -> Any:
        sizes.append(tensor.nbytes)
        return reduce(tensor, *arguments, **keywords)

    distributed.all_reduce = note  # which norms look up in the module at every call, DDP does not
    try:
        run()
    finally:
        distributed.all_reduce = reduce
    return {"norm_collectives": len(sizes), "norm_bytes": sum(sizes)}


def measure_together(run: Callable[[], object]) -> float:
    """Returns the seconds until all processes have made a call that they start together."""
    distributed.barrier()
    start = perf_counter()
    run()
    distributed.barrier()
    return perf_counter() - start
