"""Second derivatives, forward mode and torch.func: right, or refused in one line before any state has moved."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from tests.norms.helpers import BUILDERS, STATELESS, STATISTICAL, C, advance, assert_same, copy_state
from un.norms import DynamicTanh, RMSNorm

pytestmark = pytest.mark.usefixtures("double")


def build(name, training, **options):
    norm = BUILDERS[name](C, **options)
    advance(norm)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 2.0)
    norm.zero_grad()
    return norm.train(training)


def draw(*shape):
    return torch.randn(*(shape or (4, 3)), C)


def push_tangent(norm):
    with forward_ad.dual_level():
        y = norm(forward_ad.make_dual(draw(), draw()))
        assert forward_ad.unpack_dual(y).tangent is not None


def push_weight_tangent(norm):
    """A tangent of a parameter alone."""
    name, parameter = next(iter(norm.named_parameters()))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(parameter.detach(), torch.ones_like(parameter))
        functional_call(norm, {name: dual}, (draw(),))


# What a norm with state refuses in training. None of them reaches the state.
TRANSFORMS = {
    "grad": lambda norm: grad(lambda x: norm(x).square().sum())(draw()),
    "jvp": lambda norm: jvp(norm, (draw(),), (draw(),)),
    "vmap": lambda norm: vmap(norm)(draw(5, 4, 3)),
    "hessian": lambda norm: hessian(lambda x: norm(x).square().sum())(draw()),
    "forward mode": push_tangent,
    "forward mode of a weight": push_weight_tangent,
}
# All norms refuse in the same place.
REFUSED = [("un", transform) for transform in TRANSFORMS] + [(n, "jvp") for n in STATISTICAL if n != "un"]


@pytest.mark.parametrize(("name", "transform"), REFUSED)
def test_training_refuses_transforms_and_stays_as_it_is(name, transform):
    norm = build(name, training=True)
    before = copy_state(norm)
    with pytest.raises(RuntimeError, match=r"^a norm in training mode moves its statistics.*$"):
        TRANSFORMS[transform](norm)
    assert_same(norm.state_dict(), before)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("name", STATISTICAL)
def test_training_has_a_first_derivative_with_a_graph_and_refuses_a_second(name, constant):
    """Also where the upstream gradient is a constant, so that it gives the norm's gradient no graph of its own."""
    norm, x = build(name, training=True), draw()
    results = []
    for layer, create_graph in ((copy.deepcopy(norm), False), (norm, True)):
        leaf = x.clone().requires_grad_()
        y = layer(1.0 * leaf)
        loss = y.sum() if constant else y.square().sum()
        inputs = [leaf, *layer.parameters()]
        gradients = torch.autograd.grad(loss, inputs, create_graph=create_graph, allow_unused=True)
        results.append([*gradients, *layer.buffers()])
    assert_same(*results)
    with pytest.raises(RuntimeError, match=r"^.*no second derivative.*$"):
        gradients[0].square().sum().backward()


@pytest.mark.parametrize("name", ["un", "batchnorm"])
def test_training_refuses_batched_gradients(name):
    norm, x = build(name, training=True), draw().requires_grad_()
    y = norm(x)
    before = copy_state(norm)
    with pytest.raises(RuntimeError, match="batched gradient"):
        torch.autograd.grad(y, x, torch.randn(5, *y.shape), is_grads_batched=True)
    assert_same(norm.state_dict(), before)


ORDINARY = [(name, False) for name in BUILDERS] + [(name, True) for name in STATELESS]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(("name", "training"), ORDINARY)
def test_ordinary_norms_have_every_derivative(name, training):
    """In evaluation, and in training without state, against finite differences and against each other."""
    norm, x = build(name, training), draw(3)
    parameters = {key: value.detach().requires_grad_() for key, value in norm.named_parameters()}
    used = {k: v for k, v in parameters.items() if not (name == "prepbn" and k.startswith("base_norm"))}

    def call(x, *values):
        return functional_call(norm, dict(zip(used, values, strict=True)), (x,))

    inputs = (x.clone().requires_grad_(), *used.values())
    assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, inputs)
    jacobian = torch.autograd.functional.jacobian(norm, x)
    for transform in (jacrev, jacfwd):
        torch.testing.assert_close(transform(norm)(x), jacobian)
    stacked = draw(2, 3)
    torch.testing.assert_close(vmap(norm)(stacked), torch.stack([norm(part) for part in stacked]))


@pytest.mark.parametrize("kind", [RMSNorm, DynamicTanh])
def test_stateless_norms_have_second_derivatives_without_affine_parameters(kind):
    norm = kind(C, affine=False)
    assert torch.autograd.gradgradcheck(norm, (draw(3).requires_grad_(),))


@pytest.mark.parametrize("name", STATISTICAL)
def test_lent_parameters_are_those_of_the_backward(name):
    """`functional_call` takes its parameters back before the backward runs, which must not use the norm's own."""
    norm = build(name, training=True)
    lent = {key: (value.detach() * 3).requires_grad_() for key, value in norm.named_parameters()}
    replaced = copy.deepcopy(norm)
    replaced.load_state_dict({**replaced.state_dict(), **lent})
    x, upstream = draw(), draw()
    results = []
    for call in (lambda x: functional_call(norm, lent, (x,)), replaced):
        leaf = x.clone().requires_grad_()
        call(leaf).backward(upstream)
        results.append(leaf.grad)
    assert torch.equal(*results)
    assert_same({k: v.grad for k, v in lent.items()}, {k: v.grad for k, v in replaced.named_parameters()})
    assert_same(dict(norm.named_buffers()), dict(replaced.named_buffers()))


@pytest.mark.parametrize("name", STATISTICAL)
def test_lent_buffers_are_moved_or_refused(name):
    """A backward that moves buffers cannot move those that `functional_call` has taken back by then."""
    norm = build(name, training=True)
    replaced, own = copy.deepcopy(norm), copy_state(norm)
    lent = {key: value.clone() for key, value in norm.named_buffers()}
    x, upstream = draw(), draw()
    leaf = x.clone().requires_grad_()
    y, expected = functional_call(norm, lent, (leaf,)), replaced(x.requires_grad_())
    assert torch.equal(y, expected)
    if norm.gradient_state:
        with pytest.raises(RuntimeError, match=r"^.*pass only parameters to functional_call.*$"):
            y.backward(upstream)
    else:
        y.backward(upstream)
        expected.backward(upstream)
        assert torch.equal(leaf.grad, x.grad)
    assert_same(norm.state_dict(), own)
    moved = {key: value for key, value in replaced.named_buffers() if key not in norm.gradient_state}
    assert_same({key: lent[key] for key in moved}, moved)
