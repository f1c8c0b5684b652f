"""In-place operations behind and in front of a norm do what they do behind and in front of nn.LayerNorm."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.norms.helpers import BUILDERS, C, advance
from un.surgery import ChannelFirst

SHAPES = {"rows": (7, C), "tokens": (4, 3, C), "maps": (2, 3, 2, C)}


def add_residual(y, z):
    y += z
    return y


def zero_first_token(y, z):
    y[:1] = 0
    return y


# Each with what it computes out of place.
OPERATIONS = {
    "relu": (lambda y, z: F.relu(y, inplace=True), lambda y, z: F.relu(y)),
    "add": (add_residual, lambda y, z: y + z),
    "power": (lambda y, z: y.pow_(2), lambda y, z: y.pow(2)),
    "assign": (zero_first_token, lambda y, z: torch.cat([torch.zeros_like(y[:1]), y[1:]])),
    "fill": (lambda y, z: y.masked_fill_(z > 0, 1.0), lambda y, z: y.masked_fill(z > 0, 1.0)),
    "view": (lambda y, z: y.transpose(0, 1).add_(1).transpose(0, 1), lambda y, z: y + 1),
    "several": (lambda y, z: add_residual(y.mul_(2), z).relu_(), lambda y, z: F.relu(2 * y + z)),
}
WAYS = {
    "eager": lambda norm, x: norm(x),
    "reentrant": lambda norm, x: checkpoint(norm, x, use_reentrant=True),
    "non-reentrant": lambda norm, x: checkpoint(norm, x, use_reentrant=False),
}


# Without weight a norm may return what another operation keeps for its gradient.
CASES = [*((name, True) for name in BUILDERS), *((name, False) for name in ("un", "batchnorm", "rmsnorm", "dyt"))]


@pytest.fixture(params=CASES, ids=str)
def norm(request):
    torch.manual_seed(0)
    name, affine = request.param
    norm = BUILDERS[name](C, affine=affine)
    for seed in range(5):
        x = torch.randn(4, 3, C, generator=torch.Generator().manual_seed(seed), requires_grad=True)
        norm(x).square().mean().backward()
    norm.zero_grad()
    return norm


def run(norm, act, shape=SHAPES["tokens"], dtype=torch.float32, way="eager"):
    """Output, gradients and state after one call of `norm` between two layers, with `act` behind the norm."""
    torch.manual_seed(2)
    x, z = torch.randn(shape), torch.randn(shape).to(dtype)
    linear = nn.Linear(C, C)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = act(WAYS[way](norm, linear(x)), z)
        loss = (y.float() * torch.randn(shape)).sum()
    loss.backward()
    parameters = [*linear.parameters(), *norm.parameters()]
    return [y.detach(), *(p.grad for p in parameters), *(b.clone() for b in norm.buffers())]


def assert_same(ours, expected):
    for a, b in zip(ours, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


def check(norm, name, **options):
    in_place, plain = OPERATIONS[name]
    twin = copy.deepcopy(norm)
    assert_same(run(norm, in_place, **options), run(twin, plain, **options))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("training", [True, False])
def test_behind(norm, training, name):
    check(norm.train(training), name)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_behind_any_shape(norm, training, shape):
    check(norm.train(training), "several", shape=SHAPES[shape])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("way", "dtype"),
    [("eager", torch.bfloat16), ("reentrant", torch.float32), ("non-reentrant", torch.bfloat16)],
    ids=str,
)
def test_behind_checkpointed_and_under_autocast(norm, training, way, dtype):
    check(norm.train(training), "several", dtype=dtype, way=way)


@pytest.mark.parametrize("name", ["un", "prepbn"])
@pytest.mark.parametrize("training", [True, False])
def test_behind_compiled(name, training):
    torch.compiler.reset()
    norm = BUILDERS[name](C)
    advance(norm)
    norm.train(training).zero_grad()
    in_place, plain = OPERATIONS["several"]
    compiled = torch.compile(lambda layer, x, z: in_place(layer(x), z), backend="aot_eager", fullgraph=True)
    results = []
    for function, layer in ((compiled, norm), (lambda layer, x, z: plain(layer(x), z), copy.deepcopy(norm))):
        torch.manual_seed(3)
        x, z = torch.randn(4, 3, C, requires_grad=True), torch.randn(4, 3, C)
        y = function(layer, x, z)
        (y * torch.randn(4, 3, C)).sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in layer.parameters()), *layer.buffers()])
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a.double(), b.double(), atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_behind_a_norm_over_axis_1(training):
    norm = ChannelFirst(BUILDERS["un"](C)).train(training)
    twin = copy.deepcopy(norm)
    grads = []
    for layer, act in ((norm, lambda y: y.mul_(2).relu_()), (twin, lambda y: (2 * y).relu())):
        torch.manual_seed(0)
        x = torch.randn(2, C, 3, 4, requires_grad=True)
        act(layer(x)).square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


def differentiate(norm, spoil):
    """The input gradient, where `spoil(norm, h, y)` changes something before the backward, or the error in words."""
    torch.manual_seed(4)
    x = torch.randn(4, 3, C, requires_grad=True)
    h = x * 1.5
    y = norm(h)
    spoil(norm, h, y)
    try:
        y.backward(torch.randn(4, 3, C))
    except RuntimeError as error:
        return str(error)
    return x.grad


def change_input(norm, h, y):
    h += 1


def change_weight(norm, h, y):
    with torch.no_grad():
        norm.weight *= 2


@pytest.mark.parametrize("spoil", [change_input, change_weight])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["layernorm", *BUILDERS])
def test_what_a_gradient_needs_is_not_changed_silently(name, training, spoil):
    """An error, or the gradient as if nothing had changed; in training an error wherever nn.LayerNorm has one."""
    norm = nn.LayerNorm(C) if name == "layernorm" else BUILDERS[name](C)
    if spoil is change_weight and norm.weight is None:
        pytest.skip("PRepBN's weights are those of the norms inside")
    norm.train(training)
    expected = differentiate(copy.deepcopy(norm), lambda *_: None)
    found = differentiate(norm, spoil)
    if isinstance(found, str):
        assert "modified by an inplace operation" in found
    else:
        assert not training
        assert torch.equal(found, expected)


def test_in_front(norm):
    """What is done to the input before the call is part of it, and the input is left alone."""
    plain = copy.deepcopy(norm)
    grads = []
    for layer, act in ((norm, lambda h: h.mul_(2).relu_()), (plain, lambda h: (2 * h).relu())):
        torch.manual_seed(5)
        x = torch.randn(4, 3, C, requires_grad=True)
        h = act(x * 1.5)
        before = h.detach().clone()
        layer(h).square().sum().backward()
        assert torch.equal(h.detach(), before)
        grads.append(x.grad)
    assert torch.equal(*grads)


def test_behind_a_strided_input(norm):
    """The output is contiguous, as nn.LayerNorm's is, so that `view` works behind it, in training and evaluation."""
    for training in (True, False):
        y = norm.train(training)(torch.randn(3, 4, C).transpose(0, 1))
        assert y.view(-1).shape == (12 * C,)
