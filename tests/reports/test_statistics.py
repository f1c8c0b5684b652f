"""Means, deviations and paired differences, against scipy's own test and by hand."""

import pytest
from scipy import stats

from un.reports.statistics import Difference, compare_paired, summarise


def test_summary_by_hand() -> None:
    summary = summarise([1.0, 2.0, 6.0])
    assert (summary.mean, summary.n) == (3.0, 3)
    assert summary.std == pytest.approx(7**0.5)
    assert summarise([4.0]).std is None
    assert summarise([]).mean is None


def test_difference_is_that_of_a_paired_t_test() -> None:
    ours, reference = {0: 50.0, 1: 52.5, 2: 51.0, 3: 55.0}, {0: 49.0, 1: 50.0, 2: 51.5, 3: 51.0}
    test = stats.ttest_rel(list(ours.values()), list(reference.values()))
    interval = test.confidence_interval(0.95)
    difference = compare_paired(ours, reference)
    assert difference is not None
    assert (difference.mean, difference.n) == (1.75, 4)
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))


def test_pairs_are_made_by_seed() -> None:
    difference = compare_paired({3: 10.0, 1: 20.0, 7: 99.0}, {1: 19.0, 2: -50.0, 3: 9.0})
    assert difference == Difference(1.0, 1.0, 1.0, 2)
    assert compare_paired({0: 3.0}, {0: 1.0, 1: 5.0}) == Difference(2.0, None, None, 1)
    assert compare_paired({0: 3.0}, {1: 1.0}) is None
