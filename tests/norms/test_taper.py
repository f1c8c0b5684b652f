"""TaperNorm against its formulas: the gate, the running means, what is fixed at k_w, the anchor, folding."""

import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.norms.helpers import C, assert_same, step
from un.folding import fold_norms
from un.norms import TaperNorm, set_training_length
from un.norms.core.penalties import sum_penalties
from un.surgery import mark_final_norms, replace_norms

pytestmark = pytest.mark.usefixtures("double")
START, END, MOMENTUM, EPS = 3, 7, 0.5, 1e-5
both = pytest.mark.parametrize("base", ["rmsnorm", "layernorm"])


def make_norm(base: str, **options: object) -> TaperNorm:
    norm = TaperNorm(C, base=base, start_steps=START, end_steps=END, momentum=MOMENTUM, eps=EPS, **options)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def make_batch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, grad = torch.randn(2, 4, 5, C, generator=generator)
    return 3 * x + 1, grad, torch.rand(4, 5, generator=generator) < 0.3


def normalize(base: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.rms_norm(x, (C,), weight, EPS) if base == "rmsnorm" else F.layer_norm(x, (C,), weight, bias, EPS)


def gate(k: int) -> float:
    return 1.0 if k <= START else 0.0 if k >= END else 0.5 * (1 + math.cos(math.pi * (k - START) / (END - START)))


@both
@pytest.mark.parametrize("masked", [False, True])
def test_every_step(base: str, masked: bool) -> None:
    """The reference is written from the published formulas; its parameters follow the norm's."""
    norm, means, scale = make_norm(base), None, None
    for k in range(END + 3):
        x, grad, mask = make_batch(k)
        weight = norm.weight.detach().clone()
        bias = None if norm.bias is None else norm.bias.detach().clone()
        valid = x[~mask] if masked else x.view(-1, C)
        if k <= START:
            row = normalize(base, valid, weight, None)
            found = torch.stack([(row * valid * weight).sum(-1).mean(), (valid * weight).square().sum(-1).mean()])
            means = found if means is None else torch.lerp(means, found, max(1 / (k + 1), 1 - MOMENTUM))
        y, x_grad, weight_grad, _ = step(norm, x, grad, mask if masked else None)
        if k == START:
            scale = means[0] / means[1]
            assert torch.equal(norm.fixed_weight, weight)
        leaves = [x.clone().requires_grad_(), weight.requires_grad_(), norm.fixed_weight.detach().requires_grad_()]
        fixed_bias = 0 if norm.bias is None else norm.fixed_bias.detach()
        expected = gate(k) * normalize(base, leaves[0], leaves[1], bias)
        if k > START:
            expected = expected + (1 - gate(k)) * (scale * leaves[0] * leaves[2] + fixed_bias)
            assert norm.fixed_scale == pytest.approx(scale.item(), rel=1e-12)
        expected.backward(grad)
        own_grads = [x_grad, weight_grad, norm.fixed_weight.grad]
        wanted = [leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves]
        assert_same([y, *own_grads], [expected.detach(), *wanted], 1e-11)
        with torch.no_grad():
            for parameter in norm.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
    a, e = norm.eval().affine()
    assert torch.allclose(norm(x), a * x + e, rtol=1e-13)
    assert torch.equal(a, norm.fixed_scale * norm.fixed_weight)


def test_evaluation_in_mid_taper_uses_the_present_gate() -> None:
    norm = make_norm("rmsnorm")
    for k in range(START + 2):
        step(norm, *make_batch(k)[:2])
    x = make_batch(9)[0]
    assert norm.watch()["gate"].item() == pytest.approx(gate(START + 2))
    fixed = norm.fixed_scale * norm.fixed_weight * x
    expected = torch.lerp(fixed, normalize("rmsnorm", x, norm.weight, None), gate(START + 2))
    assert torch.allclose(norm.eval()(x), expected)
    assert norm.affine() is None


@both
def test_the_shortest_taper(base: str) -> None:
    """k_w = k_t = 0: one call with the norm, which measures, and none after it."""
    norm = TaperNorm(C, base=base, start_steps=0, end_steps=0)
    x, grad, _ = make_batch(0)
    assert torch.allclose(step(norm, x, grad)[0], normalize(base, x, torch.ones(C), torch.zeros(C)))
    assert norm.eval().affine() is not None


def test_a_refused_batch_leaves_no_trace() -> None:
    norm, twin = make_norm("layernorm"), make_norm("layernorm")
    twin.load_state_dict(norm.state_dict())
    for k in range(END):
        x, grad, mask = make_batch(k)
        step(norm, x, grad)
        step(twin, x, grad)
        step(norm, x * math.inf, grad)
        step(norm, x, grad, torch.ones_like(mask))
    assert norm.nonfinite_counter == END
    twin.nonfinite_counter.fill_(END)
    assert_same(norm.state_dict(), twin.state_dict())


class Classifier(nn.Sequential):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.norm, self.head = (
            nn.LayerNorm(C),
            nn.Linear(C, C),
            nn.LayerNorm(C),
            nn.Linear(C, 3),
        )


def make_model(**options: object) -> Classifier:
    torch.manual_seed(0)
    model = Classifier()
    replace_norms(model, lambda c, **place: TaperNorm(c, **options, **place))
    mark_final_norms(model, ["norm", "fc_norm"])
    return model


def test_a_final_norm_is_anchored() -> None:
    """λ · mean of (s - s*)², s* the mean before k_w; only in training, only after k_w, only there."""
    model = make_model(start_steps=2, end_steps=5, anchor_weight=0.25)
    sizes, hidden = [], []
    model.norm.register_forward_pre_hook(lambda norm, inputs: hidden.append(inputs[0]))
    for k in range(4):
        model(make_batch(k)[0])
        size = (hidden[-1].square().mean(-1) + 1e-5).sqrt()
        if k <= 2:
            sizes.append(size.mean())
        penalty = sum_penalties(model)
        expected = 0.25 * (size - torch.stack(sizes).mean().detach()).square().mean() if k > 2 else torch.zeros(())
        torch.testing.assert_close(penalty, expected)
        if k > 2:
            own, reference = (
                torch.autograd.grad(value, model.inner.weight, retain_graph=True)[0] for value in (penalty, expected)
            )
            torch.testing.assert_close(own, reference)
    assert model.first.penalty() is None
    model.eval()(make_batch(0)[0])
    assert sum_penalties(model) is None


def test_folding_waits_for_the_end_of_the_taper() -> None:
    model = make_model()
    set_training_length(model, 10)
    x = make_batch(0)[0]
    for k in range(10):
        if k == 5:
            partly, report = fold_norms(model, (x,))
            assert "its taper has not ended: the gate is 0.655" in str(report)
            assert torch.allclose(partly(x), copy.deepcopy(model).eval()(x), rtol=1e-10)
        model(make_batch(k)[0])
    folded, report = fold_norms(model, (x,), on_unfoldable="raise")
    assert not any(isinstance(module, TaperNorm) for module in folded.modules())
    assert torch.allclose(folded(x), model.eval()(x), rtol=1e-10)


BAD = (
    ({"start_fraction": 0.8, "end_fraction": 0.3}, "the taper must not end before it begins: it ends at 0.3"),
    ({"start_fraction": 0.9}, "the taper must not end before it begins: it ends at 0.8 and begins at 0.9"),
    ({"start_steps": 5, "end_steps": 4}, "the taper must not end before it begins: it ends at 4"),
    ({"end_fraction": 1.1}, "end_fraction must be between 0 and 1, got 1.1"),
    ({"start_steps": 5, "start_fraction": 0.1}, "start_steps=5 and start_fraction=0.1 exclude each other"),
    ({"base": "batchnorm"}, "base must be one of rmsnorm, layernorm, got batchnorm"),
    ({"anchor_weight": -1}, "anchor_weight must be at least 0, got -1"),
)


@pytest.mark.parametrize(("options", "words"), BAD)
def test_bad_options_are_one_clear_line(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}.*$"):
        TaperNorm(C, **options)


def test_a_taper_with_one_number_and_one_fraction_is_compared_once_the_length_is_known() -> None:
    norm = TaperNorm(C, start_steps=9)
    with pytest.raises(ValueError, match="it ends at step 8 and begins at 9"):
        set_training_length(norm, 10)
