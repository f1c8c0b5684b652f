"""Fair timing: arms take turns, so that a change of the machine's speed affects all of them alike."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

import torch

LEAST_ROUNDS = 5  # however short the time
WARMUP_SHARE = 1 / 3  # of the time, for calls that are not counted
Turns = list[dict[str, float]]


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
    seconds: float = math.inf,
) -> dict[str, list[float]]:
    """Returns the seconds of every call of every arm; each round calls every arm once.

    Args:
        arms: what is called.
        rounds: that are counted.
        warmup: rounds before.
        measure: returns the seconds of a call.
        seconds: after which no further round begins, once there are LEAST_ROUNDS.
    """
    _take_turns(arms, warmup, measure, WARMUP_SHARE * seconds, least=1)
    turns = _take_turns(arms, rounds, measure, seconds, LEAST_ROUNDS)
    return {name: [turn[name] for turn in turns] for name in arms}


def _take_turns(
    arms: Mapping[str, Callable[[], object]],
    rounds: int,
    measure: Callable[[Callable[[], object]], float],
    seconds: float,
    least: int,
) -> Turns:
    end, turns = perf_counter() + seconds, Turns()
    while len(turns) < rounds and (len(turns) < least or perf_counter() < end):
        turns.append({name: measure(run) for name, run in arms.items()})
    return turns


def compare(values: Sequence[float], base: Sequence[float]) -> float:
    """Returns the median of the ratios of calls that followed each other."""
    return statistics.median(a / b for a, b in zip(values, base, strict=True))
