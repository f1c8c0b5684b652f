"""Empty batches, padding and non-finite values: defined, counted, and without a trace in the state."""

import math

import pytest
import torch

from tests.norms.helpers import BUILDERS, STATISTICAL, C, advance, copy_state, step
from un.norms import UnifiedNorm

RUNNING = [name for name in STATISTICAL if name != "prepbn"]
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(params=BUILDERS)
def name(request):
    torch.manual_seed(0)
    return request.param


@pytest.fixture
def norm(name):
    return BUILDERS[name](C)


@pytest.mark.parametrize("shape", [(0, C), (0, 5, C), (3, 0, C)], ids=str)
def test_empty_batch_leaves_no_trace(name, shape):
    norm = BUILDERS[name](C)
    advance(norm)
    before = copy_state(norm)
    y, x_grad, *grads = step(norm, torch.empty(shape), torch.empty(shape))
    assert y.shape == x_grad.shape == shape
    assert all(g is None or (g == 0).all() for g in grads)
    if name != "prepbn":  # its counters count calls
        for key, value in norm.state_dict().items():
            assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("garbage", [1.0, math.nan, math.inf])
def test_all_padding_batch_leaves_no_trace(name, garbage):
    if name == "powernorm" and garbage == math.inf:
        garbage = 1e30  # the row scaling itself turns inf into NaN, in its own row
    norm = BUILDERS[name](C)
    advance(norm)
    before = copy_state(norm)
    x = torch.full((2, 3, C), garbage)
    y = norm(x, torch.ones(2, 3, dtype=torch.bool))
    assert y.shape == x.shape
    if garbage == 1.0:
        assert y.isfinite().all()
    if name != "prepbn":
        for key, value in norm.state_dict().items():
            assert torch.equal(value, before[key]), key


def test_one_token(norm):
    y, x_grad, *_ = step(norm, torch.randn(1, 1, C), torch.randn(1, 1, C))
    assert y.isfinite().all()
    assert x_grad.isfinite().all()
    assert all(buffer.isfinite().all() for buffer in norm.buffers())


def test_padding_is_not_looked_at(name):
    """Whatever padded rows hold, even NaN, the other rows and the state do not change."""
    mask = torch.zeros(4, 3, dtype=torch.bool)
    mask[1, 2] = mask[3] = True
    x = torch.randn(4, 3, C)
    clean, dirty = BUILDERS[name](C), BUILDERS[name](C)
    a = clean(x.masked_fill(mask.unsqueeze(-1), 7.0), mask)
    b = dirty(x.masked_fill(mask.unsqueeze(-1), math.nan), mask)
    assert torch.equal(a[~mask], b[~mask])
    for key, value in clean.state_dict().items():
        assert torch.equal(dirty.state_dict()[key], value), key


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", RUNNING)
def test_nonfinite_batch_leaves_no_trace_and_is_counted(name, bad):
    norm = BUILDERS[name](C)
    advance(norm)
    before = copy_state(norm)
    x = torch.randn(4, 3, C)
    x[1, 1, 2] = bad
    norm(x.requires_grad_()).sum().backward()
    after = norm.state_dict()
    assert after.pop("nonfinite_counter").item() == before.pop("nonfinite_counter").item() + 1
    for key, value in after.items():
        assert torch.equal(value, before[key]), key
    advance(norm, calls=2)
    assert all(buffer.isfinite().all() for buffer in norm.buffers())


@pytest.mark.parametrize("name", ["un", "un_paper", "un_centered", "mabn", "powernorm"])
def test_nonfinite_gradient_leaves_no_trace_in_the_gradient_state(name):
    norm = BUILDERS[name](C)
    advance(norm)
    before = copy_state(norm)
    grad = torch.randn(4, 3, C)
    grad[0, 0, 1] = math.inf
    step(norm, torch.randn(4, 3, C), grad)
    for key in set(before) & {"ema_gz", "buffer_gz"}:
        assert torch.equal(norm.state_dict()[key], before[key]), key


def test_official_behaviour_admits_nonfinite_batches():
    norm = UnifiedNorm(C, reject_nonfinite=False)
    norm(torch.full((2, 3, C), math.nan))
    assert norm.running_var.isnan().all()
    assert norm.iters.item() == 1
