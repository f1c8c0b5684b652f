"""Surgery on norms of other projects: what they do is carried, and what is not understood is refused or noted."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from tests import foreign_norms as foreign
from tests.standins import RowScale
from un.norms import UnifiedNorm
from un.surgery import is_norm, replace_norms
from un.surgery.layout import find_inner

C = 8
LAYER_NORM = partial(nn.LayerNorm, eps=1e-6)
RMS_NORM = partial(nn.RMSNorm, eps=1e-6)


def build(*modules: nn.Module) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(*modules)
    for parameter in model.parameters():
        parameter.data.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize(
    ("norm_type", "factory", "shape"),
    [
        (foreign.ExponentialScaleNorm, LAYER_NORM, (2, 3, 4, C)),
        (foreign.HalvedNorm, LAYER_NORM, (3, 4, C)),
        (foreign.DeviationNorm, LAYER_NORM, (5, C)),
        (partial(foreign.RootMeanSquareNorm, offset=1.0), RMS_NORM, (5, C)),
        (lambda width: parametrizations.weight_norm(foreign.ShiftedScaleNorm(width)), LAYER_NORM, (5, C)),
        (lambda width: prune.l1_unstructured(nn.LayerNorm(width), "weight", 0.5), LAYER_NORM, (5, C)),
        (foreign.SequenceNorm, LAYER_NORM, (2, C, C)),
        (foreign.SwappedNorm, LAYER_NORM, (2, C, C, 5)),
        (foreign.MapNorm, LAYER_NORM, (2, C, C, 5)),
    ],
)
def test_a_plain_norm_takes_over_whatever_scale_and_shift_in_any_layout(norm_type, factory, shape):
    model, x = build(norm_type(C)), 3 * torch.randn(shape) + 1
    expected = model(x)
    replace_norms(model, factory)
    assert type(find_inner(model[0])) in (nn.LayerNorm, nn.RMSNorm)
    torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=1e-4)


def test_norms_without_normalized_shape_are_sites():
    model = build(foreign.MapNorm(C), foreign.RootMeanSquareNorm(C))
    report = replace_norms(model, UnifiedNorm)
    assert [(row.site, row.old) for row in report.rows] == [("0", "MapNorm(8)"), ("1", "RootMeanSquareNorm(8)")]
    assert model[0](torch.randn(2, C, 3, 4)).shape == (2, C, 3, 4)


def test_new_norms_that_cannot_take_a_scale_or_have_another_axis_are_refused():
    message = "^0: ShiftedScaleNorm does not apply the weight that it is given; .* carry_affine=False$"
    with pytest.raises(ValueError, match=message):
        replace_norms(build(nn.LayerNorm(C)), lambda width, **options: foreign.ShiftedScaleNorm(width))
    frozen = parametrizations.weight_norm(nn.LayerNorm(C))
    with pytest.raises(ValueError, match=r"^0: ParametrizedLayerNorm does not apply the weight"):
        replace_norms(build(nn.LayerNorm(C)), lambda width, **options: frozen)
    halved = nn.Sequential(foreign.HalvedNorm(C, elementwise_affine=False))
    with pytest.raises(ValueError, match=r"^0: RowScale has no weight to take that of what"):
        replace_norms(halved, RowScale)
    with pytest.raises(ValueError, match=r"^norm_factory must build norms over the last axis, but SequenceNorm"):
        replace_norms(build(nn.LayerNorm(C)), lambda width, **options: foreign.SequenceNorm(width))


# --- refused, or noted ----------------------------------------------------------------------------------------------


def test_a_norm_that_is_not_understood_is_refused_and_can_be_excluded():
    model, calls = nn.Sequential(foreign.AdaptiveNorm(C), nn.LayerNorm(C)), []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    before = list(model)
    message = r"^0 takes more inputs .*\(condition\), as adaptive norms do: exclude this AdaptiveNorm$"
    with pytest.raises(ValueError, match=message):
        replace_norms(model, RowScale)
    assert list(model) == before
    model[1](torch.randn(2, C))
    assert calls == [1]
    report = replace_norms(model, RowScale, exclude="0")
    assert model[0] is before[0]
    assert [row.site for row in report.kept] == ["0"]


def test_what_looks_like_a_norm_is_noted_and_left():
    others = [foreign.ConditionalNorm(C), foreign.LengthNorm(), foreign.MatrixNorm(C), nn.BatchNorm1d(C)]
    model = nn.Sequential(nn.LayerNorm(C), *others)
    report = replace_norms(model, RowScale)
    assert list(model)[1:] == others
    assert not any(map(is_norm, others))
    assert report.notes == (
        "1 was left: ConditionalNorm looks like a norm, "
        "but takes more inputs than one (condition), as adaptive norms do",
        "2 was left: LengthNorm looks like a norm, but has no parameter that tells the number of its channels",
        "3 was left: MatrixNorm looks like a norm, but has parameters that are not one value per channel",
    )


class Wrapper(nn.Module):
    """Passes on the attributes of the module inside, as what `torch.compile` returns does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> object:
        modules = self.__dict__["_modules"]
        return modules[name] if name in modules else getattr(modules["inner"], name)


def test_wrappers_are_looked_into():
    report = replace_norms(nn.Sequential(Wrapper(nn.LayerNorm(C))), RowScale)
    assert [row.site for row in report.rows] == ["0.inner"]


def test_a_linear_layer_on_the_result_is_kept_as_what_it_is():
    model, x = build(foreign.HeadedNorm(C)), torch.randn(3, C)
    expected = model(x)
    replace_norms(model, partial(nn.LayerNorm, eps=1e-5))
    assert [type(module) for module in model[0]] == [nn.LayerNorm, nn.Linear]
    torch.testing.assert_close(model(x), expected)


# --- hooks and computed weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [nn.LayerNorm(C), foreign.SequenceNorm(C)])
def test_hooks_move_to_the_new_norm_and_can_be_taken_off(norm):
    model, calls = nn.Sequential(norm), []
    handles = [
        norm.register_forward_pre_hook(lambda module, args: calls.append("before")),
        norm.register_forward_hook(lambda module, args, kwargs, y: calls.append("after"), with_kwargs=True),
        norm.register_full_backward_hook(lambda *_: calls.append("backward")),
    ]
    report = replace_norms(model, RowScale)
    x = torch.randn(2, C, C, requires_grad=True)
    model(x).sum().backward()
    assert calls == ["before", "after", "backward"]
    assert report.notes == tuple(f"0: {kind} hooks carried over" for kind in ("forward pre", "forward", "backward"))
    for handle in handles:
        handle.remove()
    model(x).sum().backward()
    assert len(calls) == 3


def test_a_hook_on_a_shared_norm_runs_once_a_call():
    norm, calls = nn.LayerNorm(C), []
    norm.register_forward_hook(lambda *_: calls.append(1))
    model = nn.Sequential(norm, norm)
    replace_norms(model, RowScale)
    model(torch.randn(2, C))
    assert len(calls) == 2


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_computed_weights_and_hooks_of_state_dicts_are_named():
    model = nn.Sequential(nn.LayerNorm(C), prune.l1_unstructured(nn.LayerNorm(C), "weight", 0.5), nn.LayerNorm(C))
    nn.utils.parametrize.register_parametrization(model[0], "weight", Doubled())
    model[2].register_state_dict_post_hook(lambda *_: None)
    notes = replace_norms(model, RowScale).notes
    expected = ("0: .*Doubled of weight", "1: .*L1Unstructured of weight", "2: state dict hooks dropped")
    assert all(re.search(pattern, note) for pattern, note in zip(expected, notes, strict=True))
    assert torch.equal(model[0].weight, torch.full((C,), 2.0))
    assert all(not module._forward_pre_hooks for module in model)
