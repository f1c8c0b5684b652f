"""What folding leaves behind: norms that are not offline, types, shared modules, errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.folding.helpers import (
    C,
    Model,
    check_fold,
    linear,
    list_norm_keys,
    make_model,
    make_tokens,
    outcomes,
    rules,
)
from un.folding import fold_norms
from un.norms import BatchNorm


def test_the_affine_before_a_residual_stays():
    model = make_model(lambda m, x: (lambda y: y + m.fc(y).relu())(m.norm(x)), norm=nn.LayerNorm(C), fc=linear())
    folded, report = check_fold(model, make_tokens())
    assert outcomes(report) == {"norm": "kept"}
    assert torch.equal(folded.norm.weight, model.norm.weight)


def test_a_norm_that_is_not_reached_is_kept():
    model = make_model(lambda m, x: m.fc(m.norm(x)), norm=BatchNorm(C), spare=BatchNorm(C), fc=linear())
    folded, report = check_fold(model, make_tokens())
    assert outcomes(report) == {"norm": "folded", "spare": "kept"}
    assert "not reached" in report.rows[1].stays
    assert isinstance(folded.spare, BatchNorm)


def test_a_shared_norm_leaves_all_its_names():
    norm = BatchNorm(C)
    model = make_model(lambda m, x: m.a(m.first(x)) + m.b(m.second(x.cos())), first=norm, second=norm)
    model.a, model.b = linear(), linear()
    folded, report = check_fold(model, make_tokens(), on_unfoldable="raise")
    assert rules(report) == {"first, second": "R1"}
    assert isinstance(folded.first, nn.Identity)
    assert folded.second is folded.first


def test_a_norm_called_with_a_mask_leaves_a_module_that_takes_one():
    model = make_model(
        lambda m, x: m.fc(m.norm(x, torch.zeros(x.shape[:-1], dtype=torch.bool))), norm=BatchNorm(C), fc=linear()
    )
    folded, report = check_fold(model, make_tokens(), on_unfoldable="raise")
    assert isinstance(folded.norm, nn.Identity)
    assert list_norm_keys(folded, report) == []


def test_half_precision_weights_stay_half():
    model = make_model(lambda m, x: m.fc(m.norm(x)), norm=BatchNorm(C), fc=linear(bias=False)).bfloat16()
    x = make_tokens()[0].bfloat16()
    folded, _ = fold_norms(model, (x,), on_unfoldable="raise")
    assert {value.dtype for value in folded.state_dict().values()} == {torch.bfloat16}
    torch.testing.assert_close(folded(x), model(x), rtol=0.05, atol=0.05)


def test_a_value_that_does_not_fit_the_type_is_an_error():
    model = make_model(lambda m, x: m.fc(m.norm(x)), norm=BatchNorm(C), fc=linear()).half()
    model.fc.weight.data.fill_(3e4)
    model.norm.running_var.fill_(1e-4)
    with pytest.raises(ArithmeticError, match=r"fc.weight does not fit torch.float16 after folding"):
        fold_norms(model, (make_tokens()[0].half(),))


def test_a_model_in_training_mode_stays_in_it_and_the_folded_one_can_be_trained():
    model = make_model(lambda m, x: m.fc(m.norm(x)), norm=BatchNorm(C), fc=linear(bias=False))
    expected = model(*make_tokens())
    folded, _ = fold_norms(model.train(), make_tokens())
    assert model.training
    torch.testing.assert_close(folded(*make_tokens()), expected)
    folded(*make_tokens()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in folded.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_unfoldable": "ignore"}, "on_unfoldable must be one of keep, raise, got 'ignore'"),
        ({"tied": "both"}, "tied must be one of untie, keep, got 'both'"),
        ({"example_inputs": "x"}, "example_inputs must be a tensor, a tuple of inputs .* got str"),
        ({"model": linear()}, "Linear has no norm to fold"),
        ({"model": Model(lambda m, x: None, norm=BatchNorm(C))}, "the model must return tensors .* got NoneType"),
    ],
)
def test_wrong_arguments(options, message):
    model = make_model(lambda m, x: m.fc(m.norm(x)), norm=BatchNorm(C), fc=linear())
    with pytest.raises(ValueError, match=message):
        fold_norms(**{"model": model, "example_inputs": make_tokens(), **options})
