"""Empty batches, padding and non-finite values: defined, counted, and without a trace in the state."""

import math

import pytest
import torch

from tests.norms.helpers import BUILDERS, REFUSING, C, advance, assert_same, copy_state, step
from un.norms import UnifiedNorm

pytestmark = pytest.mark.filterwarnings("error")


def assert_no_trace(norm, before):
    """But for the counters of calls that PRepBN has."""
    counters = ("iter", "warm", "calls")
    ours, expected = ({k: v for k, v in state.items() if k not in counters} for state in (norm.state_dict(), before))
    assert_same(ours, expected)


@pytest.mark.parametrize("shape", [(0, C), (3, 0, C)], ids=str)
def test_empty_batch_leaves_no_trace(norm, shape):
    advance(norm)
    before = copy_state(norm)
    y, x_grad, *grads = step(norm, torch.empty(shape), torch.empty(shape))
    assert y.shape == x_grad.shape == shape
    assert all(g is None or (g == 0).all() for g in grads)
    assert_no_trace(norm, before)


@pytest.mark.parametrize("garbage", [1.0, math.nan])
def test_all_padding_batch_leaves_no_trace(norm, garbage):
    advance(norm)
    before = copy_state(norm)
    y = norm(torch.full((2, 3, C), garbage), torch.ones(2, 3, dtype=torch.bool))
    assert y.shape == (2, 3, C)
    assert y.isfinite().all() or math.isnan(garbage)
    assert_no_trace(norm, before)


def test_one_token(norm):
    y, x_grad, *_ = step(norm, torch.randn(1, 1, C), torch.randn(1, 1, C))
    assert y.isfinite().all()
    assert x_grad.isfinite().all()
    assert all(buffer.isfinite().all() for buffer in norm.buffers())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", REFUSING)
def test_nonfinite_batch_leaves_no_trace_and_is_counted(name, bad):
    norm = BUILDERS[name](C)
    advance(norm)
    before = copy_state(norm)
    x = torch.randn(4, 3, C)
    x[1, 1, 2] = bad
    norm(x.requires_grad_()).sum().backward()
    counter = next(key for key in before if key.endswith("nonfinite_counter"))
    assert_no_trace(norm, {**before, counter: before[counter] + 1})
    advance(norm, calls=2)
    assert all(buffer.isfinite().all() for buffer in norm.buffers())


@pytest.mark.parametrize("name", ["un", "un_paper", "mabn", "powernorm"])
def test_nonfinite_gradient_leaves_no_trace_in_the_gradient_state(name):
    norm = BUILDERS[name](C)
    advance(norm)
    before = copy_state(norm)
    grad = torch.randn(4, 3, C)
    grad[0, 0, 1] = math.inf
    step(norm, torch.randn(4, 3, C), grad)
    assert_same(*({key: state[key] for key in norm.gradient_state} for state in (norm.state_dict(), before)))


def test_official_behaviour_admits_nonfinite_batches():
    norm = UnifiedNorm(C, reject_nonfinite=False)
    norm(torch.full((2, 3, C), math.nan))
    assert norm.running_var.isnan().all()
    assert norm.iters.item() == 1
    assert norm.nonfinite_counter.item() == 0
