"""Norms inside the residual stream, and projections tied to an embedding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.folding.helpers import (
    C,
    check_fold,
    linear,
    make_model,
    make_tokens,
    outcomes,
    randomize,
    rules,
)
from un.folding import fold, fold_norms
from un.norms import BatchNorm
from un.surgery import replace_norms


def run_post_norm(model: nn.Module, x: Tensor) -> Tensor:
    for number in range(3):
        x = getattr(model, f"norm{number}")(x + getattr(model, f"out{number}")(getattr(model, f"in{number}")(x).relu()))
    return model.head(x)


def make_post_norm() -> nn.Module:
    norms = {f"norm{number}": BatchNorm(C) for number in range(3)}
    layers = {f"{side}{number}": linear(bias=side == "in") for side in ("in", "out") for number in range(3)}
    return make_model(run_post_norm, **norms, **layers, head=linear())


def test_post_norm_blocks_fold_in_the_cumulative_form():
    model = make_post_norm()
    _, report = check_fold(model, make_tokens(), on_unfoldable="raise")
    assert rules(report) == {"norm0": "R8 cumulative", "norm1": "R8 cumulative", "norm2": "R1"}
    scales = [getattr(model, f"norm{number}").affine()[0].detach().double() for number in range(2)]
    product = scales[0] * scales[1]
    assert report.condition == pytest.approx(float(product.abs().max() / product.abs().min()), rel=1e-6)


@pytest.mark.parametrize(("weight", "reason"), [(0.0, "a scale is 0"), (1e-5, "differ by a factor of")])
def test_post_norm_blocks_fall_back_to_the_local_form(weight, reason):
    model = make_post_norm()
    model.norm0.weight.data[2] = weight
    folded, report = check_fold(model, make_tokens())
    assert outcomes(report) == {"norm0": "multiply", "norm1": "folded", "norm2": "folded"}
    assert rules(report)["norm0"] == "R8 local"
    assert reason in report.rows[0].stays
    assert folded.norm0.shift is None


def test_a_product_that_costs_precision_is_not_carried_on(monkeypatch):
    model = make_post_norm()
    _, cumulative = fold_norms(model, make_tokens())
    assert cumulative.condition > 1
    monkeypatch.setitem(fold.PRECISION, torch.float32, 0.0)
    folded, report = fold_norms(model, make_tokens())
    assert outcomes(report) == {"norm0": "multiply", "norm1": "multiply", "norm2": "folded"}
    assert report.condition == 1
    assert "differ by a factor of" in report.rows[0].stays
    torch.testing.assert_close(folded(*make_tokens()), model.eval()(*make_tokens()))


def test_a_kept_norm_that_reads_normed_and_other_tokens_keeps_the_norm_before_it():
    """As class attention of XCiT: only the first token of a stream is normalised."""

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        first = model.first(x[:, :1])
        stream = torch.cat((first + model.fc(first).relu(), x[:, 1:]), 1)
        return model.second(stream).tanh()

    model = make_model(forward, first=BatchNorm(C), second=BatchNorm(C), fc=linear())
    _, report = check_fold(model, make_tokens())
    assert outcomes(report) == {"first": "multiply-add", "second": "multiply-add"}


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("offline", [True, False])
def test_the_encoder_of_torch_folds_and_never_takes_its_fused_kernel(norm_first, offline):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(C, 2, 12, batch_first=True, norm_first=norm_first)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), linear())
    if offline:
        replace_norms(model, BatchNorm)
    _, report = check_fold(randomize(model), make_tokens())
    affine = {"affine folded"} if norm_first else {"affine folded", "kept"}
    assert set(outcomes(report).values()) == ({"folded"} if offline else affine)
