"""Each switch S1-S20 changes what it names and nothing else.

A scenario of 12 calls with one spike is run with the default and with one switch; the tests compare what each leaves.
"""

import math
import re

import pytest
import torch

from un.norms import UnifiedNorm, calibrate

B, N, C, CALLS, SPIKE = 4, 6, 5, 12, 9
ORDINARY = {"window": 4, "warmup_steps": 6, "filtration": True, "compensation_start": 0}


class Trace:
    """What a layer did at every call."""

    def __init__(self, *, spike=True, masked=False, **options):
        generator = torch.Generator().manual_seed(0)
        self.norm = UnifiedNorm(C, dtype=torch.float64, **{**ORDINARY, **options})
        names = ("running_var", "ema_gz", "buffer_x2", "buffer_gz")
        self.outputs, self.x_grads, self.weight_grads, self.skips = [], [], [], []
        self.state = {name: [] for name in names}
        for index in range(1, CALLS + 1):
            x = torch.randn(B, N, C, generator=generator, dtype=torch.float64)
            x = x * (1 + 0.3 * torch.randn(C, generator=generator, dtype=torch.float64))
            if spike and index == SPIKE:
                x[..., 0] *= 40
            mask = torch.rand(B, N, generator=generator) < 0.3
            self.call(x, torch.randn(B, N, C, generator=generator, dtype=torch.float64), mask if masked else None)
            for name in names:
                self.state[name].append(getattr(self.norm, name).clone())
            self.skips.append(self.norm.skip_counter.item())

    def call(self, x, grad, mask):
        self.norm.zero_grad()
        x = x.requires_grad_()
        y = self.norm(x, mask)
        y.backward(grad)
        self.outputs.append(y.detach())
        self.x_grads.append(x.grad)
        self.weight_grads.append(self.norm.weight.grad.clone())

    def first_difference(self, other, what):
        """The first call (1-based) at which the two differ, or None."""
        ours, theirs = (t.state[what] if what in t.state else getattr(t, what) for t in (self, other))
        differ = [not torch.allclose(a, b, rtol=1e-12, atol=0) for a, b in zip(ours, theirs, strict=True)]
        return differ.index(True) + 1 if any(differ) else None


@pytest.fixture(scope="module")
def official():
    trace = Trace()
    assert trace.skips[SPIKE - 2] == 0  # quiet before the spike ...
    assert trace.skips[SPIKE - 1] == 1  # ... which is filtered
    return trace


FORWARD = ("outputs", "running_var", "buffer_x2")
BACKWARD = ("x_grads", "weight_grads", "ema_gz", "buffer_gz")

# switch: (options, what changes and at which call first; everything else never changes before the spike's aftermath)
CASES = {
    "S1 input": ({"compensation": "input"}, {"weight_grads": 7}),
    "S1 none": ({"compensation": "none"}, {"x_grads": 7, "weight_grads": 7, "ema_gz": 7, "buffer_gz": 7}),
    "S2 clamp": ({"compensation_limits": [0.999, 1.001]}, dict.fromkeys(BACKWARD, 7)),
    "S2 start": ({"compensation_start": 8}, dict.fromkeys(BACKWARD, 7)),
    "S3": ({"warmup_gradient": "instant"}, {"x_grads": 1, "ema_gz": 1, "buffer_gz": SPIKE}),
    "S9 batch": ({"filtered_moment": "batch"}, {"buffer_x2": SPIKE, "outputs": 10, "running_var": 10}),
    "S9 keep": ({"filtered_moment": "keep"}, {"buffer_x2": SPIKE, "outputs": 10, "running_var": 10}),
    "S10 batch": ({"filtered_gradient": "batch"}, {"buffer_gz": SPIKE, "ema_gz": 10, "x_grads": 10}),
    "S10 keep": ({"filtered_gradient": "keep"}, {"buffer_gz": SPIKE, "ema_gz": 10, "x_grads": 10}),
    "S11 replace": ({"filtered_gradient_average": "replace"}, {"ema_gz": SPIKE, "x_grads": 10}),
    "S11 keep": ({"filtered_gradient_average": "keep"}, {"ema_gz": SPIKE, "x_grads": 10}),
    "S12": ({"filtered_running": "freeze"}, {"running_var": SPIKE, "x_grads": 10, "weight_grads": 10}),
    "S19 forward": ({"momentum": [0.5, 0.9]}, {"running_var": 1, "x_grads": 7, "weight_grads": 7}),
    "S19 backward": ({"momentum": [0.9, 0.5]}, {"ema_gz": 1, "x_grads": 1, "buffer_gz": SPIKE}),
}


@pytest.mark.parametrize("case", CASES)
def test_changes_what_it_names_at_the_call_it_should(case, official):
    options, expected = CASES[case]
    trace = Trace(**options)
    for what, call in expected.items():
        assert trace.first_difference(official, what) == call, what
    for what in set(FORWARD + BACKWARD) - set(expected):
        first = trace.first_difference(official, what)
        # What the switch does not name may only follow from what it does: later than its own first effect.
        assert first is None or first > min(expected.values()), what


def test_s9_keep_leaves_the_old_entry():
    trace = Trace(filtered_moment="keep")
    slot = SPIKE % 4
    assert torch.equal(trace.state["buffer_x2"][SPIKE - 1][slot], trace.state["buffer_x2"][SPIKE - 2][slot])


def test_s12_frozen_running_statistic_stays(official):
    before, frozen, moved = (
        trace.state["running_var"][index]
        for trace, index in (
            (official, SPIKE - 2),
            (Trace(filtered_running="freeze"), SPIKE - 1),
            (official, SPIKE - 1),
        )
    )
    assert torch.equal(before, frozen)
    assert moved[0] > 50 * before[0]  # a spike of 40 moves the variance by about 0.1 * 1600


def test_s4_paper_smooths_one_call_earlier():
    late, early = (
        Trace(warmup_steps=0, smoothing_start=s, spike=False, filtration=False) for s in ("after_window", "full_window")
    )
    assert late.first_difference(early, "outputs") == 4  # t = M
    assert late.first_difference(early, "ema_gz") == 4


def test_s4_paper_filters_only_a_full_window():
    """With W = 0 the official code filters the very first call, when the window is empty."""
    assert Trace(warmup_steps=0).skips[0] == 1
    assert Trace(warmup_steps=0, smoothing_start="full_window").skips[2] == 0


@pytest.mark.parametrize("s6", ["layer", "channel"])
@pytest.mark.parametrize("s5", ["before", "after"])
@pytest.mark.parametrize("s7", ["sample", "population"])
def test_s5_s6_s7_threshold(s5, s6, s7):
    """The threshold against its formula, at the call of the spike."""
    trace = Trace(threshold_window=s5, threshold_scope=s6, threshold_divisor=s7, filtration=False)
    norm = trace.norm
    norm.filtration = True
    ring = norm.buffer_x2.clone()
    x = torch.randn(B, N, C, dtype=torch.float64) * 3
    after = ring.clone()
    after[(norm.iters.item() + 1) % 4] = x.square().mean((0, 1))
    roots = (ring if s5 == "before" else after).sqrt()
    values = roots if s6 == "channel" else roots.flatten().unsqueeze(-1)
    divisor = len(values) - (s7 == "sample")
    variance = (values - values.mean(0)).square().sum(0) / divisor
    gap = after.mean(0) - after.log().mean(0).exp()
    for factor, expected in ((None, (gap > 4 * variance).any()), (math.inf, False), (0.0, True)):
        norm.switches = type(norm.switches)(
            threshold_window=s5, threshold_scope=s6, threshold_divisor=s7, threshold_factor=factor
        )
        norm.skip_counter.zero_()
        norm.buffer_x2.copy_(ring)
        iters = norm.iters.clone()
        norm(x)
        norm.iters.copy_(iters)
        assert norm.skip_counter.item() == int(expected), factor


def test_s8_channel_drops_only_itself(official):
    trace = Trace(filter_decision="channel")
    assert trace.skips[-1] >= 1
    difference = (trace.outputs[SPIKE - 1] - official.outputs[SPIKE - 1]).abs().amax((0, 1))
    assert difference[0] == 0  # the spiked channel is dropped either way
    assert (difference[1:] > 0).all()  # the others stay smoothed


def test_s8_mean_compares_means():
    """A spike in one channel of five exceeds its own threshold but not always the mean one."""
    assert Trace(filter_decision="mean", threshold_factor=1e3).skips[-1] == 0
    assert Trace(filter_decision="mean", threshold_factor=0.0).skips[-1] > 0


@pytest.mark.parametrize("kind", ["geometric", "arithmetic", "harmonic", "last"])
def test_s13_average(kind):
    trace = Trace(forward_average=kind, spike=False, filtration=False, compensation="none")
    ring = trace.state["buffer_x2"][-1]
    slot = CALLS % 4
    expected = {
        "geometric": ring.log().mean(0).exp(),
        "arithmetic": ring.mean(0),
        "harmonic": 1 / (1 / ring).mean(0),
        "last": ring[slot],
    }[kind]
    before, after = trace.state["running_var"][-2:]
    assert torch.allclose((after - 0.9 * before) / 0.1, expected, rtol=1e-10)


@pytest.mark.parametrize(("kind", "first"), [("window", 1), ("running", 6), ("instant", 1)])
def test_backward_average(kind, first):
    trace, default = (Trace(backward_average=k, spike=False) for k in (kind, "window_running"))
    assert trace.first_difference(default, "x_grads") == first
    assert trace.first_difference(default, "outputs") is None


def test_s14_padding():
    excluded, included = (Trace(masked=True, pad_moment=p) for p in ("excluded", "included"))
    unmasked = Trace()
    assert included.first_difference(unmasked, "outputs") is None
    assert excluded.first_difference(unmasked, "outputs") == 1
    exact = Trace(masked=True, pad_gradient="excluded")
    assert exact.first_difference(excluded, "x_grads") == 1
    assert exact.first_difference(excluded, "outputs") is None


def test_s14_exact_gradient_under_a_mask():
    """Window 1 without padding in either statistic is the exact gradient, by autograd."""
    torch.manual_seed(0)
    norm = UnifiedNorm(C, window=1, pad_gradient="excluded", dtype=torch.float64)
    x = torch.randn(B, N, C, dtype=torch.float64, requires_grad=True)
    grad, mask = torch.randn_like(x), torch.rand(B, N) < 0.4
    (ours,) = torch.autograd.grad(norm(x, mask), x, grad)
    (theirs,) = torch.autograd.grad(x / (x[~mask].square().mean(0) + norm.eps).sqrt(), x, grad)
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_s15_calibration_replaces_the_running_statistic():
    norm = Trace().norm
    batches = [torch.randn(3, 4, C, dtype=torch.float64) * 2 for _ in range(5)]
    old = norm.running_var.clone()
    assert calibrate(norm, batches) == 1
    assert norm.training
    assert not torch.allclose(norm.running_var, old)
    assert torch.allclose(norm.running_var, torch.cat(batches).square().mean((0, 1)), rtol=1e-12)


def test_s16_input_type_overflows_where_float32_does_not():
    """Float16 squares overflow from |x| >= 256 in the official code."""
    x = torch.full((2, 3, C), 300.0, dtype=torch.float16)
    for kind, finite in (("float32", True), ("input", False)):
        norm = UnifiedNorm(C, statistics_type=kind)
        norm(x)
        assert (norm.nonfinite_counter.item() == 0) == finite


def test_s18_window_of_one_may_still_average_gradients():
    plain, smoothed = (
        Trace(window=1, single_window=s, spike=False, filtration=False) for s in ("unsmoothed", "smoothed")
    )
    assert plain.first_difference(smoothed, "outputs") is None
    assert plain.first_difference(smoothed, "x_grads") == 1


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
    scale, shift = norm.affine()
    assert torch.allclose(shift, -scale * norm.running_mean, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"window": [2, 3, 4]}, "window must be a number or a (forward, backward) pair"),
        ({"window": 2.5}, "window must be a whole number"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0, got -1"),
        ({"momentum": 1.5}, "momentum must be between 0 and 1, got 1.5"),
        ({"eps": -1.0}, "eps must be at least 0"),
        ({"compensation": "half"}, "compensation must be one of full, input, none, got half"),
        ({"centring": "batch"}, "did you mean centering?"),
        ({"sync": "yes"}, "sync must be true or false, got yes"),
        ({"filtration": "maybe"}, "filtration must be true or false, got maybe"),
        ({"compensation_limits": [2, 5]}, "compensation_limits must be a pair around 1"),
        ({"threshold_factor": -1}, "threshold_factor must be at least 0"),
    ],
)
def test_bad_options_say_what_is_allowed(options, words):
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        UnifiedNorm(C, **options)
    assert "\n" not in str(error.value)
