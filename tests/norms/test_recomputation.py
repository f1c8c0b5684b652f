"""Activation checkpointing: the recomputed forward neither advances the state nor changes the numbers."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.norms.helpers import BUILDERS, C, advance, assert_same
from un.surgery import share_pad_mask

STEPS = 8
REENTRANT = pytest.mark.parametrize("reentrant", [True, False])
pytestmark = pytest.mark.usefixtures("double")


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
        with share_pad_mask(block, mask if masked else None):
            y = run(block, x.requires_grad_())
        loss = (y * y.detach().roll(1, 0)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen += [loss.detach(), x.grad, *(p.grad.clone() for p in block.parameters())]
    return seen, block.state_dict()


@REENTRANT
@pytest.mark.parametrize(("name", "masked"), [*((name, True) for name in BUILDERS), ("un", False)])
def test_checkpointed_training_is_plain_training(name, masked, reentrant):
    plain = Block(BUILDERS[name])
    recomputed = copy.deepcopy(plain)
    expected, state = train(plain, lambda block, x: block(x), masked)
    found, found_state = train(recomputed, lambda block, x: checkpoint(block, x, use_reentrant=reentrant), masked)
    assert_same(found, expected)
    assert_same(found_state, state)


@REENTRANT
@pytest.mark.parametrize("name", ["un", "un_paper", "mabn", "powernorm", "prepbn"])
def test_a_norm_called_several_times(name, reentrant):
    """Twice in one block, and in two blocks of which the second is recomputed first."""
    plain = Block(BUILDERS[name], calls=2)
    recomputed = copy.deepcopy(plain)
    expected, _ = train(plain, lambda block, x: block(block(x)))

    def run(block, x):
        for _ in range(2):
            x = checkpoint(block, x, use_reentrant=reentrant)
        return x

    assert_same(train(recomputed, run)[0], expected, 1e-9)


def test_a_second_backward_recomputes_the_same():
    block, (x, _) = Block(BUILDERS["un"]), next(draw_batches())
    y = checkpoint(block, x.requires_grad_(), use_reentrant=False).square().sum()
    forward = [value.clone() for value in (block.norm.iters, block.norm.running_var, block.norm.buffer_x2)]
    for retain in (True, False):
        assert torch.autograd.grad(y, x, retain_graph=retain)[0].isfinite().all()
    assert_same([block.norm.iters, block.norm.running_var, block.norm.buffer_x2], forward)


@REENTRANT
def test_non_finite_input_is_recomputed(reentrant):
    block, (x, _) = Block(BUILDERS["un"]), next(draw_batches())
    x[0, 0, 0] = float("nan")
    checkpoint(block, x.requires_grad_(), use_reentrant=reentrant).sum().backward()
    assert block.norm.nonfinite_counter.item() == 1
    assert all(buffer.isfinite().all() for buffer in block.norm.buffers())


@pytest.mark.slow  # fairseq takes seconds to import
def test_fairseq_kind():
    activations = pytest.importorskip("un.translation.fairseq_library") and pytest.importorskip(
        "fairseq.modules.checkpoint_activations"
    )
    plain = Block(BUILDERS["un"])
    wrapped = activations.checkpoint_wrapper(copy.deepcopy(plain))
    expected, state = train(plain, lambda block, x: block(x))
    found, found_state = train(wrapped, lambda block, x: block(x))
    assert_same(found, expected)
    assert_same(found_state, state)


def test_another_input_than_before_is_refused():
    """A recomputation without the random state of the first forward would be trained on other numbers."""
    block, (x, _) = Block(BUILDERS["un"]), next(draw_batches())

    def noisy(x):
        return block.norm(nn.functional.dropout(x, 0.5))

    y = checkpoint(noisy, x.requires_grad_(), use_reentrant=False, preserve_rng_state=False)
    with pytest.raises(RuntimeError, match="must recompute the same numbers"):
        y.sum().backward()


def test_notes_are_bounded_and_ordinary_training_takes_none():
    """Training-mode passes under no_grad warm the statistics up, and never have a backward."""
    norm = BUILDERS["un"](C)
    advance(norm)
    assert not norm.notes._notes
    with torch.no_grad():
        for x, _ in draw_batches(100):
            norm(x)
    assert norm.iters.item() == 105
    assert len(norm.notes._notes) <= 64
