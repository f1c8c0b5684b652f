"""Second derivatives, forward mode and torch.func: right, or refused."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, vmap

from tests.norms.helpers import BUILDERS, STATELESS, STATISTICAL, C, advance, assert_same, copy_state

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


TRANSFORMS = {
    "grad": lambda norm: grad(lambda x: norm(x).square().sum())(draw()),
    "vmap": lambda norm: vmap(norm)(draw(5, 4, 3)),
    "forward mode": push_tangent,
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ["un", "batchnorm"])
def test_training_is_never_silently_wrong_in_a_transform(name, transform):
    with pytest.raises((RuntimeError, NotImplementedError)):
        TRANSFORMS[transform](build(name, training=True))


@pytest.mark.parametrize("name", STATISTICAL)
def test_batched_gradients_in_training_are_right_or_refused(name):
    norm, x = build(name, training=True), draw().requires_grad_()
    y = norm(x)
    upstream = torch.randn(5, *y.shape)
    if norm.gradient_state:
        with pytest.raises(RuntimeError):
            torch.autograd.grad(y, x, upstream, is_grads_batched=True)
    else:
        (found,) = torch.autograd.grad(y, x, upstream, is_grads_batched=True, retain_graph=True)
        expected = [torch.autograd.grad(y, x, part, retain_graph=True)[0] for part in upstream]
        torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("constant", [True, False])
# TaperNorm's training is made of ordinary operations, as LayerNorm's is, and has a second derivative.
@pytest.mark.parametrize("name", [name for name in STATISTICAL if not name.startswith("tapernorm")])
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


ORDINARY = [(name, False) for name in BUILDERS] + [(name, True) for name in STATELESS]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(("name", "training"), ORDINARY)
def test_ordinary_norms_have_every_derivative(name, training):
    """In evaluation, and in training without state, against finite differences."""
    norm, x = build(name, training), draw(3)
    parameters = {key: value.detach().requires_grad_() for key, value in norm.named_parameters()}
    used = {k: v for k, v in parameters.items() if not (name == "prepbn" and k.startswith("base_norm"))}

    def call(x, *values):
        return functional_call(norm, dict(zip(used, values, strict=True)), (x,))

    inputs = (x.clone().requires_grad_(), *used.values())
    assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, inputs)
    stacked = draw(2, 3)
    torch.testing.assert_close(vmap(norm)(stacked), torch.stack([norm(part) for part in stacked]))


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
