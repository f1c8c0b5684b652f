"""Statistics over seeds. A diverged run has no value: it is counted separately, never averaged."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
LEVEL_MARGIN = 0.5  # points of 100; ours: little beside the 4.2 BLEU by which the paper's BatchNorm trails
POINTS = ("acc1", "acc5", "bleu", "sacrebleu", "chrf")  # metrics in points of 100, of which more is better
LEVEL, AHEAD, BEHIND, NOT_DECIDED, DIVERGES = "level", "ahead", "behind", "not decided", "diverges"
VERDICTS = (AHEAD, LEVEL, BEHIND, DIVERGES, NOT_DECIDED)


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n - 1) of n values; None where there are too few."""

    mean: float | None
    std: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean difference over n paired seeds and its confidence interval, which takes two seeds; one has None."""

    mean: float
    low: float | None
    high: float | None
    n: int


def summarise(values: Sequence[float]) -> Summary:
    """Returns mean and standard deviation."""
    return Summary(
        statistics.fmean(values) if values else None,
        statistics.stdev(values) if len(values) > 1 else None,
        len(values),
    )


def compare_paired(
    values: Mapping[int, float], reference: Mapping[int, float], confidence: float = CONFIDENCE
) -> Difference | None:
    """Compares two settings seed by seed, because runs of one seed share their data order.

    Args:
        values: by seed.
        reference: by seed; seeds that only one of the two has are left out.
        confidence: of the interval, by Student's t-distribution with n - 1 degrees of freedom.

    Returns:
        The difference `values - reference`, or None without a common seed.
    """
    differences = [values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())]
    if not differences:
        return None
    summary = summarise(differences)
    assert summary.mean is not None
    if summary.std is None:
        return Difference(summary.mean, None, None, summary.n)
    from scipy.stats import t  # takes most of a second, which a table of single runs need not spend

    half = float(t.ppf((1 + confidence) / 2, summary.n - 1)) * summary.std / math.sqrt(summary.n)
    return Difference(summary.mean, summary.mean - half, summary.mean + half, summary.n)


def judge(difference: Difference, margin: float = LEVEL_MARGIN) -> str:
    """Returns what the interval of a difference allows to say.

    Args:
        difference: in points, of which more is better.
        margin: how far from zero still counts as level.

    Returns:
        LEVEL where the whole interval lies within the margin; else AHEAD or BEHIND where it excludes zero; else
        NOT_DECIDED, as for a single seed, which has no interval.
    """
    low, high = difference.low, difference.high
    if low is None or high is None:
        return NOT_DECIDED
    if -margin <= low and high <= margin:
        return LEVEL
    return AHEAD if low > 0 else BEHIND if high < 0 else NOT_DECIDED
