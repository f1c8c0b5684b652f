"""Folding what can leave norms of other projects: by measurement, not by the names of their parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests import foreign_norms as foreign
from tests.folding.helpers import C, Scale, check_fold, linear, make_model, make_tokens, outcomes, randomize
from un.folding import fold_norms
from un.folding.sites import find_scaled_axis
from un.norms import BatchNorm, DynamicTanh, PowerNorm, UnifiedNorm
from un.surgery import replace_norms
from un.surgery.recognition import recognize_norm


def apply_norm_and_layer(m, x):
    return m.fc(m.norm(x))


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm(C),
        nn.RMSNorm(C),
        foreign.ShiftedScaleNorm(C),
        foreign.ExponentialScaleNorm(C),
        foreign.HalvedNorm(C),
        foreign.DeviationNorm(C),
        parametrizations.weight_norm(foreign.ShiftedScaleNorm(C)),
        DynamicTanh(C),
        foreign.TanhNorm(C),
        PowerNorm(C, num_groups=2),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_scale_and_shift_leave_and_a_bare_norm_stays(norm):
    model = make_model(apply_norm_and_layer, norm=norm, fc=linear())
    folded, report = check_fold(model, make_tokens())
    assert outcomes(report) == {"norm": "affine folded"}
    left = recognize_norm(folded.norm)
    scale = torch.ones(C) if left.scale is None else left.scale.float()
    torch.testing.assert_close(scale, scale[:1].expand(C), rtol=1e-5, atol=0)
    assert left.shift is None or not left.shift.any()


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_norm_that_computes_in_float32_folds_to_its_precision(offset):
    model = make_model(apply_norm_and_layer, norm=foreign.RootMeanSquareNorm(C, offset), fc=linear())
    folded, report = fold_norms(model, make_tokens())
    assert outcomes(report) == {"norm": "affine folded"}
    assert torch.equal(folded.norm.weight, torch.full((C,), 1 - offset))
    x = make_tokens()[0] + 1
    torch.testing.assert_close(folded(x), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm_type", [foreign.SequenceNorm, foreign.SwappedNorm])
@pytest.mark.parametrize(("reader", "outcome"), [(nn.Conv1d(C, 4, 1), "folded"), (nn.ReLU(), "multiply-add")])
def test_norms_of_sequences_fold_or_stay_along_their_axis(norm_type, reader, outcome):
    model = nn.Sequential(norm_type(C), reader)
    replace_norms(model, BatchNorm)
    _, report = check_fold(randomize(model), make_tokens(2, C, 5))
    assert outcomes(report) == {"0": outcome}
    assert report.rows[0].norm == "ChannelFirst(BatchNorm(8))"


def test_a_parameter_that_others_hold_keeps_its_values():
    norm = foreign.ShiftedScaleNorm(C)
    model = make_model(lambda m, x: m.fc(m.norm(x)) + m.gain, norm=norm, fc=linear())
    model.gain = norm.weight
    folded, _ = fold_norms(randomize(model), make_tokens())
    assert torch.equal(folded.gain, model.gain)


def test_a_norm_with_a_linear_layer_of_its_own_stays_with_its_reason():
    norm = foreign.HeadedNorm(C)
    model = make_model(apply_norm_and_layer, norm=norm, fc=linear())
    _, report = fold_norms(model, make_tokens())
    assert outcomes(report) == {"norm": "kept"}
    assert report.rows[0].stays == "applies Linear to its result"


def test_the_condition_of_an_adaptive_norm_is_followed():
    model = make_model(
        lambda m, x, condition: m.fc(m.adaptive(x, m.norm(condition))),
        norm=UnifiedNorm(4),
        adaptive=foreign.AdaptiveNorm(C),
        fc=linear(),
    )
    inputs = (*make_tokens(), *make_tokens(3, 5, 4))
    _, report = check_fold(model, inputs)
    assert outcomes(report) == {"norm": "folded", "adaptive": "kept"}
    assert report.rows[0].into == ("adaptive.modulation.weight", "adaptive.modulation.bias")


def test_hooks_stay_with_what_takes_the_place_of_a_norm():
    model, seen = make_model(apply_norm_and_layer, norm=UnifiedNorm(C), fc=linear()), []
    model.norm.register_forward_hook(lambda *_: seen.append(1))
    folded, report = fold_norms(model, make_tokens())
    assert outcomes(report) == {"norm": "folded"}
    seen.clear()
    folded(*make_tokens())
    assert seen == [1]


# --- LayerScales ----------------------------------------------------------------------------------------------------


class ShiftedScale(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e-3


class ResidualScale(Scale):
    def forward(self, x: Tensor, residual: Tensor | float = 0.0) -> Tensor:
        return super().forward(x) + residual


class AssertingScale(Scale):
    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 4, "maps only"
        return super().forward(x)


@pytest.mark.parametrize(
    ("module", "axis"),
    [
        (Scale(), -1),
        (Scale((-1, 1)), -2),
        (Scale((1, -1, 1, 1)), 1),
        (AssertingScale((-1, 1, 1)), 1),
        (ShiftedScale(), None),
        (ResidualScale(), None),
        (nn.PReLU(C), None),
    ],
)
def test_a_layer_scale_is_known_by_what_it_does(module, axis):
    assert find_scaled_axis(module) == axis
