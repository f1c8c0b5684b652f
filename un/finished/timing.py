"""Fair timing: arms take turns, so that a change of the machine's speed affects all of them alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

import torch


def measure_call(run: Callable[[], object]) -> float:
    """Returns the seconds of a call by the wall clock."""
    start = perf_counter()
    run()
    return perf_counter() - start


def measure_on_gpu(run: Callable[[], object]) -> float:
    """Returns the seconds from a call's first kernel to its last, by events of the current CUDA device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def time_interleaved(
    arms: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int,
    measure: Callable[[Callable[[], object]], float] = measure_call,
) -> dict[str, list[float]]:
    """Returns the seconds of every call of every arm; each round calls every arm once."""
    turns = [{name: measure(run) for name, run in arms.items()} for _ in range(warmup + rounds)]
    return {name: [turn[name] for turn in turns[warmup:]] for name in arms}


def compare(values: Sequence[float], base: Sequence[float]) -> float:
    """Returns the median of the ratios of calls that followed each other."""
    return statistics.median(a / b for a, b in zip(values, base, strict=True))
