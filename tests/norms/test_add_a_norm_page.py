"""The norm of docs/add_a_norm.md computes what the page says; the common tests run on it, too (`BUILDERS`)."""

import pytest
import torch
from torch import nn

from tests.norms.helpers import BUILDERS, C, step
from un.folding import fold_norms


@pytest.fixture
def my_norm():
    return BUILDERS["my_norm"]


def test_gradients_are_those_of_autograd(my_norm):
    torch.manual_seed(0)
    norm = my_norm(C, dtype=torch.float64)
    x, grad = torch.randn(2, 4, 3, C, dtype=torch.float64)
    plain = x.clone().requires_grad_()
    y = plain / (plain.square().mean((0, 1)) + norm.eps).sqrt()
    y.backward(grad)
    for ours, expected in zip(step(norm, x, grad)[:2], (y, plain.grad), strict=True):
        torch.testing.assert_close(ours, expected)


def test_a_refused_batch_leaves_no_trace_and_padding_stays_out(my_norm):
    norm, x = my_norm(C), torch.ones(2, 3, C)
    norm(x.index_fill(1, torch.tensor(2), torch.nan), torch.tensor([[False, False, True]] * 2))
    assert torch.equal(norm.running_var, torch.ones(C))
    assert norm.nonfinite_counter == 0
    norm(x * torch.inf)
    assert torch.equal(norm.running_var, torch.ones(C))
    assert norm.nonfinite_counter == 1


def test_it_folds(my_norm):
    model = nn.Sequential(my_norm(C), nn.Linear(C, 2))
    model(torch.randn(8, C))
    _, report = fold_norms(model.eval(), torch.randn(3, C))
    assert "1 of 1 norms folded" in str(report)


def test_it_is_watched_and_refused_batches_are_counted(my_norm):
    norm = my_norm(C)
    norm(torch.full((2, C), torch.inf))
    watched = {name: value.item() for name, value in norm.watch().items()}
    assert watched["nonfinite_count"] == 1
    assert watched["largest_scale"] == pytest.approx(1, abs=1e-4)
