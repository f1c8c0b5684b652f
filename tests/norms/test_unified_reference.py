"""UnifiedNorm against the step-by-step references of both presets, and its variant against it."""

import numpy as np
import pytest
import torch

from tests.norms.helpers import assert_same, paper_options, relative_error, step
from tests.norms.reference import OfficialReference, PaperReference
from un.norms import UnifiedNorm, UnifiedNormVariant

TOLERANCE = 1e-11  # over 30 steps of gradient updates in float64; one step agrees to 1e-15
B, N, C = 3, 5, 6
WINDOWS = [1, 2, 4, (4, 8), (8, 4), (1, 4)]
# (warm-up, calls before): from the first call, and on both sides of the calls W and 1000, after which r starts.
STARTS = [(0, 0), (5, 0), (5, 980), (1200, 1180)]


def make_batch(rng, index):
    """Activations of fluctuating scale with the spikes and jumps that filtration and the clamp of r react to."""
    x = rng.standard_normal((B, N, C)) * np.exp(0.3 * rng.standard_normal(C))
    if index % 7 == 3:
        x[..., index % C] *= 40  # a single-channel spike
    if index % 11 == 5:
        x *= 12
    if index % 13 == 9:
        x *= 0.01
    return x, rng.standard_normal((B, N, C))


def compare(norm, reference, padded, twin=None):
    """Compares a norm with a reference over 30 steps, and to the bit with a twin."""
    rng = np.random.default_rng(0)
    for index in range(30):
        x, grad = make_batch(rng, index)
        mask = rng.random((B, N)) < 0.3 if padded else None
        batch = torch.tensor(x), torch.tensor(grad), None if mask is None else torch.tensor(mask)
        ours = step(norm, *batch)
        if twin is not None:
            assert all(map(torch.equal, step(twin, *batch), ours)), index
        theirs = (reference.forward(x, mask), *reference.backward(grad))
        for name, a, b in zip(("y", "gx", "gw", "gb"), ours, theirs, strict=True):
            assert relative_error(a, b) < TOLERANCE, (index, name)
        for parameter, value in ((norm.weight, reference.gamma), (norm.bias, reference.beta)):
            with torch.no_grad():
                parameter -= 0.01 * parameter.grad
            value -= 0.01 * parameter.grad.numpy()
    state = {"running_var": reference.v, "ema_gz": reference.psi, "buffer_x2": reference.Q, "buffer_gz": reference.G}
    for name, value in state.items():
        assert relative_error(getattr(norm, name), value) < TOLERANCE, name
    assert norm.skip_counter.item() == reference.skipped
    assert norm.iters.item() == reference.t


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("filtration", [False, True], ids=["smooth", "filtered"])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_official_steps(window, filtration, padded):
    skipped = 0
    for warmup, start in STARTS:
        options = {"window": window, "warmup_steps": warmup, "filtration": filtration, "dtype": torch.float64}
        norm, variant = UnifiedNorm(C, **options), UnifiedNormVariant(C, **options)
        reference = OfficialReference(C, window, warmup, filtration)
        for counter in (norm.iters, variant.iters):
            counter.fill_(start)
        reference.t = start
        variant.weight, variant.bias = norm.weight, norm.bias
        compare(norm, reference, padded, variant)
        assert_same(variant.state_dict(), norm.state_dict())
        assert_same(variant.watch(), norm.watch())
        skipped += reference.skipped
    assert (skipped > 0) == (filtration and norm.window[0] > 1)


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("window", [1, 2, 4], ids=str)
def test_paper_preset_is_the_papers_steps(window, padded):
    for warmup in (0, 9):
        options = {**paper_options(), "warmup_steps": warmup}
        norm = UnifiedNorm(C, window=window, filtration=True, dtype=torch.float64, **options)
        compare(norm, PaperReference(C, window, warmup, True), padded)


def test_window_of_one_has_the_exact_gradient():
    """PN-V: y = weight x / sqrt(mean x² + eps) + bias, to rounding."""
    torch.manual_seed(0)
    norm = UnifiedNorm(C, window=1, warmup_steps=0, dtype=torch.float64)
    for _ in range(3):
        x, grad = torch.randn(2, B, N, C, dtype=torch.float64)
        ours = step(norm, x, grad)
        x.requires_grad_()
        weight = torch.ones(C, dtype=torch.float64, requires_grad=True)
        y = weight * x / (x.square().mean((0, 1)) + norm.eps).sqrt()
        for a, b in zip(ours, (y.detach(), *torch.autograd.grad(y, (x, weight), grad)), strict=False):
            assert relative_error(a, b) < 1e-13
