"""Optimizer steps: windows that count them, skipped ones that leave no trace, and calls without a backward."""

import copy

import pytest
import torch
from torch import nn

from tests.norms.helpers import BUILDERS, STATISTICAL, C, assert_same, copy_state
from un import norms
from un.norms.core.updates import NormState, call_after_step, end_update, scale_gradient_state

COUNTING = {
    "un": lambda **k: norms.UnifiedNorm(C, warmup_steps=3, dtype=torch.float64, **k),
    "un_filtered": lambda **k: norms.UnifiedNorm(C, warmup_steps=0, filtration=True, dtype=torch.float64, **k),
    "un_centered": lambda **k: norms.UnifiedNorm(C, warmup_steps=3, centering="window", dtype=torch.float64, **k),
    "mabn": lambda **k: norms.MovingAverageBatchNorm(C, window=4, warmup_steps=3, dtype=torch.float64, **k),
    "powernorm": lambda **k: norms.PowerNorm(C, warmup_steps=3, dtype=torch.float64, **k),
}


def draw(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    x, grad = torch.randn(2, 4, 5, C, generator=generator, dtype=torch.float64)
    return scale * x, grad


def call(norm, seed, scale=1.0):
    """One training call with its backward; returns output and input gradient."""
    x, grad = draw(seed, scale)
    x.requires_grad_()
    y = norm(x)
    y.backward(grad)
    return y.detach(), x.grad


@pytest.mark.parametrize("name", COUNTING)
def test_one_call_an_update_is_counting_calls(name):
    calls, updates = COUNTING[name](), COUNTING[name](count="updates")
    for seed in range(12):
        assert_same(call(updates, seed), call(calls, seed))
        end_update(updates)
    assert_same(copy_state(updates), {**copy_state(calls), "update_calls": torch.zeros(2, dtype=torch.int64)})


def test_calls_of_an_update_share_a_window_entry():
    norm = COUNTING["un"](count="updates")
    expected = {}
    for update in range(1, 7):
        squares = []
        for number in range(3):
            call(norm, 10 * update + number, scale=1 + number)
            assert norm.iters.item() == update
            squares.append(draw(10 * update + number, 1 + number)[0].square().mean((0, 1)))
        end_update(norm)
        expected[update % 4] = torch.stack(squares).mean(0)
    for slot, entry in expected.items():
        assert torch.allclose(norm.buffer_x2[slot], entry, rtol=1e-12)


@pytest.mark.parametrize("name", ["un", "mabn"])
def test_backward_entries_are_means_over_the_update(name):
    """Backward calls have a number of their own, so their order does not matter to the entry."""
    entries = {}
    for order in ((0,), (1,), (0, 1), (1, 0)):
        norm = COUNTING[name](count="updates")
        pairs = [draw(0), draw(1)]
        outputs = [norm(x.requires_grad_()) for x, _ in pairs]
        for number in order:
            outputs[number].backward(pairs[number][1])
        entries[order] = norm.buffer_gz.sum(0)  # one slot is written, the others are 0
    for both in ((0, 1), (1, 0)):
        assert torch.allclose(entries[both], (entries[0,] + entries[1,]) / 2, rtol=1e-12)


def test_a_rejected_call_is_not_counted():
    norm = COUNTING["un"](count="updates")
    norm(torch.full((4, 5, C), torch.nan, dtype=torch.float64))
    assert norm.iters.item() == 0
    assert norm.update_calls.tolist() == [0, 0]


def test_checkpoints_of_both_kinds_load():
    """A checkpoint that counted calls has no `update_calls`."""
    norm, restored = (COUNTING["un"](count="updates") for _ in range(2))
    norm.load_state_dict(COUNTING["un"]().state_dict())
    call(norm, 1)
    restored.load_state_dict(norm.state_dict())
    assert_same(restored.state_dict(), norm.state_dict())


@pytest.mark.parametrize("name", STATISTICAL)
def test_a_step_taken_back_leaves_no_trace(name):
    """Of calls with infinite activations, gradients that are NaN, and finite numbers: to the bit."""
    norm = BUILDERS[name](C, dtype=torch.float64)
    clean, state = copy.deepcopy(norm), NormState(norm)
    for seed in range(8):
        call(norm, seed)
        call(clean, seed)
        state.keep()
        x, grad = draw(100 + seed)
        x[0, 0, 0] = torch.inf if seed % 3 == 0 else 0
        grad[0, 0, 0] = torch.nan if seed % 3 == 1 else 0
        norm(x.requires_grad_()).backward(grad)
        state.restore()
    counters = {key: value for key, value in norm.state_dict().items() if key.endswith("nonfinite_counter")}
    assert all(value.item() == 3 for value in counters.values())  # what was rejected stays counted
    assert_same(norm.state_dict(), {**copy_state(clean), **counters})


def test_the_gradient_state_follows_the_loss_scale():
    plain, scaled = COUNTING["un"](), COUNTING["un"]()
    for seed in range(6):
        for norm, scale in ((plain, 1), (scaled, 8)):
            x, grad = draw(seed)
            norm(x.requires_grad_()).backward(scale * grad)
    scale_gradient_state(scaled, 1 / 8)
    assert_same(scaled.state_dict(), plain.state_dict())


def test_only_steps_that_were_taken_are_told():
    optimizer, taken = torch.optim.SGD(nn.Linear(2, 2).parameters(), fused=True), []
    call_after_step(optimizer, lambda: taken.append(1))
    for found_inf in (None, torch.tensor(1.0), torch.tensor(0.0)):  # as a GradScaler tells fused optimizers
        optimizer.found_inf = found_inf
        optimizer.step()
    assert len(taken) == 2


@pytest.mark.parametrize("name", BUILDERS)
def test_passes_without_backward_and_frozen_parameters(name):
    """A warm-up pass under no_grad moves the forward state as a training call does; frozen weights get no gradient."""
    passive, active = (BUILDERS[name](C, dtype=torch.float64) for _ in range(2))
    for seed in range(6):
        x, _ = draw(seed)
        with torch.no_grad():
            y = passive(x)
        assert torch.equal(y, active(x.requires_grad_()).detach())
    assert_same(passive.state_dict(), active.state_dict())
    for parameter in passive.parameters():
        parameter.requires_grad_(False)
    assert torch.equal(call(passive, 9)[1], call(active, 9)[1])
    assert all(parameter.grad is None for parameter in passive.parameters())


@pytest.mark.parametrize("name", BUILDERS)
def test_two_forwards_before_their_backwards(name):
    """Each backward belongs to its own forward, whatever came between: outputs and first-order terms agree."""
    norm = BUILDERS[name](C, dtype=torch.float64)
    for seed in range(5):
        call(norm, seed)
    alone = copy.deepcopy(norm)
    (x, grad), (other, other_grad) = draw(10), draw(11)
    y = norm(x.requires_grad_())
    later = norm(other.requires_grad_())
    y.backward(grad)
    later.backward(other_grad)
    expected, expected_grad = call(alone, 10)
    assert torch.equal(y.detach(), expected)
    assert torch.allclose(x.grad, expected_grad, rtol=1e-12)
    assert torch.equal(later.detach(), call(alone, 11)[0])
    assert_same(norm.state_dict(), alone.state_dict(), 1e-12)
