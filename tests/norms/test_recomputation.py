"""Activation checkpointing: the recomputed forward neither advances the state nor changes the numbers."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.norms.helpers import BUILDERS, C, advance
from un.surgery import share_pad_mask

KINDS = {"reentrant": True, "non-reentrant": False}
STEPS = 12
MASKED = [False, True]


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Block(nn.Module):
    """Two linear layers around one norm, which is called once or twice."""

    def __init__(self, build, calls=1):
        super().__init__()
        torch.manual_seed(0)
        self.before, self.norm, self.after = nn.Linear(C, C), build(C), nn.Linear(C, C)
        self.dropout, self.calls = nn.Dropout(0.2), calls

    def forward(self, x):
        for _ in range(self.calls):
            x = x + self.after(self.dropout(self.norm(self.before(x)).tanh()))
        return x


def draw_batches(steps=STEPS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(4, 5, C, generator=generator) * (1 + 3 * torch.rand(1, generator=generator))
        yield x, torch.rand(4, 5, generator=generator) < 0.3


def train(block, run, masked=False):
    """Losses, gradients and state over some steps of plain SGD; `run(block, x)` calls the block."""
    optimizer, seen = torch.optim.SGD(block.parameters(), 0.05), []
    for step, (x, mask) in enumerate(draw_batches()):
        torch.manual_seed(step)
        x.requires_grad_()
        if masked:
            with share_pad_mask(block, mask):
                y = run(block, x)
        else:
            y = run(block, x)
        loss = (y * y.detach().roll(1, 0)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen += [loss.detach(), x.grad, *(p.grad.clone() for p in block.parameters())]
    return seen + [value.clone() for value in block.state_dict().values()]


def assert_equal(ours, expected):
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("masked", MASKED)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BUILDERS)
def test_checkpointed_training_is_plain_training(name, kind, masked):
    plain = Block(BUILDERS[name])
    recomputed = copy.deepcopy(plain)
    expected = train(plain, lambda block, x: block(x), masked)
    ours = train(recomputed, lambda block, x: checkpoint(block, x, use_reentrant=KINDS[kind]), masked)
    assert_equal(ours, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["un", "un_paper", "mabn", "powernorm", "prepbn"])
def test_a_norm_called_several_times(name, kind):
    """Twice in one block, and in two blocks of which the second is recomputed first."""
    plain = Block(BUILDERS[name], calls=2)
    recomputed = copy.deepcopy(plain)
    expected = train(plain, lambda block, x: block(block(x)))

    def run(block, x):
        for _ in range(2):
            x = checkpoint(block, x, use_reentrant=KINDS[kind])
        return x

    ours = train(recomputed, run)
    state = len(plain.state_dict())
    for a, b in zip(ours[:-state], expected[:-state], strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["un", "un_paper", "mabn"])
def test_a_second_backward_recomputes_the_same(name):
    block, (x, _) = Block(BUILDERS[name]), next(draw_batches())
    y = checkpoint(block, x.requires_grad_(), use_reentrant=False).square().sum()
    forward = [value.clone() for value in (block.norm.iters, block.norm.running_var, block.norm.buffer_x2)]
    (first,) = torch.autograd.grad(y, x, retain_graph=True)
    (second,) = torch.autograd.grad(y, x)
    assert first.isfinite().all()
    assert second.isfinite().all()
    assert_equal([block.norm.iters, block.norm.running_var, block.norm.buffer_x2], forward)


@pytest.mark.parametrize("kind", KINDS)
def test_non_finite_input_is_recomputed(kind):
    block, (x, _) = Block(BUILDERS["un"]), next(draw_batches())
    x[0, 0, 0] = float("nan")
    checkpoint(block, x.requires_grad_(), use_reentrant=KINDS[kind]).sum().backward()
    assert block.norm.nonfinite_counter.item() == 1
    assert all(buffer.isfinite().all() for buffer in block.norm.buffers())


def test_fairseq_kind():
    activations = pytest.importorskip("un.translation.fairseq_library") and pytest.importorskip(
        "fairseq.modules.checkpoint_activations"
    )
    plain = Block(BUILDERS["un"])
    wrapped = activations.checkpoint_wrapper(copy.deepcopy(plain))
    expected = train(plain, lambda block, x: block(x))
    assert_equal(train(wrapped, lambda block, x: block(x)), expected)


def test_another_input_than_before_is_refused():
    """A recomputation without the random state of the first forward would be trained on other numbers."""
    block, (x, _) = Block(BUILDERS["un"]), next(draw_batches())

    def noisy(x):
        return block.norm(nn.functional.dropout(x, 0.5))

    y = checkpoint(noisy, x.requires_grad_(), use_reentrant=False, preserve_rng_state=False)
    with pytest.raises(RuntimeError, match="must recompute the same numbers"):
        y.sum().backward()


def test_passes_without_gradient_keep_little():
    """Training-mode passes under no_grad warm the statistics up; what they note for a backward is bounded."""
    norm = BUILDERS["un"](C)
    with torch.no_grad():
        for x, _ in draw_batches(200):
            norm(x)
    assert norm.iters.item() == 200
    assert len(norm.notes._notes) <= 64
    advance(norm)
    assert norm.iters.item() == 205


def test_ordinary_training_notes_nothing():
    norm = BUILDERS["un"](C)
    advance(norm)
    assert not norm.notes._notes
