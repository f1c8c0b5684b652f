"""In-place operations behind a norm do what they do behind nn.LayerNorm."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.norms.helpers import BUILDERS, C, assert_same


def zero_first_token(y, z):
    y[:1] = 0
    return y


# Each with what it computes out of place.
OPERATIONS = (
    (lambda y, z: y.mul_(2).add_(z).relu_(), lambda y, z: F.relu(2 * y + z)),
    (zero_first_token, lambda y, z: torch.cat([torch.zeros_like(y[:1]), y[1:]])),
    (lambda y, z: y.transpose(0, 1).add_(1).transpose(0, 1), lambda y, z: y + 1),
)
# Without weight a norm may return what another operation keeps for its gradient.
CASES = [*((name, True) for name in BUILDERS), *((name, False) for name in ("un", "batchnorm", "rmsnorm", "dyt"))]


@pytest.fixture(params=CASES, ids=str)
def norm(request):
    torch.manual_seed(0)
    name, affine = request.param
    norm = BUILDERS[name](C, affine=affine)
    for _ in range(5):
        norm(torch.randn(4, 3, C, requires_grad=True)).square().mean().backward()
    norm.zero_grad()
    return norm


def run(norm, act, shape=(4, 3, C), dtype=torch.float32, call=lambda norm, x: norm(x)):
    """Output, gradients and state after one call of `norm` between two layers, with `act` behind the norm."""
    torch.manual_seed(2)
    x, z = torch.randn(shape), torch.randn(shape).to(dtype)
    linear = nn.Linear(C, C)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = act(call(norm, linear(x)), z)
        loss = (y.float() * torch.randn(shape)).sum()
    loss.backward()
    parameters = [*linear.parameters(), *norm.parameters()]
    return [y.detach(), *(p.grad for p in parameters), *(b.clone() for b in norm.buffers())]


@pytest.mark.parametrize("training", [True, False])
def test_behind(norm, training):
    for in_place, plain in OPERATIONS:
        norm.zero_grad()
        twin = copy.deepcopy(norm.train(training))
        assert_same(run(norm, in_place), run(twin, plain))


@pytest.mark.parametrize("reentrant", [True, False])
def test_behind_checkpointed_and_under_autocast(norm, reentrant):
    options = {"shape": (7, C), "dtype": torch.float32 if reentrant else torch.bfloat16}
    options["call"] = lambda norm, x: checkpoint(norm, x, use_reentrant=reentrant)
    twin = copy.deepcopy(norm)
    in_place, plain = OPERATIONS[0]
    assert_same(run(norm, in_place, **options), run(twin, plain, **options))


def spoil(norm, change):
    """The input gradient where something is changed before the backward, or the error in words."""
    torch.manual_seed(4)
    x = torch.randn(4, 3, C, requires_grad=True)
    h = x * 1.5
    y = norm(h)
    with torch.no_grad():
        change(norm, h)
    try:
        y.backward(torch.randn(4, 3, C))
    except RuntimeError as error:
        return str(error)
    return x.grad


@pytest.mark.parametrize(
    "change", [lambda norm, h: h.add_(1), lambda norm, h: norm.weight.mul_(2)], ids=["x", "weight"]
)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["layernorm", *(name for name in BUILDERS if name != "prepbn")])
def test_what_a_gradient_needs_is_not_changed_silently(name, training, change):
    """An error, or the gradient as if nothing had changed; in training an error wherever nn.LayerNorm has one."""
    norm = (nn.LayerNorm(C) if name == "layernorm" else BUILDERS[name](C)).train(training)
    if norm.weight is None:
        pytest.skip("has no weight")
    expected = spoil(copy.deepcopy(norm), lambda norm, h: None)
    found = spoil(norm, change)
    if isinstance(found, str):
        assert "modified by an inplace operation" in found
    else:
        assert not training or name.startswith(("tapernorm", "centered"))  # needs neither weight nor output
        assert torch.equal(found, expected)
