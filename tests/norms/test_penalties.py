"""What norms add to the training loss: values, gradients, and what becomes of them outside a plain step."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.norms.helpers import BUILDERS, assert_same
from un.norms import BatchNorm, Norm, RegularizedBatchNorm
from un.norms.core.penalties import sum_penalties

B, N, C = 4, 5, 6
pytestmark = pytest.mark.usefixtures("double")


def draw(seed=0):
    """Input, upstream gradient and mask; the first channel hardly varies, the last is constant."""
    generator = torch.Generator().manual_seed(seed)
    x, grad = torch.randn(2, B, N, C, generator=generator) * torch.linspace(0, 3, C).flip(0).clamp_min(1e-6) + 0.5
    return x.flip(-1), grad, torch.rand(B, N, generator=generator) < 0.3


def compute_plainly(norm, x, mask):
    """y and penalty by the formulas, differentiated by torch, with the running statistics that the call has left."""
    rows = x if mask is None else x[~mask]
    rows = rows.reshape(-1, C)
    mean, variance = rows.mean(0), rows.var(0, correction=0)
    y = norm.weight * (x - mean) / variance.clamp_min(norm.eps).sqrt() + norm.bias
    running_mean, running_var = norm.running_mean.clone(), norm.running_var.clone()
    penalty = norm.penalty_mean * (running_mean - mean).square().sum()
    return y, penalty + norm.penalty_variance * (running_var - variance).abs().sum(), mean, variance


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("penalty_mean", "penalty_variance"), [(0.1, 0.01), (60.0, 0.0), (0.0, 2.0)])
def test_regularized_batchnorm_by_its_formulas(masked, penalty_mean, penalty_variance):
    options = {"penalty_mean": penalty_mean, "penalty_variance": penalty_variance}
    norm = RegularizedBatchNorm(C, momentum=0.2, eps=1e-3, **options)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    for step in range(3):
        x, grad, mask = draw(step)
        mask = mask if masked else None
        before = norm.running_mean.clone(), norm.running_var.clone()
        y, penalty = norm(x.requires_grad_(), mask), norm.penalty()
        z, expected, mean, variance = compute_plainly(norm, x, mask)
        assert (variance < norm.eps).any()
        inputs = (x, norm.weight, norm.bias)
        gradients = torch.autograd.grad((y * grad).sum() + 3 * penalty, inputs, retain_graph=True)
        assert_same(gradients, torch.autograd.grad((z * grad).sum() + 3 * expected, inputs, retain_graph=True), 1e-9)
        alone = torch.autograd.grad(penalty, x), torch.autograd.grad(expected, x)
        assert_same(alone[0], alone[1], 1e-9)
        assert_same([y, penalty], [z, expected], 1e-9)
        for running, old, new in zip((norm.running_mean, norm.running_var), before, (mean, variance), strict=True):
            assert_same([running], [0.8 * old + 0.2 * new], 1e-12)
    assert norm.eval().penalty() is None
    factor = norm.running_var.clamp_min(norm.eps).rsqrt()
    assert_same([norm(x)], [norm.weight * (x - norm.running_mean) * factor + norm.bias], 1e-9)


def test_refused_batches_have_no_penalty():
    norm = RegularizedBatchNorm(C)
    norm(draw()[0])
    x = draw(1)[0].requires_grad_()
    bad = x.detach().clone()
    bad[0, 0, 0] = math.inf
    for value, mask in ((x, torch.ones(B, N, dtype=torch.bool)), (bad.requires_grad_(), None)):
        norm(value, mask)
        penalty = norm.penalty()
        assert penalty == 0
        assert (torch.autograd.grad(penalty, value)[0] == 0).all()


def test_without_penalties_there_is_none():
    norm = RegularizedBatchNorm(C, penalty_mean=0, penalty_variance=0)
    norm(draw()[0])
    assert norm.penalty() is None
    assert sum_penalties(nn.Sequential(norm, BatchNorm(C), nn.Linear(C, C))) is None


@pytest.mark.parametrize("name", ["penalty_mean", "penalty_variance"])
def test_negative_penalties_are_refused(name):
    with pytest.raises(ValueError, match=f"^{name} must be at least 0, got -1$"):
        RegularizedBatchNorm(C, **{name: -1})


class Decay(Norm):
    """A norm that computes its penalty from its parameters."""

    def __init__(self, num_features):
        super().__init__(num_features, eps=0)

    def forward(self, x, pad_mask=None):
        return self.scale_and_shift(x)

    def penalty(self):
        return self.weight.square().sum()


def test_the_sum_is_taken_once_of_norms_in_training():
    model = nn.Sequential(RegularizedBatchNorm(C), Decay(C), RegularizedBatchNorm(C), nn.LayerNorm(C))
    model(draw()[0])
    parts = [model[i].penalty() for i in range(3)]
    assert torch.equal(sum_penalties(model), torch.stack(parts).sum())
    model[0].eval()
    model[1](draw()[0])
    assert sum_penalties(model) == C  # the others were left out of this forward, or are frozen
    assert sum_penalties(model.eval()) is None


def test_a_norm_with_a_penalty_can_be_copied_and_saved(tmp_path):
    model = nn.Sequential(nn.Linear(C, C), RegularizedBatchNorm(C))
    model(draw()[0])
    torch.save(model, tmp_path / "model.pt")
    for twin in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert twin[1].penalty() is None
        assert_same(twin.state_dict(), model.state_dict())


@pytest.mark.parametrize("name", [name for name in BUILDERS if name != "rbn"])
def test_other_norms_have_no_penalty(name):
    norm = BUILDERS[name](C)
    norm(draw()[0])
    assert norm.penalty() is None


def make_block():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(C, C), RegularizedBatchNorm(C), nn.Tanh(), nn.Linear(C, C))


def test_recomputed_activations_have_the_same_penalty():
    plain, recomputed = make_block(), make_block()
    for step in range(3):
        x = draw(step)[0]
        for block, y in ((plain, plain(x)), (recomputed, checkpoint(recomputed, x, use_reentrant=False))):
            block.zero_grad()
            (y.square().sum() + sum_penalties(block)).backward()
            assert sum_penalties(block) is None  # of the recomputed call
        assert_same([p.grad for p in recomputed.parameters()], [p.grad for p in plain.parameters()])
        assert_same(recomputed.state_dict(), plain.state_dict())


def test_a_penalty_without_gradient_is_refused():
    block = make_block()
    checkpoint(block, draw()[0].requires_grad_(), use_reentrant=True)
    with pytest.raises(ValueError, match=r"^the penalty of a norm has no gradient, .*use_reentrant=False"):
        sum_penalties(block)
    with torch.no_grad():
        assert sum_penalties(block) > 0
