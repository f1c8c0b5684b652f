"""Each switch S1-S20 changes what it names and nothing else.

A scenario of 12 calls with one spike is run with the default and with one switch; the tests compare what each leaves.
"""

import math
import re

import pytest
import torch

from tests.norms.helpers import assert_same, copy_state, step
from un.norms import UnifiedNorm
from un.norms.core.moments import measure_moments
from un.norms.core.transaction import preview

B, N, C, CALLS, SPIKE = 4, 6, 5, 12, 9
ORDINARY = {"window": 4, "warmup_steps": 6, "filtration": True, "compensation_start": 0}


FORWARD = ("outputs", "running_var", "buffer_x2")
BACKWARD = ("x_grads", "weight_grads", "ema_gz", "buffer_gz")


class Trace:
    """What a layer did at every call."""

    def __init__(self, *, spike=True, masked=False, **options):
        generator = torch.Generator().manual_seed(0)
        self.norm = UnifiedNorm(C, dtype=torch.float64, **{**ORDINARY, **options})
        self.seen, self.skips = {name: [] for name in FORWARD + BACKWARD}, []
        for index in range(1, CALLS + 1):
            x = torch.randn(B, N, C, generator=generator, dtype=torch.float64)
            x = x * (1 + 0.3 * torch.randn(C, generator=generator, dtype=torch.float64))
            if spike and index == SPIKE:
                x[..., 0] *= 40
            mask = torch.rand(B, N, generator=generator) < 0.3
            grad = torch.randn(B, N, C, generator=generator, dtype=torch.float64)
            y, x_grad, weight_grad, _ = step(self.norm, x, grad, mask if masked else None)
            found = {"outputs": y, "x_grads": x_grad, "weight_grads": weight_grad.clone(), **copy_state(self.norm)}
            for name, values in self.seen.items():
                values.append(found[name])
            self.skips.append(self.norm.skip_counter.item())

    def first_difference(self, other, what):
        """The first call (1-based) at which the two differ, or None."""
        pairs = zip(self.seen[what], other.seen[what], strict=True)
        differ = [not torch.allclose(a, b, rtol=1e-12, atol=0) for a, b in pairs]
        return differ.index(True) + 1 if any(differ) else None


@pytest.fixture(scope="module")
def official():
    trace = Trace()
    assert trace.skips[SPIKE - 2 : SPIKE] == [0, 1]  # the spike is filtered, and nothing before
    return trace


PLAIN = {"spike": False, "filtration": False}
# switch: (what both layers have, what one has, what changes and at which call first)
CASES = {
    "S1 input": ({}, {"compensation": "input"}, {"weight_grads": 7}),
    "S1 none": ({}, {"compensation": "none"}, dict.fromkeys(BACKWARD, 7)),
    "S2 clamp": ({}, {"compensation_limits": [0.999, 1.001]}, dict.fromkeys(BACKWARD, 7)),
    "S2 start": ({}, {"compensation_start": 8}, dict.fromkeys(BACKWARD, 7)),
    "S3": ({}, {"warmup_gradient": "instant"}, {"x_grads": 1, "ema_gz": 1, "buffer_gz": SPIKE}),
    "S4": (
        {**PLAIN, "warmup_steps": 0},
        {"smoothing_start": "full_window"},
        dict.fromkeys(("outputs", "running_var", "x_grads", "ema_gz"), 4),  # t = M
    ),
    "S9 batch": ({}, {"filtered_moment": "batch"}, {"buffer_x2": SPIKE, "outputs": 10, "running_var": 10}),
    "S9 keep": ({}, {"filtered_moment": "keep"}, {"buffer_x2": SPIKE, "outputs": 10, "running_var": 10}),
    "S10 batch": ({}, {"filtered_gradient": "batch"}, {"buffer_gz": SPIKE, "ema_gz": 10, "x_grads": 10}),
    "S10 keep": ({}, {"filtered_gradient": "keep"}, {"buffer_gz": SPIKE, "ema_gz": 10, "x_grads": 10}),
    "S11 replace": ({}, {"filtered_gradient_average": "replace"}, {"ema_gz": SPIKE, "x_grads": 10}),
    "S11 keep": ({}, {"filtered_gradient_average": "keep"}, {"ema_gz": SPIKE, "x_grads": 10}),
    "S12": ({}, {"filtered_running": "freeze"}, {"running_var": SPIKE, "x_grads": 10, "weight_grads": 10}),
    "S14 all rows": ({}, {"masked": True, "pad_moment": "included"}, {}),  # as if there were no mask
    "S14 moment": ({"masked": True}, {"pad_moment": "included"}, dict.fromkeys(FORWARD + BACKWARD, 1)),
    "S14 gradient": ({"masked": True}, {"pad_gradient": "excluded"}, {"x_grads": 1, "ema_gz": 1, "buffer_gz": 1}),
    "S18": ({**PLAIN, "window": 1}, {"single_window": "smoothed"}, {"x_grads": 1, "buffer_gz": 1}),
    "S19 forward": ({}, {"momentum": [0.5, 0.9]}, {"running_var": 1, "x_grads": 7, "weight_grads": 7}),
    "S19 backward": ({}, {"momentum": [0.9, 0.5]}, {"ema_gz": 1, "x_grads": 1, "buffer_gz": SPIKE}),
    "window": (PLAIN, {"backward_average": "window"}, {"x_grads": 1}),
    "running": (PLAIN, {"backward_average": "running"}, {"x_grads": 6, "ema_gz": 6}),
    "instant": (PLAIN, {"backward_average": "instant"}, {"x_grads": 1, "ema_gz": 6}),
}


@pytest.mark.parametrize("case", CASES)
def test_changes_what_it_names_at_the_call_it_should(case, official):
    common, switch, expected = CASES[case]
    default, trace = Trace(**common) if common else official, Trace(**common, **switch)
    for what in FORWARD + BACKWARD:
        first = trace.first_difference(default, what)
        if what in expected:
            assert first == expected[what], what
        else:  # what the switch does not name may only follow from what it does, in a later call
            assert first is None or first > min(expected.values(), default=CALLS), what


def test_what_an_outlier_leaves(official):
    """S9 keep leaves the old entry of the window, S12 freeze the running moment; officially the latter jumps."""
    kept, frozen = (
        Trace(filtered_moment="keep").seen["buffer_x2"],
        Trace(filtered_running="freeze").seen["running_var"],
    )
    assert torch.equal(kept[SPIKE - 1][SPIKE % 4], kept[SPIKE - 2][SPIKE % 4])
    assert torch.equal(frozen[SPIKE - 1], frozen[SPIKE - 2])
    before, after = official.seen["running_var"][SPIKE - 2 : SPIKE]
    assert after[0] > 50 * before[0]  # a spike of 40 moves the variance by about 0.1 * 1600


def test_s4_paper_filters_only_a_full_window():
    """With W = 0 the official code filters the very first call, when the window is empty."""
    assert Trace(warmup_steps=0).skips[0] == 1
    assert Trace(warmup_steps=0, smoothing_start="full_window").skips[2] == 0


def push(window, q, **switches):
    """Outlier, gap and threshold where a layer, past its warm-up, takes q (C,) into slot 0 of a window (M, C)."""
    norm = UnifiedNorm(len(q), window=len(window), warmup_steps=0, filtration=True, dtype=window.dtype, **switches)
    norm.buffer_x2.copy_(window)
    return norm.push_moment(q, torch.tensor(10 * len(window)))


@pytest.mark.parametrize("s6", ["layer", "channel"])
@pytest.mark.parametrize("s5", ["before", "after"])
@pytest.mark.parametrize("s7", ["sample", "population"])
@pytest.mark.parametrize("factor", [None, 0.5])
def test_s5_s6_s7_threshold(s5, s6, s7, factor):
    window = torch.rand(4, C, dtype=torch.float64)
    after = torch.cat([torch.rand(1, C, dtype=torch.float64), window[1:]])
    switches = {"threshold_window": s5, "threshold_scope": s6, "threshold_divisor": s7, "threshold_factor": factor}
    outlier, gap, threshold = push(window, after[0], **switches)
    roots = (window if s5 == "before" else after).sqrt()
    values = roots if s6 == "channel" else roots.view(-1, 1)
    variance = (values - values.mean(0)).square().sum(0) / (len(values) - (s7 == "sample"))
    assert torch.allclose(threshold, (factor or 4) * variance)
    assert torch.allclose(gap, after.mean(0) - after.log().mean(0).exp())
    assert outlier == (gap > threshold).any()


def test_pooling_over_channels_suffices_to_fire():
    """Gap 394 against a pooled bound of 3.96 and a per-channel bound of 1141.

    On one and the same window the gap never exceeds M times a channel's variance (Aldaz's refinement of AM-GM).
    """
    same_window = {"threshold_window": "after", "threshold_divisor": "population"}
    window = torch.ones(4, 384, dtype=torch.float64)
    window[3, 0] = 1600
    for scope, bound, fires in (("layer", 3.96, True), ("channel", 1141, False)):
        outlier, gap, threshold = push(window, window[0], threshold_scope=scope, **same_window)
        assert round(gap[0].item()) == 394
        assert threshold.view(-1)[0].item() == pytest.approx(bound, abs=0.5)
        assert outlier.item() == fires


@pytest.mark.parametrize("options", [{}, {"centering": "window"}], ids=str)
def test_a_preview_is_of_the_next_call_and_leaves_no_trace(options):
    norm, x = Trace(**options).norm, 9 * torch.randn(B * N, C, dtype=torch.float64)
    before = copy_state(norm)
    call = preview(norm, measure_moments(x, None, centered=bool(options)))
    assert_same(norm.state_dict(), before)
    norm(x)
    assert call.number == norm.iters
    assert (norm.skip_counter > before["skip_counter"]) == (call.gap > call.threshold).any()
    assert torch.allclose(norm.running_var, 0.9 * before["running_var"] + 0.1 * (call.scale**-2 - norm.eps))


def test_a_nonfinite_entry_switches_the_test_off():
    window = torch.ones(4, 3)
    window[1, 1] = math.nan
    assert not push(window, 100 * window[0])[0]


def test_s8_channel_drops_only_itself(official):
    trace = Trace(filter_decision="channel")
    assert trace.skips[-1] >= 1
    difference = (trace.seen["outputs"][SPIKE - 1] - official.seen["outputs"][SPIKE - 1]).abs().amax((0, 1))
    assert difference[0] == 0  # the spiked channel is dropped either way
    assert (difference[1:] > 0).all()  # the others stay smoothed


def test_s8_mean_compares_means():
    """A spike in one channel of five exceeds its own threshold but not always the mean one."""
    assert Trace(filter_decision="mean", threshold_factor=1e3).skips[-1] == 0
    assert Trace(filter_decision="mean", threshold_factor=0.0).skips[-1] > 0


@pytest.mark.parametrize("kind", ["geometric", "arithmetic", "harmonic", "last"])
def test_s13_average(kind):
    trace = Trace(forward_average=kind, spike=False, filtration=False, compensation="none")
    ring = trace.seen["buffer_x2"][-1]
    slot = CALLS % 4
    expected = {
        "geometric": ring.log().mean(0).exp(),
        "arithmetic": ring.mean(0),
        "harmonic": 1 / (1 / ring).mean(0),
        "last": ring[slot],
    }[kind]
    before, after = trace.seen["running_var"][-2:]
    assert torch.allclose((after - 0.9 * before) / 0.1, expected, rtol=1e-10)


def test_s16_input_type_overflows_where_float32_does_not():
    """Float16 squares overflow from |x| >= 256 in the official code."""
    x = torch.full((2, 3, C), 300.0, dtype=torch.float16)
    for kind, finite in (("float32", True), ("input", False)):
        norm = UnifiedNorm(C, statistics_type=kind)
        norm(x)
        assert (norm.nonfinite_counter.item() == 0) == finite


@pytest.mark.parametrize("centering", ["batch", "window"])
def test_s20_gradient_through_the_mean_is_exact(centering):
    """Finite differences of the layer, its other statistics held: only possible with window 1 and no smoothing."""
    torch.manual_seed(0)
    norm = UnifiedNorm(C, window=1, centering=centering, dtype=torch.float64)
    x = torch.randn(B, N, C, dtype=torch.float64) + 3
    grad = torch.randn_like(x)
    x.requires_grad_()
    (ours,) = torch.autograd.grad(norm(x), x, grad)
    centered = x - x.mean((0, 1))
    (theirs,) = torch.autograd.grad(centered / (centered.square().mean((0, 1)) + norm.eps).sqrt(), x, grad)
    assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_s20_window_mean_passes_its_share_of_the_gradient():
    """Past warm-up the mean is that of 4 batches: a quarter of the centred rows' summed gradient is taken away."""
    norm = Trace(centering="window", filtration=False, spike=False, compensation="none").norm
    x = torch.randn(B, N, C, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(x)
    variance, mean = norm.running_var.clone(), norm.running_mean.clone()
    (x_grad,) = torch.autograd.grad(norm(x), x, grad)
    s, center = (norm.running_var - 0.9 * variance) / 0.1, (norm.running_mean - 0.9 * mean) / 0.1
    scale = 1 / (s + norm.eps).sqrt()
    z = (x.detach() - center) * scale
    expected = scale * (grad.sum((0, 1)) - norm.ema_gz * z.sum((0, 1))) * (1 - 1 / 4)
    assert torch.allclose(x_grad.sum((0, 1)), expected, rtol=1e-9)


def test_s20_inference_uses_the_running_mean():
    norm = Trace(centering="batch").norm.eval()
    x = torch.randn(2, 3, C, dtype=torch.float64)
    expected = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    assert torch.allclose(norm(x), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_features": 0}, "num_features must be at least 1, got 0"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"window": [2, 3, 4]}, "window must be a number or a (forward, backward) pair"),
        ({"window": 2.5}, "window must be a whole number"),
        ({"momentum": 1.5}, "momentum must be between 0 and 1, got 1.5"),
        ({"eps": -1.0}, "eps must be at least 0"),
        ({"count": "epochs"}, "count must be one of calls, updates, got epochs"),
        ({"compensation": "half"}, "compensation must be one of full, input, none, got half"),
        ({"centring": "batch"}, "did you mean centering?"),
        ({"sync": "yes"}, "sync must be true or false, got yes"),
        ({"compensation_limits": [2, 5]}, "compensation_limits must be a pair around 1"),
        ({"threshold_factor": -1}, "threshold_factor must be at least 0"),
    ],
)
def test_bad_options_say_what_is_allowed(options, words):
    with pytest.raises(ValueError, match=f"^.*{re.escape(words)}.*$"):
        UnifiedNorm(**{"num_features": C, **options})
