"""Measures speed: `python scripts/benchmark.py layers|loader [options]`.

Runs are interleaved (one of each arm in turn), so that a change of the machine's speed meets all arms alike. Medians
are printed; --output writes JSON with quartiles, the machine and the versions behind them.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from un import norms

# Tokens of one batch, from a small ViT on CIFAR-10, translation, and the paper's translation model.
SHAPES = ((64, 65, 192), (32, 64, 256), (128, 50, 512))
ARMS: dict[str, Callable[[int], nn.Module]] = {
    "LayerNorm": nn.LayerNorm,
    "UN": lambda c: norms.UnifiedNorm(c),
    "UN, past warm-up": lambda c: norms.UnifiedNorm(c, warmup_steps=0, compensation_start=0),
    "UN, filtration": lambda c: norms.UnifiedNorm(c, warmup_steps=0, compensation_start=0, filtration=True),
    "UN, centered": lambda c: norms.UnifiedNorm(c, centering="batch"),
    "BatchNorm": norms.BatchNorm,
    "PowerNorm": norms.PowerNorm,
    "MABN": norms.MovingAverageBatchNorm,
    "RMSNorm": norms.RMSNorm,
    "RepBatchNorm": norms.RepBatchNorm,
    "DynamicTanh": norms.DynamicTanh,
}


# glibc's mallopt parameters (malloc.h) and a value that no benchmark reaches.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, NEVER = -1, -3, 1 << 30


def keep_freed_memory() -> None:
    """Stops glibc from returning freed memory to the system, as a training process in its stride hardly does.

    Otherwise page faults of the next allocation, up to three times the work itself at 13 MB, hit one arm or the other
    by chance. Does nothing on other C libraries.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, NEVER)
        libc.mallopt(M_MMAP_THRESHOLD, NEVER)


def time_interleaved(arms: dict[str, Callable[[], object]], rounds: int, warmup: int) -> dict[str, list[float]]:
    """Seconds of every call of every arm, one of each in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for index in range(warmup + rounds):
        for name, run in arms.items():
            start = perf_counter()
            run()
            elapsed = perf_counter() - start
            if index >= warmup:
                seconds[name].append(elapsed)
    return seconds


def make_layer_arm(layer: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], object]:
    """Forward and backward of one layer, gradients of input, weight and bias included."""

    def run() -> None:
        x.grad = None
        layer.zero_grad()
        layer(x).backward(grad)

    return run


def benchmark_layers(options: argparse.Namespace) -> list[dict[str, object]]:
    """Forward plus backward of every norm against nn.LayerNorm in float32."""
    rows: list[dict[str, object]] = []
    for shape in SHAPES:
        x, grad = torch.randn(shape, requires_grad=True), torch.randn(shape)
        arms = {name: make_layer_arm(build(shape[-1]), x, grad) for name, build in ARMS.items()}
        seconds = time_interleaved(arms, options.rounds, warmup=10)
        base = seconds["LayerNorm"]
        for name, values in seconds.items():
            low, median, high = statistics.quantiles(values, n=4)
            ratio = statistics.median(a / b for a, b in zip(values, base, strict=True))
            rows.append(
                {
                    "shape": shape,
                    "norm": name,
                    "ms": 1e3 * median,
                    "ms_quartiles": (1e3 * low, 1e3 * high),
                    "ratio": ratio,
                }
            )
    return rows


def benchmark_loader(options: argparse.Namespace) -> list[dict[str, object]]:
    """Training images per second of an experiment's loader alone."""
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    from un.vision.data import measure_loader

    with initialize_config_dir(str(Path(__file__).parents[1] / "configs"), version_base="1.3"):
        overrides = [f"experiment={options.experiment}", *options.overrides]
        data = instantiate(compose("train", overrides=overrides).data)
    data.setup("fit")
    rates = [measure_loader(data, options.rounds) for _ in range(5)]
    return [{"experiment": options.experiment, "images_per_second": statistics.median(rates), "runs": rates}]


def print_rows(rows: list[dict[str, object]]) -> None:
    """A line per row, aligned."""
    for row in rows:
        parts = [f"{v:9.3f}" if isinstance(v, float) else f"{v!s:>18}" for k, v in row.items() if "quart" not in k]
        print("  ".join(parts))


def main() -> None:
    """Parses the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("layers", "loader"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=200, help="timed calls of each arm (layers) or batches (loader)")
    parser.add_argument("--experiment", default="cifar10_vit_tiny", help="whose loader to measure")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("overrides", nargs="*", help="config overrides for the loader, e.g. data.path=<folder>")
    options = parser.parse_intermixed_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = {"layers": benchmark_layers, "loader": benchmark_loader}[options.what](options)
    print_rows(rows)
    if options.output:
        machine = {"cpu": platform.processor() or platform.machine(), "threads": options.threads}
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        options.output.write_text(json.dumps({"machine": machine, "versions": versions, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
