"""Facts about the filtration test."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from un.norms import Switches
from un.norms.core.filtration import find_outliers, measure_gap, measure_threshold


def population_threshold(ring, scope, factor=None):
    switches = Switches(threshold_scope=scope, threshold_divisor="population", threshold_factor=factor)
    return measure_threshold(ring, switches)


def fires(ring, scope, factor=None):
    threshold = population_threshold(ring, scope, factor)
    return bool(find_outliers(measure_gap(ring), threshold * (1 + 1e-9) + 1e-12, "any"))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    window=st.sampled_from([2, 3, 4, 8, 16]),
    channels=st.integers(1, 8),
    spread=st.floats(0, 6),
    seed=st.integers(0, 10**6),
)
def test_per_channel_threshold_on_the_same_window_never_fires(window, channels, spread, seed):
    """Aldaz's refinement of AM-GM: the gap is at most M times the variance of the square roots."""
    generator = torch.Generator().manual_seed(seed)
    ring = (spread * torch.randn(window, channels, generator=generator, dtype=torch.float64)).exp()
    assert not fires(ring, "channel")


def test_the_bound_is_reached_where_one_entry_is_zero():
    ring = torch.tensor([[0.0], [1.0], [1.0], [1.0]], dtype=torch.float64)
    threshold = population_threshold(ring, "channel")
    assert torch.allclose(measure_gap(ring), threshold)


def test_pooling_over_channels_suffices_to_fire():
    """Gap 394 against a pooled bound of 3.96 and a per-channel bound of 1141."""
    ring = torch.ones(4, 384, dtype=torch.float64)
    ring[3, 0] = 1600
    assert round(measure_gap(ring)[0].item()) == 394
    pooled = population_threshold(ring, "layer")
    assert round(pooled.item(), 2) == 3.96
    assert round(population_threshold(ring, "channel")[0].item()) == 1141
    assert fires(ring, "layer")
    assert not fires(ring, "channel")


def test_a_nonfinite_entry_switches_the_test_off():
    ring = torch.ones(4, 3)
    ring[1, 1] = float("nan")
    threshold = measure_threshold(ring, Switches())
    assert not find_outliers(measure_gap(ring), threshold, "any")
